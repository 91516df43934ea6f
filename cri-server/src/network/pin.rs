//! Network namespaces with a path: bind mounts in the host's mount namespace, where network plugins
//! and other processes of a cluster look for them.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::error::Error;

/// Pins a namespace at a path; what a crash left there goes first.
pub(crate) fn set(path: &Path, netns: impl AsFd) -> Result<(), Error> {
    let failed = |source| Error::io("pin the network namespace at", path, source);
    remove(path)?;
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
    let source = format!("/proc/thread-self/fd/{}", netns.as_fd().as_raw_fd());
    mount_bind(source, path).map_err(|errno| failed(errno.into()))
}

/// Whether a namespace is there: after a reboot a plain file may have stayed, or nothing.
pub(crate) fn is_set(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|it| it.dev());
    match (device(path), path.parent().and_then(device)) {
        (Some(own), Some(of_dir)) => own != of_dir,
        _ => false,
    }
}

/// Takes the pin away; none is success. The namespace lives as long as something else holds it.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let failed = |source| Error::io("remove the pin of the network namespace", path, source);
    while is_set(path) {
        unmount(path, UnmountFlags::DETACH).map_err(|errno| failed(errno.into()))?;
    }
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
        _ => Ok(()),
    }
}
