//! A mount namespace with nothing in it but an empty root. Pause is started from a copy of it instead of one of the
//! host's, which has as many mounts to copy, and to take away again, as the node has pods.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use rustix::process::{chdir, pivot_root};

/// A directory that every host has, where nobody else sees what hangs there.
const PLACE: &str = "/proc";

/// Made by a thread of its own, which ends with it. The namespace lives as long as the descriptor.
pub(crate) fn namespace() -> io::Result<OwnedFd> {
    let made = std::thread::spawn(make).join();
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

fn make() -> io::Result<OwnedFd> {
    crate::sys::unshare_mounts()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let attributes =
        MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", PLACE, "tmpfs", attributes, c"mode=755,nr_inodes=2")?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(namespace)
}
