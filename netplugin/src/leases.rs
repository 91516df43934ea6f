//! Who has which address and host port: one small file for each sandbox, written before the network
//! exists and removed after it is gone.
//!
//! A lease must survive the death of this process at any instant: it is written whole to a temporary
//! file and renamed. It need not survive the machine: every pod dies with it, and a lease carries the
//! boot it belongs to, so one of an earlier boot is dropped when the directory is opened. That is why
//! nothing here waits for the disk. A file that cannot be read is put aside as `*.bad`; its address
//! is not leased again before the ring in `ipam` has come round.
//!
//! The directory is locked as long as it is open: two processes that lease from it take turns.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ports::{PortMapping, Protocol};

/// Version of the lease files; a reader refuses newer ones.
const VERSION: u32 = 1;
/// How long to wait for another process: one CNI call takes milliseconds, a daemon that is being
/// replaced a second or two.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// Poll interval of the lock: flock has no deadline of its own.
const LOCK_POLL: Duration = Duration::from_millis(5);
/// A file larger than this is not a lease (they have less than 1 KiB plus 100 bytes a port).
const FILE_MAX: u64 = 1024 * 1024;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What one sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    version: u32,
    boot_id: String,
    pub(crate) sandbox_id: String,
    pub(crate) owner: String,
    pub(crate) host_link: String,
    /// Addresses with the prefix of their range.
    pub(crate) addresses: Vec<IpNetwork>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) ports: Vec<PortMapping>,
}

impl Lease {
    /// The host ports of connections without a connection.
    pub(crate) fn udp_ports(&self) -> HashSet<u16> {
        let udp = |port: &&PortMapping| port.protocol == Protocol::Udp;
        self.ports.iter().filter(udp).map(|port| port.host_port).collect()
    }
}

/// What is remembered besides the leases; losing it does no harm.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    /// The address leased last, of each family.
    cursor: Vec<IpAddr>,
    /// The pod CIDR the kubelet sent, instead of the configured ranges.
    pod_cidr: Vec<IpNetwork>,
}

/// The lease directory, open and locked.
pub(crate) struct Leases {
    dir: PathBuf,
    boot_id: String,
    by_sandbox: BTreeMap<String, Lease>,
    taken: HashSet<IpAddr>,
    memory: Memory,
    memory_file: File,
    /// Held for its lock.
    _lock: File,
}

/// The parts of a lease that its sandbox does not decide.
pub(crate) struct NewLease {
    pub(crate) sandbox_id: String,
    pub(crate) owner: String,
    pub(crate) host_link: String,
    pub(crate) addresses: Vec<IpNetwork>,
    pub(crate) gateways: Vec<IpAddr>,
    pub(crate) ports: Vec<PortMapping>,
}

