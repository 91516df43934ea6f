//! What a container is asked to be: the CRI configuration after parsing, as it is kept on
//! record. A `Spec` that exists is valid.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(crate) use crate::sandbox::spec::Seccomp;
use crate::sandbox::spec::{
    AppArmor, IdMap, NamespaceMode, SelinuxOptions, StringMap, UserNamespace,
};

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
    /// `vendor/class=device`.
    #[serde(default)]
    pub(crate) cdi_devices: Vec<String>,
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
    /// Reported as given: this node keeps one set of images for all handlers.
    #[serde(default)]
    pub(crate) runtime_handler: String,
    /// What an earlier pull answered with.
    #[serde(default)]
    pub(crate) image_ref: String,
}

/// The files of an image, or of a directory in it, as a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageVolume {
    pub(crate) image: ImageRef,
    /// Relative; empty for the whole image.
    pub(crate) sub_path: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) container_path: String,
    /// Empty for an image volume.
    pub(crate) host_path: PathBuf,
    #[serde(default)]
    pub(crate) image: Option<ImageVolume>,
    pub(crate) readonly: bool,
    pub(crate) recursive_read_only: bool,
    pub(crate) propagation: Propagation,
    pub(crate) selinux_relabel: bool,
    /// `noexec`, `nodev`, `nosuid`.
    pub(crate) options: Vec<String>,
    /// How the ids of the files are shown; empty means as they are.
    #[serde(default)]
    pub(crate) uid_mappings: Vec<IdMap>,
    #[serde(default)]
    pub(crate) gid_mappings: Vec<IdMap>,
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
    /// The pod's, or the node's where the pod has that.
    #[serde(default)]
    pub(crate) network: NamespaceMode,
    #[serde(default)]
    pub(crate) ipc: NamespaceMode,
    pub(crate) pid: NamespaceMode,
    #[serde(default)]
    pub(crate) user_namespace: Option<UserNamespace>,
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
    #[serde(default)]
    pub(crate) apparmor: AppArmor,
    #[serde(default)]
    pub(crate) selinux: Option<SelinuxOptions>,
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
