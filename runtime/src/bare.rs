//! A mount namespace with nothing in it but read-only directories. Pause and containers start from a copy of it instead of
//! one of the host's, which has as many mounts to copy, and to take away again, as the node's pods have together.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use cgroup::Hierarchies;
use rustix::fs::{Mode, OFlags, mkdir, open, statvfs};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

/// A directory that every host has, where nobody else sees what hangs there.
const PLACE: &str = "/dev";
/// What it holds, and with what mode: empty directories for what a user namespace must see in its copy, and two that the
/// shim knows, for what covers masked directories and for the mounts of a container's v1 groups.
const DIRECTORIES: [(&str, u32); 4] =
    [("proc", 0o555), ("sys", 0o555), ("empty", 0o755), (GROUPS, 0o755)];
const GROUPS: &str = "cgroup";

/// Made by a thread of its own, which ends with it. The namespace lives as long as the descriptor.
pub(crate) fn namespace(node: &Hierarchies) -> io::Result<OwnedFd> {
    let made = std::thread::scope(|scope| scope.spawn(|| make(node)).join());
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

fn make(node: &Hierarchies) -> io::Result<OwnedFd> {
    let at = |what: &'static str| move |e: Errno| io::Error::other(format!("{what}: {e}"));
    crate::sys::unshare_mounts().map_err(at("unshare"))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace =
        open("/proc/thread-self/ns/mnt", flags, Mode::empty()).map_err(at("open it"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(at("make / private"))?;
    let attributes = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", PLACE, "tmpfs", attributes, c"mode=755").map_err(at("mount its root"))?;
    for (name, mode) in DIRECTORIES {
        mkdir(Path::new(PLACE).join(name), Mode::from_raw_mode(mode)).map_err(at(name))?;
    }
    let groups = open(Path::new(PLACE).join(GROUPS), flags, Mode::empty()).map_err(at(GROUPS))?;
    node.make_places(groups).map_err(at(GROUPS))?;
    // Nothing can be added, whoever makes it writable again.
    let space = statvfs(PLACE).map_err(at("count its inodes"))?;
    let limit = format!("nr_inodes={}", space.f_files - space.f_ffree);
    mount_remount(PLACE, MountFlags::RDONLY | attributes, &*limit)
        .map_err(at("make its root read-only"))?;
    chdir(PLACE).map_err(at("go to its root"))?;
    pivot_root(".", ".").map_err(at("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("detach the old root"))?;
    Ok(namespace)
}
