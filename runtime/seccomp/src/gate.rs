//! The first part of every program: a search for the call's number among ranges with one answer.
//!
//! It answers what needs no look at arguments, or at the lower half of one of them, which is nearly
//! everything: libseccomp's own program, with an instruction or two for each call, is ten times as
//! long, and the kernel checks, translates and tries out every instruction at each start of a
//! container. It knows calls newer than the installed libseccomp, and it tells a number nobody
//! decided about from a refused one.

use crate::assembler::{Assembler, Instruction, JUMP_EQUAL, Verdict};
use crate::filter::{Condition, ENOSYS, Filter, Known, Rule, permits};
use crate::machine::{X32_BIT, audit};
use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp, ScmpSyscall};
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The lower halves of the arguments: both machines have the little end first.
const ARGUMENTS: u32 = 16;

// SECCOMP_RET_* of linux/seccomp.h.
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

/// Calls that libseccomp releases still in use do not know. Since Linux 5.1 a new call has the
/// same number on every machine and in every table, so a list of numbers is enough.
const NEWER: &[(&str, u32)] = &[
    ("cachestat", 451),
    ("fchmodat2", 452),
    ("map_shadow_stack", 453),
    ("futex_wake", 454),
    ("futex_wait", 455),
    ("futex_requeue", 456),
    ("statmount", 457),
    ("listmount", 458),
    ("lsm_get_self_attr", 459),
    ("lsm_set_self_attr", 460),
    ("lsm_list_modules", 461),
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
];

/// The numbers of ARM's own calls start here, far above the table.
const ARM_PRIVATE: u32 = 0x000f_0000;

/// Two numbers of 32-bit x86 lead to many calls each, to which libseccomp gives negative names of its own; what
/// these say about them lies in memory, out of a filter's sight.
const GATHERED: [(&str, Range<i32>); 2] = [("socketcall", -199..-99), ("ipc", -299..-199)];
/// Most of them have a direct number besides.
const DIRECT: &[(&str, u32)] = &[
    ("recvmmsg", 337),
    ("sendmmsg", 345),
    ("socket", 359),
    ("socketpair", 360),
    ("bind", 361),
    ("connect", 362),
    ("listen", 363),
    ("accept4", 364),
    ("getsockopt", 365),
    ("setsockopt", 366),
    ("getsockname", 367),
    ("getpeername", 368),
    ("sendto", 369),
    ("sendmsg", 370),
    ("recvfrom", 371),
    ("recvmsg", 372),
    ("shutdown", 373),
    ("semget", 393),
    ("semctl", 394),
    ("shmget", 395),
    ("shmctl", 396),
    ("shmat", 397),
    ("shmdt", 398),
    ("msgget", 399),
    ("msgsnd", 400),
    ("msgrcv", 401),
    ("msgctl", 402),
];

/// What the gate says to a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The kernel's `SECCOMP_RET_*`.
    Always(u32),
    ByArgument(Look),
}

/// A look at the lower half of one argument. Where no case holds, the filter's default does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    argument: u32,
    cases: Vec<Case>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    mask: u32,
    value: u32,
    answer: u32,
}

pub(crate) type Settled<'a> = BTreeMap<&'a str, Answer>;

const UNKNOWN: Verdict = Verdict::Return(RET_ERRNO | ENOSYS);

/// Starts of segments; each lasts to the next, the last to the end of the numbers.
type Segments = BTreeMap<u32, Verdict>;

pub(crate) fn newer(name: &str) -> Option<u32> {
    NEWER.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// Whether libseccomp has a number for the name, on any machine.
pub(crate) fn named(name: &str) -> Option<ScmpSyscall> {
    ScmpSyscall::from_name(name).ok()
}

/// The calls that the gate answers alone. The others have other conditions, contradict themselves (for libseccomp to
/// complain about), or have a second way in on 32-bit x86 that is not open to all.
pub(crate) fn settled(filter: &Filter) -> Settled<'_> {
    let mut rules: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
    for rule in &filter.rules {
        rules.entry(&rule.name).or_default().push(rule);
    }
    let open: Vec<&str> = GATHERED
        .iter()
        .map(|(by, _)| *by)
        .filter(|by| rules.get(by).and_then(|all| always(all)) == Some(RET_ALLOW))
        .filter(|_| !permits(filter.default)) // libseccomp passes over what happens anyway
        .collect();
    let has_x86 = filter.arches.contains(&ScmpArch::X86);
    let is_open = |name: &str| match gathered_by(name) {
        Some(by) if has_x86 => open.contains(&by),
        _ => true,
    };
    rules
        .into_iter()
        .filter(|(name, _)| is_open(name) && (named(name).is_some() || newer(name).is_some()))
        .filter_map(|(name, rules)| {
            let answer = always(&rules).map(Answer::Always);
            Some((name, answer.or_else(|| look(&rules).map(Answer::ByArgument))?))
        })
        .collect()
}

