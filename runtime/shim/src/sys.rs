//! What no safe wrapper offers: the allocator's settings, and processes by pidfd.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

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

fn checked(result: libc::c_long) -> Result<(), Errno> {
    match result {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        _ => Ok(()),
    }
}

/// Sends any signal, real-time ones included, to the process behind a pidfd.
pub(crate) fn signal_by_pidfd(pidfd: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo the call takes integers only.
    checked(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, 0)
    })
}

/// The wait status of a process that somebody else has reaped. `None`: not reaped yet, or the kernel (before 6.15)
/// does not keep it.
pub(crate) fn status_by_pidfd(pidfd: BorrowedFd<'_>) -> Option<i32> {
    // SAFETY: all its fields are integers, for which zero is a value.
    let mut info: libc::pidfd_info = unsafe { std::mem::zeroed() };
    let wanted = u64::from(libc::PIDFD_INFO_EXIT);
    info.mask = wanted;
    // SAFETY: the kernel writes at most the size that is part of the request's number: that of `pidfd_info`.
    let asked = unsafe { libc::ioctl(pidfd.as_raw_fd(), libc::PIDFD_GET_INFO as _, &raw mut info) };
    (asked == 0 && info.mask & wanted != 0).then_some(info.exit_code)
}
