//! Descriptors of the caller that are the container's: what `--preserve-fds` asks for, and the sockets that a service
//! manager has opened (`sd_listen_fds`), which come first.

use std::ffi::CString;

use crate::error::Error;

/// Where they begin, after standard input, output and error.
const FIRST: u32 = 3;
/// More sockets than any service has; a number beyond it is a mistake in the environment.
const SOCKETS_MAX: u32 = 4096;

/// How many sockets are for this process, and so for its container.
pub(crate) fn sockets() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    let ours = number("LISTEN_PID") == Some(std::process::id());
    number("LISTEN_FDS").filter(|n| ours && *n <= SOCKETS_MAX).unwrap_or(0)
}

/// What the container's program is told of them, as the first of its pid namespace.
pub(crate) fn environment(sockets: u32) -> Vec<CString> {
    let told = [format!("LISTEN_FDS={sockets}"), "LISTEN_PID=1".to_owned()];
    told.into_iter().filter(|_| sockets > 0).filter_map(|pair| CString::new(pair).ok()).collect()
}

/// Before anything else is opened: a number that the caller has left free would become one of ours.
///
/// # Errors
/// One of them is not open.
pub(crate) fn check(count: u32) -> Result<(), Error> {
    let closed = |n: &u32| std::fs::symlink_metadata(format!("/proc/self/fd/{n}")).is_err();
    match (FIRST..FIRST.saturating_add(count)).find(closed) {
        Some(n) => Err(Error::Usage(format!(
            "descriptor {n} of {count} to be preserved (from {FIRST} on) is not open"
        ))),
        None => Ok(()),
    }
}
