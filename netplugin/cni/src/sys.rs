//! The one call of this crate that the type system cannot vouch for.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the reactor of the current runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor must stay open, and the same, as long as it is registered. It is owned
    // by what is given back, nothing here takes it out again, and an `OwnedFd` always gives the same
    // number.
    unsafe { AsyncFd::register(fd).map_err(io::Error::from) }
}
