//! What no safe wrapper offers: registering a descriptor with tokio's reactor, and leaving a namespace.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on and neither closed nor replaced while it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Gives the calling thread mounts, and a root and working directory, of its own.
pub(crate) fn unshare_mounts() -> Result<(), Errno> {
    // SAFETY: descriptors stay shared; nobody else is affected by where this thread's paths begin.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}
