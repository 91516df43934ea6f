//! Image trees as detached mounts: made from descriptors, attached nowhere, so that they never show
//! in the host's mount table and go with the last descriptor or mount namespace that has them.

mod sys;

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::digest::ImageId;
use crate::error::Error;
use crate::layer::merged::{Found, Merged};
use crate::service::Core;
use crate::snapshot;

/// A writable side, both directories on one mount.
struct Upper {
    upper: OwnedFd,
    work: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
enum MountError {
    #[error("{0} does not exist in it")]
    Absent(PathBuf),
    #[error("{0} is not a directory in it")]
    NoDirectory(PathBuf),
    #[error("{action}: {source}{hint}")]
    Io { action: &'static str, source: io::Error, hint: &'static str },
}

/// What an image volume may not do, whoever made the image.
const VOLUME_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// The root of a prepared container. With `userns` the layers stay on disk as the image has them
/// and the container sees their owners through the namespace's id maps. What it writes is not
/// translated: overlayfs makes its work files as this process, whose ids no map has.
pub(crate) fn root(
    core: &Core,
    id: &str,
    userns: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Error> {
    let snapshot = snapshot::find(core, id)?;
    let made = (|| {
        let layers = tree(&core.layout.layers(), userns)?;
        let lowers = lowers(layers.as_fd(), &snapshot.lowers)?;
        let own =
            |path: &Path| crate::layer::open_directory_path(path).map_err(at("open a directory"));
        let upper = Upper { upper: own(&snapshot.upper)?, work: own(&snapshot.work)? };
        if let (Some(_), Some(top)) = (userns, lowers.first()) {
            // The root of the mount shows the owner of `upper`.
            let seen = rustix::fs::fstat(top).map_err(at("stat a layer"))?;
            let (uid, gid) = (Uid::from_raw(seen.st_uid), Gid::from_raw(seen.st_gid));
            rustix::fs::fchown(&upper.upper, Some(uid), Some(gid))
                .map_err(at("set the owner of the root"))?;
        }
        overlay(&lowers, Some(&upper), snapshot.volatile)
    })();
    made.map_err(|e| Error::Root { container: id.to_owned(), reason: e.to_string() })
}

/// The directory `sub_path` of an image, read-only, for the container `id`, whose directory keeps
/// the layers until it is discarded. Links in the image resolve within the image.
pub(crate) fn volume(
    core: &Core,
    (id, image): (&str, &ImageId),
    sub_path: &Path,
    userns: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Error> {
    let layers_of = snapshot::pin_volume(core, id, image)?;
    let made = (|| {
        let layers = tree(&core.layout.layers(), userns)?;
        let merged = Merged::new(lowers(layers.as_fd(), &layers_of)?);
        let found = merged
            .resolve(sub_path.as_os_str().as_encoded_bytes())
            .map_err(at("look up its path"))?;
        let mut parts = match found {
            Found::Directory(parts) => {
                parts.iter().map(OwnedFd::try_clone).collect::<Result<Vec<_>, _>>()
            }
            Found::Absent => return Err(MountError::Absent(sub_path.to_owned())),
            Found::Other { .. } => return Err(MountError::NoDirectory(sub_path.to_owned())),
        }
        .map_err(at("duplicate a descriptor"))?;
        // overlayfs wants two layers where nothing is written, and whiteouts only overlayfs hides.
        let empty = crate::layer::open_directory_path(&core.layout.empty());
        parts.push(empty.map_err(at("open a directory"))?);
        overlay(&parts, None, false)
    })();
    made.map_err(|e| Error::Volume {
        image: image.to_string(),
        path: sub_path.to_owned(),
        reason: e.to_string(),
    })
}

/// A directory of ours as a mount of its own when owners must be translated; then what lies below
/// is opened through it, which takes one mount for all layers.
fn tree(path: &Path, userns: Option<BorrowedFd<'_>>) -> Result<OwnedFd, MountError> {
    let plain = crate::layer::open_directory_path(path).map_err(at("open a directory"))?;
    let Some(userns) = userns else { return Ok(plain) };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&plain, "", flags).map_err(at("clone the mount of the images"))?;
    sys::idmap(mount.as_fd(), userns).map_err(|source| MountError::Io {
        action: "translate the owners of the images",
        hint: match source.raw_os_error() {
            Some(libc::EINVAL) => "; does the file system support idmapped mounts?",
            _ => "",
        },
        source,
    })?;
    Ok(mount)
}

fn lowers(layers: BorrowedFd<'_>, paths: &[PathBuf]) -> Result<Vec<OwnedFd>, MountError> {
    paths.iter().map(|path| open(layers, path.file_name().unwrap_or_default())).collect()
}

/// One name of ours in a directory of ours.
fn open(parent: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, MountError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(at("open a layer"))
}

/// `lowers`: top first. Without `upper` read-only.
fn overlay(
    lowers: &[OwnedFd],
    upper: Option<&Upper>,
    volatile: bool,
) -> Result<OwnedFd, MountError> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(at("open an overlay"))?;
    for lower in lowers {
        match layer(fs.as_fd(), "lowerdir+", lower) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return aside(lowers, upper, volatile),
            set => set.map_err(at("add a layer to the overlay"))?,
        }
    }
    let mut attributes = VOLUME_ATTRIBUTES;
    if let Some(Upper { upper, work }) = upper {
        attributes = MountAttrFlags::empty();
        layer(fs.as_fd(), "upperdir", upper).map_err(at("set the overlay's upper directory"))?;
        layer(fs.as_fd(), "workdir", work).map_err(at("set the overlay's work directory"))?;
        if volatile {
            fsconfig_set_flag(&fs, "volatile").map_err(at("make the overlay volatile"))?;
        }
    }
    fsconfig_create(&fs).map_err(at("create the overlay"))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(at("mount the overlay"))
}

