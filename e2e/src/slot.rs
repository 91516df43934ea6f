//! A number no other running test has: everything a node names is named by it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustix::fs::{FlockOperation, flock};

/// Third byte of the nodes' address ranges, so it must stay below 255; far more than run at once.
const SLOTS: u8 = 200;

/// statfs(2).
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Held for the life of a node; the kernel gives it back however the test ends.
#[derive(Debug)]
pub struct Slot {
    number: u8,
    _lock: File,
}

impl Slot {
    /// Takes the first free one.
    pub fn take() -> Self {
        assert!(rustix::process::geteuid().is_root(), "the e2e ring needs root: `make test`");
        fs::create_dir_all("/run/lapstrake-e2e").unwrap();
        for number in 0..SLOTS {
            let lock = File::create(format!("/run/lapstrake-e2e/slot-{number}")).unwrap();
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Self { number, _lock: lock },
                Err(busy) if io::Error::from(busy).kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => panic!("lock slot {number}: {error}"),
            }
        }
        panic!("{SLOTS} nodes run at once: some test does not end its nodes");
    }

    /// For what must die with the machine. Short, for unix sockets end at 108 bytes.
    pub fn run_dir(&self) -> PathBuf {
        run_root().join(self.number.to_string())
    }

    /// For what may be large.
    pub fn var_dir(&self) -> PathBuf {
        Path::new("/var/tmp/lapstrake-e2e").join(self.number.to_string())
    }

    pub fn bridge(&self) -> String {
        format!("lse2e{}", self.number)
    }

    pub fn cgroup(&self) -> String {
        format!("/lapstrake-e2e-{}", self.number)
    }

    /// First three bytes of the node's addresses.
    pub fn network(&self) -> String {
        format!("10.213.{}", self.number)
    }
}

/// A node's /run is in memory. A build machine's may be a disk, and then every record would be
/// measured as if it had to survive that machine.
fn run_root() -> &'static Path {
    let on_disk = rustix::fs::statfs("/run").is_ok_and(|it| it.f_type != TMPFS_MAGIC);
    Path::new(if on_disk { "/dev/shm/lapstrake-e2e" } else { "/run/lapstrake-e2e" })
}
