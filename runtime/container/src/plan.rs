//! From specification to plan: everything is checked and decided here, without a system call.

use std::ffi::CString;
use std::path::{Path, PathBuf};

use crate::capabilities::{self, Sets};
use crate::error::Error;
use crate::hooks::{self, Hooks};
use crate::options::{self, Options, Propagation};
use crate::spec::{self, IdMapping, Spec};

/// What the plan depends on besides the specification.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    pub id: String,
    /// Capabilities that this process may hand out.
    pub capabilities: u64,
    /// A compiled seccomp program comes along, so `linux.seccomp` needs no compiling here.
    pub seccomp_compiled: bool,
    /// The caller runs the hooks that come after the start and after the end.
    pub later_hooks: bool,
}

/// A container, decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    pub namespaces: Namespaces,
    pub mappings: Mappings,
    pub root_propagation: Option<Propagation>,
    pub root_readonly: bool,
    pub mounts: Vec<Mount>,
    pub devices: Vec<Node>,
    /// The default device nodes and links are made unless `/dev` is a bind mount.
    pub make_dev: bool,
    pub masked: Vec<PathBuf>,
    pub readonly: Vec<PathBuf>,
    /// Path below `/proc/sys` and value.
    pub sysctls: Vec<(PathBuf, String)>,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    pub personality: Option<u64>,
    pub process: Process,
    pub cgroup: String,
    pub resources: cgroup::Resources,
    pub hooks: Hooks,
}

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

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mappings {
    pub uid: Vec<IdMapping>,
    pub gid: Vec<IdMapping>,
}

/// One mount to make.
#[derive(Debug, Clone, PartialEq)]
pub struct Mount {
    pub destination: PathBuf,
    pub from: From,
    pub options: Options,
    pub mappings: Mappings,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// A tree of the host (or of another container).
    Bind(PathBuf),
    /// A new instance of a file system type, with its source string.
    New { kind: String, source: String },
    /// The container's own control groups.
    Cgroup,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: PathBuf,
    pub kind: NodeKind,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    Char,
    Block,
    Fifo,
}

/// The process to become.
#[derive(Debug, Clone, PartialEq)]
pub struct Process {
    pub args: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    pub capabilities: Sets,
    pub rlimits: Vec<Rlimit>,
    pub no_new_privileges: bool,
    pub oom_score_adj: Option<i32>,
    pub apparmor: Option<String>,
    pub terminal: bool,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// RLIMIT_* number.
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Octal 022 is what runtimes give when nothing is asked.
const DEFAULT_UMASK: u32 = 0o022;

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
    let namespaces = namespaces(linux)?;
    let has = |ns: Namespace| {
        namespaces.new & ns as u64 != 0 || namespaces.join.iter().any(|(k, _)| *k == ns)
    };
    if (spec.hostname.is_some() || spec.domainname.is_some()) && !has(Namespace::Uts) {
        return Err(Error::new(
            "hostname",
            "setting it needs a UTS namespace of the container's own",
        ));
    }
    let process =
        spec.process.as_ref().ok_or_else(|| Error::new("process", "the specification has none"))?;
    let mounts = spec.mounts.iter().flatten().map(mount).collect::<Result<Vec<_>, _>>()?;
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
        mappings: Mappings {
            uid: linux.uid_mappings.clone().unwrap_or_default(),
            gid: linux.gid_mappings.clone().unwrap_or_default(),
        },
        root_propagation,
        root_readonly: spec.root.as_ref().is_some_and(|r| r.readonly),
        mounts,
        devices: linux.devices.iter().flatten().map(device).collect::<Result<_, _>>()?,
        make_dev,
        masked: linux.masked_paths.clone().unwrap_or_default(),
        readonly: linux.readonly_paths.clone().unwrap_or_default(),
        sysctls: sysctls(linux, &has)?,
        hostname: spec.hostname.clone().filter(|h| !h.is_empty()),
        domainname: spec.domainname.clone().filter(|h| !h.is_empty()),
        personality: linux.personality.as_ref().map(personality).transpose()?,
        process: plan_process(process, facts)?,
        cgroup: cgroup_path(linux.cgroups_path.as_deref(), &facts.id)?,
        resources: linux.resources.clone().unwrap_or_default(),
        hooks,
        namespaces,
    })
}

