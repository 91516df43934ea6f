//! Sets a freshly unpacked layer on the layers below it. Layers are unpacked side by side, so only
//! now can a directory without an entry of its own take the attributes it has below, and a hard
//! link to a file of a lower layer get that file.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::merged::{Found, Merged, open_directory};
use super::write::{Made, is_for_layers, open_in_root};

#[derive(Debug, thiserror::Error)]
pub(crate) enum SettleError {
    #[error("{name:?} is a hard link to {target:?}, which is no file in any layer below")]
    NoTarget { name: PathBuf, target: PathBuf },
    #[error("{action} {name:?}: {source}")]
    Io { action: &'static str, name: PathBuf, source: io::Error },
}

/// The kernel's bound on the list of attribute names of one file.
const XATTR_LIST_MAX: usize = 64 << 10;

/// Completes the layer in `layer` that stands on `lowers` (top first).
pub(crate) fn settle(
    layer: BorrowedFd<'_>,
    made: &Made,
    lowers: Vec<OwnedFd>,
) -> Result<(), SettleError> {
    let below = Merged::new(lowers);
    let settling = Settling { layer, below: &below };
    for (name, target) in &made.links {
        settling.link(name, target)?;
    }
    // Children first would disturb the times of parents no more than parents first: setting
    // attributes does not touch a directory's own time.
    for path in &made.implicit {
        settling.directory(path)?;
    }
    Ok(())
}

struct Settling<'a> {
    layer: BorrowedFd<'a>,
    below: &'a Merged,
}

impl Settling<'_> {
    fn link(&self, name: &Path, target: &Path) -> Result<(), SettleError> {
        let none = || SettleError::NoTarget { name: name.to_owned(), target: target.to_owned() };
        let fault = Fault { name };
        let (target_parent, target_base) = split(target).ok_or_else(none)?;
        let (parent, base) = split(name).ok_or_else(none)?;
        let to = self.parents(target_parent).map_err(fault.of("make the directories of"))?;
        match rustix::fs::statat(&to, target_base, AtFlags::SYMLINK_NOFOLLOW) {
            // An earlier link brought the file up already.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) => return Err(none()),
            Err(Errno::NOENT) => self.copy_up(target, &to, target_base)?,
            Err(e) => return Err(fault.of("find the target of")(e)),
        }
        let from = self.parents(parent).map_err(fault.of("make the directories of"))?;
        let link = || rustix::fs::linkat(&to, target_base, &from, base, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                super::tree::remove(from.as_fd(), base.as_bytes()).map_err(fault.of("replace"))?;
                link().map_err(fault.of("link"))
            }
            linked => linked.map_err(fault.of("link")),
        }
    }

    fn copy_up(&self, target: &Path, to: &OwnedFd, base: &OsStr) -> Result<(), SettleError> {
        let fault = Fault { name: target };
        let found = self.below.resolve(target.as_os_str().as_bytes()).map_err(fault.of("find"))?;
        let (parent, name, stat) = match found {
            Found::Other { parent, name, stat }
                if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile =>
            {
                (parent, name, stat)
            }
            Found::Other { .. } | Found::Directory(_) | Found::Absent => {
                let (name, target) = (target.to_owned(), target.to_owned());
                return Err(SettleError::NoTarget { name, target });
            }
        };
        let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let source = rustix::fs::openat(&parent, name.as_slice(), read, Mode::empty())
            .map_err(fault.of("open"))?;
        let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(to, base, write, Mode::RUSR | Mode::WUSR)
            .map_err(fault.of("create"))?;
        let mut source = std::fs::File::from(source);
        let mut copy = std::fs::File::from(copy);
        io::copy(&mut source, &mut copy).map_err(fault.of("copy"))?;
        dress(source.as_fd(), copy.as_fd(), &stat).map_err(fault.of("set the attributes of"))
    }

    /// Opens a directory of this layer, made like the one below where it is missing.
    fn parents(&self, path: &Path) -> io::Result<OwnedFd> {
        match open_in_root(self.layer, path.as_os_str().as_bytes()) {
            Err(Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        let mut here = self.layer.try_clone_to_owned()?;
        let mut done = PathBuf::new();
        for part in path.iter() {
            done.push(part);
            match rustix::fs::mkdirat(&here, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    self.like_below(&done, open_directory(here.as_fd(), part.as_bytes())?)?;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            here = open_directory(here.as_fd(), part.as_bytes())?;
        }
        Ok(here)
    }

    fn directory(&self, path: &Path) -> Result<(), SettleError> {
        match open_in_root(self.layer, path.as_os_str().as_bytes()) {
            Ok(directory) => {
                self.like_below(path, directory).map_err(Fault { name: path }.of("dress"))
            }
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(()), // a later member replaced it
            Err(e) => Err(Fault { name: path }.of("open")(e)),
        }
    }

    fn like_below(&self, path: &Path, directory: OwnedFd) -> io::Result<()> {
        match self.below.at(path.as_os_str().as_bytes())? {
            Found::Directory(parts) => match parts.first() {
                Some(top) => dress(top.as_fd(), directory.as_fd(), &rustix::fs::fstat(top)?),
                None => plain(directory.as_fd()),
            },
            Found::Other { .. } | Found::Absent => plain(directory.as_fd()),
        }
    }
}

/// What a directory nobody described gets.
fn plain(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fchmod(directory, Mode::from_raw_mode(0o755))?)
}

/// Gives `to` the owner, mode, attributes and times of `from`.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0u8; XATTR_LIST_MAX];
    let length = match rustix::fs::flistxattr(from, &mut names) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    for name in names[..length].split(|b| *b == 0).filter(|name| is_for_layers(name)) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0u8; XATTR_LIST_MAX];
        let length = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    let time =
        |tv_sec: i64, nsec: u64| Timespec { tv_sec, tv_nsec: i64::try_from(nsec).unwrap_or(0) };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    Ok(rustix::fs::futimens(to, &times)?)
}

fn split(path: &Path) -> Option<(&Path, &OsStr)> {
    Some((path.parent()?, path.file_name()?))
}

/// Both kinds of system errors as a step's failure.
struct Fault<'a> {
    name: &'a Path,
}

impl Fault<'_> {
    fn of<E: Into<io::Error>>(
        &self,
        action: &'static str,
    ) -> impl FnOnce(E) -> SettleError + use<E> {
        let name = self.name.to_owned();
        move |source| SettleError::Io { action, name, source: source.into() }
    }
}
