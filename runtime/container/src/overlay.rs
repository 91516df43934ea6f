//! The root file system: an overlay (or a plain directory) as a detached mount, made with the host's credentials.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::create::Layers;
use crate::error::{At, Error};

const STAGE: &str = "mount the root file system";

/// An overlay of `layers`, attached nowhere yet.
pub(crate) fn overlay(layers: &Layers) -> Result<OwnedFd, Error> {
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

/// An empty tmpfs for a process that needs no files.
pub(crate) fn empty() -> Result<OwnedFd, Error> {
    tmpfs(STAGE, &[("mode", "555"), ("size", "4096"), ("nr_inodes", "8")], MountAttrFlags::empty())
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
