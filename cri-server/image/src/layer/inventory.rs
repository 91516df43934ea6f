//! What a layer's directory holds, file by file: written when the layer is made, compared with the
//! disk when somebody asks or after a power loss.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _, Seek as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::compare::Depth;
use super::merged::open_directory;
use super::write::Usage;
use crate::digest::{Digest, Hasher, hex};

/// sha256 of every regular file that was written, by inode.
pub(crate) type Sums = HashMap<u64, [u8; 32]>;

/// What two looks at the same file must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) kind: char,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Of a regular file's content, or of a link's target; `-` for anything else.
    pub(super) sum: String,
}

/// `st_blocks` counts in these.
const STAT_BLOCK: u64 = 512;
/// Each level holds a descriptor. What lies deeper, in a tree that no builder makes, is not looked at.
pub(super) const DEPTH_MAX: usize = 256;
const READ: usize = 128 << 10;

/// Writes the inventory of the directory `layer`, compressed (paths repeat themselves); answers its digest and the
/// space that the directory takes. Files that `sums` does not know are read.
pub(crate) fn take(
    layer: BorrowedFd<'_>,
    sums: &Sums,
    file: impl Write,
) -> io::Result<(Digest, Usage)> {
    let hashing = Hashing { inner: file, hasher: Hasher::sha256() };
    let mut sealed = zstd::Encoder::new(hashing, 1)?;
    sealed.include_checksum(true)?;
    let mut text = Vec::new();
    let mut usage = Usage::default();
    let mut linked = std::collections::HashSet::new();
    walk(layer, &mut |path, parent, name, stat| {
        if is_directory(stat) || stat.st_nlink < 2 || linked.insert(stat.st_ino) {
            usage.inodes += 1;
            usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * STAT_BLOCK;
        }
        let sum = match sums.get(&stat.st_ino) {
            Some(sum) if kind(stat) == 'f' => hex(sum),
            _ => sum(parent, name, stat)?,
        };
        text.clear();
        line(stat, sum).write(path, &mut text);
        sealed.write_all(&text)
    })?;
    Ok((sealed.finish()?.hasher.finish(), usage))
}

/// The text of the inventory in `sealed`, if it is the promised one.
pub(crate) fn open(mut sealed: File, promised: &Digest) -> io::Result<Option<impl BufRead>> {
    if hash(&mut sealed)? != *promised {
        return Ok(None);
    }
    sealed.rewind()?;
    Ok(Some(BufReader::new(zstd::Decoder::new(sealed)?)))
}

/// Hashes what it hands on.
struct Hashing<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Line {
    /// `kind mode uid gid size sum path`, ended by NUL: the one byte that no path has.
    fn write(&self, path: &[u8], text: &mut Vec<u8>) {
        let Line { kind, mode, uid, gid, size, sum } = self;
        text.extend_from_slice(format!("{kind} {mode:o} {uid} {gid} {size} {sum} ").as_bytes());
        text.extend_from_slice(path);
        text.push(0);
    }

    pub(super) fn read(record: &[u8]) -> Option<(Line, &[u8])> {
        let mut fields = record.splitn(7, |b| *b == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let line = Line {
            kind: text()?.parse().ok()?,
            mode: u32::from_str_radix(text()?, 8).ok()?,
            uid: text()?.parse().ok()?,
            gid: text()?.parse().ok()?,
            size: text()?.parse().ok()?,
            sum: text()?.to_owned(),
        };
        Some((line, fields.next()?))
    }

    pub(super) fn difference(&self, found: &Line, depth: Depth) -> Option<String> {
        if self.kind != found.kind {
            return Some("is of another type".into());
        }
        if self.size != found.size {
            return Some(format!("has {} bytes, made with {}", found.size, self.size));
        }
        if depth == Depth::Sizes {
            return None;
        }
        if self.sum != found.sum {
            return Some("has other content".into());
        }
        if (self.uid, self.gid) != (found.uid, found.gid) {
            return Some(format!("belongs to {}:{}", found.uid, found.gid));
        }
        (self.mode != found.mode).then(|| format!("has the mode {:o}", found.mode))
    }
}

pub(super) fn line(stat: &Stat, sum: String) -> Line {
    let kind = kind(stat);
    let size = match kind {
        'f' | 'l' => u64::try_from(stat.st_size).unwrap_or(0),
        'c' | 'b' => stat.st_rdev,
        _ => 0,
    };
    Line { kind, mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, size, sum }
}

fn kind(stat: &Stat) -> char {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => 'f',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        _ => '?',
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(super) fn sum(parent: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<String> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            Ok(hash(&mut file.into())?.hex().to_owned())
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            Ok(Digest::of(target.as_bytes()).hex().to_owned())
        }
        _ => Ok("-".into()),
    }
}

type Visit<'a> = dyn FnMut(&[u8], BorrowedFd<'_>, &OsStr, &Stat) -> io::Result<()> + 'a;

/// Calls `visit` for every name below `layer`, the directory itself first under the empty path.
fn walk(layer: BorrowedFd<'_>, visit: &mut Visit<'_>) -> io::Result<()> {
    visit(b"", layer, OsStr::new("."), &rustix::fs::fstat(layer)?)?;
    descend(layer, &mut Vec::new(), 0, visit)
}

fn descend(
    here: BorrowedFd<'_>,
    path: &mut Vec<u8>,
    depth: usize,
    visit: &mut Visit<'_>,
) -> io::Result<()> {
    let mut directories = Vec::new();
    let mut listing = Dir::read_from(here)?;
    while let Some(entry) = listing.read() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let shown = OsStr::from_bytes(name);
        let stat = rustix::fs::statat(here, shown, AtFlags::SYMLINK_NOFOLLOW)?;
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        visit(path, here, shown, &stat)?;
        path.truncate(length);
        if is_directory(&stat) {
            directories.push(name.to_vec());
        }
    }
    drop(listing);
    if depth == DEPTH_MAX {
        return Ok(());
    }
    for name in directories {
        let child = open_directory(here, &name)?;
        let length = path.len();
        if length > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        descend(child.as_fd(), path, depth + 1, visit)?;
        path.truncate(length);
    }
    Ok(())
}

fn hash(file: &mut File) -> io::Result<Digest> {
    let (mut buffer, mut hasher) = (vec![0; READ], Hasher::sha256());
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}
