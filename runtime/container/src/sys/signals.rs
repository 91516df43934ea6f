//! Signals as data, and waiting for children.

use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use rustix::io::Errno;

/// A process that ended: its pid and exit code, 128 + n for signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    pub pid: i32,
    pub code: i32,
}

/// Blocks every signal for this thread and those it starts; they arrive by `signal_fd` or `wait_signal`.
pub fn block_all_signals() {
    // SAFETY: `set` is initialised by sigfillset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Takes that back, for what is about to become another program.
pub fn unblock_all_signals() {
    // SAFETY: `set` is initialised by sigemptyset before use.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, ptr::null_mut());
    }
}

/// Ends this process by one of these, also where it is the first of its pid namespace: there the kernel passes on only
/// what it has a handler for.
pub fn end_by(signals: &[i32]) {
    extern "C" fn end(number: libc::c_int) {
        // SAFETY: `_exit` may be called in a handler and does not return.
        unsafe { libc::_exit(128 + number) }
    }
    for number in signals {
        // SAFETY: the handler makes one call that is safe there.
        unsafe { libc::signal(*number, end as *const () as libc::sighandler_t) };
    }
}

/// Sleeps until any signal that can be blocked is pending and takes it.
pub fn wait_any_signal() -> i32 {
    // SAFETY: `set` is initialised by sigfillset; no information about the signal is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut set);
        libc::sigwaitinfo(&raw const set, ptr::null_mut())
    }
}

/// A descriptor that is readable when one of the (blocked) signals is pending.
pub fn signal_fd(signals: &[i32]) -> Result<OwnedFd, Errno> {
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
pub fn wait_signal(signals: &[i32]) -> i32 {
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
pub fn reap() -> Option<Ended> {
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
