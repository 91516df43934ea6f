//! An OCI `linux.seccomp` object as a filter and the flags to load it with.

use crate::error::CompileError;
use crate::filter::{Filter, action, arches, known, rules};
use crate::machine::Machine;
use libseccomp::ScmpAction;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

// SECCOMP_FILTER_FLAG_* of linux/seccomp.h.
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;
const NEW_LISTENER: u32 = 1 << 3;
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

/// Those of an object that lists none, as other runtimes have it: kernels before 5.16 slow down every process with a
/// filter by mitigations that later ones leave to the process.
pub const DEFAULT_FLAGS: u32 = SPEC_ALLOW;

pub(crate) fn filter(spec: &LinuxSeccomp, machine: Machine) -> Result<(Filter, u32), CompileError> {
    let default = action(spec.default_action(), spec.default_errno_ret())?;
    let mut list = Vec::new();
    for syscall in spec.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        for name in syscall.names() {
            list.extend(rules(name, action, syscall.args().as_deref().unwrap_or_default())?);
        }
    }
    let asked = spec.flags().as_ref();
    let mut flags = asked.map_or(DEFAULT_FLAGS, |all| all.iter().fold(0, |bits, f| bits | bit(*f)));
    if default == ScmpAction::Notify || list.iter().any(|rule| rule.action == ScmpAction::Notify) {
        flags |= NEW_LISTENER;
    }
    let listed = spec.architectures().as_deref().unwrap_or_default();
    let arches = arches(listed, machine.arches());
    Ok((Filter { default, arches, rules: list, known: known(default, Vec::new()) }, flags))
}

fn bit(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
        // It asks for what is the case: who loads the filter has one thread.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
    }
}
