//! When and where a process runs: CPU and I/O scheduling, CPUs, memory nodes.

use crate::error::Error;
use crate::spec;

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Schedule {
    pub scheduler: Option<Scheduler>,
    /// As `ioprio_set` takes it: the class above bit 13, the level below.
    pub io_priority: Option<u16>,
    /// CPUs of an exec'd process, before and after it enters the container's group. Not for a container's first.
    pub exec_cpus: [Option<Vec<u32>>; 2],
}

/// The numbers of `struct sched_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduler {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
}

/// The numbers of `set_mempolicy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    pub mode: i32,
    pub nodes: Vec<u32>,
}

/// More CPUs or nodes than any kernel is built for: keeps a list like `0-4000000000` from becoming memory.
const NUMBERS_MAX: u32 = 8192;

/// What the kernel would silently ignore under the policy is refused.
pub(super) fn scheduler(s: &spec::Scheduler) -> Result<Scheduler, Error> {
    const FIELD: &str = "process.scheduler";
    const POLICIES: [(&str, u32); 7] = [
        ("SCHED_OTHER", 0),
        ("SCHED_FIFO", 1),
        ("SCHED_RR", 2),
        ("SCHED_BATCH", 3),
        ("SCHED_ISO", 4),
        ("SCHED_IDLE", 5),
        ("SCHED_DEADLINE", 6),
    ];
    const FLAGS: [(&str, u64); 7] = [
        ("SCHED_FLAG_RESET_ON_FORK", 0x01),
        ("SCHED_FLAG_RECLAIM", 0x02),
        ("SCHED_FLAG_DL_OVERRUN", 0x04),
        ("SCHED_FLAG_KEEP_POLICY", 0x08),
        ("SCHED_FLAG_KEEP_PARAMS", 0x10),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", 0x20),
        ("SCHED_FLAG_UTIL_CLAMP_MAX", 0x40),
    ];
    let policy = number(&format!("{FIELD}.policy"), &POLICIES, &s.policy)?;
    let flags = s.flags.iter().flatten();
    let flags = flags.map(|f| number(&format!("{FIELD}.flags"), &FLAGS, f));
    let flags = flags.collect::<Result<Vec<u64>, _>>()?.into_iter().fold(0, |all, f| all | f);
    let times = [s.runtime, s.deadline, s.period].map(Option::unwrap_or_default);
    let (nice, priority) = (s.nice.unwrap_or(0), s.priority.unwrap_or(0));
    let misplaced = [
        ("priority", priority != 0 && ![1, 2].contains(&policy)),
        ("runtime, deadline and period", times != [0; 3] && policy != 6),
    ];
    if let Some((what, _)) = misplaced.iter().find(|(_, is)| *is) {
        return Err(Error::new(FIELD, format!("{what} cannot be set with {}", s.policy)));
    }
    if !(-20..=19).contains(&nice) {
        return Err(Error::new(FIELD, format!("nice {nice} is not within -20 to 19")));
    }
    let priority = u32::try_from(priority)
        .map_err(|_| Error::new(FIELD, format!("priority {priority} is below zero")))?;
    let [runtime, deadline, period] = times;
    Ok(Scheduler { policy, flags, nice, priority, runtime, deadline, period })
}

pub(super) fn io_priority(p: &spec::IoPriority) -> Result<u16, Error> {
    const FIELD: &str = "process.ioPriority";
    const CLASSES: [(&str, u16); 3] =
        [("IOPRIO_CLASS_RT", 1), ("IOPRIO_CLASS_BE", 2), ("IOPRIO_CLASS_IDLE", 3)];
    let class = number(&format!("{FIELD}.class"), &CLASSES, &p.class)?;
    match u16::try_from(p.priority) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => Err(Error::new(FIELD, format!("priority {} is not within 0 to 7", p.priority))),
    }
}

pub(super) fn exec_cpus(
    affinity: Option<&spec::CpuAffinity>,
) -> Result<[Option<Vec<u32>>; 2], Error> {
    let Some(a) = affinity else { return Ok([None, None]) };
    let read = |name: &str, text: &Option<String>| {
        let text = text.as_ref().filter(|t| !t.is_empty());
        text.map(|t| numbers(&format!("process.execCPUAffinity.{name}"), t)).transpose()
    };
    Ok([read("initial", &a.initial)?, read("final", &a.last)?])
}