/// Before Linux 6.7 overlayfs takes all layers in one option of mount(2), which wants a place for
/// the mount: one in a mount namespace of a thread's own, which ends with it.
fn aside(lowers: &[OwnedFd], upper: Option<&Upper>, volatile: bool) -> Result<OwnedFd, MountError> {
    /// A directory that every host has and no layer is in.
    const PLACE: &str = "/sys";
    let name = |directory: &OwnedFd| format!("/proc/self/fd/{}", directory.as_raw_fd());
    let made = || {
        unshare(CloneFlags::CLONE_NEWNS).map_err(at("make a mount namespace"))?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .map_err(at("keep mounts to the namespace"))?;
        // A layer has to be on a mount of this namespace.
        let here = |directory| reopened(directory).map_err(at("open a layer again"));
        let lowers = lowers.iter().map(here).collect::<Result<Vec<_>, _>>()?;
        let names: Vec<_> = lowers.iter().map(name).collect();
        let mut options = format!("lowerdir={}", names.join(":"));
        let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let writable = upper.map(|it| Ok((here(&it.upper)?, here(&it.work)?))).transpose()?;
        if let Some((upper, work)) = &writable {
            flags = MsFlags::empty();
            options += &format!(",upperdir={},workdir={}", name(upper), name(work));
            options += if volatile { ",volatile" } else { "" };
        }
        mount(Some("overlay"), PLACE, Some("overlay"), flags, Some(&*options))
            .map_err(at("mount the overlay"))?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(rustix::fs::CWD, PLACE, clone).map_err(at("take the overlay"))
    };
    let thread = std::thread::scope(|scope| scope.spawn(made).join());
    thread.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The same directory by its name in this mount namespace; one of a detached mount has none.
fn reopened(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let path = rustix::fs::readlink(path, Vec::new())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let again = rustix::fs::open(path, flags, Mode::empty())?;
    let identity = |it: &OwnedFd| rustix::fs::fstat(it).map(|it| (it.st_dev, it.st_ino));
    if identity(&again)? == identity(directory)? { Ok(again) } else { Err(Errno::STALE) }
}

/// By descriptor since Linux 6.13; before, by the name that a descriptor has in `/proc`.
fn layer(fs: BorrowedFd<'_>, key: &str, directory: &OwnedFd) -> Result<(), Errno> {
    match fsconfig_set_fd(fs, key, directory) {
        Err(Errno::INVAL) => {
            fsconfig_set_string(fs, key, format!("/proc/self/fd/{}", directory.as_raw_fd()))
        }
        set => set,
    }
}

fn at<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> MountError {
    move |source| MountError::Io { action, source: source.into(), hint: "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_kernels_overlay_is_whole_read_only_and_nobody_elses() {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none());
            println!("SKIPPED: mounts take root");
            return;
        }
        // An overlay may be no layer, a tmpfs may.
        let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
        let layers = ["upper", "lower"].map(|name| {
            let dir = scratch.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join(name), name).unwrap();
            std::fs::write(dir.join("both"), name).unwrap();
            crate::layer::open_directory_path(&dir).unwrap()
        });
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let made = aside(&layers, None, false).unwrap();
        assert_eq!(mounts(), before);
        let path = |name: &str| format!("/proc/self/fd/{}/{name}", made.as_raw_fd());
        for (name, text) in [("upper", "upper"), ("lower", "lower"), ("both", "upper")] {
            assert_eq!(std::fs::read_to_string(path(name)).unwrap(), text);
        }
        let error = std::fs::write(path("new"), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EROFS));
    }
}
