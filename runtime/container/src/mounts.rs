//! The mounts of a container, attached fd to fd inside its root, in the order of the specification.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::create::Creation;
use crate::error::{At, Error};
use crate::groups::CgroupMount;
use crate::mapper::Mapper;
use crate::options::{Idmap, Options};
use crate::plan::{From, Mount};
use crate::root::Root;
use crate::sources::{
    Source, Sources, attributes, birth_attributes, change, configure, map_ids, unmapped,
};
use crate::sys::mount::{Change, attr, set};
use crate::template::Templates;
use crate::{label, overlay};

/// Mounts that are not finished when all others are in place.
#[derive(Debug, Default)]
pub(crate) struct Unfinished<'a> {
    /// Become read-only, for other mounts and devices have gone into them.
    pub(crate) writable: Vec<OwnedFd>,
    /// The places of cgroup mounts that are still to come.
    groups: Vec<(OwnedFd, &'a Mount)>,
}

impl Unfinished<'_> {
    pub(crate) fn attach_groups(
        &self,
        c: &Creation<'_>,
        groups: &[CgroupMount],
        templates: &mut Templates,
    ) -> Result<(), Error> {
        let mut both = groups.iter().zip(&self.groups);
        both.try_for_each(|(groups, (place, mount))| groups.attach(c, mount, place, templates))
    }
}

/// `groups`: the cgroup mounts, where they are there already.
pub(crate) fn attach_all<'a>(
    root: &Root,
    c: &Creation<'a>,
    sources: &Sources,
    groups: &[CgroupMount],
    templates: &mut Templates,
) -> Result<Unfinished<'a>, Error> {
    let mut unfinished = Unfinished::default();
    let mut groups = groups.iter();
    for (mount, source) in c.plan.mounts.iter().zip(&sources.mounts) {
        let stage = format!("mount {}", mount.destination.display());
        match source {
            Source::Tree(tree) => {
                let place = place_for(root, mount, tree, &stage)?;
                move_onto(tree, &place).at(&stage, "attach")?;
            }
            Source::Groups => {
                let place = root
                    .make_dirs(&mount.destination)
                    .at(&stage, format!("make {} in the root", mount.destination.display()))?;
                match groups.next() {
                    Some(groups) => groups.attach(c, mount, &place, templates)?,
                    None => unfinished.groups.push((place, mount)),
                }
            }
            Source::Inside(users) => {
                attach_inside(root, mount, (users.as_ref(), sources.mapper.as_ref()), &stage)?;
            }
            Source::Later if mount.from == From::Root => attach_own(root, mount, &stage)?,
            Source::Later => {
                let label = c.plan.mount_label.as_deref();
                unfinished.writable.extend(attach_new(root, mount, label, &stage)?);
            }
        }
    }
    sources.mapper.iter().for_each(Mapper::leave);
    Ok(unfinished)
}

/// Moves a detached mount onto a place.
pub(crate) fn move_onto(tree: &OwnedFd, place: &OwnedFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(tree, "", place, "", flags)
}

/// Pause's `/dev/shm`, from which the pod's containers get theirs.
pub(crate) fn shared_memory(root: &Root, size: u64, label: Option<&str>) -> Result<(), Error> {
    const STAGE: &str = "mount /dev/shm";
    if size > 0 {
        let place = root.make_dirs(Path::new("/dev/shm")).at(STAGE, "make /dev/shm")?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let parameters = [("mode", "1777"), ("size", &size.to_string())];
        let tree = overlay::tmpfs(STAGE, &parameters, label, flags)?;
        move_onto(&tree, &place).at(STAGE, "attach")?;
    }
    make_readonly(root.fd())
}

pub(crate) fn make_readonly(tree: BorrowedFd<'_>) -> Result<(), Error> {
    let readonly = Change { set: attr::RDONLY, ..Default::default() };
    set(tree, readonly, None).at("make it read-only", "set attributes of the mount")
}

/// A directory goes on a directory, anything else on a file.
fn place_for(root: &Root, mount: &Mount, tree: &OwnedFd, stage: &str) -> Result<OwnedFd, Error> {
    let stat = rustix::fs::fstat(tree).at(stage, "stat the source")?;
    let place = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        root.make_dirs(&mount.destination)
    } else {
        root.make_file(&mount.destination)
    };
    place.at(stage, format!("make {} in the root", mount.destination.display()))
}

/// The root shown once more at this place, by a mount that does not follow it when it turns read-only.
fn attach_own(root: &Root, mount: &Mount, stage: &str) -> Result<(), Error> {
    let place = root
        .make_dirs(&mount.destination)
        .at(stage, format!("make {} in the root", mount.destination.display()))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(&place, "", flags).at(stage, "clone the directory")?;
    move_onto(&tree, &place).at(stage, "attach")
}

/// A tree of the root as it is by now, at another place of it.
fn attach_inside(
    root: &Root,
    mount: &Mount,
    (users, mapper): (Option<&OwnedFd>, Option<&Mapper>),
    stage: &str,
) -> Result<(), Error> {
    let From::Inside(path) = &mount.from else { return Ok(()) };
    let source = root.place(path).at(stage, format!("open {} in the root", path.display()))?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, mount.options.recursive);
    let tree = open_tree(&source, "", flags).at(stage, format!("clone {}", path.display()))?;
    let recursive = mount.options.idmap == Idmap::Recursive;
    match (users, mapper) {
        (None, _) => {}
        (Some(users), None) => map_ids(&tree, users.as_fd(), recursive, stage)?,
        (Some(users), Some(mapper)) => {
            mapper.map(tree.as_fd(), users.as_fd(), recursive).map_err(|e| unmapped(e, stage))?
        }
    }
    configure(&tree, &mount.options, stage)?;
    let place = place_for(root, mount, &tree, stage)?;
    move_onto(&tree, &place).at(stage, "attach")
}

