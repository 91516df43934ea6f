//! What doctor looks at, read from the kernel's own files and by harmless probes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statfs;
use rustix::mount::{FsOpenFlags, fsopen};

use crate::config::Config;
use crate::network::{self, mode::Mode};
use crate::selinux;

/// Facts about one node; `None` where the node would not tell.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) root_user: bool,
    /// As `uname -r` says it.
    pub(super) kernel: String,
    pub(super) cgroups: Cgroups,
    /// The effective capabilities of this process, as in /proc/self/status.
    pub(super) capabilities: Option<u64>,
    /// Why an overlay cannot be opened, if so.
    pub(super) overlay: Result<(), String>,
    pub(super) user_namespaces_max: Option<u64>,
    /// What a filter may answer; empty without seccomp filters.
    pub(super) seccomp_actions: BTreeSet<String>,
    pub(super) ip_forward: Option<String>,
    /// What the built-in network finds here; `None` where plugins make the pods' network.
    pub(super) pod_network: Option<Result<netplugin::Survey, netplugin::Error>>,
    pub(super) ipv6: bool,
    /// The settings that keep IPv6 from the node's own links.
    pub(super) ipv6_switched_off: Vec<&'static str>,
    pub(super) network_mode: Mode,
    /// The networks of the plugins' configuration, or why there are none.
    pub(super) plugins: Result<Vec<String>, String>,
    pub(super) apparmor: bool,
    pub(super) apparmor_parser: bool,
    pub(super) selinux: selinux::Node,
    /// Whether this process sees the mounts that init sees.
    pub(super) hosts_mounts: Option<bool>,
    /// Whether mounts made below `/` reach other mount namespaces.
    pub(super) root_is_shared: Option<bool>,
    pub(super) root_dir: Directory,
    pub(super) state_dir: Directory,
    pub(super) shim: PathBuf,
    pub(super) shim_is_there: bool,
    /// Soft limit of open files.
    pub(super) open_files: Option<u64>,
    /// Handlers of the configuration whose binary is not there.
    pub(super) missing_handlers: Vec<(String, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cgroups {
    /// Controllers of the unified hierarchy; `None` when it is not mounted.
    pub(super) unified: Option<BTreeSet<String>>,
    /// Controllers of hierarchies of version 1.
    pub(super) v1: BTreeSet<String>,
}

/// A directory of the daemon's, or the nearest parent that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// Magic number of the file system, see statfs(2).
    pub(super) file_system: Option<i64>,
    pub(super) free_bytes: u64,
    pub(super) free_inodes: u64,
}

pub(super) fn read(config: &Config) -> Facts {
    let status = text("/proc/self/status").unwrap_or_default();
    let mounts = text("/proc/self/mountinfo").unwrap_or_default();
    let shim = config.shim_binary();
    let handlers = config.runtime.handlers.iter();
    let plugins = plugins(config);
    let is_built_in = match config.network.mode {
        Mode::Bridge => true,
        Mode::Auto => plugins.is_err(),
        Mode::Cni => false,
    };
    Facts {
        root_user: rustix::process::geteuid().is_root(),
        kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
        cgroups: cgroups(&mounts),
        capabilities: status_field(&status, "CapEff:")
            .and_then(|hex| u64::from_str_radix(hex, 16).ok()),
        overlay: fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map(drop)
            .map_err(|errno| errno.to_string()),
        user_namespaces_max: number("/proc/sys/user/max_user_namespaces"),
        seccomp_actions: words(&text("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default()),
        ip_forward: text("/proc/sys/net/ipv4/ip_forward"),
        pod_network: is_built_in.then(|| network::survey(config)),
        ipv6: Path::new("/proc/sys/net/ipv6").exists(),
        ipv6_switched_off: ipv6_switched_off(),
        network_mode: config.network.mode,
        plugins,
        apparmor: text("/sys/module/apparmor/parameters/enabled").as_deref() == Some("Y"),
        apparmor_parser: ["/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"]
            .iter()
            .any(|path| Path::new(path).exists()),
        selinux: selinux::Node::look(),
        hosts_mounts: same_mounts_as_init(),
        root_is_shared: root_propagation(&mounts),
        root_dir: directory(&config.root),
        state_dir: directory(&config.state),
        shim_is_there: shim.exists(),
        shim,
        open_files: rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
        missing_handlers: handlers
            .filter_map(|(name, handler)| Some((name, handler.path.as_ref()?)))
            .filter(|(_, path)| !path.exists())
            .map(|(name, path)| (name.clone(), path.clone()))
            .collect(),
    }
}

fn plugins(config: &Config) -> Result<Vec<String>, String> {
    let cni = &config.network.cni;
    let networks = cni::load(&cni.conf_dir, cni.networks_max).map_err(|error| error.to_string())?;
    let is_there = |kind: &str| cni.bin_dirs.iter().any(|dir| dir.join(kind).is_file());
    match networks.iter().flat_map(cni::Network::types).find(|kind| !is_there(kind)) {
        Some(kind) => Err(format!("plugin {kind} is in none of {:?}", cni.bin_dirs)),
        None => Ok(networks.iter().map(|network| network.name().to_owned()).collect()),
    }
}

fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    text(path)?.parse().ok()
}

fn words(text: &str) -> BTreeSet<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn cgroups(mounts: &str) -> Cgroups {
    let mut found = Cgroups { unified: None, v1: BTreeSet::new() };
    for line in mounts.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        match (back.next(), front.split(' ').nth(4), back.nth(1)) {
            (Some("cgroup2"), Some(place), _) => {
                let controllers = text(&format!("{place}/cgroup.controllers"));
                found.unified = Some(words(&controllers.unwrap_or_default()));
            }
            (Some("cgroup"), _, Some(options)) => {
                let names = options.split(',').filter(|it| !matches!(*it, "rw" | "ro" | "xattr"));
                found.v1.extend(names.map(str::to_owned));
            }
            _ => {}
        }
    }
    found
}

/// `None` when init's namespaces may not be looked at.
fn same_mounts_as_init() -> Option<bool> {
    Some(fs::read_link("/proc/1/ns/mnt").ok()? == fs::read_link("/proc/self/ns/mnt").ok()?)
}

/// The last mount at `/` is the one that is seen.
fn root_propagation(mounts: &str) -> Option<bool> {
    let mut roots = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/"));
    let front = roots.next_back()?.split(" - ").next()?;
    Some(front.split(' ').skip(6).any(|tag| tag.starts_with("shared:")))
}

fn directory(path: &Path) -> Directory {
    let existing = path.ancestors().find(|it| it.exists()).unwrap_or(Path::new("/"));
    let stat = statfs(existing).ok();
    let block = stat.map_or(0, |it| u64::try_from(it.f_bsize).unwrap_or_default());
    Directory {
        path: path.to_owned(),
        file_system: stat.map(|it| it.f_type),
        free_bytes: stat.map_or(0, |it| it.f_bavail.saturating_mul(block)),
        free_inodes: stat.map_or(0, |it| it.f_ffree),
    }
}

fn ipv6_switched_off() -> Vec<&'static str> {
    let is_off = |name: &&str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        text(&path).as_deref() == Some("1")
    };
    ["net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"]
        .into_iter()
        .filter(is_off)
        .collect()
}
