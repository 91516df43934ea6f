//! Compares a layer's directory with its inventory as both are read, directory by directory: in memory are the names
//! of one directory, never those of a layer.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::inventory::{DEPTH_MAX, Line, line, sum};
use super::merged::open_directory;

/// How thoroughly to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Types and sizes: what a power loss damages.
    Sizes,
    /// Everything, every byte of every file.
    Bytes,
}

/// Differences told of one layer; a layer with more is as bad as it gets.
const DIFFERENCES_MAX: usize = 20;
/// Longest record: a path of [`DEPTH_MAX`] names of 255 bytes, and less than this for all else.
const RECORD_MAX: u64 = (DEPTH_MAX as u64 + 2) * 256;

/// What is different from the inventory, in words; nothing: all is as it was made.
pub(crate) fn compare(
    layer: BorrowedFd<'_>,
    inventory: impl BufRead,
    depth: Depth,
) -> io::Result<Vec<String>> {
    let records = Records::begin(inventory)?;
    let mut comparison = Comparison { records, depth, differences: Vec::new() };
    comparison.layer(layer)?;
    Ok(comparison.differences)
}

struct Comparison<R> {
    records: Records<R>,
    depth: Depth,
    differences: Vec<String>,
}

impl<R: BufRead> Comparison<R> {
    fn layer(&mut self, layer: BorrowedFd<'_>) -> io::Result<()> {
        let promised = self.records.next_of(|path| path.is_empty().then_some(path))?;
        let (promised, _) = promised.ok_or_else(damaged)?;
        self.file(b"", layer, OsStr::new("."), promised);
        self.directory(Some(layer), &mut Vec::new(), 0)?;
        // Every name belongs to a directory that was named before it.
        if self.records.ahead.is_empty() { Ok(()) } else { Err(damaged()) }
    }

    /// What is in the directory `path`. `here`: that directory, if it is there.
    fn directory(
        &mut self,
        here: Option<BorrowedFd<'_>>,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> io::Result<()> {
        // Names are kept by a hash that no image can foresee: eight bytes for each.
        let (hashes, mut known) = (RandomState::new(), HashSet::new());
        // One after the other, each ended by NUL.
        let mut directories = Vec::new();
        while let Some((promised, name)) = self.records.next_of(|full| child(path, full))? {
            if promised.kind == 'd' {
                directories.extend_from_slice(&name);
                directories.push(0);
            }
            let length = enter(path, &name);
            match here {
                Some(here) => {
                    known.insert(hashes.hash_one(&name));
                    self.file(path, here, OsStr::from_bytes(&name), promised);
                }
                None => self.tell(path, "is missing"),
            }
            path.truncate(length);
        }
        for name in here.map(Dir::read_from).transpose()?.into_iter().flatten() {
            let name = name?.file_name().to_bytes().to_vec();
            if !matches!(&*name, b"." | b"..") && !known.contains(&hashes.hash_one(&name)) {
                let length = enter(path, &name);
                self.tell(path, "was not there");
                path.truncate(length);
            }
        }
        drop(known);
        if depth == DEPTH_MAX {
            return Ok(());
        }
        for name in directories.split(|b| *b == 0).filter(|name| !name.is_empty()) {
            let length = enter(path, name);
            let child = match here.map(|here| open_directory(here, name)).transpose() {
                Ok(child) => child,
                // Another type, or missing: that has been told.
                Err(e)
                    if matches!(
                        Errno::from_io_error(&e),
                        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                    ) =>
                {
                    None
                }
                Err(e) => {
                    let shown = String::from_utf8_lossy(path);
                    return Err(io::Error::new(e.kind(), format!("open /{shown}: {e}")));
                }
            };
            self.directory(child.as_ref().map(|child| child.as_fd()), path, depth + 1)?;
            path.truncate(length);
        }
        Ok(())
    }

    fn file(&mut self, path: &[u8], parent: BorrowedFd<'_>, name: &OsStr, promised: Line) {
        let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return self.tell(path, "is missing"),
            Err(e) => return self.tell(path, &io::Error::from(e).to_string()),
        };
        let found = match self.depth {
            Depth::Sizes => Ok(promised.sum.clone()),
            Depth::Bytes => sum(parent, name, &stat),
        };
        match found.map(|sum| promised.difference(&line(&stat, sum), self.depth)) {
            Ok(Some(what)) => self.tell(path, &what),
            Ok(None) => {}
            Err(e) => self.tell(path, &e.to_string()),
        }
    }

    fn tell(&mut self, path: &[u8], what: &str) {
        if self.differences.len() < DIFFERENCES_MAX {
            self.differences.push(format!("/{}: {what}", String::from_utf8_lossy(path)));
        }
    }
}

/// The records of an inventory, one of them read ahead.
struct Records<R> {
    input: R,
    /// Empty at the end.
    ahead: Vec<u8>,
}

impl<R: BufRead> Records<R> {
    fn begin(input: R) -> io::Result<Records<R>> {
        let mut records = Records { input, ahead: Vec::new() };
        records.advance()?;
        Ok(records)
    }

