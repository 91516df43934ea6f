//! A layer's directory as a tar archive again: what overlayfs reads becomes what image tools read.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use tar::{EntryType, Header};

use super::merged::{OPAQUE, is_whiteout, open_directory};
use super::write::is_for_layers;

/// Each level holds a descriptor.
const DEPTH_MAX: usize = 256;
/// The kernel's bound on the list of attribute names of one file, and on one value.
const XATTR_MAX: usize = 64 << 10;

/// Writes everything in `layer` to `archive`, in the order of names, so that the same directory
/// always gives the same bytes.
pub(crate) fn pack(layer: BorrowedFd<'_>, archive: impl Write) -> io::Result<()> {
    let mut packing = Packing { archive: tar::Builder::new(archive), linked: HashMap::new() };
    let stat = rustix::fs::fstat(layer)?;
    packing.member(layer, OsStr::new("."), b"./", &stat)?;
    packing.directory(layer, b"", 0)?;
    packing.archive.finish()
}

/// What a header has no room for.
#[derive(Clone, Copy, Default)]
struct About<'a> {
    path: &'a [u8],
    attributes: &'a [(Vec<u8>, Vec<u8>)],
    link: Option<&'a [u8]>,
}

struct Packing<W: Write> {
    archive: tar::Builder<W>,
    /// The first name of every inode with several.
    linked: HashMap<u64, Vec<u8>>,
}

impl<W: Write> Packing<W> {
    fn directory(&mut self, here: BorrowedFd<'_>, path: &[u8], depth: usize) -> io::Result<()> {
        if depth == DEPTH_MAX {
            return Err(io::Error::other("it is nested too deep"));
        }
        if is_opaque(here) {
            let header = header(EntryType::Regular, None, 0);
            let path = &joined(path, b".wh..wh..opq");
            self.append(header, About { path, ..About::default() }, io::empty())?;
        }
        let mut names = Vec::new();
        let mut listing = Dir::read_from(here)?;
        while let Some(entry) = listing.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                names.push(name.to_vec());
            }
        }
        drop(listing);
        names.sort_unstable();
        for name in names {
            let base = OsStr::from_bytes(&name);
            let stat = rustix::fs::statat(here, base, AtFlags::SYMLINK_NOFOLLOW)?;
            if is_whiteout(&stat) {
                let hidden = joined(path, &[b".wh.", name.as_slice()].concat());
                let about = About { path: &hidden, ..About::default() };
                self.append(header(EntryType::Regular, None, 0), about, io::empty())?;
                continue;
            }
            let whole = joined(path, &name);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                let child = open_directory(here, &name)?;
                let mut shown = whole.clone();
                shown.push(b'/');
                self.member(child.as_fd(), OsStr::new("."), &shown, &stat)?;
                self.directory(child.as_fd(), &whole, depth + 1)?;
            } else {
                self.member(here, base, &whole, &stat)?;
            }
        }
        Ok(())
    }

    /// `base` in `parent`, under the name `path`.
    fn member(
        &mut self,
        parent: BorrowedFd<'_>,
        base: &OsStr,
        path: &[u8],
        stat: &Stat,
    ) -> io::Result<()> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino).cloned() {
                let header = header(EntryType::Link, Some(stat), 0);
                let about = About { path, link: Some(&first), ..About::default() };
                return self.append(header, about, io::empty());
            }
            self.linked.insert(stat.st_ino, path.to_vec());
        }
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(parent, base, flags, Mode::empty())?;
                let attributes = attributes(file.as_fd())?;
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let header = header(EntryType::Regular, Some(stat), size);
                let about = About { path, attributes: &attributes, link: None };
                self.append(header, about, std::fs::File::from(file))
            }
            FileType::Directory => {
                let attributes = attributes(parent)?;
                let header = header(EntryType::Directory, Some(stat), 0);
                self.append(
                    header,
                    About { path, attributes: &attributes, link: None },
                    io::empty(),
                )
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, base, Vec::new())?;
                let header = header(EntryType::Symlink, Some(stat), 0);
                let link = Some(target.as_bytes());
                self.append(header, About { path, link, ..About::default() }, io::empty())
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                let entry = match kind {
                    FileType::CharacterDevice => EntryType::Char,
                    FileType::BlockDevice => EntryType::Block,
                    _ => EntryType::Fifo,
                };
                let mut header = header(entry, Some(stat), 0);
                if kind != FileType::Fifo {
                    header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                    header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                }
                self.append(header, About { path, ..About::default() }, io::empty())
            }
            // A socket means nothing to another machine.
            _ => Ok(()),
        }
    }

    /// Long names, foreign bytes and attributes go into PAX records in front of the member.
    fn append(
        &mut self,
        mut header: Header,
        About { path, attributes, link }: About<'_>,
        data: impl io::Read,
    ) -> io::Result<()> {
        let mut records: Vec<(String, &[u8])> = attributes
            .iter()
            .map(|(name, value)| {
                let name = String::from_utf8_lossy(name);
                (format!("SCHILY.xattr.{name}"), value.as_slice())
            })
            .collect();
        let field = header.as_old_mut();
        if path.len() < field.name.len() {
            field.name[..path.len()].copy_from_slice(path);
        } else {
            records.push(("path".into(), path));
        }
        if let Some(link) = link {
            if link.len() < field.linkname.len() {
                field.linkname[..link.len()].copy_from_slice(link);
            } else {
                records.push(("linkpath".into(), link));
            }
        }
        if !records.is_empty() {
            let records = records.iter().map(|(name, value)| (name.as_str(), *value));
            self.archive.append_pax_extensions(records)?;
        }
        header.set_cksum();
        self.archive.append(&header, data)
    }
}

fn header(kind: EntryType, stat: Option<&Stat>, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(stat.map_or(0, |stat| stat.st_mode & 0o7777));
    header.set_uid(stat.map_or(0, |stat| stat.st_uid.into()));
    header.set_gid(stat.map_or(0, |stat| stat.st_gid.into()));
    header.set_mtime(stat.map_or(0, |stat| u64::try_from(stat.st_mtime).unwrap_or(0)));
    header
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

fn is_opaque(directory: BorrowedFd<'_>) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::fgetxattr(directory, OPAQUE, &mut value).is_ok_and(|n| value[..n] == *b"y")
}

/// Extended attributes that an image may bring, in the order of their names.
fn attributes(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0u8; XATTR_MAX];
    let length = match rustix::fs::flistxattr(file, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| is_for_layers(name)) {
        let mut value = vec![0u8; XATTR_MAX];
        let length = rustix::fs::fgetxattr(file, OsStr::from_bytes(name), &mut value)?;
        value.truncate(length);
        found.push((name.to_vec(), value));
    }
    found.sort();
    Ok(found)
}
