//! A whole proc and sysfs: the kernel lets a user namespace mount its own only where it sees such ones.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use crate::error::{At, Error};
use crate::plan::Namespace;
use crate::sys::process::unshare;

const STAGE: &str = "show a whole proc and sysfs";
const PLACES: [&str; 2] = ["/proc", "/sys"];

#[derive(Debug)]
pub(crate) struct Whole([OwnedFd; 2]);

impl Whole {
    /// The host's, asked for while its mounts are to be seen.
    pub(crate) fn of_host() -> Result<Self, Error> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let clone = |path| open_tree(CWD, path, flags).at(STAGE, format!("clone {path}"));
        Ok(Self([clone(PLACES[0])?, clone(PLACES[1])?]))
    }

    /// Puts them into a copy of the mounts that the caller is among.
    pub(crate) fn show(&self) -> Result<(), Error> {
        unshare(Namespace::Mount as u64).at(STAGE, "copy the mounts")?;
        for (tree, path) in self.0.iter().zip(PLACES) {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            move_mount(tree.as_fd(), "", CWD, path, flags).at(STAGE, format!("mount {path}"))?;
        }
        Ok(())
    }
}
