//! The process to become, decided: the container's own or one that is exec'd into it.

use std::ffi::CString;
use std::path::PathBuf;

use super::Facts;
use super::schedule::{self, Schedule};
use crate::capabilities::{self, Sets};
use crate::error::Error;
use crate::label;
use crate::spec;

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
    pub selinux: Option<String>,
    pub terminal: bool,
    /// Rows and columns.
    pub console_size: Option<(u16, u16)>,
    pub schedule: Schedule,
    /// What is not granted as asked; the process runs all the same.
    pub warnings: Vec<String>,
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

/// Decides about a process: the container's own or one that is exec'd into it.
pub fn plan_process(p: &spec::Process, facts: &Facts) -> Result<Process, Error> {
    let selinux = label::checked("process.selinuxLabel", p.selinux_label.as_ref(), facts.selinux)?;
    let args = c_strings("process.args", p.args.as_deref().unwrap_or_default())?;
    if args.first().is_none_or(|a| a.is_empty()) {
        return Err(Error::new("process.args", "no command to run"));
    }
    if !p.cwd.starts_with('/') {
        return Err(Error::new("process.cwd", format!("{:?} is not an absolute path", p.cwd)));
    }
    let mut warnings = Vec::new();
    let capabilities = match &p.capabilities {
        Some(wanted) => capabilities::sets(wanted, facts.capabilities, &mut warnings),
        None => Sets::default(),
    };
    Ok(Process {
        args,
        env: c_strings("process.env", &last_of_each(p.env.as_deref().unwrap_or_default()))?,
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
        selinux,
        terminal: p.terminal,
        console_size: p.console_size.map(|c| (c.height, c.width)),
        schedule: Schedule {
            scheduler: p.scheduler.as_ref().map(schedule::scheduler).transpose()?,
            io_priority: p.io_priority.as_ref().map(schedule::io_priority).transpose()?,
            exec_cpus: schedule::exec_cpus(p.exec_cpu_affinity.as_ref())?,
        },
        warnings,
    })
}

/// A variable that is set again has its later value only: programs disagree about which of two counts. An empty
/// HOME is none.
fn last_of_each(env: &[String]) -> Vec<String> {
    let name = |entry: &'_ str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = std::collections::HashSet::new();
    let mut kept: Vec<String> =
        env.iter().rev().filter(|e| seen.insert(name(e))).cloned().collect();
    kept.retain(|e| e != "HOME=");
    kept.reverse();
    kept
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

fn c_strings(field: &str, strings: &[String]) -> Result<Vec<CString>, Error> {
    let each = strings.iter().map(|s| {
        CString::new(s.as_str())
            .map_err(|_| Error::new(field, format!("{:?} has a zero byte", s.replace('\0', "␀"))))
    });
    each.collect()
}
