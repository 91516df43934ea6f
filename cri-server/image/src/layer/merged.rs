//! Looks a name up in a stack of layers the way overlayfs would, without mounting anything and
//! without ever following a path that the layers control: one name at a time, by directory fd.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// A stack of layer directories, top first.
pub(crate) struct Merged {
    layers: Rc<Vec<OwnedFd>>,
}

/// What stands at a name in the merged view.
pub(crate) enum Found {
    /// The directory, in every layer that has a part of it, top first.
    Directory(Rc<Vec<OwnedFd>>),
    /// Anything else: its parent in the layer that decides, its name there, its attributes.
    Other {
        parent: OwnedFd,
        name: Vec<u8>,
        stat: Box<Stat>,
    },
    Absent,
}

/// The kernel's bound on symbolic links in one path.
const LINKS_MAX: usize = 40;
/// A path longer than PATH_MAX has fewer components than this.
const COMPONENTS_MAX: usize = 4096;
/// Marks a directory that hides everything below it.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

impl Merged {
    /// `layers`: open directories, top first.
    pub(crate) fn new(layers: Vec<OwnedFd>) -> Merged {
        Merged { layers: Rc::new(layers) }
    }

    /// Resolves `path` with symbolic links followed within the merged tree, the last one too.
    pub(crate) fn resolve(&self, path: &[u8]) -> io::Result<Found> {
        self.walk(path, true)
    }

    /// Finds what stands at exactly `path`: a symbolic link on the way means it is absent.
    pub(crate) fn at(&self, path: &[u8]) -> io::Result<Found> {
        self.walk(path, false)
    }

    fn walk(&self, path: &[u8], follow: bool) -> io::Result<Found> {
        let mut todo = components(path);
        let mut trail: Vec<Rc<Vec<OwnedFd>>> = vec![Rc::clone(&self.layers)];
        let mut links = 0;
        while let Some(name) = todo.pop() {
            let here = trail.last().unwrap_or(&self.layers);
            if name == b".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            match look(here, &name)? {
                Found::Directory(parts) => trail.push(parts),
                Found::Absent => return Ok(Found::Absent),
                Found::Other { parent, name, stat } => {
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    if kind != FileType::Symlink || !follow {
                        let last = todo.is_empty();
                        return Ok(if last {
                            Found::Other { parent, name, stat }
                        } else {
                            Found::Absent
                        });
                    }
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&parent, name.as_slice(), Vec::new())?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        trail.truncate(1);
                    }
                    todo.extend(components(target));
                    if todo.len() > COMPONENTS_MAX {
                        return Err(Errno::NAMETOOLONG.into());
                    }
                }
            }
        }
        let parts = trail.pop().unwrap_or_else(|| Rc::clone(&self.layers));
        Ok(Found::Directory(parts))
    }
}

/// Components of a path, last first, ready to be popped.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

/// One name in one merged directory.
fn look(parts: &[OwnedFd], name: &[u8]) -> io::Result<Found> {
    let mut found: Vec<OwnedFd> = Vec::new();
    for part in parts {
        let stat = match rustix::fs::statat(part, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        if is_whiteout(&stat) {
            break;
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if found.is_empty() {
                let (parent, name) = (part.try_clone()?, name.to_vec());
                return Ok(Found::Other { parent, name, stat: Box::new(stat) });
            }
            break;
        }
        let directory = open_directory(part.as_fd(), name)?;
        let opaque = is_opaque(directory.as_fd());
        found.push(directory);
        if opaque {
            break;
        }
    }
    Ok(if found.is_empty() { Found::Absent } else { Found::Directory(Rc::new(found)) })
}

/// A character device 0/0 is how overlayfs says "not here, nor below".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Opens a directory by a single name; a symbolic link there is an error.
pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, OsStr::from_bytes(name), flags, Mode::empty())?)
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value).is_ok_and(|n| value[..n] == *b"y")
}
