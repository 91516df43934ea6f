//! From resources to (file, text) pairs: pure, one table per cgroup version.

mod v1;
mod v2;

pub use v2::weight;

use crate::{Error, Hierarchies, Resources};

/// What to do when the controller of a setting is not mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The workload relies on it: fail.
    Refuse,
    /// Callers send it whether or not the node has it (the kubelet sends a limit for every huge page size).
    Ignore,
}

/// One file of one controller and the text to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    pub missing: Missing,
}

impl Setting {
    pub(crate) fn new(
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        Self { controller, file: file.into(), value: value.to_string(), missing: Missing::Refuse }
    }

    pub(crate) fn or_ignore(mut self) -> Self {
        self.missing = Missing::Ignore;
        self
    }
}

/// The settings for `resources` on the layout of `node`, in the order they must be written.
/// Device rules are apart from these: see `Hierarchies::restrict_devices`.
pub fn settings(resources: &Resources, node: &Hierarchies) -> Result<Vec<Setting>, Error> {
    if node.is_v2() { v2::settings(resources) } else { v1::settings(resources) }
}
