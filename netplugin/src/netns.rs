//! Creates and enters network namespaces, each time on a thread of its own that ends right after:
//! the caller's thread never leaves its namespace.
//!
//! What comes back is a route socket opened inside. A netlink socket belongs to the namespace it was
//! opened in for all its life, so nobody has to go in again to configure the pod.
//!
//! There is no pool of namespaces made in advance, because it does not pay. A ready one saves 0.4 ms of
//! the 1.2 ms a pod's network takes, beside the start of the shim and in about 8 ms of RunPodSandbox:
//! one part in twenty at the most (`tests/kernel/pool.rs` measures it). For that each would hold some
//! 40 KiB of the kernel, or 130 KiB with its links, and would be one more thing to fill, to set as the
//! next pod needs it, and to end with the daemon; pods with a user namespace could not have one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::Error;
use crate::netlink::Route;
use crate::sys;

/// The thread makes a dozen system calls and keeps nothing large on its stack.
const STACK: usize = 128 * 1024;

/// A network namespace and a socket that talks to the kernel from inside it.
pub(crate) struct Netns {
    pub(crate) fd: OwnedFd,
    pub(crate) route: Route,
}

/// A setting below `/proc/sys/net` and its value.
pub(crate) type Sysctl = (&'static str, &'static str);

/// Creates a namespace with these settings. It lives as long as the descriptor (and whatever was
/// started or created in it).
pub(crate) fn create(sysctls: &[Sysctl]) -> Result<Netns, Error> {
    on_a_thread(|| {
        sys::unshare_network()
            .map_err(|errno| Error::kernel("create", "network namespace", errno))?;
        look_around(sysctls)
    })
}

/// Opens a socket inside an existing namespace.
pub(crate) fn enter(netns: BorrowedFd<'_>) -> Result<Netns, Error> {
    on_a_thread(|| {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| Error::kernel("enter", "network namespace", errno))?;
        look_around(&[])
    })
}

/// Writes a setting below `/proc/sys/net` in the namespace of the calling thread.
pub(crate) fn write_sysctl(name: &str, value: &str) -> Result<(), Error> {
    let path = format!("/proc/sys/net/{name}");
    match fs::write(&path, value) {
        Ok(()) => Ok(()),
        // A kernel without IPv6 (ipv6.disable=1) has no IPv6 to configure or to switch off.
        Err(error) if error.kind() == io::ErrorKind::NotFound && name.starts_with("ipv6/") => {
            Ok(())
        }
        Err(source) => Err(Error::file("write", path, source)),
    }
}

/// Reads a setting below `/proc/sys/net`; `None` when there is no such setting.
pub(crate) fn read_sysctl(name: &str) -> Result<Option<String>, Error> {
    let path = format!("/proc/sys/net/{name}");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::file("read", path, source)),
    }
}

fn look_around(sysctls: &[Sysctl]) -> Result<Netns, Error> {
    const OWN: &str = "/proc/thread-self/ns/net";
    for (name, value) in sysctls {
        write_sysctl(name, value)?;
    }
    let fd = File::open(OWN).map_err(|source| Error::file("open", OWN, source))?;
    Ok(Netns { fd: fd.into(), route: Route::open()? })
}

fn on_a_thread(body: impl FnOnce() -> Result<Netns, Error> + Send) -> Result<Netns, Error> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, body)
            .map_err(|source| Error::kernel("start thread for", "network namespace", source))?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
