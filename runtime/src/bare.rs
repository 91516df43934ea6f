//! A mount namespace with next to nothing in it. Pause and containers start from a copy of it instead of one of the
//! host's, which has as many mounts to copy, and to take away again, as the node's pods have together.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdir, open};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::process::{chdir, pivot_root};

/// A directory that every host has, where nobody else sees what hangs there. The two below come from outside of it.
const PLACE: &str = "/dev";
/// Whole: a user namespace may mount its own only where it sees such a one.
const WHOLE: [&str; 2] = ["/proc", "/sys"];

/// Made by a thread of its own, which ends with it. The namespace lives as long as the descriptor.
pub(crate) fn namespace() -> io::Result<OwnedFd> {
    let made = std::thread::spawn(make).join();
    made.unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
}

fn make() -> io::Result<OwnedFd> {
    crate::sys::unshare_mounts()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let namespace = open("/proc/thread-self/ns/mnt", flags, Mode::empty())?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let attributes = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", PLACE, "tmpfs", attributes, c"mode=755,nr_inodes=4")?;
    for file_system in WHOLE {
        let at = Path::new(PLACE).join(file_system.trim_start_matches('/'));
        mkdir(&at, Mode::from_raw_mode(0o555))?;
        mount_bind(file_system, &at)?;
    }
    mount_remount(PLACE, MountFlags::BIND | MountFlags::RDONLY | attributes, "")?;
    chdir(PLACE)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(namespace)
}
