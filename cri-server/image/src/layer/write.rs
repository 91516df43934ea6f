//! Puts the members of a layer archive into a directory that may only be written through
//! `openat2(RESOLVE_IN_ROOT)`: no name, link or duplicate in the archive can reach outside of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use sha2::Digest as _;

use super::archive::{Archive, ArchiveError, Entry, Kind};
use super::inventory::Sums;
use super::merged::{OPAQUE, is_whiteout};
use super::tree;
use crate::config::Limits;

/// What a layer directory needs before it can stand on the layers below, and what it takes.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(crate) sums: Sums,
    /// Directories made only because something lies in them: they get the lower layer's attributes.
    pub(crate) implicit: Vec<PathBuf>,
    /// Hard links (name, target) whose target is not in this layer.
    pub(crate) links: Vec<(PathBuf, PathBuf)>,
}

/// Disk space of a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    #[error("the name {0:?} leaves the layer")]
    Escapes(String),
    #[error("{name:?}: {reason}")]
    Entry { name: String, reason: &'static str },
    #[error("{action} {name:?}: {source}")]
    Io { action: &'static str, name: String, source: io::Error },
    #[error("it has more than {0} entries, the limit of this node")]
    TooManyEntries(u64),
    #[error("its files are larger than {0} bytes, the limit of this node")]
    TooLarge(u64),
    #[error("cancelled")]
    Cancelled,
}

pub(crate) struct Writer<'a> {
    root: OwnedFd,
    limits: &'a Limits,
    cancel: &'a AtomicBool,
    /// Recently used directories by their cleaned name; members of one directory come together.
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
    /// Made without an entry of their own, by inode.
    implicit: HashMap<u64, PathBuf>,
    /// Times to set when nothing is added any more, by inode.
    times: HashMap<u64, (PathBuf, Timestamps)>,
    links: Vec<(PathBuf, PathBuf)>,
    /// Of files as they were written; sparse ones are read again.
    sums: Sums,
    entries: u64,
    logical: u64,
}

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Directory fds kept open; archives walk depth first, so a few dozen give nearly every hit.
const OPEN_MAX: usize = 64;
/// The kernel's bound on symbolic links in one path.
const LINKS_MAX: usize = 40;
/// Longest part of a member's name that an error repeats.
const QUOTED_MAX: usize = 200;

