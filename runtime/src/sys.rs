//! What no safe wrapper offers: registering a descriptor with tokio's reactor, and leaving namespaces and descriptors.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{OwnedFd, RawFd};

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

/// Gives the calling thread a table of descriptors of its own, with those up to `last` in it. What it has no more must
/// not be used or dropped by it.
pub(crate) fn leave_descriptors_above(last: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(last + 1).map_err(io::Error::other)?;
    // SAFETY: takes numbers only. The other threads keep their table as it is.
    match unsafe { libc::close_range(first, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as _) } {
        0 => Ok(()),
        _ => Err(io::Error::other(format!("close_range: {}", io::Error::last_os_error()))),
    }
}