    /// The next record with the name that `wanted` takes from its path, if it wants it.
    fn next_of(
        &mut self,
        wanted: impl Fn(&[u8]) -> Option<&[u8]>,
    ) -> io::Result<Option<(Line, Vec<u8>)>> {
        if self.ahead.is_empty() {
            return Ok(None);
        }
        let (line, path) = Line::read(&self.ahead).ok_or_else(damaged)?;
        let Some(name) = wanted(path).map(<[u8]>::to_vec) else { return Ok(None) };
        self.advance()?;
        Ok(Some((line, name)))
    }

    fn advance(&mut self) -> io::Result<()> {
        self.ahead.clear();
        let length = (&mut self.input).take(RECORD_MAX).read_until(0, &mut self.ahead)?;
        if length > 0 && self.ahead.pop() != Some(0) {
            return Err(damaged());
        }
        Ok(())
    }
}

/// The name of `full` in the directory `path`.
fn child<'a>(path: &[u8], full: &'a [u8]) -> Option<&'a [u8]> {
    let name = match path {
        [] => full,
        path => full.strip_prefix(path)?.strip_prefix(b"/")?,
    };
    (!name.contains(&b'/')).then_some(name)
}

/// Makes `path` that of `name` in it; answers the length to go back to.
fn enter(path: &mut Vec<u8>, name: &[u8]) -> usize {
    let length = path.len();
    if length > 0 {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    length
}

fn damaged() -> io::Error {
    io::Error::other("the inventory is damaged")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::super::inventory::{Sums, take};
    use super::super::open_directory_path;
    use super::*;

    /// The inventory of a small tree, and that tree.
    fn tree() -> (tempfile::TempDir, Vec<u8>) {
        let tree = tempfile::tempdir().unwrap();
        let at = |path: &str| tree.path().join(path);
        fs::create_dir_all(at("a/empty")).unwrap();
        fs::create_dir_all(at("a/sub/deep")).unwrap();
        fs::write(at("a/f"), "1").unwrap();
        fs::write(at("a/sub/deep/g"), "").unwrap();
        symlink("a/f", at("l")).unwrap();
        let mut sealed = Vec::new();
        let layer = open_directory_path(tree.path()).unwrap();
        take(layer.as_fd(), &Sums::new(), &mut sealed).unwrap();
        (tree, zstd::decode_all(sealed.as_slice()).unwrap())
    }

    fn compared(tree: &Path, inventory: &[u8], depth: Depth) -> io::Result<Vec<String>> {
        compare(open_directory_path(tree).unwrap().as_fd(), inventory, depth)
    }

    #[test]
    fn every_difference_is_told_by_its_path_and_no_link_is_followed() {
        type Damage = fn(&Path);
        let cases: [(Damage, &[&str]); 8] = [
            (|_| (), &[]),
            (|a| fs::write(a.join("f"), "2").unwrap(), &["/a/f: has other content"]),
            (|a| fs::write(a.join("f"), "22").unwrap(), &["/a/f: has 2 bytes, made with 1"]),
            (|a| fs::write(a.join("empty/new"), "").unwrap(), &["/a/empty/new: was not there"]),
            (|a| fs::create_dir_all(a.join("new/x")).unwrap(), &["/a/new: was not there"]),
            (
                |a| fs::remove_dir_all(a.join("sub")).unwrap(),
                &["/a/sub/deep/g: is missing", "/a/sub/deep: is missing", "/a/sub: is missing"],
            ),
            (
                |a| {
                    fs::rename(a.join("sub/deep"), a.join("sub/.deep")).unwrap();
                    symlink(".deep", a.join("sub/deep")).unwrap();
                },
                &[
                    "/a/sub/.deep: was not there",
                    "/a/sub/deep/g: is missing",
                    "/a/sub/deep: is of another type",
                ],
            ),
            (
                |a| {
                    fs::remove_file(a.join("../l")).unwrap();
                    symlink("a/g", a.join("../l")).unwrap();
                },
                &["/l: has other content"],
            ),
        ];
        for (damage, expect) in cases {
            let (tree, inventory) = tree();
            damage(&tree.path().join("a"));
            let mut told = compared(tree.path(), &inventory, Depth::Bytes).unwrap();
            told.sort();
            assert_eq!(told, expect);
        }
    }

    #[test]
    fn sizes_are_compared_without_a_look_into_the_files() {
        let (tree, inventory) = tree();
        fs::write(tree.path().join("a/f"), "2").unwrap();
        assert_eq!(compared(tree.path(), &inventory, Depth::Sizes).unwrap(), [""; 0]);
        fs::write(tree.path().join("a/f"), "").unwrap();
        let told = compared(tree.path(), &inventory, Depth::Sizes).unwrap();
        assert_eq!(told, ["/a/f: has 0 bytes, made with 1"]);
    }

    #[test]
    fn an_inventory_that_is_none_is_an_error() {
        let (tree, inventory) = tree();
        let mut lost = inventory.clone();
        lost.truncate(inventory.len() - 1);
        let swapped: Vec<_> = inventory.split_inclusive(|b| *b == 0).rev().collect();
        let endless = [b"d 755 0 0 0 - ".as_slice(), &b"n".repeat(1 << 20)].concat();
        for bad in [lost, swapped.concat(), endless, Vec::new(), b"\0".to_vec()] {
            let error = compared(tree.path(), &bad, Depth::Bytes).unwrap_err();
            assert_eq!(error.to_string(), "the inventory is damaged");
        }
    }
}
