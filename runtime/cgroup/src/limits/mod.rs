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

/// What no kernel this runs on has any more.
fn refuse_lost(r: &Resources) -> Result<(), Error> {
    let memory = r.memory.as_ref();
    let io = r.block_io.as_ref();
    let leaves = io.iter().flat_map(|io| io.weight_device.iter().flatten());
    let lost = [
        ("memory.kernel", memory.is_some_and(|m| m.kernel.is_some_and(|k| k > 0))),
        ("memory.useHierarchy", memory.is_some_and(|m| m.use_hierarchy == Some(false))),
        ("blockIO.leafWeight", io.is_some_and(|io| io.leaf_weight.is_some_and(|w| w != 0))),
        ("blockIO.weightDevice.leafWeight", leaves.filter_map(|d| d.leaf_weight).any(|w| w != 0)),
    ];
    refuse(&lost, "the kernel has no such limit any more")
}

pub(crate) fn refuse(fields: &[(&str, bool)], why: &str) -> Result<(), Error> {
    match fields.iter().find(|(_, used)| *used) {
        None => Ok(()),
        Some((field, _)) => Err(Error::BadResource {
            field: format!("linux.resources.{field}"),
            reason: why.to_owned(),
        }),
    }
}

/// The settings for `resources` on the layout of `node`, in the order they must be written.
/// Device rules are apart from these: see `Hierarchies::restrict_devices`.
///
/// # Errors
/// A limit that this version of control groups does not have, by its field.
pub fn settings(resources: &Resources, node: &Hierarchies) -> Result<Vec<Setting>, Error> {
    refuse_lost(resources)?;
    if node.is_v2() { v2::settings(resources) } else { v1::settings(resources) }
}
