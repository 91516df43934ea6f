//! Which namespaces a container makes, joins or shares, and how the ids of its user namespace map to the host's.

use std::path::PathBuf;

use crate::error::Error;
use crate::spec::{self, IdMapping};

/// The kinds of namespace, with the bit that clone and setns know them by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Namespace {
    Time = 0x80,
    Mount = 0x0002_0000,
    Cgroup = 0x0200_0000,
    Uts = 0x0400_0000,
    Ipc = 0x0800_0000,
    User = 0x1000_0000,
    Pid = 0x2000_0000,
    Net = 0x4000_0000,
}

/// Which namespaces are made and which joined; all others are inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// CLONE_NEW* bits.
    pub new: u64,
    pub join: Vec<(Namespace, PathBuf)>,
}

impl Namespaces {
    pub fn makes(&self, kind: Namespace) -> bool {
        self.new & kind as u64 != 0
    }

    pub fn joins(&self, kind: Namespace) -> bool {
        self.join.iter().any(|(k, _)| *k == kind)
    }

    /// Made or joined: not the host's.
    pub fn has(&self, kind: Namespace) -> bool {
        self.makes(kind) || self.joins(kind)
    }
}

/// How ids inside a user namespace, or on an id-mapped mount, read outside of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    pub uid: Vec<IdMapping>,
    pub gid: Vec<IdMapping>,
}

/// The kernel takes no more lines in `uid_map`.
const MAPPINGS_MAX: usize = 340;

impl Mappings {
    pub fn is_empty(&self) -> bool {
        self.uid.is_empty() && self.gid.is_empty()
    }

    pub fn host_uid(&self, inside: u32) -> Option<u32> {
        outside(&self.uid, inside)
    }

    pub fn host_gid(&self, inside: u32) -> Option<u32> {
        outside(&self.gid, inside)
    }

    /// Checks the lists of `field`.
    pub(super) fn read(
        field: &str,
        uid: Option<&Vec<IdMapping>>,
        gid: Option<&Vec<IdMapping>>,
    ) -> Result<Self, Error> {
        let lists = [("uidMappings", uid), ("gidMappings", gid)];
        for (name, list) in lists {
            let fail = |why: String| Err(Error::new(format!("{field}.{name}"), why));
            let list = list.map(Vec::as_slice).unwrap_or_default();
            if list.len() > MAPPINGS_MAX {
                return fail(format!("{} lines, the kernel takes {MAPPINGS_MAX}", list.len()));
            }
            for m in list {
                let ends = [m.container_id, m.host_id].map(|id| id.checked_add(m.size));
                if m.size == 0 || ends.contains(&None) {
                    let IdMapping { container_id, host_id, size } = m;
                    return fail(format!("{container_id} {host_id} {size} is no range of ids"));
                }
            }
        }
        let [uid, gid] = [uid, gid].map(|list| list.cloned().unwrap_or_default());
        if uid.is_empty() != gid.is_empty() {
            return Err(Error::new(field, "uidMappings and gidMappings go together"));
        }
        Ok(Self { uid, gid })
    }
}

fn outside(list: &[IdMapping], inside: u32) -> Option<u32> {
    let line = list.iter().find(|m| inside.checked_sub(m.container_id).is_some_and(|d| d < m.size));
    line.map(|m| m.host_id + (inside - m.container_id))
}

pub(super) fn namespaces(linux: &spec::Linux) -> Result<Namespaces, Error> {
    const FIELD: &str = "linux.namespaces";
    let mut out = Namespaces::default();
    for ns in linux.namespaces.iter().flatten() {
        let kind = match ns.kind.as_str() {
            "pid" => Namespace::Pid,
            "network" => Namespace::Net,
            "mount" => Namespace::Mount,
            "ipc" => Namespace::Ipc,
            "uts" => Namespace::Uts,
            "cgroup" => Namespace::Cgroup,
            "user" => Namespace::User,
            "time" => Namespace::Time,
            other => return Err(Error::new(FIELD, format!("unknown type {other:?}"))),
        };
        if out.has(kind) {
            return Err(Error::new(FIELD, format!("{:?} is listed twice", ns.kind)));
        }
        match ns.path.as_ref().filter(|p| !p.as_os_str().is_empty()) {
            Some(path) if !path.is_absolute() => {
                let path = path.display();
                return Err(Error::new(FIELD, format!("{path:?} is not an absolute path")));
            }
            Some(path) => out.join.push((kind, path.clone())),
            None => out.new |= kind as u64,
        }
    }
    // Whose mounts they are, the root of a user namespace may not change.
    if out.has(Namespace::User) && !out.has(Namespace::Mount) {
        return Err(Error::new(FIELD, "with a user namespace, one of mounts is needed, too"));
    }
    Ok(out)
}