impl<'a> Writer<'a> {
    /// `root`: an open, empty directory.
    pub(crate) fn new(
        root: OwnedFd,
        limits: &'a Limits,
        cancel: &'a AtomicBool,
    ) -> io::Result<Writer<'a>> {
        let implicit = HashMap::from([(rustix::fs::fstat(&root)?.st_ino, PathBuf::new())]);
        Ok(Writer {
            root,
            limits,
            cancel,
            open: HashMap::new(),
            implicit,
            times: HashMap::new(),
            links: Vec::new(),
            sums: Sums::new(),
            entries: 0,
            logical: 0,
        })
    }

    /// Writes every member of the archive.
    pub(crate) fn write<R: BufRead>(&mut self, archive: &mut Archive<R>) -> Result<(), WriteError> {
        while let Some(entry) = archive.next_entry()? {
            self.entries += 1;
            if self.entries > self.limits.layer_entries {
                return Err(WriteError::TooManyEntries(self.limits.layer_entries));
            }
            self.logical = self.logical.saturating_add(entry.size);
            if self.logical > self.limits.layer_bytes {
                return Err(WriteError::TooLarge(self.limits.layer_bytes));
            }
            self.check_cancel()?;
            self.entry(&entry, archive)?;
        }
        Ok(())
    }

    /// Sets the times of directories, now that nothing is added to them.
    pub(crate) fn finish(mut self) -> Result<Made, WriteError> {
        self.open.clear();
        for (inode, (path, times)) in std::mem::take(&mut self.times) {
            let name = path.as_os_str().as_bytes();
            // A later member may have replaced the directory.
            let Ok(directory) = self.resolve(name) else { continue };
            if rustix::fs::fstat(&directory).is_ok_and(|stat| stat.st_ino == inode) {
                rustix::fs::futimens(&directory, &times).map_err(io_at("set the time of", name))?;
            }
        }
        let mut implicit: Vec<PathBuf> = self.implicit.into_values().collect();
        implicit.sort();
        Ok(Made { sums: self.sums, implicit, links: self.links })
    }

    fn check_cancel(&self) -> Result<(), WriteError> {
        if self.cancel.load(Ordering::Relaxed) { Err(WriteError::Cancelled) } else { Ok(()) }
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), WriteError> {
        let path = clean(&entry.name)?;
        let Some((base, parent)) = path.split_last() else {
            return match entry.kind {
                Kind::Directory => {
                    let root = self.root.try_clone().map_err(io_at("open", b"/"))?;
                    self.dress_directory(&root, entry, PathBuf::new())
                }
                _ => Err(at(&entry.name, "only a directory can be the root of a layer")),
            };
        };
        let directory = self.parent(parent)?;
        if let Some(hidden) = base.strip_prefix(WHITEOUT) {
            return self.whiteout(&directory, base, hidden, entry);
        }
        let place = Place { directory: &directory, base, name: &entry.name };
        match entry.kind {
            Kind::Directory => self.directory(&place, entry, path.join(&b'/')),
            Kind::File => self.file(&place, entry, archive),
            Kind::HardLink => self.hard_link(&place, entry, &path),
            Kind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.make(&place, "make the symbolic link", |dir, base| {
                    rustix::fs::symlinkat(link, dir, base)
                })?;
                self.dress_node(&place, entry)
            }
            Kind::Char | Kind::Block | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::Char => FileType::CharacterDevice,
                    Kind::Block => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                self.make(&place, "make the special file", |dir, base| {
                    rustix::fs::mknodat(dir, base, kind, Mode::from_raw_mode(0o600), device)
                })?;
                rustix::fs::chmodat(
                    place.directory,
                    OsStr::from_bytes(base),
                    Mode::from_raw_mode(entry.mode),
                    AtFlags::empty(),
                )
                .map_err(io_at("set the mode of", place.name))?;
                self.dress_node(&place, entry)
            }
        }
    }

    fn whiteout(
        &mut self,
        directory: &OwnedFd,
        base: &[u8],
        hidden: &[u8],
        entry: &Entry,
    ) -> Result<(), WriteError> {
        if base == WHITEOUT_OPAQUE {
            return set_opaque(directory, &entry.name);
        }
        if base.starts_with(WHITEOUT_META) {
            return Ok(()); // bookkeeping of another storage driver
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(at(&entry.name, "a whiteout must name a file"));
        }
        let target = OsStr::from_bytes(hidden);
        let made =
            rustix::fs::mknodat(directory, target, FileType::CharacterDevice, Mode::empty(), 0);
        match made {
            Ok(()) => Ok(()),
            // What this layer itself has at that name stays; only what is below is hidden.
            Err(Errno::EXIST) => match super::merged::open_directory(directory.as_fd(), hidden) {
                Ok(same) => set_opaque(&same, &entry.name),
                Err(_) => Ok(()),
            },
            Err(e) => Err(io_at("make the whiteout", &entry.name)(e)),
        }
    }

    fn directory(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        path: Vec<u8>,
    ) -> Result<(), WriteError> {
        let base = OsStr::from_bytes(place.base);
        let mut hide = false;
        let made = rustix::fs::mkdirat(place.directory, base, Mode::RWXU);
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => match self.stat(place)? {
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {}
                stat => {
                    hide = stat.is_some_and(|stat| is_whiteout(&stat));
                    self.clear(place)?;
                    rustix::fs::mkdirat(place.directory, base, Mode::RWXU)
                        .map_err(io_at("make the directory", place.name))?;
                }
            },
            Err(e) => return Err(io_at("make the directory", place.name)(e)),
        }
        let directory = super::merged::open_directory(place.directory.as_fd(), place.base)
            .map_err(io_at("open the directory", place.name))?;
        if hide {
            set_opaque(&directory, place.name)?;
        }
        self.dress_directory(&directory, entry, PathBuf::from(OsStr::from_bytes(&path)))
    }

    fn dress_directory(
        &mut self,
        directory: &OwnedFd,
        entry: &Entry,
        path: PathBuf,
    ) -> Result<(), WriteError> {
        let stat = rustix::fs::fstat(directory).map_err(io_at("stat", &entry.name))?;
        self.implicit.remove(&stat.st_ino);
        self.times.insert(stat.st_ino, (path, times(entry)));
        dress(directory.as_fd(), entry)
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<(), WriteError> {
        let flags = OFlags::WRONLY
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC
            | OFlags::NOATIME;
        let file = self.make(place, "create", |dir, base| {
            rustix::fs::openat(dir, base, flags, Mode::RUSR | Mode::WUSR)
        })?;
        match &entry.sparse {
            None => {
                let sum = self.pour(&file, 0, entry.size, (place, archive))?;
                let inode = rustix::fs::fstat(&file).map_err(io_at("stat", place.name))?.st_ino;
                self.sums.insert(inode, sum);
            }
            Some(pieces) => {
                for (offset, length) in pieces {
                    self.pour(&file, *offset, *length, (place, archive))?;
                }
                rustix::fs::ftruncate(&file, entry.size)
                    .map_err(io_at("set the size of", place.name))?;
            }
        }
        dress(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &times(entry)).map_err(io_at("set the time of", place.name))
    }

    /// Writes `length` stored bytes at `offset`; answers their sha256.
    fn pour<R: BufRead>(
        &mut self,
        file: &OwnedFd,
        mut offset: u64,
        length: u64,
        (place, archive): (&Place<'_>, &mut Archive<R>),
    ) -> Result<[u8; 32], WriteError> {
        let mut hasher = sha2::Sha256::new();
        let end = offset + length;
        while offset < end {
            let bytes = archive.data(end - offset)?;
            if bytes.is_empty() {
                return Err(at(place.name, "its data is shorter than its size"));
            }
            let written =
                rustix::io::pwrite(file, bytes, offset).map_err(io_at("write", place.name))?;
            hasher.update(&bytes[..written]);
            archive.consume(written);
            offset += written as u64;
            self.check_cancel()?;
        }
        Ok(hasher.finalize().into())
    }

    fn hard_link(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        path: &[&[u8]],
    ) -> Result<(), WriteError> {
        let target = clean(&entry.link)?;
        let Some((target_base, target_parent)) = target.split_last() else {
            return Err(at(place.name, "it is a hard link to the root of the layer"));
        };
        if target == path {
            return Err(at(place.name, "it is a hard link to itself"));
        }
        let parent = match self.cached(target_parent) {
            Ok(parent) => Some(parent),
            Err(Errno::NOENT) => None,
            Err(e) => return Err(io_at("resolve the hard link target of", place.name)(e)),
        };
        let target_name = OsStr::from_bytes(target_base);
        let stat = parent
            .as_ref()
            .map(|dir| rustix::fs::statat(dir, target_name, AtFlags::SYMLINK_NOFOLLOW));
        match (&parent, stat) {
            (Some(parent), Some(Ok(stat))) => {
                if is_whiteout(&stat) {
                    return Err(at(place.name, "it is a hard link to a deleted file"));
                }
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    return Err(at(place.name, "it is a hard link to a directory"));
                }
                self.make(place, "make the hard link", |dir, base| {
                    rustix::fs::linkat(parent, target_name, dir, base, AtFlags::empty())
                })?;
                Ok(())
            }
            (None, _) | (_, None | Some(Err(Errno::NOENT))) => {
                let joined = |parts: &[&[u8]]| PathBuf::from(OsStr::from_bytes(&parts.join(&b'/')));
                self.links.push((joined(path), joined(&target)));
                Ok(())
            }
            (Some(_), Some(Err(e))) => Err(io_at("find the hard link target of", place.name)(e)),
        }
    }

    /// Makes a non-directory, replacing what an earlier member left at its name.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        action: &'static str,
        make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T, WriteError> {
        let base = OsStr::from_bytes(place.base);
        let made = match make(place.directory, base) {
            Err(Errno::EXIST) => {
                self.clear(place)?;
                make(place.directory, base)
            }
            made => made,
        };
        made.map_err(io_at(action, place.name))
    }

    fn stat(&self, place: &Place<'_>) -> Result<Option<Stat>, WriteError> {
        let base = OsStr::from_bytes(place.base);
        match rustix::fs::statat(place.directory, base, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(io_at("stat", place.name)(e)),
        }
    }

    /// Removes what stands at a name, whole trees too.
    fn clear(&mut self, place: &Place<'_>) -> Result<(), WriteError> {
        let base = OsStr::from_bytes(place.base);
        match rustix::fs::unlinkat(place.directory, base, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => {
                tree::remove(place.directory.as_fd(), place.base)
                    .map_err(io_at("replace", place.name))?;
            }
            Err(e) => return Err(io_at("replace", place.name)(e)),
        }
        self.open.clear(); // a cached name may have led through it
        Ok(())
    }

    fn dress_node(&self, place: &Place<'_>, entry: &Entry) -> Result<(), WriteError> {
        let base = OsStr::from_bytes(place.base);
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let (uid, gid) = owner(entry);
        rustix::fs::chownat(place.directory, base, Some(uid), Some(gid), nofollow)
            .map_err(io_at("set the owner of", place.name))?;
        if entry.kind != Kind::Symlink {
            // A change of owner clears set-id bits.
            let mode = Mode::from_raw_mode(entry.mode);
            rustix::fs::chmodat(place.directory, base, mode, AtFlags::empty())
                .map_err(io_at("set the mode of", place.name))?;
        }
        rustix::fs::utimensat(place.directory, base, &times(entry), nofollow)
            .map_err(io_at("set the time of", place.name))
    }

    /// The directory at `path`, made if need be.
    fn parent(&mut self, path: &[&[u8]]) -> Result<Rc<OwnedFd>, WriteError> {
        match self.cached(path) {
            Ok(directory) => Ok(directory),
            // Missing, or deleted by this layer: a whiteout is no directory.
            Err(Errno::NOENT | Errno::NOTDIR) => {
                let directory = Rc::new(self.make_parents(path)?);
                self.remember(path.join(&b'/'), &directory);
                Ok(directory)
            }
            Err(e) => Err(io_at("open the directory", &path.join(&b'/'))(e)),
        }
    }

    fn cached(&mut self, path: &[&[u8]]) -> Result<Rc<OwnedFd>, Errno> {
        let name = path.join(&b'/');
        if let Some(directory) = self.open.get(&name) {
            return Ok(Rc::clone(directory));
        }
        let directory = Rc::new(self.resolve(&name)?);
        self.remember(name, &directory);
        Ok(directory)
    }

    fn remember(&mut self, name: Vec<u8>, directory: &Rc<OwnedFd>) {
        if self.open.len() >= OPEN_MAX {
            self.open.clear();
        }
        self.open.insert(name, Rc::clone(directory));
    }

    fn resolve(&self, name: &[u8]) -> Result<OwnedFd, Errno> {
        open_in_root(self.root.as_fd(), name)
    }

    /// Makes missing directories one by one; a dangling link's target is made within the layer.
    fn make_parents(&mut self, path: &[&[u8]]) -> Result<OwnedFd, WriteError> {
        let shown = path.join(&b'/');
        let mut todo: Vec<Vec<u8>> = path.iter().rev().map(|name| name.to_vec()).collect();
        let mut trail: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let fault = Fault { name: &shown };
        let mut here = self.root.try_clone().map_err(fault.of("open"))?;
        while let Some(name) = todo.pop() {
            if name == b".." {
                trail.pop();
                here = self.resolve(&trail.join(&b'/')).map_err(fault.of("open"))?;
                continue;
            }
            let base = OsStr::from_bytes(&name);
            match rustix::fs::statat(&here, base, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    FileType::Symlink => {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err(fault.of("resolve")(Errno::LOOP));
                        }
                        let target = rustix::fs::readlinkat(&here, base, Vec::new())
                            .map_err(fault.of("read the link at"))?;
                        let target = target.as_bytes();
                        if target.starts_with(b"/") {
                            trail.clear();
                            here = self.root.try_clone().map_err(fault.of("open"))?;
                        }
                        todo.extend(
                            target
                                .split(|b| *b == b'/')
                                .filter(|name| !matches!(*name, b"" | b"."))
                                .rev()
                                .map(<[u8]>::to_vec),
                        );
                        continue;
                    }
                    _ if is_whiteout(&stat) => {
                        self.clear(&Place { directory: &here, base: &name, name: &shown })?;
                        self.make_implicit(&here, base, &trail, &shown)?;
                        let made = super::merged::open_directory(here.as_fd(), base.as_bytes());
                        set_opaque(&made.map_err(fault.of("open"))?, &shown)?;
                    }
                    _ => return Err(fault.of("make the directory")(Errno::NOTDIR)),
                },
                Err(Errno::NOENT) => self.make_implicit(&here, base, &trail, &shown)?,
                Err(e) => return Err(fault.of("stat")(e)),
            }
            here = super::merged::open_directory(here.as_fd(), base.as_bytes())
                .map_err(fault.of("open"))?;
            trail.push(name);
        }
        Ok(here)
    }

    fn make_implicit(
        &mut self,
        parent: &OwnedFd,
        base: &OsStr,
        trail: &[Vec<u8>],
        shown: &[u8],
    ) -> Result<(), WriteError> {
        let fault = Fault { name: shown };
        rustix::fs::mkdirat(parent, base, Mode::RWXU).map_err(fault.of("make the directory"))?;
        // The process's mask must not decide.
        rustix::fs::chmodat(parent, base, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(fault.of("set the mode of"))?;
        let stat = rustix::fs::statat(parent, base, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fault.of("stat"))?;
        let mut path: PathBuf = trail.iter().map(|name| OsStr::from_bytes(name)).collect();
        path.push(base);
        self.implicit.insert(stat.st_ino, path);
        Ok(())
    }
}

