//! Removes a directory tree of any depth that a stranger filled: no recursion beyond a bound, no
//! symbolic link followed, a constant number of open files.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

/// Levels removed by plain recursion; what lies deeper is first moved up, so that neither the
/// stack nor the table of open files sets a limit to what can be removed.
const DEPTH_MAX: usize = 64;

/// Removes `name` in `parent` and everything in it. Already gone is done.
pub(crate) fn remove(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let base = OsStr::from_bytes(name);
    match rustix::fs::unlinkat(parent, base, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    let top = super::merged::open_directory(parent, name)?;
    let mut hoist = Hoist { top: top.as_fd(), moved: 0 };
    loop {
        let before = hoist.moved;
        empty(top.as_fd(), 0, &mut hoist)?;
        if hoist.moved == before {
            break;
        }
    }
    drop(top);
    match rustix::fs::unlinkat(parent, base, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Where directories too deep to descend into are moved.
struct Hoist<'a> {
    top: BorrowedFd<'a>,
    moved: u64,
}

fn empty(directory: BorrowedFd<'_>, depth: usize, hoist: &mut Hoist<'_>) -> io::Result<()> {
    let mut listing = Dir::read_from(directory)?;
    while let Some(entry) = listing.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR) => {} // the file system does not tell types in listings
                Err(e) => return Err(e.into()),
            }
        }
        descend(directory, name, depth, hoist)?;
    }
    Ok(())
}

fn descend(
    directory: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    hoist: &mut Hoist<'_>,
) -> io::Result<()> {
    if depth >= DEPTH_MAX {
        let aside = format!(".hoisted-{}", crate::digest::nonce());
        hoist.moved += 1;
        return Ok(rustix::fs::renameat(directory, name, hoist.top, aside)?);
    }
    let child: OwnedFd = super::merged::open_directory(directory, name.to_bytes())?;
    empty(child.as_fd(), depth + 1, hoist)?;
    drop(child);
    match rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}
