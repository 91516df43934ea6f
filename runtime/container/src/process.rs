//! The last steps before a program runs: limits, user, capabilities, directory, seccomp, exec.

use std::convert::Infallible;
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::channel::{say_clamped, say_listener};
use crate::create::Seccomp;
use crate::error::{At, Error};
use crate::hooks::Hooks;
use crate::label;
use crate::plan::{self, MemoryPolicy, Process, Schedule};
use crate::sys::process::{
    cloexec_from, execve, fexecve, let_signals_through, load_seccomp, new_session_keyring,
};
use crate::sys::schedule;
use crate::{bpf, capabilities, capabilities::Sets};

/// What the last steps need besides the process.
#[derive(Debug)]
pub(crate) struct Ending<'a> {
    pub(crate) channel: BorrowedFd<'a>,
    /// Somebody listens to that before the start.
    pub(crate) early: bool,
    pub(crate) seccomp: Option<&'a Seccomp>,
    /// Run this open file instead of `args[0]`.
    pub(crate) sealed: Option<BorrowedFd<'a>>,
    /// That file starts the program itself, and is told which.
    pub(crate) supervised: bool,
    pub(crate) preserve_fds: u32,
    pub(crate) domain: Domain<'a>,
    /// Hooks of the container and its bundle.
    pub(crate) hooks: Option<(&'a Hooks, &'a Path)>,
}

/// What a container's processes share beside its objects.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Domain<'a> {
    pub(crate) personality: Option<u64>,
    pub(crate) memory_policy: Option<&'a MemoryPolicy>,
}

impl Domain<'_> {
    fn apply(&self) -> Result<(), Error> {
        if let Some(policy) = self.memory_policy {
            schedule::set_memory_policy(policy).at(
                "memory policy",
                format!("set_mempolicy {:#x} {:?}", policy.mode, policy.nodes),
            )?;
        }
        if let Some(persona) = self.personality {
            schedule::set_personality(persona).at("personality", format!("set {persona:#x}"))?;
        }
        Ok(())
    }
}

/// Longest `/etc/passwd` that is searched for a home directory.
const PASSWD_MAX: u64 = 1 << 20;
/// Where programs are looked for when the environment does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Nobody may trace or read this process until it has become the program.
pub(crate) fn be_undumpable() -> Result<(), Error> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("start", "prctl(PR_SET_DUMPABLE)")
}

/// What is set by writing to the host's /proc, before the container's file systems are there.
pub(crate) fn host_settings(p: &Process, channel: BorrowedFd<'_>) -> Result<(), Error> {
    p.warnings.iter().try_for_each(|text| say_clamped(channel, text))?;
    if let Some(adj) = p.oom_score_adj {
        oom_score_adj(adj, channel)?;
    }
    if let Some(label) = &p.selinux {
        label::own_keys(label)?;
    }
    if let Some(profile) = &p.apparmor {
        let file = ["/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"]
            .into_iter()
            .find(|f| Path::new(f).exists());
        let file = file.ok_or_else(|| Error::new("apparmor", "this kernel has no AppArmor"))?;
        fs::write(file, format!("exec {profile}"))
            .at("apparmor", format!("set profile {profile:?}"))?;
    }
    Ok(())
}

pub(crate) const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// Lowering the score needs CAP_SYS_RESOURCE; a node without it keeps what it may.
fn oom_score_adj(wanted: i32, channel: BorrowedFd<'_>) -> Result<(), Error> {
    match fs::write(OOM_SCORE_ADJ, wanted.to_string()) {
        Err(e) if e.raw_os_error() == Some(Errno::ACCESS.raw_os_error()) => {
            let kept = fs::read_to_string(OOM_SCORE_ADJ).unwrap_or_default();
            say_clamped(
                channel,
                &format!("oom_score_adj {wanted} needs CAP_SYS_RESOURCE; it stays {}", kept.trim()),
            )
        }
        other => other.at("oom_score_adj", format!("write {wanted}")),
    }
}

/// A session keyring of the container's own, where the kernel has keyrings.
pub(crate) fn own_keyring() -> Result<(), Error> {
    match new_session_keyring(c"_ses") {
        Ok(()) | Err(Errno::NOSYS) => Ok(()),
        Err(e) => Err(e).at("join a session keyring", "keyctl"),
    }
}