/// Decides about a process: the container's own or one that is exec'd into it.
pub fn plan_process(p: &spec::Process, facts: &Facts) -> Result<Process, Error> {
    let unserved = [
        ("process.ioPriority", p.io_priority.is_some()),
        ("process.scheduler", p.scheduler.is_some()),
        ("process.execCPUAffinity", p.exec_cpu_affinity.is_some()),
        ("process.selinuxLabel", p.selinux_label.as_ref().is_some_and(|l| !l.is_empty())),
    ];
    refuse(&unserved)?;
    let args = c_strings("process.args", p.args.as_deref().unwrap_or_default())?;
    if args.first().is_none_or(|a| a.is_empty()) {
        return Err(Error::new("process.args", "no command to run"));
    }
    if !p.cwd.starts_with('/') {
        return Err(Error::new("process.cwd", format!("{:?} is not an absolute path", p.cwd)));
    }
    let capabilities = match &p.capabilities {
        Some(wanted) => capabilities::sets(wanted, facts.capabilities)?,
        None => Sets::default(),
    };
    Ok(Process {
        args,
        env: c_strings("process.env", p.env.as_deref().unwrap_or_default())?,
        cwd: PathBuf::from(&p.cwd),
        uid: p.user.uid,
        gid: p.user.gid,
        groups: p.user.additional_gids.clone().unwrap_or_default(),
        umask: p.user.umask.unwrap_or(DEFAULT_UMASK) & 0o777,
        capabilities,
        rlimits: p.rlimits.iter().flatten().map(rlimit).collect::<Result<_, _>>()?,
        no_new_privileges: p.no_new_privileges,
        oom_score_adj: p.oom_score_adj,
        apparmor: p.apparmor_profile.clone().filter(|a| !a.is_empty()),
        terminal: p.terminal,
        console_size: p.console_size.map(|c| (c.height, c.width)),
    })
}

/// Known fields of the specification that this runtime does not serve yet are refused, never ignored.
fn refuse_unserved(linux: &spec::Linux, facts: &Facts) -> Result<(), Error> {
    refuse(&[
        ("linux.seccomp", linux.seccomp.is_some() && !facts.seccomp_compiled),
        ("linux.mountLabel", linux.mount_label.as_ref().is_some_and(|l| !l.is_empty())),
        ("linux.timeOffsets", linux.time_offsets.as_ref().is_some_and(|t| !t.is_empty())),
        ("linux.intelRdt", linux.intel_rdt.is_some()),
        ("linux.memoryPolicy", linux.memory_policy.is_some()),
        ("linux.netDevices", linux.net_devices.as_ref().is_some_and(|n| !n.is_empty())),
    ])
}

fn refuse(fields: &[(&str, bool)]) -> Result<(), Error> {
    match fields.iter().find(|(_, used)| *used) {
        Some((field, _)) => Err(Error::new(*field, "not supported by this runtime")),
        None => Ok(()),
    }
}

fn namespaces(linux: &spec::Linux) -> Result<Namespaces, Error> {
    let mut out = Namespaces::default();
    let mut seen = 0;
    for ns in linux.namespaces.iter().flatten() {
        let kind = match ns.kind.as_str() {
            "pid" => Namespace::Pid,
            "network" => Namespace::Net,
            "mount" => Namespace::Mount,
            "ipc" => Namespace::Ipc,
            "uts" => Namespace::Uts,
            "cgroup" => Namespace::Cgroup,
            other => {
                return Err(Error::new(
                    "linux.namespaces",
                    format!("{other:?} is not supported by this runtime"),
                ));
            }
        };
        if seen & kind as u64 != 0 {
            return Err(Error::new("linux.namespaces", format!("{:?} is listed twice", ns.kind)));
        }
        seen |= kind as u64;
        match ns.path.as_ref().filter(|p| !p.as_os_str().is_empty()) {
            Some(path) => out.join.push((kind, path.clone())),
            None => out.new |= kind as u64,
        }
    }
    if out.new & Namespace::Mount as u64 == 0 {
        return Err(Error::new(
            "linux.namespaces",
            "a container needs a mount namespace of its own",
        ));
    }
    Ok(out)
}

fn mount(m: &spec::Mount) -> Result<Mount, Error> {
    let stage = format!("mount {}", m.destination.display());
    if !m.destination.is_absolute() {
        return Err(Error::new(stage, "the destination is not an absolute path"));
    }
    let options = options::parse(m.options.as_deref().unwrap_or_default())?;
    let kind = m.kind.as_deref().unwrap_or("");
    let source = m.source.clone().unwrap_or_default();
    let from = match kind {
        _ if options.bind || kind == "bind" => {
            if source.as_os_str().is_empty() {
                return Err(Error::new(stage, "a bind mount needs a source"));
            }
            From::Bind(source)
        }
        "cgroup" | "cgroup2" => From::Cgroup,
        "" => return Err(Error::new(stage, "neither a type nor a bind option")),
        _ => From::New { kind: kind.to_owned(), source: source.to_string_lossy().into_owned() },
    };
    let mappings = Mappings {
        uid: m.uid_mappings.clone().unwrap_or_default(),
        gid: m.gid_mappings.clone().unwrap_or_default(),
    };
    if options.idmap != options::Idmap::No || !mappings.uid.is_empty() || !mappings.gid.is_empty() {
        return Err(Error::new(stage, "id-mapped mounts are not supported by this runtime"));
    }
    Ok(Mount { destination: m.destination.clone(), from, options, mappings })
}

