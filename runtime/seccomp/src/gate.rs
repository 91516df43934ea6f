//! The first part of every program: numbers nobody decided about answer ENOSYS, and calls newer
//! than the installed libseccomp are answered here, because it cannot name them.

use crate::error::CompileError;
use crate::filter::{ENOSYS, Filter, Known};
use crate::machine::{X32_BIT, audit};
use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use std::collections::BTreeMap;

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
const X86_SOCKET: (std::ops::RangeInclusive<i32>, std::ops::Range<u32>) = (-199..=-100, 359..374);
const X86_IPC: (std::ops::RangeInclusive<i32>, std::ops::Range<u32>) = (-299..=-200, 393..403);

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

/// The instructions to put before the compiled filter. They end by falling through to it.
pub(crate) fn gate(filter: &Filter) -> Result<Vec<Instruction>, CompileError> {
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
        decide(&mut tables[at].1, filter, *arch);
    }
    let mut code = vec![load(ARCH)];
    for (audit, segments) in &tables {
        let block = block(segments)?;
        code.push(Instruction { code: JUMP_EQUAL, jt: 1, jf: 0, k: *audit });
        code.push(Instruction { code: JUMP, jt: 0, jf: 0, k: block.len() as u32 });
        code.extend(block);
    }
    Ok(code)
}

/// Enters one table's numbers.
fn decide(segments: &mut Segments, filter: &Filter, arch: ScmpArch) {
    let bit = if arch == ScmpArch::X32 { X32_BIT } else { 0 };
    let listed = if let Known::Listed(refused) = &filter.known { refused.as_slice() } else { &[] };
    let rules = filter.rules.iter().map(|rule| rule.name.as_str());
    let numbers = rules.chain(listed.iter().copied()).flat_map(|name| numbers(name, arch));
    match &filter.known {
        Known::Everything => {}
        Known::Listed(_) => numbers.for_each(|range| set(segments, range, Verdict::Pass)),
        Known::UpToNewest => {
            let (private, usual): (Vec<_>, Vec<_>) =
                numbers.partition(|range| range.start & !X32_BIT >= ARM_PRIVATE);
            private.into_iter().for_each(|range| set(segments, range, Verdict::Pass));
            if let Some(end) = usual.iter().map(|range| range.end).max() {
                set(segments, bit..end, Verdict::Pass);
            }
        }
    }
    for rule in &filter.rules {
        let Some(number) = newer(&rule.name) else { continue };
        if named(&rule.name).is_none() && rule.conditions.is_empty() {
            let number = bit | number;
            set(segments, number..number + 1, Verdict::Return(ret(rule.action)));
        }
    }
    // A refused call that libseccomp cannot name: the default action, by its number.
    for number in listed.iter().filter(|name| named(name).is_none()).filter_map(|name| newer(name))
    {
        let number = bit | number;
        set(segments, number..number + 1, Verdict::Return(ret(filter.default)));
    }
}

/// Every number under which a call of that name can be made in a table.
fn numbers(name: &str, arch: ScmpArch) -> Vec<std::ops::Range<u32>> {
    let direct = ScmpSyscall::from_name_by_arch(name, arch).map(ScmpSyscall::as_raw_syscall);
    let Ok(direct) = direct else { return Vec::new() };
    if let Ok(number) = u32::try_from(direct) {
        return std::iter::once(number..number + 1).collect();
    }
    let doubled = [X86_SOCKET, X86_IPC].into_iter().find(|(names, _)| names.contains(&direct));
    doubled.filter(|_| arch == ScmpArch::X86).map(|(_, numbers)| numbers).into_iter().collect()
}

/// Writes one range over whatever was there.
fn set(segments: &mut Segments, range: std::ops::Range<u32>, verdict: Verdict) {
    let after = segments.range(..=range.end).next_back().map_or(Verdict::Pass, |(_, v)| *v);
    segments.retain(|start, _| !range.contains(start));
    segments.insert(range.start, verdict);
    segments.insert(range.end, after);
}

/// A binary search over one table's segments. Falls off its end for [`Verdict::Pass`].
fn block(segments: &Segments) -> Result<Vec<Instruction>, CompileError> {
    let mut merged: Vec<(u32, Verdict)> = Vec::new();
    for (start, verdict) in segments {
        if merged.last().is_none_or(|(_, before)| before != verdict) {
            merged.push((*start, *verdict));
        }
    }
    let mut code = vec![load(NUMBER)];
    search(&merged, &mut code)?;
    let end = code.len();
    for (at, instruction) in code.iter_mut().enumerate() {
        if instruction.code == JUMP {
            instruction.k = (end - at - 1) as u32;
        }
    }
    Ok(code)
}

fn search(segments: &[(u32, Verdict)], code: &mut Vec<Instruction>) -> Result<(), CompileError> {
    let [(_, verdict)] = segments else {
        let (low, high) = segments.split_at(segments.len() / 2);
        let at = code.len();
        code.push(Instruction { code: JUMP_AT_LEAST, jt: 0, jf: 0, k: high[0].0 });
        search(low, code)?;
        let over = code.len() - at - 1;
        code[at].jt = u8::try_from(over).map_err(|_| CompileError::Scattered)?;
        return search(high, code);
    };
    code.push(match verdict {
        // `block` fills in the distance.
        Verdict::Pass => Instruction { code: JUMP, jt: 0, jf: 0, k: 0 },
        Verdict::Return(k) => Instruction { code: RETURN, jt: 0, jf: 0, k: *k },
    });
    Ok(())
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
