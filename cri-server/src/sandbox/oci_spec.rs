//! The OCI configuration of a sandbox's pause process. Pure.

use serde_json::{Value, json};

use super::Sandbox;
use super::spec::NamespaceMode;
use crate::container::oci_spec::OCI_VERSION;

/// The least share of the CPU: pause only waits.
const CPU_SHARES: u64 = 2;

/// Pause holds the pod's namespaces: it should be the last to be chosen by the OOM killer.
const OOM_SCORE_ADJ: i32 = -998;

/// Which network namespace it is comes by descriptor; the path here only says that it is the pod's.
pub(crate) fn pause(sandbox: &Sandbox) -> Value {
    let spec = &sandbox.spec;
    let mut namespaces = vec![json!({ "type": "mount" })];
    if spec.network == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "uts" }));
        namespaces.push(json!({ "type": "network", "path": "/proc/self/ns/net" }));
    }
    if spec.ipc == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "ipc" }));
    }
    // Only a shared pid namespace needs pause as its pid 1.
    if spec.pid == NamespaceMode::Pod {
        namespaces.push(json!({ "type": "pid" }));
    }
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "user": { "uid": 65_535, "gid": 65_535 },
            "args": ["/pause"],
            "cwd": "/",
            "capabilities": {},
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE_ADJ,
        },
        "root": { "path": "rootfs", "readonly": true },
        "annotations": {
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-id": sandbox.id,
            "io.kubernetes.cri.sandbox-name": spec.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": spec.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": spec.metadata.uid,
        },
        "linux": {
            "cgroupsPath": sandbox.cgroup_of(&sandbox.id),
            "resources": { "cpu": { "shares": CPU_SHARES } },
            "namespaces": namespaces,
            "sysctl": spec.sysctls,
        },
    });
    if spec.network == NamespaceMode::Pod {
        config["hostname"] = json!(sandbox.hostname);
    }
    config
}
