//! The images that the CRI conformance suite asks for, made out of Debian packages and pushed to a
//! registry on loopback, so that the suite runs without a network.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::image::{Image, libraries_of};
use crate::layer::Layer;
use crate::registry::{Form, Registry};

/// The hosts that the suite's references name.
pub const HOSTS: [&str; 3] = ["registry.k8s.io", "gcr.io", "k8s.gcr.io"];

/// Where most of the suite's own images are.
const STAGING: &str = "k8s-staging-cri-tools";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\nbin:x:1:1:bin:/bin:/bin/false\n\
                        www-data:x:33:33:www-data:/var/www:/bin/false\n\
                        nobody:x:65534:65534:nobody:/home:/bin/false\n";
const GROUPS: &str = "root:x:0:\nbin:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Debian's busybox has no pgrep; this does what the suite asks of one.
const PGREP: &str = "#!/bin/sh\nfor d in /proc/[0-9]*; do\n\
                     read -r c 2>/dev/null <$d/comm && [ \"$c\" = \"$1\" ] && { echo ${d#/proc/}; f=1; }\n\
                     done\n[ -n \"$f\" ]\n";

const PAUSE: &str = "#include <signal.h>\n#include <unistd.h>\n\
                     static void end(int s) { _exit(0); }\n\
                     int main() { signal(SIGINT, end); signal(SIGTERM, end); for (;;) pause(); }\n";

/// Setuid root in its image.
const NO_NEW_PRIVILEGES: &str = "#include <stdio.h>\n#include <unistd.h>\n\
                                 int main() { printf(\"Effective uid: %d\\n\", (int)geteuid()); }\n";

/// Pushes everything. `busybox` is one whose shell looks for commands in PATH before its own
/// (Debian's package `busybox`, not `busybox-static`).
pub fn push_images(registry: &Registry, busybox: &Path) {
    let base = Image::new(vec![busybox_layer(busybox)], json!({ "Env": [PATH], "Cmd": ["sh"] }));
    let on_base = |layer: Layer, settings: Value| {
        let mut all = json!({ "Env": [PATH], "Cmd": ["sh"] });
        for (key, value) in settings.as_object().into_iter().flatten() {
            all[key] = value.clone();
        }
        base.with(layer, all)
    };
    let push = |image: &Image, repository: &str, tags: &[&str]| {
        for tag in tags {
            registry.push(image, repository, tag, Form::Oci);
        }
    };
    let staging = |image: &Image, name: &str, tags: &[&str]| {
        push(image, &format!("{STAGING}/{name}"), tags);
    };

    push(&base, "e2e-test-images/busybox", &["1.29-2", "latest"]);
    let pause = compiled(PAUSE);
    for tag in ["3.9", "3.10", "3.10.1", "3.10.2"] {
        let layer = Layer::default().file("pause", 0o755, &pause).file("version", 0o644, tag);
        let settings = json!({ "Entrypoint": ["/pause"], "Env": [PATH], "User": "65535:65535" });
        push(&Image::new(vec![layer], settings), "pause", &[tag]);
    }
    let setuid = Layer::default().file("nnp", 0o4755, compiled(NO_NEW_PRIVILEGES));
    push(&on_base(setuid, json!({ "Cmd": ["/nnp"] })), "e2e-test-images/nonewprivs", &["1.3"]);

    push(&nginx(&on_base, 80), "e2e-test-images/nginx", &["1.14-2"]);
    staging(&nginx(&on_base, 12003), "hostnet-nginx-amd64", &["latest"]);
    let httpd = json!({
        "Cmd": ["sh", "-c", "echo httpd started; exec httpd -f -p 80 -h /www"],
    });
    push(&on_base(Layer::default(), httpd), "e2e-test-images/httpd", &["2.4.39-4"]);

    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:1004"),
        ("username-group", "www-data:1004"),
    ] {
        let image = on_base(Layer::default(), json!({ "User": user }));
        staging(&image, &format!("test-image-user-{name}"), &["latest"]);
    }
    let accounts = Layer::default()
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n",
        )
        .file(
            "etc/group",
            0o644,
            "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
        );
    staging(
        &on_base(accounts, json!({ "User": "1000" })),
        "test-image-predefined-group",
        &["latest"],
    );

    let marked = |name: &str| on_base(Layer::default().file(name, 0o644, name), json!({}));
    staging(&marked("test-image-latest"), "test-image-latest", &["latest"]);
    staging(&marked("test-image-tag"), "test-image-tag", &["test", "all"]);
    for name in ["test-image-1", "test-image-2", "test-image-3"] {
        staging(&marked(name), name, &["latest"]);
    }
    staging(&marked("test-image-tags"), "test-image-tags", &["1", "2", "3"]);
}

fn busybox_layer(busybox: &Path) -> Layer {
    let path = busybox.to_str().expect("a path in UTF-8");
    let applets = Command::new(busybox).arg("--list").output().expect("busybox runs");
    let mut layer = Layer::default();
    for dir in [
        "bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "usr/sbin", "var",
        "var/www", "var/run", "sbin", "www", "mnt",
    ] {
        layer = layer.dir(dir, 0o755);
    }
    layer = layer.dir("tmp", 0o1777).host_file("bin/busybox", path);
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        if applet != "busybox" {
            layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox", 0o755);
        }
    }
    layer = layer.file("bin/pgrep", 0o755, PGREP);
    for program in [path, "/usr/bin/ipcs"] {
        layer = with_libraries(layer, program);
    }
    layer
        .host_file("usr/bin/ipcs", "/usr/bin/ipcs")
        .file("etc/passwd", 0o644, ACCOUNTS)
        .file("etc/group", 0o644, GROUPS)
        .file("www/index.html", 0o644, "hello\n")
}

fn with_libraries(mut layer: Layer, program: &str) -> Layer {
    for library in libraries_of(program) {
        layer = layer.host_file(library.trim_start_matches('/'), &library);
    }
    layer
}

fn nginx(on_base: &dyn Fn(Layer, Value) -> Image, port: u16) -> Image {
    let program = "/usr/sbin/nginx";
    let conf = format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid /var/run/nginx.pid;\n\
         error_log /dev/stderr;\nevents {{}}\n\
         http {{ access_log /dev/stdout; client_body_temp_path /tmp/b; proxy_temp_path /tmp/p;\n\
         fastcgi_temp_path /tmp/f; uwsgi_temp_path /tmp/u; scgi_temp_path /tmp/s;\n\
         server {{ listen {port}; root /www; }} }}\n"
    );
    let layer = with_libraries(Layer::default(), program)
        .host_file("usr/sbin/nginx", program)
        .dir("etc/nginx", 0o755)
        .file("etc/nginx/nginx.conf", 0o644, conf)
        .dir("var/log", 0o755)
        .dir("var/log/nginx", 0o777);
    let settings = json!({
        "Cmd": [program, "-c", "/etc/nginx/nginx.conf"],
        "ExposedPorts": { "80/tcp": {} },
        "StopSignal": "SIGQUIT",
    });
    on_base(layer, settings)
}

/// A static program out of C.
fn compiled(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().expect("a directory for a compilation");
    let (text, program) = (dir.path().join("p.c"), dir.path().join("p"));
    std::fs::write(&text, source).expect("write a source file");
    let done = Command::new("gcc").args(["-static", "-Os", "-o"]).arg(&program).arg(&text).status();
    assert!(done.expect("gcc is installed").success(), "compile {source}");
    std::fs::read(program).expect("read what was compiled")
}
