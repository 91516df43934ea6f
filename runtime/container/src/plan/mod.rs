//! From specification to plan: everything is checked and decided here, without a system call.

mod mounts;
mod namespaces;
mod process;
mod rdt;
mod schedule;
mod sysctls;

use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::hooks::{self, Hooks};
use crate::label;
use crate::options::{self, Propagation};
use crate::spec::{self, Spec};
use cgroup::unit::Unit;

pub use mounts::{From, Mount, Node, NodeKind};
pub use namespaces::{Mappings, Namespace, Namespaces, NetDevice, TimeOffset};
pub use process::{Process, Rlimit, plan_process};
pub use rdt::Rdt;
pub use schedule::{MemoryPolicy, Schedule, Scheduler, memory_policy};

/// What the plan depends on besides the specification.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub id: String,
    /// Capabilities that this process may hand out.
    pub capabilities: u64,
    /// A compiled seccomp program comes along, so `linux.seccomp` needs no compiling here.
    pub seccomp_compiled: bool,
    /// The kernel looks at labels of SELinux.
    pub selinux: bool,
    /// The caller runs the hooks that come after the start and after the end.
    pub later_hooks: bool,
}

/// A container, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub namespaces: Namespaces,
    /// Ids of the user namespace; empty without one, or when a joined one has to be asked.
    pub mappings: Mappings,
    pub time_offsets: Vec<TimeOffset>,
    pub net_devices: Vec<NetDevice>,
    pub root_propagation: Option<Propagation>,
    pub root_readonly: bool,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Node>,
    /// The default device nodes and links are made unless `/dev` is a bind mount.
    pub make_dev: bool,
    /// The label of SELinux that the container's file systems show.
    pub mount_label: Option<String>,
    pub masked: Vec<PathBuf>,
    pub readonly: Vec<PathBuf>,
    /// Path below `/proc/sys` and value.
    pub sysctls: Vec<(PathBuf, String)>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub personality: Option<u64>,
    pub memory_policy: Option<MemoryPolicy>,
    pub process: Process,
    /// The class of cache and memory bandwidth.
    pub rdt: Option<Rdt>,
    pub cgroup: String,
    pub resources: cgroup::Resources,
    pub hooks: Hooks,
}

impl Plan {
    /// Where its root file system is on the host, for mounts that are named by that path.
    pub fn at(mut self, bundle: &Path, rootfs: &Path) -> Self {
        self.mounts.iter_mut().for_each(|mount| mount.within(bundle, rootfs));
        self
    }
}

/// Decides everything about a container.
pub fn plan(spec: &Spec, facts: &Facts) -> Result<Plan, Error> {
    let empty = spec::Linux::default();
    let linux = spec.linux.as_ref().unwrap_or(&empty);
    refuse_unserved(linux, facts)?;
    let hooks = hooks::read(spec, &facts.id)?;
    if !facts.later_hooks {
        refuse(&[
            ("hooks.poststart", !hooks.poststart.is_empty()),
            ("hooks.poststop", !hooks.poststop.is_empty()),
        ])?;
    }
    let namespaces = namespaces::namespaces(linux)?;
    let own_users = namespaces.has(Namespace::User);
    if (spec.hostname.is_some() || spec.domainname.is_some()) && !namespaces.has(Namespace::Uts) {
        return Err(Error::new(
            "hostname",
            "setting it needs a UTS namespace of the container's own",
        ));
    }
    let process =
        spec.process.as_ref().ok_or_else(|| Error::new("process", "the specification has none"))?;
    let mount_label =
        label::checked("linux.mountLabel", linux.mount_label.as_ref(), facts.selinux)?;
    let mount = |m| mounts::mount(m, own_users, mount_label.as_deref());
    let mounts: Vec<Mount> = spec.mounts.iter().flatten().map(mount).collect::<Result<_, _>>()?;
    let make_dev = !mounts
        .iter()
        .any(|m| m.destination == Path::new("/dev") && matches!(m.from, From::Bind(_)));
    let root_propagation = match linux.rootfs_propagation.as_deref().filter(|p| !p.is_empty()) {
        None => None,
        Some(word) => Some(options::propagation(word).ok_or_else(|| {
            Error::new("linux.rootfsPropagation", format!("unknown value {word:?}"))
        })?),
    };
    Ok(Plan {
        mappings: namespaces::mappings(linux, &namespaces)?,
        net_devices: namespaces::net_devices(linux, &namespaces)?,
        time_offsets: namespaces::time_offsets(linux, &namespaces)?,
        root_propagation,
        root_readonly: spec.root.as_ref().is_some_and(|r| r.readonly),
        mounts,
        devices: linux.devices.iter().flatten().map(mounts::device).collect::<Result<_, _>>()?,
        make_dev,
        mount_label,
        masked: once_each(linux.masked_paths.as_deref()),
        readonly: once_each(linux.readonly_paths.as_deref()),
        sysctls: sysctls::sysctls(linux, &|ns| namespaces.has(ns))?,
        hostname: spec.hostname.clone().filter(|h| !h.is_empty()),
        domainname: spec.domainname.clone().filter(|h| !h.is_empty()),
        personality: linux.personality.as_ref().map(personality).transpose()?,
        memory_policy: linux.memory_policy.as_ref().map(schedule::memory_policy).transpose()?,
        rdt: linux.intel_rdt.as_ref().map(|r| rdt::rdt(r, &facts.id)).transpose()?,
        process: plan_process(process, facts)?,
        cgroup: cgroup_path(linux.cgroups_path.as_deref(), &facts.id)?,
        resources: linux.resources.clone().unwrap_or_default(),
        hooks,
        namespaces,
    })
}

fn once_each(paths: Option<&[PathBuf]>) -> Vec<PathBuf> {
    let mut seen = std::collections::HashSet::new();
    paths.unwrap_or_default().iter().filter(|p| seen.insert(*p)).cloned().collect()
}

/// Known fields of the specification that this runtime does not serve yet are refused, never ignored.
fn refuse_unserved(linux: &spec::Linux, facts: &Facts) -> Result<(), Error> {
    refuse(&[("linux.seccomp", linux.seccomp.is_some() && !facts.seccomp_compiled)])
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), Error> {
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(Error::new(*field, "not supported by this runtime")),
        None => Ok(()),
    }
}

fn personality(p: &spec::Personality) -> Result<u64, Error> {
    if p.flags.as_ref().is_some_and(|f| !f.is_empty()) {
        return Err(Error::new("linux.personality.flags", "not supported by this runtime"));
    }
    match p.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => Err(Error::new("linux.personality.domain", format!("unknown domain {other:?}"))),
    }
}

/// The group that the specification names (by its path, or as `slice:prefix:name` of systemd, who must have made it),
/// or one named after the container.
pub fn cgroup_path(path: Option<&str>, id: &str) -> Result<String, Error> {
    let path = path.filter(|p| !p.is_empty()).map_or_else(|| format!("/{id}"), str::to_owned);
    if Unit::is_form(&path) {
        let unit = Unit::parse(&path);
        return Ok(unit.map_err(|e| Error::new("linux.cgroupsPath", e.to_string()))?.group());
    }
    Ok(if path.starts_with('/') { path } else { format!("/{path}") })
}

#[cfg(test)]
mod tests;
