//! Containers: one file per CRI verb, the decisions beside them.

pub(crate) mod apparmor;
pub(crate) mod attach;
pub(crate) mod block_io;
pub(crate) mod capabilities;
pub(crate) mod cdi;
pub(crate) mod class;
pub(crate) mod create;
pub(crate) mod devices;
pub(crate) mod exec;
pub(crate) mod exec_budget;
pub(crate) mod exec_sync;
pub(crate) mod image_volumes;
pub(crate) mod log_limits;
pub(crate) mod oci_spec;
pub(crate) mod oom_score;
pub(crate) mod process;
pub(crate) mod remove;
pub(crate) mod reopen_log;
pub(crate) mod signal;
pub(crate) mod spec;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod state_changes;
pub(crate) mod stop;
pub(crate) mod update;
pub(crate) mod user;
pub(crate) mod volumes;
pub(crate) mod writable_limit;

#[cfg(test)]
pub(crate) mod testing;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::Id;
use spec::Spec;
use state::Phase;
use user::User;

/// A container as the world sees it; the same value is its record on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) id: Id,
    pub(crate) sandbox_id: Id,
    pub(crate) spec: Spec,
    pub(crate) created_at_ns: i64,
    pub(crate) phase: Phase,
    /// `sha256:…` of the image's configuration.
    pub(crate) image_id: String,
    /// The ids of the images that are volumes, by the path of the volume.
    #[serde(default)]
    pub(crate) image_volumes: BTreeMap<String, String>,
    /// Who it runs as, resolved against the image; reported in the status.
    pub(crate) user: User,
    pub(crate) cgroups_path: String,
    /// The log file, when there is one.
    pub(crate) log_path: Option<PathBuf>,
    /// The signal that asks it to stop.
    pub(crate) stop_signal: i32,
    /// Bytes that it may write into its own layer.
    #[serde(default)]
    pub(crate) writable_limit: Option<u64>,
    /// Bytes that it had written when it was found beyond its limit: for that it is ended.
    #[serde(default)]
    pub(crate) over_limit: Option<u64>,
}

impl Container {
    /// The key of CRI's name rule: one name and attempt per sandbox.
    pub(crate) fn has_name(&self, sandbox: &Id, name: &str, attempt: u32) -> bool {
        self.sandbox_id == *sandbox && self.spec.name == name && self.spec.attempt == attempt
    }
}
