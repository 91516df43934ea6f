//! What the facts mean for pods. Pure: facts in, one finding for each thing looked at out.

use rustix::thread::CapabilitySet;

use super::facts::{Cgroups, Directory, Facts};
use super::network;
use crate::selinux::Node;

/// Linux before this lacks what we build on without a fallback: the mount API with attributes,
/// clone3 into a cgroup and pidfds that can be waited for.
const KERNEL_MIN: (u32, u32) = (5, 12);

/// Layers of overlays can be idmapped since Linux 5.19, tmpfs since 6.3: user namespaces without chown.
const KERNEL_IDMAPPED_TMPFS: (u32, u32) = (6, 3);

/// The exit of a process that is no child of ours can be read since Linux 6.15
/// (`PIDFD_INFO_EXIT`): a container whose shim was killed keeps its exit code.
const KERNEL_EXIT_BY_PIDFD: (u32, u32) = (6, 15);

/// Magic numbers of statfs(2).
const TMPFS: i64 = 0x0102_1994;
const OVERLAYFS: i64 = 0x794c_7630;
const NFS: i64 = 0x6969;

/// Room for one large image; below that the kubelet evicts pods anyway.
const FREE_BYTES_MIN: u64 = 1 << 30;
const FREE_INODES_MIN: u64 = 100_000;

/// A pod needs four descriptors of the daemon's: its shim's socket and the duplicates of its
/// output pipes.
const OPEN_FILES_MIN: u64 = 8192;

/// Without these no container starts.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::MKNOD);

/// Limits the kubelet sets need these.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "memory", "pids"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine,
    /// Works, with less.
    Lacking,
    /// Pods cannot run.
    Broken,
}

impl Verdict {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Fine => "ok",
            Self::Lacking => "lacks",
            Self::Broken => "BROKEN",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) topic: &'static str,
    pub(super) verdict: Verdict,
    pub(super) says: String,
    pub(super) fix: Option<String>,
}

impl Finding {
    pub(super) fn fine(topic: &'static str, says: String) -> Self {
        Self { topic, verdict: Verdict::Fine, says, fix: None }
    }

    pub(super) fn lacking(topic: &'static str, says: String, fix: &str) -> Self {
        Self { topic, verdict: Verdict::Lacking, says, fix: Some(fix.to_owned()) }
    }

    pub(super) fn broken(topic: &'static str, says: String, fix: &str) -> Self {
        Self { topic, verdict: Verdict::Broken, says, fix: Some(fix.to_owned()) }
    }
}

pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![
        user(facts),
        kernel(facts),
        cgroups(&facts.cgroups),
        overlay(facts),
        user_namespaces(facts),
        seccomp(facts),
        network::plugins(facts),
        network::ipv6(facts),
        apparmor(facts),
        selinux(facts),
        mounts(facts),
        propagation(facts),
        root_dir(&facts.root_dir),
        state_dir(&facts.state_dir),
        open_files(facts),
        shim(facts),
    ];
    found.extend(network::built_in(facts));
    found.extend(facts.missing_handlers.iter().map(|(name, path)| {
        let says = format!("{name}: {} does not exist", path.display());
        Finding::lacking("handler", says, "install it, or correct runtime.handlers")
    }));
    found
}

