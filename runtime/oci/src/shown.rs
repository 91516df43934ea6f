//! The root of a container without a mount namespace of its own shows among the caller's mounts: it is found there,
//! and taken away at the end.

use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::error::Error;

/// The id of the mount that is seen at `path`.
pub(crate) fn mount_at(path: &Path) -> Result<u64, Error> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
    Ok(stat.map_err(|e| Error::file("look at", path)(e.into()))?.stx_mnt_id)
}

/// Unmounts it with all that is mounted in it, if it still is what is seen there.
pub(crate) fn take_away(path: &Path, id: u64) -> Result<(), Error> {
    if !mount_at(path).is_ok_and(|seen| seen == id) {
        return Ok(());
    }
    match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::file("unmount", path)(e.into())),
    }
}