/// Reads `linux.memoryPolicy`.
///
/// # Errors
/// A mode, flag or node that is none.
pub fn memory_policy(p: &spec::MemoryPolicy) -> Result<MemoryPolicy, Error> {
    const FIELD: &str = "linux.memoryPolicy";
    const MODES: [(&str, i32); 7] = [
        ("MPOL_DEFAULT", 0),
        ("MPOL_PREFERRED", 1),
        ("MPOL_BIND", 2),
        ("MPOL_INTERLEAVE", 3),
        ("MPOL_LOCAL", 4),
        ("MPOL_PREFERRED_MANY", 5),
        ("MPOL_WEIGHTED_INTERLEAVE", 6),
    ];
    const FLAGS: [(&str, i32); 3] = [
        ("MPOL_F_STATIC_NODES", 1 << 15),
        ("MPOL_F_RELATIVE_NODES", 1 << 14),
        ("MPOL_F_NUMA_BALANCING", 1 << 13),
    ];
    let stage = |part: &str| format!("{FIELD}: invalid memory policy {part}");
    let policy = number(&stage("mode"), &MODES, &p.mode)?;
    let mut mode = policy;
    for flag in p.flags.iter().flatten() {
        mode |= number(&stage("flag"), &FLAGS, flag)?;
    }
    let nodes = p.nodes.as_ref().filter(|n| !n.is_empty());
    let nodes = nodes.map(|n| numbers(&stage("nodes"), n)).transpose()?.unwrap_or_default();
    let (wants, has) = (&p.mode, nodes.len());
    match policy {
        0 | 4 if has > 0 => {
            Err(Error::new(FIELD, format!("the {wants} mode requires 0 nodes but got {has}")))
        }
        2 | 3 | 5 | 6 if has == 0 => {
            Err(Error::new(FIELD, format!("the {wants} mode requires at least one node but got 0")))
        }
        _ => Ok(MemoryPolicy { mode, nodes }),
    }
}

fn number<N: Copy>(field: &str, table: &[(&str, N)], word: &str) -> Result<N, Error> {
    let found = table.iter().find(|(name, _)| *name == word);
    found.map(|(_, n)| *n).ok_or_else(|| Error::new(field, format!("unknown value {word:?}")))
}

/// `0-3,7` as the kernel's lists are written.
fn numbers(field: &str, text: &str) -> Result<Vec<u32>, Error> {
    let bad = || Error::new(field, format!("{text:?} is no list like \"0-3,7\""));
    let mut all = Vec::new();
    for part in text.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let read = |n: &str| n.trim().parse().ok().filter(|n: &u32| *n < NUMBERS_MAX);
        let (Some(from), Some(to)) = (read(from), read(to)) else { return Err(bad()) };
        if from > to {
            return Err(bad());
        }
        all.extend(from..=to);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_policy_with_nodes_that_its_mode_does_not_take_is_refused() {
        let policy = |mode: &str, nodes: Option<&str>, flags: &[&str]| {
            memory_policy(&spec::MemoryPolicy {
                mode: mode.into(),
                nodes: nodes.map(str::to_owned),
                flags: Some(flags.iter().map(|f| (*f).to_owned()).collect()),
            })
            .map_err(|e| e.to_string())
        };
        for (mode, nodes, flags, want) in [
            ("", Some("0"), &[][..], "invalid memory policy mode"),
            ("MPOL_BIND", Some("0"), &["x"], "invalid memory policy flag"),
            ("MPOL_BIND", Some("0-9876543210"), &[], "invalid memory policy nodes"),
            ("MPOL_DEFAULT", Some("0-7"), &[], "mode requires 0 nodes but got 8"),
            ("MPOL_INTERLEAVE", None, &[], "mode requires at least one node"),
        ] {
            let error = policy(mode, nodes, flags).expect_err(want);
            assert!(error.contains(want), "{error}");
        }
        assert_eq!(policy("MPOL_LOCAL", None, &[]).map(|p| p.mode), Ok(4));
        assert_eq!(policy("MPOL_PREFERRED", None, &[]).map(|p| p.mode), Ok(1));
    }
}
