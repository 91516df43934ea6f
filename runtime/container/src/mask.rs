//! Masked and read-only paths. Files are covered by *our* `/dev/null`, directories by an empty read-only tmpfs:
//! nothing that the image provides is ever used as the mask.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, major, minor, open};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::error::{At, Error};
use crate::mounts::move_onto;
use crate::overlay;
use crate::plan::Plan;
use crate::root::Root;
use crate::sys::mount::{Change, attr, set};

/// Must run before the pivot: the null device is the host's, from this process' copy of the host's mounts.
pub(crate) fn hide(root: &Root, plan: &Plan) -> Result<(), Error> {
    for path in &plan.readonly {
        let stage = format!("make {} read-only", path.display());
        let Some(place) = existing(root.place(path), &stage)? else { continue };
        let tree = clone_of(&place, true).at(&stage, "clone its mount")?;
        let readonly = Change { set: attr::RDONLY, recursive: true, ..Default::default() };
        set(tree.as_fd(), readonly, None).at(&stage, "set attributes")?;
        move_onto(&tree, &place).at(&stage, "attach")?;
    }
    let mut masks = Masks { label: plan.mount_label.as_deref(), ..Default::default() };
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

#[derive(Default)]
struct Masks<'a> {
    label: Option<&'a str>,
    null: Option<OwnedFd>,
    /// The first directory mask, attached; the others are clones, so that one tmpfs serves all.
    empty: Option<OwnedFd>,
}

impl Masks<'_> {
    fn file(&mut self, stage: &str) -> Result<OwnedFd, Error> {
        if self.null.is_none() {
            let null = open(c"/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .at(stage, "open /dev/null")?;
            let stat = fstat(&null).at(stage, "stat /dev/null")?;
            if (major(stat.st_rdev), minor(stat.st_rdev)) != (1, 3) {
                return Err(Error::new(stage, "the host's /dev/null is not the null device"));
            }
            self.null = Some(null);
        }
        clone_of(self.null.as_ref().unwrap_or_else(|| unreachable!("set above")), false)
            .at(stage, "clone /dev/null")
    }

    fn directory(&mut self, stage: &str) -> Result<OwnedFd, Error> {
        if let Some(empty) = &self.empty {
            return clone_of(empty, false).at(stage, "clone the empty directory");
        }
        let tree = overlay::tmpfs(
            stage,
            &[("mode", "755"), ("size", "0"), ("nr_inodes", "2")],
            self.label,
            MountAttrFlags::MOUNT_ATTR_RDONLY,
        )?;
        self.empty = Some(tree.try_clone().at(stage, "duplicate")?);
        Ok(tree)
    }
}

fn clone_of(place: &OwnedFd, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(place, "", flags)
}
