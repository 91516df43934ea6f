//! What a pod sandbox is asked to be: the CRI configuration after parsing, as it is kept on
//! record. A `Spec` that exists is valid.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::container::spec::Resources;

/// Labels and annotations belong to the kubelet: kept and returned verbatim.
pub(crate) type StringMap = BTreeMap<String, String>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) metadata: Metadata,
    pub(crate) hostname: String,
    /// Absolute; `None` means that container logs are not written to disk.
    pub(crate) log_directory: Option<PathBuf>,
    /// `None` means a copy of the host's resolv.conf.
    pub(crate) dns: Option<Dns>,
    pub(crate) port_mappings: Vec<PortMapping>,
    #[serde(default)]
    pub(crate) bandwidth: Bandwidth,
    /// Size of the pod's /dev/shm.
    #[serde(default = "shm_bytes")]
    pub(crate) shm_bytes: u64,
    pub(crate) labels: StringMap,
    pub(crate) annotations: StringMap,
    /// The name of a configured runtime handler; empty means the default one.
    pub(crate) runtime_handler: String,
    /// Empty means a parent of our own.
    pub(crate) cgroup_parent: String,
    pub(crate) sysctls: StringMap,
    pub(crate) network: NamespaceMode,
    pub(crate) pid: NamespaceMode,
    pub(crate) ipc: NamespaceMode,
    /// `None` means the node's.
    #[serde(default)]
    pub(crate) user_namespace: Option<UserNamespace>,
    pub(crate) privileged: bool,
    #[serde(default)]
    pub(crate) confinement: Confinement,
    /// What the handler itself is said to need, and what the containers together may have.
    #[serde(default)]
    pub(crate) overhead: Resources,
    #[serde(default)]
    pub(crate) resources: Resources,
}

/// Size of a /dev/shm for which nobody asked another; the same as Docker's and the peers'.
pub(crate) const SHM_BYTES: u64 = 64 << 20;

fn shm_bytes() -> u64 {
    SHM_BYTES
}

/// How the sandbox's own process is confined; containers say that for themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Confinement {
    pub(crate) run_as_user: Option<u32>,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) supplemental_groups: Vec<u32>,
    pub(crate) strict_groups: bool,
    pub(crate) readonly_rootfs: bool,
    pub(crate) seccomp: Seccomp,
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: Option<SelinuxOptions>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    #[default]
    Unconfined,
    RuntimeDefault,
    Localhost(PathBuf),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum AppArmor {
    /// The node's own default, where it has one.
    #[default]
    NotGiven,
    Unconfined,
    RuntimeDefault,
    /// The name of a loaded profile.
    Localhost(String),
}

/// The parts of a label; an empty one is left to the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SelinuxOptions {
    pub(crate) user: String,
    pub(crate) role: String,
    pub(crate) kind: String,
    pub(crate) level: String,
}

/// A run of ids: `count` ids from `inside` are those from `outside` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) count: u32,
}

/// Both runs hold the id 0 of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserNamespace {
    pub(crate) uids: IdMap,
    pub(crate) gids: IdMap,
}

/// The identity of a sandbox: the kubelet repeats it to mean the same attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) attempt: u32,
}

impl Metadata {
    /// `namespace/name`, as people say it.
    pub(crate) fn pod(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl std::fmt::Display for Metadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} (uid {}, attempt {})", self.namespace, self.name, self.uid, self.attempt)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortMapping {
    pub(crate) protocol: Protocol,
    pub(crate) container_port: u16,
    pub(crate) host_port: u16,
    pub(crate) host_ip: Option<IpAddr>,
}

/// How fast the pod may receive and send, in bits per second; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bandwidth {
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Whose namespace of one kind is used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NamespaceMode {
    /// The pod's, shared by its containers.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The node's.
    Node,
    /// That of the named container (ephemeral debug containers).
    Target(String),
}
