//! This program as containers may see it: by `/proc/self/exe` of a process that enters one, what runs there could
//! open the host's binary for writing later (CVE-2019-5736). So those verbs run from a read-only mount of it that is
//! attached nowhere, where nobody can make it writable.
//!
//! It is the first thing that the process does, before the C library starts: all that comes before is done twice.

mod sys;

use rustix::io::Errno;

use crate::error::Error;

/// How the start of this process went. Its numbers are for the static that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
enum Start {
    /// The words of the command line enter no container, or the program was entered by another way than its own.
    Unsealed = 0,
    /// From a read-only mount.
    Sealed = 1,
    Look = 2,
    Clone = 3,
    ReadOnly = 4,
    NoEffect = 5,
    Again = 6,
}

/// # Errors
/// The kernel could not seal it: entering a container would be unsafe.
pub(crate) fn check() -> Result<(), Error> {
    let (start, errno) = sys::start();
    let failed = |verb| Err(Error::system(verb)(Errno::from_raw_os_error(errno)));
    match start {
        Start::Sealed => Ok(()),
        Start::Unsealed => Err(Error::Unsupported(
            "this program did not start from its own entry, so it could not hide from containers; run it itself, not by a loader",
        )),
        Start::Look => failed("look at the mount of /proc/self/exe"),
        Start::Clone => failed("clone the mount of /proc/self/exe"),
        Start::ReadOnly => failed("make a mount of /proc/self/exe read-only"),
        Start::NoEffect => Err(Error::Unsupported(
            "this kernel makes no mount of /proc/self/exe read-only: containers could write to this program",
        )),
        Start::Again => failed("start again from a read-only mount"),
    }
}
