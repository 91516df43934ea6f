//! The images tests run: real payloads out of this machine's Debian packages.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::layer::{Layer, digest};

/// References the tests use for [`busybox`] and [`nginx`]; imports and pushes go by them.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";
pub const NGINX: &str = "docker.io/library/nginx:test";

/// Layers bottom first, as uncompressed tars, and the configuration that names them.
#[derive(Debug, Clone)]
pub struct Image {
    pub layers: Vec<Vec<u8>>,
    pub config: Vec<u8>,
}

impl Image {
    /// `settings` is the `config` object of the image: `Cmd`, `Env`, `User`…
    pub fn new(layers: Vec<Layer>, settings: Value) -> Self {
        Self::from_tars(layers.into_iter().map(Layer::into_tar).collect(), settings)
    }

    fn from_tars(layers: Vec<Vec<u8>>, settings: Value) -> Self {
        let diff_ids = layers.iter().map(|it| digest(it)).collect();
        Self { config: Self::configuration(diff_ids, &settings), layers }
    }

    /// The configuration alone, of layers that somebody else holds.
    pub fn configuration(diff_ids: Vec<String>, settings: &Value) -> Vec<u8> {
        let history: Vec<_> = diff_ids.iter().map(|_| json!({ "created_by": "test" })).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": settings,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        config.to_string().into_bytes()
    }

    /// Another image on top of this one.
    pub fn with(&self, layer: Layer, settings: Value) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer.into_tar());
        Self::from_tars(layers, settings)
    }

    /// The image's id: the digest of its configuration.
    pub fn id(&self) -> String {
        digest(&self.config)
    }
}

/// Debian's static busybox under all its names; accounts root, `app` (1000, also in the group
/// `extra` 1234) and nobody. Runs a shell.
pub fn busybox() -> Image {
    Image::new(vec![busybox_layer()], json!({ "Cmd": ["sh"], "Env": [PATH] }))
}

/// Debian's nginx with the libraries it needs, on top of busybox. Serves `/` on port 80 with the
/// body `served by nginx`.
pub fn nginx() -> Image {
    let nginx = "/usr/sbin/nginx";
    let mut layer = Layer::default()
        .dir("usr", 0o755)
        .dir("usr/sbin", 0o755)
        .host_file("usr/sbin/nginx", nginx);
    for library in libraries_of(nginx) {
        layer = layer.host_file(library.trim_start_matches('/'), &library);
    }
    for dir in
        ["etc/nginx", "srv", "run", "var", "var/log", "var/log/nginx", "var/lib", "var/lib/nginx"]
    {
        layer = layer.dir(dir, 0o755);
    }
    let layer = layer.file("etc/nginx/nginx.conf", 0o644, NGINX_CONF).file(
        "srv/index.html",
        0o644,
        "served by nginx\n",
    );
    busybox().with(
        layer,
        json!({
            "Cmd": ["nginx", "-g", "daemon off;"],
            "Env": [PATH],
            "ExposedPorts": { "80/tcp": {} },
            "StopSignal": "SIGQUIT",
        }),
    )
}

const PATH: &str = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";

/// One process and the log on standard output, as the official image has it.
const NGINX_CONF: &str = "\
user root;
worker_processes 1;
error_log stderr;
pid /run/nginx.pid;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server { listen 80; root /srv; }
}
";

/// The one layer of [`busybox`].
pub(crate) fn busybox_layer() -> Layer {
    let busybox = "/bin/busybox";
    let applets =
        Command::new(busybox).arg("--list").output().expect("busybox-static is installed");
    let mut layer = Layer::default()
        .dir("bin", 0o755)
        .host_file("bin/busybox", busybox)
        .dir("dev", 0o755)
        .dir("etc", 0o755)
        .dir("proc", 0o555)
        .dir("root", 0o700)
        .dir("sys", 0o555)
        .dir("tmp", 0o1777)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .file("etc/group", 0o644, "root:x:0:\napp:x:1000:\nextra:x:1234:app\nnogroup:x:65534:\n");
    for applet in String::from_utf8(applets.stdout).unwrap().lines().filter(|it| *it != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    layer
}

/// What the dynamic linker would load, the linker itself included.
pub(crate) fn libraries_of(binary: &str) -> Vec<String> {
    assert!(Path::new(binary).exists(), "{binary} is missing");
    let listed = Command::new("ldd").arg(binary).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let paths = listed.split_whitespace().filter(|it| it.starts_with('/'));
    paths.map(str::to_owned).filter(|it| fs::metadata(it).is_ok()).collect()
}
