//! Masked and read-only paths. Files are covered by *our* `/dev/null`, directories by an empty read-only one of ours:
//! nothing that the image provides is ever used as the mask.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, fstat, major, minor};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::error::{At, Error};
use crate::mounts::move_onto;
use crate::overlay;
use crate::plan::Plan;
use crate::root::Root;
use crate::sources::clone_tree;
use crate::sys::mount::{Change, attr, set};

/// The host's null device, a detached mount.
pub(crate) fn null_device() -> Result<OwnedFd, Error> {
    const STAGE: &str = "mask files";
    let null = clone_tree(Path::new("/dev/null"), false, STAGE)?;
    let stat = fstat(&null).at(STAGE, "stat /dev/null")?;
    if (major(stat.st_rdev), minor(stat.st_rdev)) != (1, 3) {
        return Err(Error::new(STAGE, "the host's /dev/null is not the null device"));
    }
    Ok(null)
}

/// `null`: what covers files; `empty`: what covers directories, where it is there already.
pub(crate) fn hide(
    root: &Root,
    plan: &Plan,
    null: Option<&OwnedFd>,
    empty: Option<OwnedFd>,
) -> Result<(), Error> {
    for path in &plan.readonly {
        let stage = format!("make {} read-only", path.display());
        let Some(place) = existing(root.place(path), &stage)? else { continue };
        let tree = clone_of(&place, true).at(&stage, "clone its mount")?;
        let readonly = Change { set: attr::RDONLY, recursive: true, ..Default::default() };
        set(tree.as_fd(), readonly, None).at(&stage, "set attributes")?;
        move_onto(&tree, &place).at(&stage, "attach")?;
    }
    let label = plan.mount_label.as_deref();
    let mut masks = Masks { label, null, null_is_attached: false, empty, empty_is_attached: false };
    for path in &plan.masked {
        let stage = format!("mask {}", path.display());
        let Some(place) = existing(root.place(path), &stage)? else { continue };
        let stat = fstat(&place).at(&stage, "stat")?;
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let mask = if directory { masks.directory(&stage)? } else { masks.file(&stage)? };
        move_onto(&mask, &place).at(&stage, "attach")?;
    }
    Ok(())
}

/// A path that this kernel does not have needs no mask.
fn existing(place: Result<OwnedFd, Errno>, stage: &str) -> Result<Option<OwnedFd>, Error> {
    match place {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        other => other.map(Some).at(stage, "open it in the root"),
    }
}

/// The first mask of a kind is attached itself; the others are clones of it: what is attached nowhere is not cloned by
/// kernels before 6.15, and one file system serves all.
struct Masks<'a> {
    label: Option<&'a str>,
    null: Option<&'a OwnedFd>,
    null_is_attached: bool,
    empty: Option<OwnedFd>,
    empty_is_attached: bool,
}

impl Masks<'_> {
    fn file(&mut self, stage: &str) -> Result<OwnedFd, Error> {
        let null = self.null.ok_or_else(|| Error::new(stage, "there is no null device"))?;
        one_more(null, &mut self.null_is_attached).at(stage, "clone /dev/null")
    }

    fn directory(&mut self, stage: &str) -> Result<OwnedFd, Error> {
        let empty = match &mut self.empty {
            Some(empty) => empty,
            none => none.insert(overlay::tmpfs(
                stage,
                &[("mode", "755"), ("size", "0"), ("nr_inodes", "2")],
                self.label,
                MountAttrFlags::MOUNT_ATTR_RDONLY,
            )?),
        };
        one_more(empty, &mut self.empty_is_attached).at(stage, "clone the empty directory")
    }
}

fn one_more(mask: &OwnedFd, is_attached: &mut bool) -> io::Result<OwnedFd> {
    match std::mem::replace(is_attached, true) {
        false => mask.try_clone(),
        true => Ok(clone_of(mask, false)?),
    }
}

fn clone_of(place: &OwnedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(place, "", flags)
}