/// Waits for the start and becomes the program; returns only with the reason why not.
///
/// What can be done before the start is, so that it takes nobody's time. What goes wrong there is said after it: until
/// then the container is a created one.
pub(crate) fn become_it(
    p: &Process,
    end: &Ending<'_>,
    started: impl FnOnce() -> Result<(), Error>,
) -> Result<Infallible, Error> {
    let (program, env) = if end.early && may_wait(p, end.seccomp) {
        let prepared = prepare(p, end);
        started()?;
        prepared?
    } else {
        started()?;
        prepare(p, end)?
    };
    // A hook of the container's own files runs confined like its program.
    if let Some((hooks, bundle)) = end.hooks {
        hooks.run_before(own_pid(), bundle, &env)?;
    }
    let errno = match (end.sealed, &program) {
        (Some(fd), Some(path)) => {
            let told = [INIT_NAME_C.to_owned(), path.clone()];
            fexecve(fd, &[&told, p.args.as_slice()].concat(), &env)
        }
        (Some(fd), None) => fexecve(fd, &p.args, &env),
        (None, Some(path)) => execve(path, &p.args, &env),
        (None, None) => Errno::NOENT,
    };
    Err(refused(&p.args[0], program.as_deref(), errno))
}

/// Whether a process that is prepared can still wait. Without no_new_privs the filter comes before steps that it may
/// forbid, and one with a listener has to have somebody who listens.
fn may_wait(p: &Process, seccomp: Option<&Seccomp>) -> bool {
    p.no_new_privileges
        && seccomp.is_none_or(|s| !s.has_listener() && bpf::lets_go(&s.program, libc::SYS_recvfrom))
}

/// Everything up to exec: the program's path, where it has one, and its environment.
fn prepare(p: &Process, end: &Ending<'_>) -> Result<(Option<CString>, Vec<CString>), Error> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(p.umask));
    rlimits(&p.rlimits, end.channel)?;
    scheduling(&p.schedule)?;
    end.domain.apply()?;
    // Without no_new_privs only CAP_SYS_ADMIN may load a filter, so it must come before the capabilities go.
    let filter_first = !p.no_new_privileges;
    if filter_first {
        filter(end)?;
    }
    // The directory is tried as root first: it may be closed to the user and still be a right place to start in.
    let entered = rustix::process::chdir(&p.cwd);
    user(p)?;
    if entered.is_err() {
        rustix::process::chdir(&p.cwd)
            .at("working directory", format!("change to {}", p.cwd.display()))?;
    }
    inside()?;
    if p.no_new_privileges {
        rustix::thread::set_no_new_privs(true).at("no_new_privs", "prctl")?;
    }
    let env = environment(p);
    let program = match end.sealed {
        Some(_) if !end.supervised => None,
        _ => Some(find(&p.args[0], &env)?),
    };
    if let Some(path) = program.as_ref().filter(|_| end.supervised) {
        // What exec would say, before there is a process that can only end.
        runnable(path).map_err(|errno| refused(&p.args[0], Some(path), errno))?;
    }
    let_signals_through();
    cloexec_from(3 + end.preserve_fds);
    if !filter_first {
        filter(end)?;
    }
    Ok((program, env))
}

/// From here on the filter holds for this process, too: a profile that forbids or notifies what follows (user,
/// capabilities, sendmsg, exec) is felt here.
fn filter(end: &Ending<'_>) -> Result<(), Error> {
    let Some(seccomp) = end.seccomp else { return Ok(()) };
    let listener =
        load_seccomp(&seccomp.program, seccomp.flags).at("seccomp", "load the filter")?;
    listener.map_or(Ok(()), |fd| say_listener(end.channel, fd.as_fd()))
}

fn scheduling(s: &Schedule) -> Result<(), Error> {
    if let Some(scheduler) = &s.scheduler {
        schedule::set_scheduler(scheduler).map_err(|e| {
            let hint = match e {
                Errno::PERM if scheduler.policy == schedule::DEADLINE => {
                    " (this process scheduler can't be used together with AllowedCPUs: it takes all CPUs of the node)"
                }
                _ => "",
            };
            let why = crate::error::words(&e.into());
            Error::new("scheduler", format!("set {scheduler:?}: {why}{hint}"))
        })?;
    }
    match s.io_priority {
        None => Ok(()),
        Some(priority) => {
            let (class, level) = (priority >> 13, priority & 7);
            schedule::set_io_priority(priority)
                .at("I/O priority", format!("set class {class} level {level}"))
        }
    }
}

/// As the container sees it: its hooks do, too.
pub(crate) fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