fn user(facts: &Facts) -> Finding {
    if !facts.root_user {
        let says = "not root: what follows is what an ordinary user sees".to_owned();
        return Finding::broken("user", says, "run as root");
    }
    let Some(held) = facts.capabilities else {
        return Finding::fine("user", "root; its capabilities cannot be read".to_owned());
    };
    let held = CapabilitySet::from_bits_retain(held);
    let missing = NEEDED.difference(held).iter_names().map(|(name, _)| format!("CAP_{name}"));
    let missing: Vec<_> = missing.collect();
    if !missing.is_empty() {
        let says = format!("root without {}", missing.join(", "));
        return Finding::broken("user", says, "give the daemon all capabilities");
    }
    // Lowers oom_score_adj and raises hard limits.
    if !held.contains(CapabilitySet::SYS_RESOURCE) {
        let says = "root without CAP_SYS_RESOURCE: oom_score_adj is not lowered and hard limits \
                    are not raised, they are cut to what is allowed"
            .to_owned();
        return Finding::lacking("user", says, "give the daemon CAP_SYS_RESOURCE");
    }
    Finding::fine("user", "root".to_owned())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|it: char| !it.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kernel(facts: &Facts) -> Finding {
    let release = &facts.kernel;
    match version(release) {
        None => Finding::lacking("kernel", format!("{release:?} is no version"), "tell us"),
        Some(it) if it < KERNEL_MIN => {
            let (major, minor) = KERNEL_MIN;
            let fix = format!("use Linux {major}.{minor} or later");
            Finding::broken("kernel", format!("Linux {release} is too old"), &fix)
        }
        Some(it) if it < KERNEL_EXIT_BY_PIDFD => {
            let says =
                format!("Linux {release}: the exit code of a container is lost with a killed shim");
            Finding::lacking("kernel", says, "Linux 6.15 or later keeps it")
        }
        Some(_) => Finding::fine("kernel", format!("Linux {release}")),
    }
}

fn cgroups(cgroups: &Cgroups) -> Finding {
    let unified = cgroups.unified.clone().unwrap_or_default();
    let missing: Vec<_> = CONTROLLERS
        .iter()
        .filter(|it| !unified.contains(**it) && !cgroups.v1.contains(**it))
        .copied()
        .collect();
    let form = match (&cgroups.unified, cgroups.v1.is_empty()) {
        (None, true) => {
            let says = "none are mounted".to_owned();
            return Finding::broken("cgroups", says, "mount cgroup2 at /sys/fs/cgroup");
        }
        (Some(_), true) => "version 2",
        (Some(_), false) => "version 1, with a unified hierarchy beside it",
        (None, false) => "version 1",
    };
    if !missing.is_empty() {
        let says = format!("{form}, without {}", missing.join(", "));
        let fix = "limits of these kinds are refused; boot with the controllers enabled";
        return Finding::lacking("cgroups", says, fix);
    }
    if cgroups.v1.is_empty() {
        return Finding::fine("cgroups", form.to_owned());
    }
    let fix = "works; boot with systemd.unified_cgroup_hierarchy=1 for pressure figures, \
               memory.oom.group and one kill for a whole container";
    Finding::lacking("cgroups", form.to_owned(), fix)
}

fn overlay(facts: &Facts) -> Finding {
    match &facts.overlay {
        Ok(()) => Finding::fine("overlayfs", "there".to_owned()),
        Err(why) => {
            Finding::broken("overlayfs", format!("cannot be opened: {why}"), "modprobe overlay")
        }
    }
}

fn user_namespaces(facts: &Facts) -> Finding {
    const TOPIC: &str = "user namespaces";
    let idmapped = version(&facts.kernel).is_some_and(|it| it >= KERNEL_IDMAPPED_TMPFS);
    match facts.user_namespaces_max {
        None => Finding::lacking(
            TOPIC,
            "not in this kernel".into(),
            "pods with hostUsers: false are refused",
        ),
        Some(0) => {
            Finding::lacking(TOPIC, "forbidden".into(), "sysctl -w user.max_user_namespaces=15000")
        }
        Some(_) if !idmapped => Finding::lacking(
            TOPIC,
            "without idmapped tmpfs".into(),
            "Linux 6.3 or later; until then pods with hostUsers: false are refused",
        ),
        Some(most) => Finding::fine(TOPIC, format!("at most {most}")),
    }
}

fn seccomp(facts: &Facts) -> Finding {
    let has = |action: &str| facts.seccomp_actions.contains(action);
    if !has("errno") {
        let says = "no filters".to_owned();
        let fix = "a kernel with CONFIG_SECCOMP_FILTER; until then only Unconfined pods start";
        return Finding::lacking("seccomp", says, fix);
    }
    Finding::fine("seccomp", if has("user_notif") { "filters, notify" } else { "filters" }.into())
}

fn apparmor(facts: &Facts) -> Finding {
    match (facts.apparmor, facts.apparmor_parser) {
        (false, _) => Finding::lacking(
            "AppArmor",
            "not enabled".to_owned(),
            "pods that name a profile are refused; others run without one",
        ),
        (true, false) => Finding::lacking(
            "AppArmor",
            "enabled, but profiles cannot be loaded".to_owned(),
            "install apparmor_parser (Debian: apparmor)",
        ),
        (true, true) => Finding::fine("AppArmor", "enabled".to_owned()),
    }
}

fn selinux(facts: &Facts) -> Finding {
    match &facts.selinux {
        Node::Off => Finding::fine("SELinux", "not enabled; labels are not set".to_owned()),
        Node::On(_) => Finding::fine("SELinux", "enabled; containers are labelled".to_owned()),
        Node::WithoutPolicy(file) => Finding::lacking(
            "SELinux",
            format!("enabled, but {} names no labels of containers: they get none", file.display()),
            "install the distribution's container-selinux",
        ),
    }
}

fn mounts(facts: &Facts) -> Finding {
    match facts.hosts_mounts {
        Some(false) => Finding::lacking(
            "mount namespace",
            "not init's: volumes mounted later by others are not seen".to_owned(),
            "start the daemon without PrivateMounts=, ProtectSystem= and the like",
        ),
        Some(true) => Finding::fine("mount namespace", "init's".to_owned()),
        None => Finding::fine("mount namespace", "init's cannot be looked at".to_owned()),
    }
}

fn propagation(facts: &Facts) -> Finding {
    match facts.root_is_shared {
        Some(true) => Finding::fine("propagation", "/ is a shared mount".to_owned()),
        _ => Finding::lacking(
            "propagation",
            "/ is not a shared mount: mountPropagation works below shared mounts only".to_owned(),
            "mount --make-rshared /",
        ),
    }
}

fn root_dir(dir: &Directory) -> Finding {
    let path = dir.path.display();
    let room = format!("{path}: {} free, {} inodes", size(dir.free_bytes), dir.free_inodes);
    match dir.file_system {
        Some(NFS) => {
            let says = format!("{path} is on NFS, which an overlay cannot be written to");
            Finding::broken("root directory", says, "give --root a local file system")
        }
        Some(OVERLAYFS) => {
            let says = format!("{path} is on an overlay itself: layers cannot lie on it");
            Finding::broken("root directory", says, "give --root a volume of its own")
        }
        Some(TMPFS) => {
            let says = format!("{room}; in memory: images are gone after a reboot");
            Finding::lacking("root directory", says, "give --root a disk")
        }
        _ if dir.free_bytes < FREE_BYTES_MIN => {
            Finding::lacking("root directory", room, "make room: the next pull may fill the disk")
        }
        // File systems that make inodes as they need them say 0.
        _ if (1..FREE_INODES_MIN).contains(&dir.free_inodes) => Finding::lacking(
            "root directory",
            room,
            "few inodes: an image has tens of thousands of files",
        ),
        _ => Finding::fine("root directory", room),
    }
}

fn state_dir(dir: &Directory) -> Finding {
    let path = dir.path.display();
    match dir.file_system {
        Some(TMPFS) => Finding::fine("state directory", format!("{path}, in memory")),
        _ => {
            let says = format!(
                "{path} is not on a tmpfs: each pod waits for the disk, and what a \
                                reboot should forget stays"
            );
            Finding::lacking(
                "state directory",
                says,
                "put --state on a tmpfs; on most nodes /run is one",
            )
        }
    }
}

fn open_files(facts: &Facts) -> Finding {
    match facts.open_files {
        Some(limit) if limit < OPEN_FILES_MIN => {
            let says = format!("{limit}: enough for {} pods or so", limit / 8);
            Finding::lacking("open files", says, "LimitNOFILE=1048576 in the unit, or ulimit -n")
        }
        Some(limit) => Finding::fine("open files", limit.to_string()),
        None => Finding::fine("open files", "no limit".to_owned()),
    }
}

fn shim(facts: &Facts) -> Finding {
    let path = facts.shim.display();
    match facts.shim_is_there {
        true => Finding::fine("shim", path.to_string()),
        false => {
            let says = format!("{path} does not exist");
            Finding::broken("shim", says, "install it beside the daemon, or give --shim")
        }
    }
}

fn size(bytes: u64) -> String {
    format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10)
}

#[cfg(test)]
#[path = "findings_tests.rs"]
mod tests;
