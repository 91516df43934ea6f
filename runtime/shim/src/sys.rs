//! Signals, waiting and the allocator's settings: what no safe wrapper offers.
#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;

/// A process that ended: its pid and exit code, 128 + n for signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: i32,
    pub(crate) code: i32,
}

/// Blocks every signal for this thread and those it starts; they arrive by `signal_fd` or `wait_signal`.
pub(crate) fn block_all_signals() {
    // SAFETY: `set` is initialised by sigfillset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// A descriptor that is readable when one of the (blocked) signals is pending.
pub(crate) fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
    let set = set_of(signals);
    // SAFETY: `set` is a valid signal set; -1 asks for a new descriptor, which nobody else owns.
    unsafe {
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(Errno::from_raw_os_error(
                std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO),
            )),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// Sleeps until one of the (blocked) signals is pending and takes it.
pub(crate) fn wait_signal(signals: &[i32]) -> i32 {
    let set = set_of(signals);
    // SAFETY: `set` is a valid signal set; no information about the signal is asked for.
    unsafe { libc::sigwaitinfo(&raw const set, ptr::null_mut()) }
}

fn set_of(signals: &[i32]) -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; the numbers are constants of libc.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

/// Takes one ended child, whoever it is.
pub(crate) fn reap() -> Option<Ended> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    let code = if libc::WIFSIGNALED(status) {
        128 + libc::WTERMSIG(status)
    } else {
        libc::WEXITSTATUS(status)
    };
    (pid > 0).then_some(Ended { pid, code })
}

/// Buffers from this size on are mapped by themselves and vanish when freed, instead of leaving holes in the heap.
const MAPPED_FROM: i32 = 16 * 1024;

/// An allocator that keeps little: one heap for both threads, a second one would cost pages in every shim of the
/// node, and nothing kept in stock at its top.
pub(crate) fn frugal_heap() {
    // SAFETY: sets parameters of the allocator before a second thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives freed heap pages back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}
