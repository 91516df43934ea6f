//! Pod sandboxes: one file per CRI verb, the decisions beside them.

pub(crate) mod files;
pub(crate) mod oci_spec;
pub(crate) mod port_forward;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod spec;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod teardown;
pub(crate) mod update;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::scope;
use spec::Spec;
use state::Phase;

/// A sandbox as the world sees it; the same value is its record on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Sandbox {
    pub(crate) id: Id,
    pub(crate) spec: Spec,
    pub(crate) created_at_ns: i64,
    pub(crate) phase: Phase,
    /// The cgroup below which the sandbox and its containers have their leaves.
    pub(crate) cgroup_parent: String,
    /// Whether `cgroup_parent` was made by us, so that it goes with the sandbox.
    pub(crate) owns_cgroup_parent: bool,
    /// Empty until the network is attached, and for pods on the node's network.
    pub(crate) addresses: Vec<IpAddr>,
    /// The process that holds the namespaces; 0 before it exists.
    pub(crate) pause_pid: i32,
    /// The level of its labels, where the node has SELinux.
    #[serde(default)]
    pub(crate) selinux_level: Option<String>,
    /// The UTS host name inside.
    pub(crate) hostname: String,
}

impl Sandbox {
    /// The leaf of one member: with its own id, so that cAdvisor can tell whose it is.
    pub(crate) fn cgroup_of(&self, member: &Id) -> String {
        match self.cgroup_parent.ends_with(".slice") {
            true => scope::group(&self.cgroup_parent, member),
            false => format!("{}/{member}", self.cgroup_parent),
        }
    }
}
