//! Work in another mount namespace, and the way back.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::fchdir;

use crate::error::{At, Error};
use crate::init::join;
use crate::plan::Namespace;
use crate::sys::process::unshare;

/// Works in the mount namespace of a process.
pub(crate) fn among_those_of<T>(
    pid: i32,
    stage: &str,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let mounts = namespace(&format!("/proc/{pid}/ns/mnt"), stage)?;
    and_back(stage, || join(Namespace::Mount, &mounts), work)
}

/// Works in a mount namespace that nobody else sees and that ends with the work.
pub(crate) fn alone<T>(stage: &str, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let go = || unshare(Namespace::Mount as u64).at(stage, "make a mount namespace");
    and_back(stage, go, || {
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .at(stage, "detach from the host's mounts")?;
        work()
    })
}

/// The calling thread comes back to the namespace and directory it was in.
fn and_back<T>(
    stage: &str,
    go: impl FnOnce() -> Result<(), Error>,
    work: impl FnOnce() -> Result<T, Error>,
) -> Result<T, Error> {
    let home = namespace("/proc/thread-self/ns/mnt", stage)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(".", flags, Mode::empty()).at(stage, "open the working directory")?;
    // The kernel lets nobody go whose root and working directory are another thread's, too.
    unshare(libc::CLONE_FS as u64).at(stage, "have a working directory of its own")?;
    go()?;
    let done = work();
    join(Namespace::Mount, &home)?;
    fchdir(directory.as_fd()).at(stage, "come back to the working directory")?;
    done
}

fn namespace(path: &str, stage: &str) -> Result<OwnedFd, Error> {
    open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).at(stage, format!("open {path}"))
}
