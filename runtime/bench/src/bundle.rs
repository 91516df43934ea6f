//! The bundle that everybody runs: `/bin/true` of a static busybox under a filter of RuntimeDefault's size.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use libseccomp::ScmpSyscall;
use serde_json::{Value, json};

/// What RuntimeDefault profiles refuse on x86_64, by number; everything else up to the newest call is allowed by
/// name, which makes a list as long as theirs. Theirs are for the three architectures of such a machine, too.
const REFUSED: [i32; 20] = [
    101, 103, 134, 155, 156, 161, 163, 164, 165, 166, 167, 168, 169, 175, 176, 246, 272, 304, 308,
    321,
];
const NEWEST: i32 = 450;

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub(crate) const MASKED: [&str; 7] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];
pub(crate) const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    /// The filter, compiled: what the shim and the floor load.
    pub(crate) filter: Vec<u8>,
    pub(crate) filter_path: PathBuf,
}

impl Bundle {
    pub(crate) fn make(scratch: &Path) -> Self {
        let dir = scratch.join("bundle");
        for sub in ["bin", "proc", "dev", "sys", "etc"] {
            std::fs::create_dir_all(dir.join("rootfs").join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
        symlink("busybox", dir.join("rootfs/bin/true")).unwrap();
        std::fs::write(dir.join("config.json"), config(None).to_string()).unwrap();
        let compiler = seccomp::Compiler::open(scratch.join("seccomp")).unwrap();
        let filter_path =
            compiler.program(seccomp::Profile::RuntimeDefault, &CAPABILITIES).unwrap();
        let filter = std::fs::read(&filter_path).unwrap();
        Self { dir, filter, filter_path }
    }
}

/// With a pod, its namespaces are joined, the cgroup is in the pod's, and the filter comes compiled.
pub(crate) fn config(pod: Option<(i32, &str)>) -> Value {
    let secure = ["nosuid", "noexec", "nodev"];
    let namespaces = match pod {
        None => {
            json!([{ "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "mount" }])
        }
        Some((pause, _)) => json!([{ "type": "pid" }, { "type": "mount" },
            { "type": "ipc", "path": format!("/proc/{pause}/ns/ipc") },
            { "type": "uts", "path": format!("/proc/{pause}/ns/uts") }]),
    };
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
            "noNewPrivileges": true
        },
        "root": { "path": "rootfs", "readonly": true },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": secure },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": secure },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] }
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": namespaces,
            "maskedPaths": MASKED, "readonlyPaths": READ_ONLY
        }
    });
    match pod {
        None => config["linux"]["seccomp"] = profile(),
        Some((_, group)) => config["linux"]["cgroupsPath"] = json!(group),
    }
    config
}

pub(crate) fn capability_names() -> [&'static str; 14] {
    CAPABILITIES
}

fn profile() -> Value {
    let numbers = (0..NEWEST).filter(|n| !REFUSED.contains(n));
    let names: Vec<String> = numbers.filter_map(|n| ScmpSyscall::from(n).get_name().ok()).collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW" }]
    })
}
