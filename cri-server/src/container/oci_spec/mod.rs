//! The OCI configuration of a container. Pure: the pod's wishes, the image's defaults and the
//! facts of the node come in, a `config.json` goes out.

mod devices;
mod mounts;
mod resources;

use std::path::Path;

use serde_json::{Value, json};

use super::capabilities;
use super::process::Process;
use super::spec::Spec;
use super::user::User;
use crate::config::Rlimit;
use crate::sandbox::Sandbox;
use crate::sandbox::spec::NamespaceMode;
use crate::selinux::Labels;

/// The version of the runtime specification whose fields are used.
pub(crate) const OCI_VERSION: &str = "1.2.0";

pub(crate) use devices::{DeviceNode, device, device_rule};
pub(crate) use mounts::id_maps;
pub(crate) use resources::resources;

/// What is known about the node, read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeFacts {
    pub(crate) cgroup_v2: bool,
    /// Whether the kernel counts swap per cgroup, so that a limit on it can be written.
    pub(crate) swap_accounting: bool,
    /// Whether pods can have user namespaces, with the layers of their images mapped.
    pub(crate) user_namespaces: bool,
}

#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) sandbox: &'a Sandbox,
    /// The sandbox's directory, which holds hosts, hostname, resolv.conf and the shm mount point.
    pub(crate) sandbox_dir: &'a Path,
    pub(crate) process: Process,
    pub(crate) user: &'a User,
    pub(crate) cgroups_path: &'a str,
    pub(crate) rlimits: &'a [Rlimit],
    /// The AppArmor profile to run under.
    pub(crate) apparmor: Option<&'a str>,
    pub(crate) labels: Option<&'a Labels>,
    /// The RDT class.
    pub(crate) rdt_class: Option<&'a str>,
    pub(crate) devices: &'a [DeviceNode],
    /// OCI's `blockIO` of the container's class.
    pub(crate) block_io: Option<Value>,
    /// Paths that the image declares to be volumes; none for other runtimes, which do not know how.
    pub(crate) image_defined: &'a [String],
    /// The process whose pid namespace is joined, for pid mode TARGET.
    pub(crate) target_pid: Option<i32>,
    pub(crate) node: NodeFacts,
}

pub(crate) fn container(input: &Input<'_>) -> Value {
    let security = &input.spec.security;
    let mut resources = resources(&input.spec.resources, &devices::device_rules(input), input.node);
    if let Some(block_io) = &input.block_io {
        resources["blockIO"] = block_io.clone();
    }
    let mut config = json!({
        "ociVersion": OCI_VERSION,
        "process": process(input),
        "root": { "path": "rootfs", "readonly": security.readonly_rootfs },
        "mounts": mounts::mounts(input),
        "annotations": {
            "io.kubernetes.cri.container-type": "container",
            "io.kubernetes.cri.container-name": input.spec.name,
            "io.kubernetes.cri.sandbox-id": input.sandbox.id,
            "io.kubernetes.cri.sandbox-name": input.sandbox.spec.metadata.name,
            "io.kubernetes.cri.sandbox-namespace": input.sandbox.spec.metadata.namespace,
            "io.kubernetes.cri.sandbox-uid": input.sandbox.spec.metadata.uid,
            "io.kubernetes.cri.image-name": input.spec.image.image,
        },
        "linux": {
            "cgroupsPath": input.cgroups_path,
            "resources": resources,
            "namespaces": namespaces(input),
            "devices": input.devices.iter().map(device).collect::<Vec<_>>(),
            "rootfsPropagation": mounts::rootfs_propagation(&input.spec.mounts),
            "maskedPaths": if security.privileged { &[] } else { &*security.masked_paths },
            "readonlyPaths": if security.privileged { &[] } else { &*security.readonly_paths },
        },
    });
    if let Some(labels) = input.labels {
        config["process"]["selinuxLabel"] = json!(labels.process);
        config["linux"]["mountLabel"] = json!(labels.mount);
    }
    if let Some(class) = input.rdt_class {
        config["linux"]["intelRdt"] = json!({ "closID": class });
    }
    config
}

/// The process object; an exec'd process is this one with other arguments.
fn process(input: &Input<'_>) -> Value {
    let security = &input.spec.security;
    let sets = capabilities::resolve(&security.capabilities, security.privileged);
    let names = |set: &[&str]| set.iter().map(|name| format!("CAP_{name}")).collect::<Vec<_>>();
    let (effective, ambient) = (names(&sets.effective), names(&sets.ambient));
    let mut process = json!({
        "terminal": input.spec.tty,
        "user": {
            "uid": input.user.uid,
            "gid": input.user.gid,
            "additionalGids": input.user.additional_gids,
        },
        "args": input.process.args,
        "env": input.process.env,
        "cwd": input.process.cwd,
        "capabilities": {
            "bounding": effective,
            "effective": effective,
            "permitted": effective,
            // The kernel lets a capability be ambient only when it is inheritable as well.
            "inheritable": ambient,
            "ambient": ambient,
        },
        "rlimits": input.rlimits.iter().map(rlimit).collect::<Vec<_>>(),
        "noNewPrivileges": security.no_new_privs,
        "oomScoreAdj": input.spec.resources.oom_score_adj,
    });
    if let Some(profile) = input.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    process
}

pub(crate) fn rlimit(limit: &Rlimit) -> Value {
    json!({ "type": limit.kind, "soft": limit.soft, "hard": limit.hard })
}

fn namespaces(input: &Input<'_>) -> Value {
    let sandbox = input.sandbox;
    let pause = |kind: &str| format!("/proc/{}/ns/{kind}", sandbox.pause_pid);
    let mut list = vec![json!({ "type": "mount" })];
    // On cgroup v1 a cgroup namespace hides nothing that the mounts do not hide already, and
    // tools that look at /proc/self/cgroup expect the host's view.
    if input.node.cgroup_v2 && !input.spec.security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    if sandbox.spec.user_namespace.is_some() {
        list.push(json!({ "type": "user", "path": pause("user") }));
    }
    if sandbox.spec.network == NamespaceMode::Pod {
        list.push(json!({ "type": "network", "path": pause("net") }));
        list.push(json!({ "type": "uts", "path": pause("uts") }));
    }
    if sandbox.spec.ipc == NamespaceMode::Pod {
        list.push(json!({ "type": "ipc", "path": pause("ipc") }));
    }
    match (&input.spec.security.pid, input.target_pid) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod, _) => match sandbox.spec.pid {
            NamespaceMode::Pod => list.push(json!({ "type": "pid", "path": pause("pid") })),
            NamespaceMode::Node => {}
            // Pause has none of its own then, and the node's was not asked for.
            _ => list.push(json!({ "type": "pid" })),
        },
        (NamespaceMode::Target(_), Some(pid)) => {
            list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        }
        (NamespaceMode::Container | NamespaceMode::Target(_), _) => {
            list.push(json!({ "type": "pid" }));
        }
    }
    Value::Array(list)
}

#[cfg(test)]
mod tests;
