//! Directories that look alike in every container: instead of a file system of its own for each, a container gets another
//! read-only mount of the one that the bare mount namespace has, unless it has the power to make it writable.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use crate::create::Creation;
use crate::error::{At, Error};
use crate::groups::cgroup_mounts;
use crate::sources::open_tree_at;

/// Detached mounts, as far as they are there: the namespace may be of a daemon that is older than this shim.
#[derive(Debug, Default)]
pub(crate) struct Templates {
    /// What covers masked directories.
    pub(crate) empty: Option<OwnedFd>,
    /// A directory for each v1 hierarchy.
    pub(crate) groups: Option<OwnedFd>,
}

impl Templates {
    /// Of the copy of a bare mount namespace that the caller is in, while its root is to be seen.
    pub(crate) fn here(c: &Creation<'_>) -> Result<Self, Error> {
        let take = |path: &str, needed: bool| {
            let made = needed.then(|| open_tree_at(Path::new(path), false)).transpose();
            match made {
                Err(Errno::NOENT) => Ok(None),
                other => other.at("copy the mounts to start from", format!("clone {path}")),
            }
        };
        if c.plan.process.capabilities.attainable() & CapabilitySet::SYS_ADMIN.bits() != 0 {
            return Ok(Self::default());
        }
        let has_groups = cgroup_mounts(c).next().is_some();
        let [empty, groups] =
            [take("/empty", !c.plan.masked.is_empty())?, take("/cgroup", has_groups)?];
        Ok(Self { empty, groups })
    }
}
