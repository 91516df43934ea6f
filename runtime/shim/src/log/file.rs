//! The log file: appended to in batches, reopened on request, never a reason to stop reading.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, write};

use super::Counters;

/// Where lines go. Without a path they go nowhere.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: Option<PathBuf>,
    fd: Option<OwnedFd>,
    /// A write ended inside a line: the next one must begin with a newline.
    torn: bool,
    /// Of the file as it is now.
    len: u64,
    counters: Arc<Counters>,
}

impl LogFile {
    /// Opens (and makes) the file. The error is the kernel's; nothing is written yet.
    pub(crate) fn open(path: Option<PathBuf>, counters: Arc<Counters>) -> Result<Self, Errno> {
        let fd = path.as_deref().map(open).transpose()?;
        let len = fd.as_ref().map_or(0, length);
        Ok(Self { path, fd, torn: false, len, counters })
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Bytes in the file, as far as this shim has written them.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Starts a new file under the same name, after the old one was renamed. Lines are written whole, so this is
    /// always at a line boundary. On failure the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<(), Errno> {
        if let Some(path) = &self.path {
            let fd = open(path)?;
            (self.len, self.torn) = (length(&fd), false);
            self.fd = Some(fd);
        }
        Ok(())
    }

    /// Appends whole lines. What the file system refuses (ENOSPC, EIO …) is dropped and counted.
    pub(crate) fn append(&mut self, mut lines: &[u8]) {
        let Some(fd) = &self.fd else { return };
        if self.torn && !lines.is_empty() && write(fd, b"\n").is_ok() {
            self.torn = false;
        }
        if self.torn {
            self.counters.dropped.fetch_add(lines.len() as u64, Ordering::Relaxed);
            return;
        }
        let mut begun = false;
        while !lines.is_empty() {
            match write(fd, lines) {
                Ok(n) => {
                    self.len += n as u64;
                    self.counters.bytes.fetch_add(n as u64, Ordering::Relaxed);
                    begun = lines[..n].last() != Some(&b'\n');
                    lines = &lines[n..];
                }
                Err(Errno::INTR) => {}
                Err(_) => {
                    self.counters.dropped.fetch_add(lines.len() as u64, Ordering::Relaxed);
                    self.torn = begun;
                    return;
                }
            }
        }
    }
}

/// Makes the file where it is missing.
pub(crate) fn touch(path: &Path) -> Result<(), Errno> {
    open(path).map(drop)
}

fn length(fd: &OwnedFd) -> u64 {
    rustix::fs::fstat(fd).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0))
}

fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::CLOEXEC | OFlags::NOCTTY;
    openat(CWD, path, flags, Mode::from_raw_mode(0o640))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_after_a_rename_go_on_in_the_old_file_until_reopened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (path, rotated) = (dir.path().join("0.log"), dir.path().join("0.log.1"));
        let mut log = LogFile::open(Some(path.clone()), Arc::default()).expect("open");
        log.append(b"a\n");
        std::fs::rename(&path, &rotated).expect("rename");
        log.append(b"b\n");
        log.reopen().expect("reopen");
        log.append(b"c\n");
        assert_eq!(std::fs::read(&rotated).expect("read"), b"a\nb\n");
        assert_eq!(std::fs::read(&path).expect("read"), b"c\n");
    }

    #[test]
    fn what_a_full_disk_refuses_is_counted() {
        let counters = Arc::<Counters>::default();
        let mut log = LogFile::open(Some("/dev/full".into()), Arc::clone(&counters)).expect("open");
        log.append(b"four\n");
        assert_eq!(counters.dropped.load(Ordering::Relaxed), 5);
        assert_eq!((counters.bytes.load(Ordering::Relaxed), log.len()), (0, 0));
    }
}
