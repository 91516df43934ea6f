//! How init gets out of the mounts it came from, so that its root is the only one it sees.

use std::fs;
use std::path::{Path, PathBuf};

use cgroup::hierarchy::unescaped;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags, mount, mount_change,
    move_mount, unmount,
};

use crate::error::{At, Error};
use crate::root::Root;
use crate::sources::View;

pub(crate) const STAGE: &str = "pivot into the root file system";

/// Decided before the container's own mounts are there.
#[derive(Debug)]
pub(crate) enum Jail {
    /// The old root goes away with everything in it.
    Pivot,
    /// The root is moved over the old one, which stays below it without these mounts.
    Move(Vec<PathBuf>),
    /// The container's root is one directory of a namespace that is not its own to change, or lies over the empty root
    /// of one that is: there, each pivot would make the kernel wait until all processors have let go of the old root.
    Chroot,
}

impl Jail {
    pub(crate) fn of(view: &View, no_pivot: bool) -> Result<Self, Error> {
        match (view, no_pivot) {
            (View::Own, true) => bare_mounts().map(Self::Move),
            // No whole proc may stay below the root: see `Whole`.
            (View::Own | View::Joined(_) | View::BareOfUsers(..), false) => Ok(Self::Pivot),
            (View::Bare(_) | View::Shared, false) => Ok(Self::Chroot),
            (_, true) => Err(Error::new(
                STAGE,
                "without a pivot, the container needs a mount namespace of its own",
            )),
        }
    }

    /// The working directory must be the root.
    pub(crate) fn close(&self, root: &Root) -> Result<(), Error> {
        match self {
            Self::Pivot => {
                rustix::process::pivot_root(".", ".").at(STAGE, "pivot_root")?;
                // Now `.` is the old root, stacked over the new one. It is a slave: unmounting it does not reach the
                // host.
                unmount(".", UnmountFlags::DETACH).at(STAGE, "detach the old root")?;
            }
            Self::Move(bare) => {
                bare.iter().rev().try_for_each(|path| take_away(path))?;
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let old = rustix::fs::openat(CWD, "/", flags, Mode::empty());
                let (old, empty) = (
                    old.at(STAGE, "open /")?,
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH
                        | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
                );
                move_mount(root.fd(), "", &old, "", empty).at(STAGE, "move it over /")?;
                rustix::process::chroot(".").at(STAGE, "chroot")?;
            }
            Self::Chroot => rustix::process::chroot(".").at(STAGE, "chroot")?,
        }
        rustix::process::chdir("/").at(STAGE, "change to /")
    }
}

/// Who sees a whole proc or sysfs may mount another one, without the masks of the container's: none may stay below.
fn bare_mounts() -> Result<Vec<PathBuf>, Error> {
    const FILE: &str = "/proc/self/mountinfo";
    let text = fs::read_to_string(FILE).at(STAGE, format!("read {FILE}"))?;
    Ok(text.lines().filter_map(bare).collect())
}

/// The mount point of a line that shows one of them whole.
fn bare(line: &str) -> Option<PathBuf> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, at) = (fields.next()?, fields.next()?);
    let whole = root == "/" && ["proc", "sysfs"].contains(&right.split(' ').next()?);
    whole.then(|| unescaped(at))
}

/// Unmounted from this namespace only; covered where that is not allowed.
fn take_away(path: &Path) -> Result<(), Error> {
    let slave = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    match mount_change(path, slave) {
        Err(Errno::NOENT | Errno::INVAL) => return Ok(()), // gone with one above it
        other => other.at(STAGE, format!("make {} a slave", path.display()))?,
    }
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL | Errno::PERM) => {
            mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"size=0")
                .at(STAGE, format!("cover {}", path.display()))
        }
        other => other.at(STAGE, format!("unmount {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_proc_and_sysfs_mounts_are_found_and_parts_of_them_are_not() {
        let found = |line: &str| bare(line).map(|p| p.to_string_lossy().into_owned());
        let proc = "22 28 0:20 / /proc rw,nosuid shared:12 - proc proc rw";
        assert_eq!(found(proc).as_deref(), Some("/proc"));
        let spaced = "23 28 0:21 / /mnt/a\\040b\\134 rw master:1 - sysfs none rw";
        assert_eq!(found(spaced).as_deref(), Some("/mnt/a b\\"));
        for other in [
            "24 28 0:20 /sys /proc/sys ro - proc proc rw",
            "25 28 8:1 / / rw - ext4 /dev/root rw",
            "nonsense",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }
}
