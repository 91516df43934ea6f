//! The system calls of this crate that the type system cannot vouch for.
#![allow(unsafe_code)]

pub(crate) mod bpf;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Moves the calling thread, and only it, into a new network namespace.
pub(crate) fn unshare_network() -> rustix::io::Result<()> {
    // SAFETY: the call is unsafe because CLONE_FILES and CLONE_FS can pull file descriptors and the
    // working directory from under code that shares them. CLONE_NEWNET does neither; it changes
    // what sockets opened later by this thread belong to, and memory safety does not rest on that.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
}