fn attach_new(
    root: &Root,
    mount: &Mount,
    label: Option<&str>,
    stage: &str,
) -> Result<Option<OwnedFd>, Error> {
    let (kind, source) = match &mount.from {
        From::New { kind, source } => (kind.as_str(), source.as_str()),
        // Only reached on v2, where the container's cgroup namespace shows its own group as the root.
        _ => ("cgroup2", "cgroup"),
    };
    // A tmpfs over a directory of the image is as open as that, unless it says otherwise.
    let modeless =
        kind == "tmpfs" && !mount.options.parameters.iter().any(|(key, _)| key == "mode");
    let covered = modeless.then(|| root.place(&mount.destination)).and_then(Result::ok);
    let mode = covered.map(|dir| rustix::fs::fstat(&dir)).transpose().at(stage, "stat")?;
    let place = root
        .make_dirs(&mount.destination)
        .at(stage, format!("make {} in the root", mount.destination.display()))?;
    // What the kernel tells and takes there is trusted, and parts of it are masked by path: no link may lead astray.
    if ["proc", "sysfs"].contains(&kind) && !root.is_plain(&mount.destination) {
        return Err(Error::new(stage, format!("{kind} must be mounted on ordinary directory")));
    }
    let mut options = mount.options.clone();
    let o = &mut options;
    if let Some(stat) = mode {
        o.parameters.push(("mode".to_owned(), Some(format!("{:o}", stat.st_mode & 0o7777))));
    }
    let close_later = kind == "tmpfs" && o.attributes.set & attr::RDONLY != 0;
    if close_later {
        o.attributes.set &= !attr::RDONLY;
    }
    let tree = new_mount(kind, source, o, stage)?;
    // What is set at birth needs no second call; clearing and the access time modes do.
    if o.attributes.clear | o.recursive_attributes.clear != 0 {
        attributes(&tree, o, stage)?;
    }
    if let Some(label) = label.filter(|_| kind == "mqueue") {
        label::root_of(&tree, label, stage)?;
    }
    if o.tmpcopyup {
        copy_up(&place, &tree, stage)?;
    }
    if let Some(p) = o.propagation {
        change(&tree, stage, p.into())?;
    }
    move_onto(&tree, &place).at(stage, "attach")?;
    Ok(close_later.then_some(tree))
}

fn new_mount(kind: &str, source: &str, options: &Options, stage: &str) -> Result<OwnedFd, Error> {
    let fs = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .at(stage, format!("open a {kind} file system"))?;
    if !source.is_empty() {
        // A label for most of them, the device for the rest; some take none.
        match fsconfig_set_string(&fs, "source", source) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(e) => return Err(e).at(stage, format!("{kind} source={source}")),
        }
    }
    for (key, value) in &options.parameters {
        match value {
            Some(value) => {
                fsconfig_set_string(&fs, key.as_str(), value.as_str())
                    .at(stage, format!("{kind} {key}={value}"))?;
            }
            None => {
                fsconfig_set_flag(&fs, key.as_str()).at(stage, format!("{kind} option {key}"))?
            }
        }
    }
    fsconfig_create(&fs).at(stage, format!("create a {kind} file system"))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, birth_attributes(options))
        .at(stage, format!("mount {kind}"))
}

/// `tmpcopyup`: what the image has below the mount point shows in the fresh tmpfs. Directories, regular files and
/// symlinks are copied with owner and mode; other kinds are refused.
fn copy_up(from: &OwnedFd, to: &OwnedFd, stage: &str) -> Result<(), Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let dir = rustix::fs::openat(from, ".", flags, Mode::empty())
        .at(stage, "open the directory to copy up")?;
    let mut names = Vec::new();
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(&dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let name = entry.at(stage, "list the directory to copy up")?.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            names.push(name);
        }
    }
    names.iter().try_for_each(|name| copy_one(&dir, to, name, stage))
}

fn copy_one(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, stage: &str) -> Result<(), Error> {
    let shown = PathBuf::from(name.to_string_lossy().into_owned());
    let what = || format!("copy up {}", shown.display());
    let stat =
        rustix::fs::statat(from, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).at(stage, what())?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    let read = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            rustix::fs::mkdirat(to, name, mode).at(stage, what())?;
            let from = rustix::fs::openat(from, name, read | OFlags::DIRECTORY, Mode::empty())
                .at(stage, what())?;
            let to = rustix::fs::openat(to, name, read | OFlags::DIRECTORY, Mode::empty())
                .at(stage, what())?;
            copy_up(&from, &to, stage)?;
        }
        FileType::RegularFile => {
            let mut input = std::fs::File::from(
                rustix::fs::openat(from, name, read, Mode::empty()).at(stage, what())?,
            );
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mut output =
                std::fs::File::from(rustix::fs::openat(to, name, create, mode).at(stage, what())?);
            std::io::copy(&mut input, &mut output).at(stage, what())?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new()).at(stage, what())?;
            rustix::fs::symlinkat(target, to, name).at(stage, what())?;
        }
        other => return Err(Error::new(stage, format!("{}: {other:?} cannot be copied", what()))),
    }
    let (uid, gid) =
        (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    let nofollow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(to, name, Some(uid), Some(gid), nofollow).at(stage, what())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(to, name, mode, rustix::fs::AtFlags::empty()).at(stage, what())?;
    }
    Ok(())
}