impl Leases {
    /// Opens the directory, creating it, waiting for another process that has it open.
    pub(crate) fn open(dir: &Path) -> Result<Leases, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::file("create", dir, source))?;
        let lock = lock(dir)?;
        let boot_id = boot_id()?;
        let (memory_file, memory) = Memory::open(&dir.join("memory"))?;
        let mut leases = Leases {
            dir: dir.to_owned(),
            boot_id,
            by_sandbox: BTreeMap::new(),
            taken: HashSet::new(),
            memory,
            memory_file,
            _lock: lock,
        };
        leases.load()?;
        Ok(leases)
    }

    pub(crate) fn get(&self, sandbox_id: &str) -> Option<&Lease> {
        self.by_sandbox.get(sandbox_id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        self.by_sandbox.values()
    }

    /// Every leased address.
    pub(crate) fn taken(&self) -> &HashSet<IpAddr> {
        &self.taken
    }

    /// The address leased last in the family of IPv6, or of IPv4.
    pub(crate) fn cursor(&self, ipv6: bool) -> Option<IpAddr> {
        self.memory.cursor.iter().copied().find(|ip| ip.is_ipv6() == ipv6)
    }

    pub(crate) fn pod_cidr(&self) -> &[IpNetwork] {
        &self.memory.pod_cidr
    }

    pub(crate) fn set_pod_cidr(&mut self, cidr: Vec<IpNetwork>) -> Result<(), Error> {
        self.memory.pod_cidr = cidr;
        self.remember()
    }

    /// Writes a lease down.
    pub(crate) fn add(&mut self, new: NewLease) -> Result<Lease, Error> {
        let lease = Lease {
            version: VERSION,
            boot_id: self.boot_id.clone(),
            sandbox_id: new.sandbox_id,
            owner: new.owner,
            host_link: new.host_link,
            addresses: new.addresses,
            gateways: new.gateways,
            ports: new.ports,
        };
        self.memory.cursor = lease.addresses.iter().map(IpNetwork::ip).collect();
        self.remember()?;
        self.write(&file_name(&lease.sandbox_id), &lease)?;
        self.insert(lease.clone());
        Ok(lease)
    }

    /// Writes down another name of a sandbox's host link; `None` when it has no lease.
    pub(crate) fn rename_link(&mut self, id: &str, name: String) -> Result<Option<Lease>, Error> {
        let Some(lease) = self.by_sandbox.get(id) else { return Ok(None) };
        let lease = Lease { host_link: name, ..lease.clone() };
        self.write(&file_name(id), &lease)?;
        self.by_sandbox.insert(id.to_owned(), lease.clone());
        Ok(Some(lease))
    }

    /// Gives the addresses and ports of a sandbox back. No lease is success.
    pub(crate) fn remove(&mut self, sandbox_id: &str) -> Result<(), Error> {
        if !self.by_sandbox.contains_key(sandbox_id) {
            return Ok(());
        }
        remove_file(&self.dir.join(file_name(sandbox_id)))?;
        for address in self.by_sandbox.remove(sandbox_id).iter().flat_map(|gone| &gone.addresses) {
            self.taken.remove(&address.ip());
        }
        Ok(())
    }

    /// Removes the directory with everything in it.
    pub(crate) fn destroy(self) -> Result<(), Error> {
        fs::remove_dir_all(&self.dir).map_err(|source| Error::file("remove", self.dir, source))
    }

    fn load(&mut self) -> Result<(), Error> {
        let entries =
            fs::read_dir(&self.dir).map_err(|source| Error::file("read", &self.dir, source))?;
        for entry in entries {
            let entry = entry.map_err(|source| Error::file("read", &self.dir, source))?;
            let path = entry.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("tmp") => remove_file(&path)?,
                Some("lease") => self.load_one(&path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn load_one(&mut self, path: &Path) -> Result<(), Error> {
        match read::<Lease>(path) {
            Ok(Some(lease)) if lease.version > VERSION => Err(Error::file(
                "read",
                path,
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("lease version {} is newer than {VERSION}", lease.version),
                ),
            )),
            Ok(Some(lease)) if lease.boot_id != self.boot_id => remove_file(path),
            Ok(Some(lease)) => {
                self.insert(lease);
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(_) => {
                let bad = path.with_extension("bad");
                fs::rename(path, &bad).map_err(|source| Error::file("put aside", path, source))
            }
        }
    }

    fn insert(&mut self, lease: Lease) {
        self.taken.extend(lease.addresses.iter().map(IpNetwork::ip));
        self.by_sandbox.insert(lease.sandbox_id.clone(), lease);
    }

    /// Writes the memory in place, padded to one page of the cache: a process that is killed has
    /// written all of it or nothing.
    fn remember(&self) -> Result<(), Error> {
        const PAGE: usize = 4096;
        let write = || {
            let mut text = serde_json::to_vec(&self.memory)?;
            text.resize(text.len().max(PAGE), b' ');
            self.memory_file.write_all_at(&text, 0)
        };
        write().map_err(|source| Error::file("write", self.dir.join("memory"), source))
    }

    fn write(&self, name: &str, value: &impl Serialize) -> Result<(), Error> {
        let path = self.dir.join(name);
        let temporary = self.dir.join(format!("{name}.tmp"));
        serde_json::to_vec(value)
            .map_err(io::Error::other)
            .and_then(|text| File::create(&temporary)?.write_all(&text))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| Error::file("write", path, source))
    }
}

impl Memory {
    fn open(path: &Path) -> Result<(File, Memory), Error> {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::file("open", path, source))?;
        let memory = read(path).ok().flatten().unwrap_or_default();
        Ok((file, memory))
    }
}

/// The leases of this boot and the kubelet's pod CIDR, as they lie in a directory that somebody else
/// may have open. What cannot be read is left out: whoever opens it says so.
pub(crate) fn peek(dir: &Path) -> Result<(Vec<Lease>, Vec<IpNetwork>), Error> {
    let boot_id = boot_id()?;
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Default::default()),
        entries => entries.map_err(|source| Error::file("read", dir, source))?,
    };
    let files = entries.flatten().map(|entry| entry.path());
    let leases = files
        .filter(|path| path.extension().is_some_and(|it| it == "lease"))
        .filter_map(|path| read::<Lease>(&path).ok().flatten())
        .filter(|lease| lease.boot_id == boot_id)
        .collect();
    let memory = read::<Memory>(&dir.join("memory")).ok().flatten().unwrap_or_default();
    Ok((leases, memory.pod_cidr))
}

fn boot_id() -> Result<String, Error> {
    let text = fs::read_to_string(BOOT_ID);
    Ok(text.map_err(|source| Error::file("read", BOOT_ID, source))?.trim().to_owned())
}

/// The name a sandbox has as a file; only for identifiers that passed [`is_id`].
fn file_name(sandbox_id: &str) -> String {
    format!("{sandbox_id}.lease")
}

/// Whether an identifier can name a file.
pub(crate) fn is_id(id: &str) -> bool {
    const MAX: usize = 200;
    (1..=MAX).contains(&id.len())
        && !id.starts_with('.')
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| Error::file("open", &path, source))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => {
                let seconds = LOCK_PATIENCE.as_secs();
                return Err(Error::Busy { dir: dir.to_owned(), seconds });
            }
            Err(TryLockError::Error(source)) => return Err(Error::file("lock", path, source)),
        }
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_MAX => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "file is too large"));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    Ok(Some(serde_json::from_slice(&fs::read(path)?)?))
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(|source| Error::file("remove", path, source)),
    }
}

#[cfg(test)]
mod tests;