fn rlimits(limits: &[plan::Rlimit], channel: BorrowedFd<'_>) -> Result<(), Error> {
    for limit in limits {
        let Some(resource) = resource(limit.resource) else { continue };
        let finite = |v: u64| (v != u64::MAX).then_some(v);
        let wanted = Rlimit { current: finite(limit.soft), maximum: finite(limit.hard) };
        match setrlimit(resource, wanted) {
            Ok(()) => {}
            Err(Errno::PERM) => {
                let have = getrlimit(resource);
                let soft = have.maximum.map_or(limit.soft, |max| max.min(limit.soft));
                setrlimit(resource, Rlimit { current: finite(soft), maximum: have.maximum })
                    .at("rlimits", format!("{resource:?}"))?;
                let kept = have.maximum.map_or("unlimited".to_owned(), |n| n.to_string());
                let text =
                    format!("{resource:?} {} needs CAP_SYS_RESOURCE; it stays {kept}", limit.hard);
                say_clamped(channel, &text)?;
            }
            Err(e) => {
                return Err(e).at("rlimits", format!("{resource:?} {}:{}", limit.soft, limit.hard));
            }
        }
    }
    Ok(())
}

fn resource(number: u32) -> Option<Resource> {
    const ALL: [Resource; 16] = [
        Resource::Cpu,
        Resource::Fsize,
        Resource::Data,
        Resource::Stack,
        Resource::Core,
        Resource::Rss,
        Resource::Nproc,
        Resource::Nofile,
        Resource::Memlock,
        Resource::As,
        Resource::Locks,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Rtprio,
        Resource::Rttime,
    ];
    ALL.get(number as usize).copied()
}

/// Groups, ids and capabilities, in the one order that works: what needs a privilege comes before it is dropped.
fn user(p: &Process) -> Result<(), Error> {
    const STAGE: &str = "user";
    let want = &p.capabilities;
    for n in capabilities::NUMBERS.filter(|n| want.bounding & (1 << n) == 0) {
        let bit = CapabilitySet::from_bits_retain(1 << n);
        match rustix::thread::remove_capability_from_bounding_set(bit) {
            Ok(()) => {}
            Err(Errno::INVAL) => break, // the kernel has none from here on
            // Without CAP_SETPCAP nothing can be dropped, and what is not there need not be.
            Err(Errno::PERM)
                if !rustix::thread::capability_is_in_bounding_set(bit).unwrap_or(false) => {}
            Err(e) => return Err(e).at("capabilities", "drop from the bounding set"),
        }
    }
    rustix::thread::set_keep_capabilities(true).at(STAGE, "keep capabilities")?;
    let groups: Vec<Gid> = p.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    rustix::thread::set_thread_groups(&groups).at(STAGE, format!("set groups {:?}", p.groups))?;
    let (uid, gid) = (Uid::from_raw(p.uid), Gid::from_raw(p.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(STAGE, format!("become gid {}", p.gid))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(STAGE, format!("become uid {}", p.uid))?;
    rustix::thread::set_keep_capabilities(false).at(STAGE, "keep capabilities")?;
    set_capabilities(want)
}

fn set_capabilities(want: &Sets) -> Result<(), Error> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(want.effective),
        permitted: CapabilitySet::from_bits_retain(want.permitted),
        inheritable: CapabilitySet::from_bits_retain(want.inheritable),
    };
    rustix::thread::set_capabilities(None, sets).at("capabilities", "capset")?;
    rustix::thread::clear_ambient_capability_set().at("capabilities", "clear the ambient set")?;
    for n in capabilities::NUMBERS.filter(|n| want.ambient & (1 << n) != 0) {
        let bit = CapabilitySet::from_bits_retain(1 << n);
        rustix::thread::configure_capability_in_ambient_set(bit, true)
            .at("capabilities", "raise ambient")?;
    }
    Ok(())
}

/// A working directory outside the root (through a leaked descriptor, CVE-2024-21626) shows as unreachable.
fn inside() -> Result<(), Error> {
    let cwd = rustix::process::getcwd(Vec::new()).at("working directory", "getcwd")?;
    if cwd.as_bytes().first() == Some(&b'/') {
        return Ok(());
    }
    Err(Error::new("working directory", "it lies outside the container's root"))
}

