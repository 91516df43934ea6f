//! Scheduling of the calling process: sched_setattr, ioprio_set, sched_setaffinity, set_mempolicy, personality.

use rustix::io::Errno;

use super::process::checked;
use crate::plan::{MemoryPolicy, Scheduler};

/// SCHED_DEADLINE of `linux/sched.h`.
pub(crate) const DEADLINE: u32 = 6;

pub(crate) fn set_scheduler(s: &Scheduler) -> Result<(), Errno> {
    #[repr(C)]
    struct Attr {
        size: u32,
        policy: u32,
        flags: u64,
        nice: i32,
        priority: u32,
        runtime: u64,
        deadline: u64,
        period: u64,
        util_min: u32,
        util_max: u32,
    }
    let attr = Attr {
        size: size_of::<Attr>() as u32,
        policy: s.policy,
        flags: s.flags,
        nice: s.nice,
        priority: s.priority,
        runtime: s.runtime,
        deadline: s.deadline,
        period: s.period,
        util_min: 0,
        util_max: 0,
    };
    // SAFETY: `attr` lives across the call and says its own size; 0 is the calling thread.
    checked(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) }).map(|_| ())
}

/// `priority`: class above bit 13, level below.
pub(crate) fn set_io_priority(priority: u16) -> Result<(), Errno> {
    const WHO_PROCESS: libc::c_int = 1;
    let priority = libc::c_int::from(priority);
    // SAFETY: a plain system call without memory; 0 is the calling thread.
    checked(unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, 0, priority) }).map(|_| ())
}

pub(crate) fn set_cpus(cpus: &[u32]) -> Result<(), Errno> {
    let mask = mask(cpus);
    // SAFETY: the mask lives across the call and is as long as said; 0 is the calling thread.
    let result = unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask[..]), mask.as_ptr())
    };
    checked(result).map(|_| ())
}

/// Words of 64 for 8192 CPUs, the most that Linux is built for.
const MASK: usize = 128;

/// Any CPU that the group allows, whatever the caller was bound to.
pub(crate) fn set_all_cpus() -> Result<(), Errno> {
    let mask = [u64::MAX; MASK];
    // SAFETY: the mask lives across the call and is as long as said; 0 is the calling thread.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(&mask), mask.as_ptr()) };
    checked(result).map(|_| ())
}

/// Moves a thread to any CPU that we may use but this one. Best effort: there may be none.
///
/// # Safety
/// The thread was not joined.
pub(super) unsafe fn send_away(thread: libc::pthread_t) {
    let mut others = [0u64; MASK];
    let size = size_of_val(&others);
    // SAFETY: the masks are as long as said, and getcpu is asked for one number only.
    unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size, others.as_mut_ptr());
        let here = libc::sched_getcpu() as usize;
        others[here / 64 % MASK] &= !(1 << (here % 64));
        libc::pthread_setaffinity_np(thread, size, others.as_ptr().cast());
    }
}

pub(crate) fn set_memory_policy(p: &MemoryPolicy) -> Result<(), Errno> {
    let mask = mask(&p.nodes);
    // The kernel looks at one bit less than it is told; no node at all is a null mask.
    let (pointer, bits) = if p.nodes.is_empty() {
        (std::ptr::null(), 0)
    } else {
        (mask.as_ptr(), mask.len() * 64 + 1)
    };
    // SAFETY: the mask lives across the call and has the bits that the kernel reads of it.
    checked(unsafe { libc::syscall(libc::SYS_set_mempolicy, p.mode, pointer, bits) }).map(|_| ())
}

fn mask(numbers: &[u32]) -> Vec<u64> {
    let words = numbers.iter().max().map_or(0, |max| *max as usize / 64 + 1);
    let mut mask = vec![0u64; words];
    for n in numbers {
        mask[*n as usize / 64] |= 1 << (n % 64);
    }
    mask
}

/// Sets the execution domain.
pub(crate) fn set_personality(persona: u64) -> Result<(), Errno> {
    // SAFETY: a plain system call without memory.
    checked(unsafe { libc::personality(persona as libc::c_ulong) }.into()).map(|_| ())
}