/// Whether many calls of 32-bit x86 are made by its number.
pub(crate) fn gathers(name: &str) -> bool {
    GATHERED.iter().any(|(by, _)| *by == name)
}

/// By which number of 32-bit x86 a call is made as well; the number by itself.
fn gathered_by(name: &str) -> Option<&'static str> {
    let number = raw(name, ScmpArch::X86).unwrap_or_default();
    let found = GATHERED.iter().find(|(by, names)| *by == name || names.contains(&number));
    found.map(|(by, _)| *by)
}

fn always(rules: &[&Rule]) -> Option<u32> {
    let first = ret(rules.first()?.action);
    let alike = |rule: &&Rule| rule.conditions.is_empty() && ret(rule.action) == first;
    rules.iter().all(alike).then_some(first)
}

fn look(rules: &[&Rule]) -> Option<Look> {
    let cases: Vec<(u32, Case)> = rules.iter().map(|rule| case(rule)).collect::<Option<_>>()?;
    let argument = cases.first()?.0;
    let one_argument = cases.iter().all(|(of, _)| *of == argument);
    let mut cases: Vec<Case> = cases.into_iter().map(|(_, case)| case).collect();
    cases.sort_unstable_by_key(|case| case.value);
    // Of two that hold at once, libseccomp decides which comes first.
    let one_answer = cases.windows(2).all(|two| two[0].answer == two[1].answer);
    let apart = is_exact(&cases) && cases.windows(2).all(|two| two[0].value != two[1].value);
    (one_argument && (one_answer || apart)).then_some(Look { argument, cases })
}

fn case(rule: &Rule) -> Option<(u32, Case)> {
    let [Condition { argument, op: ScmpCompareOp::MaskedEqual(mask), datum }] = rule.conditions[..]
    else {
        return None;
    };
    let (mask, value) = (u32::try_from(mask).ok()?, u32::try_from(datum).ok()?);
    (value & !mask == 0).then_some((argument, Case { mask, value, answer: ret(rule.action) }))
}

fn is_exact(cases: &[Case]) -> bool {
    cases.iter().all(|case| case.mask == u32::MAX)
}

/// The instructions to put before the compiled filter. They end by falling through to it.
pub(crate) fn gate(filter: &Filter, settled: &Settled<'_>) -> Vec<Instruction> {
    let mut program = Assembler::default();
    let default = Verdict::Return(ret(filter.default));
    let verdicts: BTreeMap<&str, Verdict> = settled
        .iter()
        .map(|(name, answer)| match answer {
            Answer::Always(ret) => (*name, Verdict::Return(*ret)),
            Answer::ByArgument(look) => (*name, write_look(&mut program, look, default)),
        })
        .collect();
    // x86_64 and x32 are told apart by the number only, so they share one run of segments.
    let mut tables: Vec<(u32, Segments)> = Vec::new();
    for arch in &filter.arches {
        let Some(audit) = audit(*arch) else { continue };
        let found = tables.iter().position(|(token, _)| *token == audit);
        let at = found.unwrap_or_else(|| {
            let nothing = if filter.known == Known::Everything { Verdict::Pass } else { UNKNOWN };
            tables.push((audit, Segments::from([(0, nothing)])));
            tables.len() - 1
        });
        decide(&mut tables[at].1, filter, &verdicts, *arch);
    }
    let mut next = program.verdict(Verdict::Pass);
    for (audit, segments) in tables.iter().rev() {
        let found = program.search(&merged(segments));
        let table = program.load(NUMBER, found);
        next = program.condition(JUMP_EQUAL, *audit, table, next);
    }
    program.load(ARCH, next);
    program.finish()
}

