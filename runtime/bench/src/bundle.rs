//! The bundle that everybody runs: what `spec` writes, with `/bin/true` of a static busybox and the RuntimeDefault
//! profile in it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// What containers have that ask for none.
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

#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) dir: PathBuf,
    /// The profile, compiled: what the shim and the floor load.
    pub(crate) filter: Vec<u8>,
    pub(crate) filter_path: PathBuf,
    config: Value,
}

/// RuntimeDefault for the tables that the others' profiles of that name have: ours leaves one out.
fn profile(compiler: &seccomp::Compiler) -> Value {
    let mut profile = compiler.document(seccomp::Profile::RuntimeDefault, &CAPABILITIES).unwrap();
    let tables = profile["architectures"].as_array_mut().unwrap();
    if cfg!(target_arch = "x86_64") {
        tables.push(json!("SCMP_ARCH_X32"));
    }
    profile
}

impl Bundle {
    pub(crate) fn make(scratch: &Path, oci: &Path) -> Self {
        let dir = scratch.join("bundle");
        // Mount points as images have them.
        for sub in ["bin", "proc", "dev", "sys", "etc"] {
            std::fs::create_dir_all(dir.join("rootfs").join(sub)).unwrap();
        }
        std::fs::copy("/bin/busybox", dir.join("rootfs/bin/busybox")).unwrap();
        symlink("busybox", dir.join("rootfs/bin/true")).unwrap();
        let status = Command::new(oci).arg("spec").current_dir(&dir).status().unwrap();
        assert!(status.success(), "{} spec: {status}", oci.display());
        let file = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        config["ociVersion"] = json!("1.0.2"); // older peers take no newer one
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/true"]);
        for set in ["bounding", "effective", "permitted"] {
            config["process"]["capabilities"][set] = json!(CAPABILITIES);
        }
        let compiler = seccomp::Compiler::open(scratch.join("seccomp")).unwrap();
        let profile = profile(&compiler);
        let profile_path = scratch.join("profile.json");
        std::fs::write(&profile_path, profile.to_string()).unwrap();
        let localhost = seccomp::Profile::File(&profile_path);
        let filter_path = compiler.program(localhost, &CAPABILITIES).unwrap();
        let filter = std::fs::read(&filter_path).unwrap();
        let mut whole = config.clone();
        whole["linux"]["seccomp"] = profile;
        std::fs::write(file, whole.to_string()).unwrap();
        Self { dir, filter, filter_path, config }
    }

    /// The paths of a list of `linux`.
    pub(crate) fn paths(&self, list: &str) -> impl Iterator<Item = &Path> {
        let list = self.config["linux"][list].as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(Path::new)
    }

    /// In a pod: its namespaces are joined, the cgroup is in the pod's, and the filter comes compiled.
    pub(crate) fn in_pod(&self, pause: i32, group: &str, args: &[&str]) -> Value {
        let mut config = self.config.clone();
        let joined = |kind: &str, file: &str| json!({ "type": kind, "path": format!("/proc/{pause}/ns/{file}") });
        config["linux"]["namespaces"] = json!([{ "type": "pid" }, { "type": "mount" },
            joined("network", "net"), joined("ipc", "ipc"), joined("uts", "uts")]);
        config["linux"]["cgroupsPath"] = json!(group);
        config["process"]["args"] = json!(args);
        if let Some(config) = config.as_object_mut() {
            config.remove("hostname"); // the pod has it
        }
        config
    }
}

pub(crate) fn capability_names() -> [&'static str; 14] {
    CAPABILITIES
}
