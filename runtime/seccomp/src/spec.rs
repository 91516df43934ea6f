//! An OCI `linux.seccomp` object as a filter and the flags to load it with.

use crate::error::CompileError;
use crate::filter::{Filter, action, arches, known, rules};
use crate::machine::Machine;
use libseccomp::ScmpAction;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

// SECCOMP_FILTER_FLAG_* of linux/seccomp.h.
const TSYNC: u32 = 1;
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;
const NEW_LISTENER: u32 = 1 << 3;
const TSYNC_ESRCH: u32 = 1 << 4;
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

pub(crate) fn filter(spec: &LinuxSeccomp, machine: Machine) -> Result<(Filter, u32), CompileError> {
    let default = action(spec.default_action(), spec.default_errno_ret())?;
    let mut list = Vec::new();
    for syscall in spec.syscalls().iter().flatten() {
        let action = action(syscall.action(), syscall.errno_ret())?;
        for name in syscall.names() {
            list.extend(rules(name, action, syscall.args().as_deref().unwrap_or_default())?);
        }
    }
    let mut flags = spec.flags().iter().flatten().fold(0, |bits, flag| bits | bit(*flag));
    if default == ScmpAction::Notify || list.iter().any(|rule| rule.action == ScmpAction::Notify) {
        // The call returns the listener, so it cannot also return the thread that did not follow.
        flags |= if flags & TSYNC == 0 { NEW_LISTENER } else { NEW_LISTENER | TSYNC_ESRCH };
    }
    let listed = spec.architectures().as_deref().unwrap_or_default();
    let arches = arches(listed, machine.arches());
    Ok((Filter { default, arches, rules: list, known: known(default, Vec::new()) }, flags))
}

fn bit(flag: LinuxSeccompFilterFlag) -> u32 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => WAIT_KILLABLE_RECV,
    }
}
