//! What a container has written: its own directory measured as `du` would, by descriptors and without following anything
//! that the container can place there.

use std::collections::HashSet;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Stat, statat};

use crate::layer::Usage;
use crate::layer::merged::open_directory;

/// The kernel's unit of `st_blocks`.
const BLOCK: u64 = 512;

/// Each level holds a descriptor. What lies deeper is one directory in the sum: nobody nests so deep but to annoy.
const DEPTH_MAX: usize = 256;

/// Files with several names are remembered to be counted once; more than so many are counted for each name.
const LINKED_MAX: usize = 1 << 20;

/// Measures a directory and everything in it. A file that goes away meanwhile is not counted.
pub(crate) fn weigh(directory: &Path) -> io::Result<Usage> {
    let top = crate::layer::open_directory_path(directory)?;
    let mut sum = Sum { usage: Usage::default(), linked: HashSet::new() };
    sum.add(&rustix::fs::fstat(&top)?);
    sum.descend(top.as_fd(), 0)?;
    Ok(sum.usage)
}

struct Sum {
    usage: Usage,
    linked: HashSet<u64>,
}

impl Sum {
    fn add(&mut self, stat: &Stat) {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let several = kind != FileType::Directory && stat.st_nlink > 1;
        if several && self.linked.len() < LINKED_MAX && !self.linked.insert(stat.st_ino) {
            return;
        }
        self.usage.inodes += 1;
        self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK;
    }

    fn descend(&mut self, directory: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
        let mut listing = Dir::read_from(directory)?;
        while let Some(entry) = listing.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.add(&stat);
            let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let child = (is_directory && depth < DEPTH_MAX).then(|| open(directory, name));
            if let Some(child) = child.flatten() {
                self.descend(child.as_fd(), depth + 1)?;
            }
        }
        Ok(())
    }
}

fn open(directory: BorrowedFd<'_>, name: &CStr) -> Option<OwnedFd> {
    open_directory(directory, name.to_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_weighs_what_du_says_and_links_out_of_it_weigh_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("large"), vec![1; 1 << 20]).unwrap();
        let top = dir.path().join("upper");
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), vec![7; 300_000]).unwrap();
        fs::hard_link(top.join("a/b/file"), top.join("again")).unwrap();
        symlink(outside.path(), top.join("out")).unwrap();
        let weighed = weigh(&top).unwrap();
        assert_eq!(weighed.inodes, 5, "three directories, one file with two names, one link");
        let du = std::process::Command::new("du").args(["-s", "-B1"]).arg(&top).output().unwrap();
        let du = String::from_utf8(du.stdout).unwrap();
        assert_eq!(weighed.bytes.to_string(), du.split_whitespace().next().unwrap());
        assert!(weighed.bytes < 1 << 20, "{weighed:?}");
    }
}