fn device(d: &spec::Device) -> Result<Node, Error> {
    let stage = format!("device {}", d.path.display());
    let (kind, default_mode) = match d.kind.as_str() {
        "c" | "u" => (NodeKind::Char, 0o666),
        "b" => (NodeKind::Block, 0o666),
        "p" => (NodeKind::Fifo, 0o666),
        other => return Err(Error::new(stage, format!("unknown device type {other:?}"))),
    };
    if !d.path.is_absolute() {
        return Err(Error::new(stage, "the path is not absolute"));
    }
    let number =
        |n: i64| u32::try_from(n).or_else(|_| if kind == NodeKind::Fifo { Ok(0) } else { Err(n) });
    let bad = |n| Error::new(stage.clone(), format!("{n} is no device number"));
    Ok(Node {
        path: d.path.clone(),
        kind,
        major: number(d.major).map_err(bad)?,
        minor: number(d.minor).map_err(bad)?,
        mode: d.file_mode.unwrap_or(default_mode) & 0o7777,
        uid: d.uid.unwrap_or(0),
        gid: d.gid.unwrap_or(0),
    })
}

/// Only sysctls that belong to a namespace the container has are accepted: the others would change the host.
fn sysctls(
    linux: &spec::Linux,
    has: &dyn Fn(Namespace) -> bool,
) -> Result<Vec<(PathBuf, String)>, Error> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let mut out = Vec::new();
    for (key, value) in linux.sysctl.iter().flatten() {
        let stage = format!("sysctl {key}");
        // Both `net.ipv4.ip_forward` and `net/ipv4/conf/eth0.1/…` are written; the first separator decides.
        let slashes = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/');
        let path: String = if slashes {
            key.clone()
        } else {
            key.chars()
                .map(|c| match c {
                    '.' => '/',
                    '/' => '.',
                    c => c,
                })
                .collect()
        };
        if path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(Error::new(stage, "malformed name"));
        }
        let dotted = path.replace('/', ".");
        let needs = match dotted.as_str() {
            d if IPC.contains(&d) || d.starts_with("fs.mqueue.") => Namespace::Ipc,
            d if d.starts_with("net.") => Namespace::Net,
            "kernel.domainname" => Namespace::Uts,
            "kernel.hostname" => {
                return Err(Error::new(stage, "set the hostname by its own field"));
            }
            _ => {
                return Err(Error::new(
                    stage,
                    "it does not belong to a namespace, so it would change the host",
                ));
            }
        };
        if !has(needs) {
            return Err(Error::new(
                stage,
                format!("the container shares the host's {needs:?} namespace"),
            ));
        }
        out.push((PathBuf::from(path), value.clone()));
    }
    Ok(out)
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

fn rlimit(r: &spec::Rlimit) -> Result<Rlimit, Error> {
    // The kernel's numbering on x86_64, aarch64 and every other architecture with the generic table.
    const NAMES: [&str; 16] = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let known =
        r.kind.strip_prefix("RLIMIT_").and_then(|short| NAMES.iter().position(|n| *n == short));
    let resource = known
        .ok_or_else(|| Error::new("process.rlimits", format!("unknown limit {:?}", r.kind)))?;
    if r.soft > r.hard {
        return Err(Error::new(
            "process.rlimits",
            format!("{}: soft {} above hard {}", r.kind, r.soft, r.hard),
        ));
    }
    Ok(Rlimit { resource: resource as u32, soft: r.soft, hard: r.hard })
}

/// The group that the specification names, or one named after the container.
pub fn cgroup_path(path: Option<&str>, id: &str) -> Result<String, Error> {
    let path = path.filter(|p| !p.is_empty()).map_or_else(|| format!("/{id}"), str::to_owned);
    if path.contains(':') {
        return Err(Error::new(
            "linux.cgroupsPath",
            format!("{path:?} is for the systemd driver, not supported yet"),
        ));
    }
    Ok(if path.starts_with('/') { path } else { format!("/{path}") })
}

fn c_strings(field: &str, strings: &[String]) -> Result<Vec<CString>, Error> {
    let each = strings.iter().map(|s| {
        CString::new(s.as_str())
            .map_err(|_| Error::new(field, format!("{:?} has a zero byte", s.replace('\0', "␀"))))
    });
    each.collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
