//! The root file system: an overlay (or a plain directory) as a detached mount, made with the host's credentials.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::create::Layers;
use crate::error::{At, Error};
use crate::sources::map_ids;
use crate::users::Users;

const STAGE: &str = "mount the root file system";

/// An overlay of `layers`, attached nowhere yet. With a user namespace the lower layers are id-mapped by it (the
/// overlay itself cannot be), so that an image is on disk once for all; what is written belongs to its ids on disk,
/// because the kernel works in the upper directory as the host's root, who is nobody on a mapped mount.
pub(crate) fn overlay(layers: &Layers, users: Option<&Users>) -> Result<OwnedFd, Error> {
    let Some(users) = users else { return stack(layers) };
    let mut open = Vec::new();
    let mut mapped = layers.clone();
    for lower in &mut mapped.lowers {
        let tree = plain(lower)?;
        let stage = format!("{STAGE}: layer {}", lower.display());
        map_ids(&tree, users.fd.as_fd(), false, &stage)?;
        *lower = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
        open.push(tree);
    }
    if let Some(Upper { upper, .. }) = &layers.upper {
        let [uid, gid] = users.root();
        std::os::unix::fs::chown(upper, Some(uid), Some(gid))
            .at(STAGE, format!("give {} to the container's root", upper.display()))?;
    }
    // The overlay has references of its own when it is made.
    stack(&mapped)
}

fn stack(layers: &Layers) -> Result<OwnedFd, Error> {
    // overlayfs wants two lowers when there is no upper; one lower alone is simply that directory.
    if let ([only], None) = (layers.lowers.as_slice(), &layers.upper) {
        return plain(only);
    }
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).at(STAGE, "open an overlay")?;
    let set = |key: &str, path: &Path| {
        let value = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| Error::new(STAGE, format!("{key} {path:?} has a zero byte")))?;
        fsconfig_set_string(&fs, key, &value).at(STAGE, format!("{key} {}", path.display()))
    };
    layers.lowers.iter().try_for_each(|l| set("lowerdir+", l))?;
    if let Some(Upper { upper, work }) = &layers.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
        if layers.volatile {
            fsconfig_set_flag(&fs, "volatile").at(STAGE, "volatile")?;
        }
    }
    fsconfig_create(&fs).map_err(|e| {
        let missing = layers.paths().find(|p| !p.exists());
        let hint =
            missing.map_or_else(String::new, |p| format!(" ({} does not exist)", p.display()));
        Error::new(STAGE, format!("create the overlay: {}{hint}", crate::error::words(&e.into())))
    })?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .at(STAGE, "mount the overlay")
}

/// The writable part of an overlay.
#[derive(Debug, Clone)]
pub struct Upper {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// A directory and what is mounted below it, as a detached mount.
pub(crate) fn plain(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, path, flags).at(STAGE, format!("open {}", path.display()))
}

/// An empty tmpfs for a process that needs no files, owned by its root.
pub(crate) fn empty(users: Option<&Users>) -> Result<OwnedFd, Error> {
    let [uid, gid] = users.map_or([0, 0], Users::root).map(|id| id.to_string());
    let parameters =
        [("mode", "555"), ("size", "4096"), ("nr_inodes", "8"), ("uid", &uid), ("gid", &gid)];
    tmpfs(STAGE, &parameters, MountAttrFlags::empty())
}

/// A fresh tmpfs, attached nowhere.
pub(crate) fn tmpfs(
    stage: &str,
    parameters: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at(stage, "open a tmpfs")?;
    for (key, value) in parameters {
        fsconfig_set_string(&fs, *key, *value).at(stage, format!("tmpfs {key}={value}"))?;
    }
    fsconfig_create(&fs).at(stage, "create a tmpfs")?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).at(stage, "mount a tmpfs")
}
