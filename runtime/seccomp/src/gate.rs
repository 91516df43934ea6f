//! The first part of every program: a search for the call's number among ranges with one answer.
//!
//! It answers what needs no look at arguments, which is nearly everything: libseccomp's own
//! program, with an instruction or two for each call, is ten times as long, and the kernel checks,
//! translates and tries out every instruction at each start of a container. It knows calls newer
//! than the installed libseccomp, and it tells a number nobody decided about from a refused one.

use crate::filter::{ENOSYS, Filter, Known};
use crate::machine::{X32_BIT, audit};
use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};

/// One `struct sock_filter` of linux/filter.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jt: u8,
    pub(crate) jf: u8,
    pub(crate) k: u32,
}

// The operations in use, of linux/bpf_common.h.
pub(crate) const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
pub(crate) const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
pub(crate) const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
pub(crate) const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
pub(crate) const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

// SECCOMP_RET_* of linux/seccomp.h.
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

/// On 32-bit x86 libseccomp gives these calls negative names of its own, since each has two
/// numbers: one behind socketcall(2) or ipc(2) and a direct one in these ranges.
const DOUBLED: [(RangeInclusive<i32>, Range<u32>); 2] =
    [(-199..=-100, 359..374), (-299..=-200, 393..403)];

/// The first numbers. libseccomp must know what was decided about them when it adds the others.
const DOUBLES: [&str; 2] = ["socketcall", "ipc"];

/// What happens to the numbers from one start to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The program behind the gate decides.
    Pass,
    Return(u32),
}

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

/// The calls that the gate answers alone, with the kernel's `SECCOMP_RET_*`. The others have
/// conditions, contradict themselves (for libseccomp to complain about), or have a second way in
/// on 32-bit x86 whose arguments must be looked at.
pub(crate) fn settled(filter: &Filter) -> BTreeMap<&str, u32> {
    let mut answers: BTreeMap<&str, Option<u32>> = BTreeMap::new();
    for rule in &filter.rules {
        let answer = Some(ret(rule.action)).filter(|_| rule.conditions.is_empty());
        let before = answers.entry(&rule.name).or_insert(answer);
        if *before != answer {
            *before = None;
        }
    }
    let doubled = |name: &str| {
        filter.arches.contains(&ScmpArch::X86)
            && (DOUBLES.contains(&name) || raw(name, ScmpArch::X86).is_some_and(is_doubled))
    };
    answers
        .into_iter()
        .filter_map(|(name, answer)| answer.map(|answer| (name, answer)))
        .filter(|(name, _)| !doubled(name) && (named(name).is_some() || newer(name).is_some()))
        .collect()
}

/// The instructions to put before the compiled filter. They end by falling through to it.
pub(crate) fn gate(filter: &Filter, settled: &BTreeMap<&str, u32>) -> Vec<Instruction> {
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
        decide(&mut tables[at].1, filter, settled, *arch);
    }
    let mut code = vec![load(ARCH)];
    for (audit, segments) in &tables {
        let block = block(segments);
        code.push(Instruction { code: JUMP_EQUAL, jt: 1, jf: 0, k: *audit });
        code.push(jump(block.len()));
        code.extend(block);
    }
    code
}

/// Enters one table's numbers.
fn decide(segments: &mut Segments, filter: &Filter, settled: &BTreeMap<&str, u32>, arch: ScmpArch) {
    let bit = if arch == ScmpArch::X32 { X32_BIT } else { 0 };
    let besides: Vec<&str> = match &filter.known {
        Known::Listed(names) => names.clone(),
        Known::UpToNewest(names) => names.iter().map(String::as_str).collect(),
        Known::Everything => Vec::new(),
    };
    let rules = filter.rules.iter().map(|rule| rule.name.as_str());
    let decided = rules.chain(besides).flat_map(|name| numbers(name, arch));
    match &filter.known {
        Known::Everything => {}
        Known::Listed(_) => decided.for_each(|range| set(segments, range, Verdict::Pass)),
        Known::UpToNewest(_) => {
            let (private, usual): (Vec<_>, Vec<_>) =
                decided.partition(|range| range.start & !X32_BIT >= ARM_PRIVATE);
            private.into_iter().for_each(|range| set(segments, range, Verdict::Pass));
            if let Some(end) = usual.iter().map(|range| range.end).max() {
                set(segments, bit..end, Verdict::Pass);
            }
        }
    }
    for (name, answer) in settled {
        for range in numbers(name, arch) {
            set(segments, range, Verdict::Return(*answer));
        }
    }
}