/// Where a member goes: its directory, its name there, its whole name for errors.
struct Place<'a> {
    directory: &'a OwnedFd,
    base: &'a [u8],
    name: &'a [u8],
}

/// Opens the directory `name` below `root`; links resolve as if `root` were `/`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let name = if name.is_empty() { b"." } else { name };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    loop {
        match rustix::fs::openat2(root, OsStr::from_bytes(name), flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {} // a rename elsewhere raced with `..`; the kernel asks for a retry
            opened => return opened,
        }
    }
}

/// Components of a member's name, `.` and empty ones dropped and `..` applied by text.
fn clean(name: &[u8]) -> Result<Vec<&[u8]>, WriteError> {
    let mut path = Vec::new();
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                path.pop().ok_or_else(|| WriteError::Escapes(quote(name)))?;
            }
            part => path.push(part),
        }
    }
    Ok(path)
}

fn set_opaque(directory: &OwnedFd, name: &[u8]) -> Result<(), WriteError> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
        .map_err(io_at("make opaque", name))
}

/// Owner, mode and extended attributes, in the order that keeps set-id bits and capabilities.
fn dress(file: BorrowedFd<'_>, entry: &Entry) -> Result<(), WriteError> {
    let (uid, gid) = owner(entry);
    rustix::fs::fchown(file, Some(uid), Some(gid))
        .map_err(io_at("set the owner of", &entry.name))?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))
        .map_err(io_at("set the mode of", &entry.name))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_for_layers(name)) {
        match rustix::fs::fsetxattr(file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            // A file system without user attributes or ACLs still runs the image.
            Err(Errno::NOTSUP | Errno::PERM) if name != CAPABILITY => {}
            Err(e) => return Err(io_at("set an extended attribute of", &entry.name)(e)),
        }
    }
    Ok(())
}

const CAPABILITY: &[u8] = b"security.capability";

/// Attributes that an image may bring. Those of overlayfs would let it fake whiteouts and
/// redirects; labels of security modules are the node's to choose.
pub(crate) fn is_for_layers(name: &[u8]) -> bool {
    name == CAPABILITY
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        || matches!(name, b"system.posix_acl_access" | b"system.posix_acl_default")
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: entry.mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn quote(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(QUOTED_MAX).collect()
}

fn at(name: &[u8], reason: &'static str) -> WriteError {
    WriteError::Entry { name: quote(name), reason }
}

fn io_at<E: Into<io::Error>>(action: &'static str, name: &[u8]) -> impl FnOnce(E) -> WriteError {
    move |source| WriteError::Io { action, name: quote(name), source: source.into() }
}

/// Both kinds of system errors as a member's failure.
struct Fault<'a> {
    name: &'a [u8],
}

impl Fault<'_> {
    fn of<E: Into<io::Error>>(&self, action: &'static str) -> impl FnOnce(E) -> WriteError {
        io_at(action, self.name)
    }
}

/// For callers that hold a path of our own.
pub(crate) fn open_directory_path(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