fn write_look(program: &mut Assembler, look: &Look, default: Verdict) -> Verdict {
    let offset = ARGUMENTS + 8 * look.argument;
    let start = if is_exact(&look.cases) {
        let mut segments = Segments::from([(0, default)]);
        for case in &look.cases {
            set(&mut segments, case.value..=case.value, Verdict::Return(case.answer));
        }
        let found = program.search(&merged(&segments));
        program.load(offset, found)
    } else {
        let other = program.verdict(default);
        look.cases.iter().rev().fold(other, |other, case| {
            let holds = program.verdict(Verdict::Return(case.answer));
            let compare = program.condition(JUMP_EQUAL, case.value, holds, other);
            let masked = program.and(case.mask, compare);
            program.load(offset, masked)
        })
    };
    program.keep(start)
}

/// Enters one table's numbers.
fn decide(
    segments: &mut Segments,
    filter: &Filter,
    settled: &BTreeMap<&str, Verdict>,
    arch: ScmpArch,
) {
    let bit = if arch == ScmpArch::X32 { X32_BIT } else { 0 };
    let besides: Vec<&str> = match &filter.known {
        Known::Listed(names) => names.clone(),
        Known::UpToNewest(names) => names.iter().map(String::as_str).collect(),
        Known::Everything => Vec::new(),
    };
    let rules = filter.rules.iter().map(|rule| rule.name.as_str());
    let decided = rules.chain(besides).filter_map(|name| number(name, arch));
    match &filter.known {
        Known::Everything => {}
        Known::Listed(_) => decided.for_each(|at| set(segments, at..=at, Verdict::Pass)),
        Known::UpToNewest(_) => {
            let (private, usual): (Vec<_>, Vec<_>) =
                decided.partition(|number| number & !X32_BIT >= ARM_PRIVATE);
            private.into_iter().for_each(|at| set(segments, at..=at, Verdict::Pass));
            if let Some(newest) = usual.into_iter().max() {
                set(segments, bit..=newest, Verdict::Pass);
            }
        }
    }
    for (name, verdict) in settled {
        if let Some(at) = number(name, arch) {
            set(segments, at..=at, *verdict);
        }
    }
}

/// The number of a call in a table.
fn number(name: &str, arch: ScmpArch) -> Option<u32> {
    let Some(number) = raw(name, arch) else {
        let bit = if arch == ScmpArch::X32 { X32_BIT } else { 0 };
        return newer(name).map(|number| bit | number);
    };
    let direct = || DIRECT.iter().find(|(one, _)| arch == ScmpArch::X86 && *one == name);
    u32::try_from(number).ok().or_else(|| direct().map(|(_, number)| *number))
}

fn raw(name: &str, arch: ScmpArch) -> Option<i32> {
    ScmpSyscall::from_name_by_arch(name, arch).map(ScmpSyscall::as_raw_syscall).ok()
}

/// Writes one range over whatever was there.
fn set(segments: &mut Segments, range: RangeInclusive<u32>, verdict: Verdict) {
    let next = range.end().checked_add(1);
    let after = next.and_then(|next| Some((next, *segments.range(..=next).next_back()?.1)));
    segments.retain(|start, _| !range.contains(start));
    segments.insert(*range.start(), verdict);
    segments.extend(after);
}

/// Without the starts at which nothing changes.
fn merged(segments: &Segments) -> Vec<(u32, Verdict)> {
    let mut merged: Vec<(u32, Verdict)> = Vec::new();
    for (start, verdict) in segments {
        if merged.last().is_none_or(|(_, before)| before != verdict) {
            merged.push((*start, *verdict));
        }
    }
    merged
}

/// The action as the kernel's `SECCOMP_RET_*`.
fn ret(action: ScmpAction) -> u32 {
    match action {
        ScmpAction::KillProcess => 0x8000_0000,
        ScmpAction::Trap => 0x0003_0000,
        ScmpAction::Notify => 0x7fc0_0000,
        ScmpAction::Errno(errno) => RET_ERRNO | (errno as u32 & 0xffff),
        ScmpAction::Trace(data) => 0x7ff0_0000 | u32::from(data),
        ScmpAction::Log => 0x7ffc_0000,
        ScmpAction::Allow => RET_ALLOW,
        // KillThread, and whatever a later libseccomp adds.
        _ => 0,
    }
}
