//! The mounts of a container, attached fd to fd inside its root, in the order of the specification.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, RawDir, mkdirat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::create::Creation;
use crate::error::{At, Error};
use crate::mapper::Mapper;
use crate::options::{Idmap, Options};
use crate::plan::{From, Mount};
use crate::root::Root;
use crate::sources::{
    Source, Sources, attributes, birth_attributes, change, configure, map_ids, unmapped,
};
use crate::sys::mount::{Change, attr, set};
use crate::{label, overlay};

/// Returns those that become read-only when all is in place, because other mounts and devices go into them.
pub(crate) fn attach_all(
    root: &Root,
    c: &Creation<'_>,
    sources: &Sources,
) -> Result<Vec<OwnedFd>, Error> {
    let mut open = Vec::new();
    for (mount, source) in c.plan.mounts.iter().zip(&sources.mounts) {
        let stage = format!("mount {}", mount.destination.display());
        match source {
            Source::Tree(tree) => {
                let place = place_for(root, mount, tree, &stage)?;
                move_onto(tree, &place).at(&stage, "attach")?;
            }
            Source::Groups(groups) => {
                let label = c.plan.mount_label.as_deref();
                attach_groups(root, mount, (groups, label), &stage)?;
            }
            Source::Inside(users) => {
                attach_inside(root, mount, (users.as_ref(), sources.mapper.as_ref()), &stage)?;
            }
            Source::Later if mount.from == From::Root => attach_own(root, mount, &stage)?,
            Source::Later => {
                let label = c.plan.mount_label.as_deref();
                open.extend(attach_new(root, mount, label, &stage)?);
            }
        }
    }
    sources.mapper.iter().for_each(Mapper::leave);
    Ok(open)
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

/// v1: a small tmpfs with one directory per hierarchy, each showing the container's own group.
fn attach_groups(
    root: &Root,
    mount: &Mount,
    (groups, label): (&[(String, OwnedFd)], Option<&str>),
    stage: &str,
) -> Result<(), Error> {
    let place = root
        .make_dirs(&mount.destination)
        .at(stage, format!("make {} in the root", mount.destination.display()))?;
    let attributes = birth_attributes(&mount.options);
    let holder = overlay::tmpfs(stage, &[("mode", "755")], label, attributes)?;
    let readonly = mount.options.attributes.set & attr::RDONLY != 0;
    set(holder.as_fd(), Change { clear: attr::RDONLY, ..Default::default() }, None)
        .at(stage, "open the tmpfs")?;
    move_onto(&holder, &place).at(stage, "attach")?;
    for (name, tree) in groups {
        let bits = mount.options.attributes.set;
        change(tree, stage, Change { set: bits, ..Default::default() })?;
        // The file system is new and nobody else sees it: the name is what was made here.
        mkdirat(&holder, name.as_str(), Mode::from_raw_mode(0o755))
            .at(stage, format!("make {name}"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = openat(&holder, name.as_str(), flags, Mode::empty())
            .at(stage, format!("open {name}"))?;
        move_onto(tree, &place).at(stage, format!("attach {name}"))?;
        // Co-mounted controllers are looked up by their single names too.
        for single in name.split(',').filter(|_| name.contains(',')) {
            rustix::fs::symlinkat(name.as_str(), &holder, single)
                .at(stage, format!("link {single}"))?;
        }
    }
    if readonly {
        change(&holder, stage, Change { set: attr::RDONLY, ..Default::default() })?;
    }
    Ok(())
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