/// The environment as asked, with HOME of the user when nobody said.
fn environment(p: &Process) -> Vec<CString> {
    let mut env = p.env.clone();
    if !env.iter().any(|e| e.as_bytes().starts_with(b"HOME=")) {
        let home =
            fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/etc/passwd");
        let mut text = Vec::new();
        if let Ok(file) = home
            .and_then(|f| f.metadata().map(|m| (f, m.is_file())))
            .map(|(f, regular)| regular.then_some(f))
        {
            let _ = file.map(|f| f.take(PASSWD_MAX).read_to_end(&mut text));
        }
        let home = home_of(&text, p.uid).unwrap_or_else(|| b"/".to_vec());
        env.extend(CString::new([b"HOME=".as_slice(), &home].concat()));
    }
    env
}

fn home_of(passwd: &[u8], uid: u32) -> Option<Vec<u8>> {
    passwd.split(|b| *b == b'\n').find_map(|line| {
        let fields: Vec<_> = line.split(|b| *b == b':').collect();
        let id: u32 = std::str::from_utf8(fields.get(2)?).ok()?.parse().ok()?;
        fields.get(5).filter(|home| id == uid && !home.is_empty()).map(|home| home.to_vec())
    })
}

/// Whether there is a program, as far as root can tell.
pub(crate) fn look_for_program(p: &Process) -> Result<(), Error> {
    let path = find(&p.args[0], &p.env)?;
    runnable(&path).map_err(|errno| refused(&p.args[0], Some(&path), errno))
}

/// Where `name` is: itself when it has a slash, else the first executable of that name in PATH.
fn find(name: &CStr, env: &[CString]) -> Result<CString, Error> {
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return Ok(name.to_owned());
    }
    let path = env.iter().find_map(|e| e.as_bytes().strip_prefix(b"PATH="));
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    let mut denied = None;
    for dir in path
        .split(|b| *b == b':')
        .map(|d| Path::new(OsStr::from_bytes(if d.is_empty() { b"." } else { d })))
    {
        let candidate = dir.join(OsStr::from_bytes(name.to_bytes()));
        match executable(&candidate) {
            Ok(true) => {
                return Ok(CString::new(candidate.into_os_string().into_vec()).unwrap_or_default());
            }
            Ok(false) => denied = Some(candidate),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some(path) => {
            Error::new("exec", format!("exec: {shown:?}: {}: permission denied", path.display()))
        }
        None => Error::new("exec", format!("exec: {shown:?}: executable file not found in $PATH")),
    })
}

/// The name under which an init is started; the path of the program and its arguments follow, its name first.
pub const INIT_NAME: &str = "/init";
const INIT_NAME_C: &CStr = c"/init";

/// Whether exec would find a program there.
fn runnable(path: &CStr) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK)
}

/// Whether there is a file that we may execute; `Err` when there is none.
fn executable(path: &PathBuf) -> Result<bool, Errno> {
    let stat = rustix::fs::stat(path)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(Errno::NOENT);
    }
    Ok(rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok())
}

/// Why the kernel did not run it, in words that lead to the mistake.
fn refused(name: &CStr, path: Option<&CStr>, errno: Errno) -> Error {
    let shown = name.to_string_lossy();
    let stat = path.and_then(|p| rustix::fs::stat(p).ok());
    let directory = stat.is_some_and(|s| {
        rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Directory
    });
    // The kernel's words first: engines choose their exit code by them.
    let why = match (errno, stat.is_some()) {
        (Errno::NOENT, true) => {
            return Error::new(
                "exec",
                format!(
                    "exec {shown}: no such file or directory (the file is there: the image lacks its interpreter or \
                     dynamic loader)"
                ),
            );
        }
        (Errno::NOENT, false) => format!("stat {shown}: no such file or directory"),
        (Errno::ACCESS, _) if directory => "is a directory".to_owned(),
        (Errno::ACCESS, _) => "permission denied".to_owned(),
        (Errno::NOEXEC, _) => {
            "exec format error (built for another architecture, or a script without #!)".to_owned()
        }
        (other, _) => crate::error::words(&other.into()),
    };
    Error::new("exec", format!("exec: {shown:?}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_found_by_uid() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:101:101::/srv/web:\nbroken\n";
        assert_eq!(home_of(passwd, 101), Some(b"/srv/web".to_vec()));
        assert_eq!(home_of(passwd, 7), None);
    }

    #[test]
    fn a_missing_command_names_the_path_variable() {
        let error = find(c"no-such-command", &[CString::new("PATH=/bin").expect("c string")])
            .expect_err("missing");
        assert_eq!(error.message, r#"exec: "no-such-command": executable file not found in $PATH"#);
    }
}