/// Every number under which a call of that name can be made in a table.
fn numbers(name: &str, arch: ScmpArch) -> Vec<Range<u32>> {
    let Some(direct) = raw(name, arch) else {
        let bit = if arch == ScmpArch::X32 { X32_BIT } else { 0 };
        let newer = newer(name).map(|number| bit | number);
        return newer.map(|number| number..number + 1).into_iter().collect();
    };
    if let Ok(number) = u32::try_from(direct) {
        return std::iter::once(number..number + 1).collect();
    }
    let doubled = DOUBLED.iter().find(|(names, _)| names.contains(&direct));
    doubled
        .filter(|_| arch == ScmpArch::X86)
        .map(|(_, numbers)| numbers.clone())
        .into_iter()
        .collect()
}

fn raw(name: &str, arch: ScmpArch) -> Option<i32> {
    ScmpSyscall::from_name_by_arch(name, arch).map(ScmpSyscall::as_raw_syscall).ok()
}

fn is_doubled(raw: i32) -> bool {
    DOUBLED.iter().any(|(names, _)| names.contains(&raw))
}

/// Writes one range over whatever was there.
fn set(segments: &mut Segments, range: Range<u32>, verdict: Verdict) {
    let after = segments.range(..=range.end).next_back().map_or(Verdict::Pass, |(_, v)| *v);
    let inside: Vec<u32> = segments.range(range.clone()).map(|(start, _)| *start).collect();
    for start in inside {
        segments.remove(&start);
    }
    segments.insert(range.start, verdict);
    segments.insert(range.end, after);
}

/// A binary search over one table's segments. Ends behind its last instruction for
/// [`Verdict::Pass`].
fn block(segments: &Segments) -> Vec<Instruction> {
    let mut merged: Vec<(u32, Verdict)> = Vec::new();
    for (start, verdict) in segments {
        if merged.last().is_none_or(|(_, before)| before != verdict) {
            merged.push((*start, *verdict));
        }
    }
    let mut search = Search::default();
    search.among(&merged);
    search.backwards.push(load(NUMBER));
    search.backwards.reverse();
    search.backwards
}

/// Written from the end, so that the targets of a jump are there before it and answers are shared.
#[derive(Default)]
struct Search {
    backwards: Vec<Instruction>,
    answers: Vec<(usize, Verdict)>,
}

impl Search {
    /// Returns the place, counted from the end, at which the search among these begins.
    fn among(&mut self, segments: &[(u32, Verdict)]) -> usize {
        let [(_, verdict)] = segments else {
            let (low, high) = segments.split_at(segments.len() / 2);
            let (above, below) = (self.among(high), self.among(low));
            // The second target first: bringing it near may move the first out of reach, and
            // the second stays within the two instructions kept in hand.
            let below = self.near(below);
            let above = self.near(above);
            let at = self.backwards.len();
            let distance = |target: usize| (at - 1 - target) as u8;
            let (jt, jf) = (distance(above), distance(below));
            self.push(Instruction { code: JUMP_AT_LEAST, jt, jf, k: high[0].0 });
            return at;
        };
        let known = self.answers.iter().rev().find(|(_, answered)| answered == verdict);
        known.map(|(at, _)| *at).unwrap_or_else(|| self.answer(*verdict))
    }

    /// A place within a condition's reach that leads to the target.
    fn near(&mut self, target: usize) -> usize {
        const REACH: usize = 253; // 255, less what `among` adds before it jumps
        let distance = self.backwards.len() - target;
        if distance <= REACH {
            return target;
        }
        match self.answers.iter().find(|(at, _)| *at == target) {
            Some((_, verdict)) => self.answer(*verdict),
            None => self.push(jump(distance - 1)),
        }
    }

    fn answer(&mut self, verdict: Verdict) -> usize {
        let at = self.push(match verdict {
            Verdict::Pass => jump(self.backwards.len()),
            Verdict::Return(k) => Instruction { code: RETURN, jt: 0, jf: 0, k },
        });
        self.answers.push((at, verdict));
        at
    }

    fn push(&mut self, instruction: Instruction) -> usize {
        self.backwards.push(instruction);
        self.backwards.len() - 1
    }
}

fn jump(over: usize) -> Instruction {
    Instruction { code: JUMP, jt: 0, jf: 0, k: over as u32 }
}

fn load(k: u32) -> Instruction {
    Instruction { code: LOAD, jt: 0, jf: 0, k }
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
        ScmpAction::Allow => 0x7fff_0000,
        // KillThread, and whatever a later libseccomp adds.
        _ => 0,
    }
}
