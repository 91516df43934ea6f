//! The one call of tokio's that is unsafe: registering a descriptor with its reactor.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a non-blocking descriptor.
pub(crate) fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd` from here on and neither closed nor replaced while it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
