//! A profile after every decision: what `default`, `file` and `spec` produce and `compile` takes.

use crate::error::CompileError;
use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

pub(crate) const EPERM: u32 = 1;
pub(crate) const ENOSYS: u32 = 38;
/// `MAX_ERRNO`: a filter that returns more reaches the program as this number.
const MAX_ERRNO: u32 = 4095;
const ARGUMENTS: usize = 6;

/// `Debug` is part of its use: the cache key is the hash of that text.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) default: ScmpAction,
    pub(crate) arches: Vec<ScmpArch>,
    pub(crate) rules: Vec<Rule>,
    pub(crate) known: Known,
}

/// Which numbers the profile's author has decided about. The others answer ENOSYS, as a kernel
/// without the call would, so that libc takes its fallback: EPERM ends the program instead.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// The calls of the rules and these, which the default action refuses.
    Listed(Vec<&'static str>),
    /// Every number up to the newest that a rule or this list (rules that do not apply here)
    /// names: a profile file does not list what it refuses, so a number in between was refused,
    /// and a higher one did not exist yet.
    UpToNewest(Vec<String>),
    /// The default action answers for everything.
    Everything,
}

#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) action: ScmpAction,
    /// All must hold.
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Condition {
    pub(crate) argument: u32,
    pub(crate) op: ScmpCompareOp,
    pub(crate) datum: u64,
}

impl Rule {
    pub(crate) fn allow(name: &str) -> Rule {
        Rule { name: name.to_owned(), action: ScmpAction::Allow, conditions: Vec::new() }
    }

    /// `argument & mask == value`. Most arguments are C ints of which the kernel looks at the low
    /// 32 bits; a comparison of all 64 can be passed by setting a bit above them.
    pub(crate) fn masked(
        name: &str,
        action: ScmpAction,
        argument: u32,
        mask: u64,
        value: u64,
    ) -> Rule {
        let condition = Condition { argument, op: ScmpCompareOp::MaskedEqual(mask), datum: value };
        Rule { name: name.to_owned(), action, conditions: vec![condition] }
    }
}

/// Whether the call takes place.
pub(crate) fn permits(action: ScmpAction) -> bool {
    // A notification is decided elsewhere; treating it as permission keeps the gate out of it.
    matches!(
        action,
        ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_) | ScmpAction::Notify
    )
}

/// What the gate does for a profile that somebody else wrote.
/// `inapplicable` are the calls of rules that were left out.
pub(crate) fn known(default: ScmpAction, inapplicable: Vec<String>) -> Known {
    let answers_enosys = default == ScmpAction::Errno(ENOSYS as i32);
    if permits(default) || answers_enosys {
        Known::Everything
    } else {
        Known::UpToNewest(inapplicable)
    }
}

/// `errno` is `errnoRet`; EPERM where it is absent, as the runtime specification says.
pub(crate) fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
) -> Result<ScmpAction, CompileError> {
    let errno = errno.unwrap_or(EPERM);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno if errno > MAX_ERRNO => {
            return Err(CompileError::Errno { errno });
        }
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(errno).map_err(|_| CompileError::Errno { errno })?)
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    })
}

/// One rule for the conditions together, or, when two of them look at the same argument, one rule
/// for each: libseccomp cannot hold two comparisons of one argument, and profiles written for the
/// other runtimes rely on "either" there.
pub(crate) fn rules(
    name: &str,
    action: ScmpAction,
    args: &[LinuxSeccompArg],
) -> Result<Vec<Rule>, CompileError> {
    let mut conditions = Vec::with_capacity(args.len());
    for arg in args {
        conditions.push(condition(name, arg)?);
    }
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(n, one)| conditions[..n].iter().any(|other| other.argument == one.argument));
    let rule = |conditions| Rule { name: name.to_owned(), action, conditions };
    Ok(if twice {
        conditions.into_iter().map(|one| rule(vec![one])).collect()
    } else {
        vec![rule(conditions)]
    })
}

fn condition(name: &str, arg: &LinuxSeccompArg) -> Result<Condition, CompileError> {
    if arg.index() >= ARGUMENTS {
        return Err(CompileError::Argument { name: name.to_owned(), index: arg.index() });
    }
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // `value` is the mask there and `valueTwo` what must remain.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    Ok(Condition { argument: arg.index() as u32, op, datum })
}

/// The listed tables that this machine has, the native one always among them. The kernel never
/// reports a table of another machine, so its part of the program could not be reached.
pub(crate) fn arches(listed: &[Arch], native: &[ScmpArch]) -> Vec<ScmpArch> {
    let listed: Vec<ScmpArch> = listed.iter().filter_map(|arch| table(*arch)).collect();
    let (first, others) = (native.first(), native.iter().skip(1));
    first.into_iter().chain(others.filter(|arch| listed.contains(arch))).copied().collect()
}

fn table(arch: Arch) -> Option<ScmpArch> {
    match arch {
        Arch::ScmpArchX86_64 => Some(ScmpArch::X8664),
        Arch::ScmpArchX86 => Some(ScmpArch::X86),
        Arch::ScmpArchX32 => Some(ScmpArch::X32),
        Arch::ScmpArchAarch64 => Some(ScmpArch::Aarch64),
        Arch::ScmpArchArm => Some(ScmpArch::Arm),
        _ => None,
    }
}
