//! A compressed layer on its way in: one side appends what the network brings, the other reads
//! along and waits at the end. Slow unpacking so never stalls a connection, memory stays constant,
//! and what has arrived survives a broken connection and a restart of the daemon.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The file behind a download.
pub(crate) struct Blob {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy)]
struct State {
    bytes: u64,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Open,
    Complete,
    Aborted,
}

/// Reads a [`Blob`] from its beginning while it grows.
pub(crate) struct Follower {
    blob: Arc<Blob>,
    at: u64,
    /// Set, with [`Blob::wake`] after it, this one reads no more.
    stop: Arc<AtomicBool>,
}

impl Blob {
    /// Continues a partial file of an earlier pull, or begins an empty one.
    pub(crate) fn open(path: &Path) -> io::Result<Arc<Blob>> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Arc::new(Blob {
            path: path.to_owned(),
            file,
            state: Mutex::new(State { bytes, end: End::Open }),
            changed: Condvar::new(),
        }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that have arrived.
    pub(crate) fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    /// Appends what arrived. Blocks on the disk.
    pub(crate) fn append(&self, parts: &[impl AsRef<[u8]>]) -> io::Result<()> {
        let mut added = 0;
        for part in parts {
            (&self.file).write_all(part.as_ref())?;
            added += part.as_ref().len() as u64;
        }
        self.lock().bytes += added;
        self.changed.notify_all();
        Ok(())
    }

    /// Everything is there.
    pub(crate) fn complete(&self) {
        self.end(End::Complete);
    }

    /// Nothing more will come; whoever waits gets an error.
    pub(crate) fn abort(&self) {
        self.end(End::Aborted);
    }

    pub(crate) fn remove(&self) {
        let _ = fs::remove_file(&self.path); // a leftover is swept when the service opens
    }

    pub(crate) fn follow(self: &Arc<Self>, stop: Arc<AtomicBool>) -> Follower {
        Follower { blob: Arc::clone(self), at: 0, stop }
    }

    /// Makes waiting followers look whether they were stopped.
    pub(crate) fn wake(&self) {
        drop(self.lock());
        self.changed.notify_all();
    }

    pub(crate) fn is_aborted(&self) -> bool {
        self.lock().end == End::Aborted
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end == End::Open {
            state.end = end;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.blob.lock();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("nobody waits for it any more"));
            }
            match state.end {
                End::Aborted => return Err(io::Error::other("the download was given up")),
                End::Open if state.bytes <= self.at => {
                    state = self.blob.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                End::Open | End::Complete => break,
            }
        }
        let available = usize::try_from(state.bytes - self.at).unwrap_or(usize::MAX);
        drop(state);
        let length = available.min(buffer.len());
        let read = self.blob.file.read_at(&mut buffer[..length], self.at)?;
        if read == 0 && length > 0 {
            return Err(io::Error::other("the partial download was cut short on disk"));
        }
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_reads_what_comes_later_and_ends_when_told() {
        let directory = tempfile::tempdir().unwrap();
        let blob = Blob::open(&directory.path().join("b")).unwrap();
        blob.append(&[b"one "]).unwrap();
        let mut follower = blob.follow(Arc::default());
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            follower.read_to_string(&mut text).map(|_| text)
        });
        blob.append(&[b"two"]).unwrap();
        blob.complete();
        assert_eq!(reader.join().unwrap().unwrap(), "one two");
    }

    #[test]
    fn an_aborted_blob_wakes_its_follower_with_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let blob = Blob::open(&directory.path().join("b")).unwrap();
        let mut follower = blob.follow(Arc::default());
        let reader = std::thread::spawn(move || follower.read(&mut [0; 8]));
        blob.abort();
        assert!(reader.join().unwrap().is_err());
    }

    #[test]
    fn one_follower_is_stopped_and_the_other_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let blob = Blob::open(&directory.path().join("b")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (mut one, mut other) = (blob.follow(Arc::clone(&stop)), blob.follow(Arc::default()));
        let one = std::thread::spawn(move || one.read(&mut [0; 8]));
        stop.store(true, Ordering::Relaxed);
        blob.wake();
        assert!(one.join().unwrap().is_err());
        blob.append(&[b"go"]).unwrap();
        assert_eq!(other.read(&mut [0; 8]).unwrap(), 2);
    }
}
