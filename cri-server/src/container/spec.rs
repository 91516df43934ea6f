//! What a container is asked to be: the CRI configuration after parsing, as it is kept on
//! record. A `Spec` that exists is valid.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::sandbox::spec::{NamespaceMode, StringMap};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) attempt: u32,
    pub(crate) image: ImageRef,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: String,
    /// In the order given; a later duplicate wins.
    pub(crate) envs: Vec<(String, String)>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    pub(crate) labels: StringMap,
    pub(crate) annotations: StringMap,
    /// Relative to the sandbox's log directory; empty means no log.
    pub(crate) log_path: String,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) tty: bool,
    pub(crate) resources: Resources,
    pub(crate) security: Security,
    /// A signal number of the kernel; `None` means the image's, or SIGTERM.
    pub(crate) stop_signal: Option<i32>,
}

/// How the kubelet named the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRef {
    pub(crate) image: String,
    pub(crate) user_specified_image: String,
    pub(crate) annotations: StringMap,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) container_path: String,
    pub(crate) host_path: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) recursive_read_only: bool,
    pub(crate) propagation: Propagation,
    pub(crate) selinux_relabel: bool,
    /// `noexec`, `nodev`, `nosuid`.
    pub(crate) options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Propagation {
    Private,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) container_path: String,
    pub(crate) host_path: PathBuf,
    /// A subset of `rwm`.
    pub(crate) permissions: String,
}

/// The values of CRI; zero and empty mean «not given», as on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resources {
    pub(crate) cpu_period_us: i64,
    pub(crate) cpu_quota_us: i64,
    pub(crate) cpu_shares: i64,
    pub(crate) memory_limit_bytes: i64,
    pub(crate) memory_swap_limit_bytes: i64,
    pub(crate) oom_score_adj: i64,
    pub(crate) cpuset_cpus: String,
    pub(crate) cpuset_mems: String,
    /// Page size as the kernel spells it (`2MB`) and the limit in bytes.
    pub(crate) hugepage_limits: Vec<(String, u64)>,
    pub(crate) unified: StringMap,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Security {
    pub(crate) capabilities: CapabilityChange,
    pub(crate) privileged: bool,
    pub(crate) pid: NamespaceMode,
    pub(crate) run_as: RunAs,
    pub(crate) run_as_group: Option<u32>,
    pub(crate) supplemental_groups: Vec<u32>,
    /// `Strict`: the image's /etc/group adds nothing.
    pub(crate) strict_groups: bool,
    pub(crate) readonly_rootfs: bool,
    pub(crate) no_new_privs: bool,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    pub(crate) seccomp: Seccomp,
}

/// Names without the `CAP_` prefix, upper case; `ALL` stands for every one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilityChange {
    pub(crate) add: Vec<String>,
    pub(crate) drop: Vec<String>,
    pub(crate) add_ambient: Vec<String>,
}

/// Who the container runs as, before the image is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum RunAs {
    Image,
    Uid(u32),
    Username(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seccomp {
    Unconfined,
    RuntimeDefault,
    Localhost(PathBuf),
}