/// The ids of the container's user namespace. A joined one may leave them to be looked up there.
pub(super) fn mappings(linux: &spec::Linux, has: &Namespaces) -> Result<Mappings, Error> {
    let (uid, gid) = (linux.uid_mappings.as_ref(), linux.gid_mappings.as_ref());
    let mappings = Mappings::read("linux", uid, gid)?;
    if !mappings.is_empty() && !has.has(Namespace::User) {
        return Err(Error::new("linux.uidMappings", "it needs a user namespace"));
    }
    if has.makes(Namespace::User) && mappings.is_empty() {
        return Err(Error::new("linux.uidMappings", "a new user namespace needs them"));
    }
    let root = [mappings.host_uid(0), mappings.host_gid(0)];
    if !mappings.is_empty() && root.contains(&None) {
        return Err(Error::new(
            "linux.uidMappings",
            "uid and gid 0 of the container must be mapped",
        ));
    }
    Ok(mappings)
}

/// A device of the host that becomes the container's, and its name there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetDevice {
    pub host: String,
    pub container: String,
}

pub(super) fn net_devices(linux: &spec::Linux, has: &Namespaces) -> Result<Vec<NetDevice>, Error> {
    const FIELD: &str = "linux.netDevices";
    /// IFNAMSIZ less the closing zero.
    const NAME_MAX: usize = 15;
    let mut out: Vec<NetDevice> = Vec::new();
    for (host, device) in linux.net_devices.iter().flatten() {
        let container = device.name.clone().filter(|n| !n.is_empty()).unwrap_or(host.clone());
        for name in [host, &container] {
            let plain =
                |c: char| !c.is_whitespace() && c != '/' && c != ':' && c != '\0' && c != '%';
            let fits = !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(plain);
            if !fits || [".", ".."].contains(&name.as_str()) {
                return Err(Error::new(FIELD, format!("{name:?} is no name of a device")));
            }
        }
        if out.iter().any(|d| d.container == container) {
            return Err(Error::new(FIELD, format!("two devices would be called {container:?}")));
        }
        out.push(NetDevice { host: host.clone(), container });
    }
    if !out.is_empty() && !has.has(Namespace::Net) {
        return Err(Error::new(FIELD, "it needs a network namespace of the container's own"));
    }
    Ok(out)
}

/// A clock that a new time namespace shifts: its name in `/proc/self/timens_offsets`, seconds, nanoseconds.
pub type TimeOffset = (&'static str, i64, u32);

pub(super) fn time_offsets(
    linux: &spec::Linux,
    has: &Namespaces,
) -> Result<Vec<TimeOffset>, Error> {
    const FIELD: &str = "linux.timeOffsets";
    let mut out = Vec::new();
    for (clock, offset) in linux.time_offsets.iter().flatten() {
        let name = match clock.as_str() {
            "monotonic" => "monotonic",
            "boottime" => "boottime",
            _ => return Err(Error::new(FIELD, format!("the clock {clock:?} cannot be shifted"))),
        };
        if offset.nanosecs >= 1_000_000_000 {
            return Err(Error::new(FIELD, format!("{} nanoseconds are a second", offset.nanosecs)));
        }
        out.push((name, offset.secs, offset.nanosecs));
    }
    if !out.is_empty() && !has.makes(Namespace::Time) {
        return Err(Error::new(FIELD, "it needs a new time namespace"));
    }
    Ok(out)
}
