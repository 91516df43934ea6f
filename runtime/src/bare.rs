//! A mount namespace with nothing in it. Pause and containers start from a copy of it instead of one of the
//! host's, which has as many mounts to copy, and to take away again, as the node's pods have together.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdir, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

/// A directory that every host has, where nobody else sees what hangs there.
const PLACE: &str = "/dev";
/// Empty directories for what a user namespace must see in its copy.
const WHOLE: [&str; 2] = ["proc", "sys"];

/// Made by a thread of its own, which ends with it. The namespace lives as long as the descriptor.
pub(crate) fn namespace() -> io::Result<OwnedFd> {
    let made = std::thread::spawn(make).join();
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

fn make() -> io::Result<OwnedFd> {
    let at = |what: &'static str| move |e: Errno| io::Error::other(format!("{what}: {e}"));
    crate::sys::unshare_mounts().map_err(at("unshare"))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace =
        open("/proc/thread-self/ns/mnt", flags, Mode::empty()).map_err(at("open it"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(at("make / private"))?;
    let attributes = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", PLACE, "tmpfs", attributes, c"mode=755,nr_inodes=4")
        .map_err(at("mount its root"))?;
    for directory in WHOLE {
        mkdir(Path::new(PLACE).join(directory), Mode::from_raw_mode(0o555))
            .map_err(at(directory))?;
    }
    mount_remount(PLACE, MountFlags::BIND | MountFlags::RDONLY | attributes, "")
        .map_err(at("make its root read-only"))?;
    chdir(PLACE).map_err(at("go to its root"))?;
    pivot_root(".", ".").map_err(at("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("detach the old root"))?;
    Ok(namespace)
}
