//! Image layers as the root file system of a container with a user namespace: made with the host's credentials,
//! owned by the ids of the namespace. Needs root.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use container::sys::process::fork;
use container::{
    Creation, Extras, Facts, Layers, Program, Report, Rootfs, Start, Stdio, Upper, channel, create,
    plan,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

const BUSYBOX: &str = "/bin/busybox";
const BASE: u32 = 300_000;

/// Two layers, the upper of which hides a file of the lower and replaces a directory, as an image would.
fn layers(dir: &Path) -> Layers {
    let at = |name: &str| {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("mkdir");
        path
    };
    for applet in ["sh", "cat", "stat"] {
        fs::copy(BUSYBOX, at(&format!("lower/bin/{applet}"))).expect("busybox");
    }
    for file in ["lower/gone", "lower/etc/old", "top/etc/new"] {
        fs::write(at(file), "").expect("write");
    }
    std::os::unix::fs::chown(dir.join("lower/gone"), Some(5), Some(6)).expect("chown");
    std::os::unix::fs::chown(dir.join("top/etc/new"), Some(7), Some(8)).expect("chown");
    let whiteout = rustix::fs::FileType::CharacterDevice;
    let top = File::open(dir.join("top")).expect("open");
    rustix::fs::mknodat(&top, "gone", whiteout, rustix::fs::Mode::empty(), 0).expect("whiteout");
    let opaque = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(dir.join("top/etc"), "trusted.overlay.opaque", b"y", opaque)
        .expect("setxattr");
    for name in ["own/upper", "own/work", "bundle/rootfs"] {
        fs::create_dir_all(dir.join(name)).expect("mkdir");
    }
    Layers {
        lowers: vec![dir.join("top"), dir.join("lower")],
        upper: Some(Upper { upper: dir.join("own/upper"), work: dir.join("own/work") }),
        volatile: true,
    }
}

/// Runs a script to its end; returns what it printed.
fn run(dir: &Path, rootfs: Rootfs, script: &str) -> String {
    let id = format!("layers-test-{}", std::process::id());
    let ids = format!(r#"[{{"containerID":0,"hostID":{BASE},"size":65536}}]"#);
    let spec = serde_json::json!({
        "process": { "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"] },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "user" }, { "type": "pid" }],
            "uidMappings": serde_json::from_str::<serde_json::Value>(&ids).expect("json"),
            "gidMappings": serde_json::from_str::<serde_json::Value>(&ids).expect("json"),
        },
    });
    let spec: container::Spec = serde_json::from_value(spec).expect("spec");
    let facts =
        Facts { id: id.clone(), capabilities: container::own_capabilities(), ..Default::default() };
    let plan = plan(&spec, &facts).expect("plan");
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let out = dir.join("out");
    let (input, output) =
        (File::open("/dev/null").expect("null"), File::create(&out).expect("out"));
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
    channel::expect_credentials(ours.as_fd()).expect("credentials");
    let creation = Creation {
        id: &id,
        bundle: &dir.join("bundle"),
        plan: &plan,
        node: &node,
        has_sibling: false,
        rootfs,
        stdio: Stdio::Pipes([input.as_fd(), output.as_fd(), output.as_fd()]),
        program: Program::Args,
        netns: None,
        userns: None,
        seccomp: None,
        shm: None,
        bare: None,
        trees: &[],
        channel: theirs.as_fd(),
        words: None,
        start: Start::Channel,
        sibling: true,
        extras: Extras::default(),
    };
    let creator = fork(|| match create(&creation) {
        Ok(_) => 0,
        Err(error) => {
            channel::say_failed(creation.channel, &error);
            1
        }
    });
    let creator = creator.expect("fork");
    drop(theirs);
    let mut init = 0;
    loop {
        match channel::listen(ours.as_fd()).expect("listen") {
            Report::Init { pid } => init = pid,
            Report::Ready { .. } => channel::say_start(ours.as_fd()).expect("start"),
            Report::Failed(error) => panic!("{error}"),
            Report::Closed => break,
            _ => {}
        }
    }
    for pid in [creator, init] {
        let pid = rustix::process::Pid::from_raw(pid);
        rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).expect("wait");
    }
    node.remove(&plan.cgroup).expect("remove the group");
    fs::read_to_string(out).expect("out")
}

#[test]
fn an_image_is_owned_by_the_ids_of_the_user_namespace_and_stays_as_it_is_on_disk() {
    if !rustix::process::geteuid().is_root() || !Path::new(BUSYBOX).exists() {
        let why = format!("SKIPPED: needs root and {BUSYBOX} (package busybox-static)");
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("{why}");
        return;
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let layers = layers(dir.path());
    let script =
        "cat /proc/self/uid_map; stat -c %u:%g /etc/new /etc; echo x > /etc/made; echo /etc/* /g*";
    let out = run(dir.path(), Rootfs::Layers(layers), script);
    let lines: Vec<&str> = out.lines().map(str::trim).collect();
    assert_eq!(lines[1..], ["7:8", "0:0", "/etc/made /etc/new /g*"], "whiteouts hold: {out}");
    let made = fs::metadata(dir.path().join("own/upper/etc/made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (BASE, BASE));
    let untouched = |path: &str| fs::symlink_metadata(dir.path().join(path)).expect("stat");
    assert_eq!(untouched("lower/gone").uid(), 5);
    assert!(untouched("top/gone").file_type().is_char_device());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(dir.path().to_str().expect("utf8")), "{mounts}");
}
