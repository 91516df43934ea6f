//! What a layer's directory holds, file by file: written when the layer is made, compared with the
//! disk when somebody asks or after a power loss.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::merged::open_directory;
use super::write::Usage;
use crate::digest::{Digest, Hasher, hex};

/// sha256 of every regular file that was written, by inode.
pub(crate) type Sums = HashMap<u64, [u8; 32]>;

/// What two looks at the same file must agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    kind: char,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    /// Of a regular file's content, or of a link's target; `-` for anything else.
    sum: String,
}

/// How thoroughly to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Types and sizes: what a power loss damages.
    Sizes,
    /// Everything, every byte of every file.
    Bytes,
}

/// `st_blocks` counts in these.
const STAT_BLOCK: u64 = 512;
/// Differences told of one layer; a layer with more is as bad as it gets.
const DIFFERENCES_MAX: usize = 20;
/// Each level holds a descriptor. What lies deeper, in a tree that no builder makes, is not looked at.
const DEPTH_MAX: usize = 256;
const READ: usize = 128 << 10;

/// The inventory of the directory `layer`, compressed (paths repeat themselves), and the space it
/// takes. Files that `sums` does not know are read.
pub(crate) fn take(layer: BorrowedFd<'_>, sums: &Sums) -> io::Result<(Vec<u8>, Usage)> {
    let mut sealed = zstd::Encoder::new(Vec::new(), 1)?;
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
    Ok((sealed.finish()?, usage))
}

/// What is different from the inventory, in words; nothing: all is as it was made.
pub(crate) fn compare(
    layer: BorrowedFd<'_>,
    inventory: &[u8],
    depth: Depth,
) -> io::Result<Vec<String>> {
    let mut wanted = HashMap::new();
    for record in inventory.split(|b| *b == 0).filter(|record| !record.is_empty()) {
        let (line, path) =
            Line::read(record).ok_or_else(|| io::Error::other("the inventory is damaged"))?;
        wanted.insert(path, line);
    }
    let mut differences = Vec::new();
    let mut tell = |path: &[u8], what: String| {
        if differences.len() < DIFFERENCES_MAX {
            differences.push(format!("/{}: {what}", String::from_utf8_lossy(path)));
        }
    };
    walk(layer, &mut |path, parent, name, stat| {
        let Some(promised) = wanted.remove(path) else {
            tell(path, "was not there".into());
            return Ok(());
        };
        let found = match depth {
            Depth::Sizes => line(stat, promised.sum.clone()),
            Depth::Bytes => match sum(parent, name, stat) {
                Ok(sum) => line(stat, sum),
                Err(e) => {
                    tell(path, e.to_string());
                    return Ok(());
                }
            },
        };
        if let Some(what) = promised.difference(&found, depth) {
            tell(path, what);
        }
        Ok(())
    })?;
    let mut missing: Vec<&[u8]> = wanted.into_keys().collect();
    missing.sort_unstable();
    for path in missing {
        tell(path, "is missing".into());
    }
    Ok(differences)
}

impl Line {
    /// `kind mode uid gid size sum path`, ended by NUL: the one byte that no path has.
    fn write(&self, path: &[u8], text: &mut Vec<u8>) {
        let Line { kind, mode, uid, gid, size, sum } = self;
        text.extend_from_slice(format!("{kind} {mode:o} {uid} {gid} {size} {sum} ").as_bytes());
        text.extend_from_slice(path);
        text.push(0);
    }

    fn read(record: &[u8]) -> Option<(Line, &[u8])> {
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

    fn difference(&self, found: &Line, depth: Depth) -> Option<String> {
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

fn line(stat: &Stat, sum: String) -> Line {
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

fn sum(parent: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<String> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let (mut file, mut hasher) = (std::fs::File::from(file), Hasher::sha256());
            let mut buffer = vec![0; READ];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(hasher.finish().hex().to_owned()),
                    length => hasher.update(&buffer[..length]),
                }
            }
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

pub(crate) fn unseal(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::decode_all(bytes)
}
