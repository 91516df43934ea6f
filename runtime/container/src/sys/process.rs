//! Making processes and changing what they are: clone3, exec, seccomp, keyrings, fd tables.

use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::lend;

/// The result of a raw system call through libc.
pub(crate) fn checked(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 { Err(last()) } else { Ok(result) }
}

fn last() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// Runs `child` in a forked copy of this process, which ends with the value it returns. Uses libc's fork, so the
/// allocator is usable in the child even when other threads exist.
pub fn fork(child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    // SAFETY: the child only runs `child`, which starts from a consistent copy of this thread's memory; locks that
    // libc owns are handled by its fork. It never returns into the caller's stack frames.
    match unsafe { libc::fork() } {
        -1 => Err(last()),
        0 => end(child),
        pid => Ok(pid),
    }
}

/// How `clone` makes its process.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneArgs {
    /// CLONE_NEW* bits.
    pub namespaces: u64,
    /// Child of our parent instead of ours.
    pub sibling: bool,
    /// Directory of a v2 group to be born in.
    pub cgroup: Option<RawFd>,
}

impl fmt::Display for CloneArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "clone3 with namespaces {:#x}", self.namespaces)
    }
}

/// The kernel's clone_args.
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct RawArgs {
    pub(super) flags: u64,
    pidfd: u64,
    child_tid: u64,
    pub(super) parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    pub(super) stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl From<CloneArgs> for RawArgs {
    fn from(args: CloneArgs) -> Self {
        const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
        let exit_signal = libc::SIGCHLD as u64;
        let mut raw = Self { flags: args.namespaces, exit_signal, ..Default::default() };
        if args.sibling {
            raw.flags |= libc::CLONE_PARENT as u64;
            raw.exit_signal = 0; // a sibling inherits the signal that our own end sends
        }
        if let Some(fd) = args.cgroup {
            raw.flags |= CLONE_INTO_CGROUP;
            raw.cgroup = fd as u64;
        }
        raw
    }
}

/// Runs `child` in a new process with a copied address space. Only for single-threaded callers.
pub fn clone(args: CloneArgs, child: impl FnOnce() -> i32) -> Result<i32, Errno> {
    let raw = RawArgs::from(args);
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack; the caller has one thread, so no lock
    // can be held by a thread that does not exist in the child. `raw` is a valid clone_args of the size passed.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of::<RawArgs>()) };
    match checked(result)? {
        0 => end(child),
        pid => Ok(pid as i32),
    }
}

/// A child that only sleeps, so that its namespaces can be reached through its pid. Ends with this value.
#[derive(Debug)]
pub struct Held {
    pid: i32,
}

impl Held {
    /// In new namespaces. Works in processes with threads: the child makes nothing but system calls.
    pub fn clone(namespaces: u64) -> Result<Self, Errno> {
        Self::start(namespaces as libc::c_long, None)
    }

    /// In the user namespace of the descriptor.
    pub fn joined(userns: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::start(0, Some(userns))
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    fn start(namespaces: libc::c_long, userns: Option<BorrowedFd<'_>>) -> Result<Self, Errno> {
        let mut pipe = [0; 2];
        // SAFETY: the array has room for the two descriptors.
        checked(unsafe { libc::pipe2(pipe.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
        let (null, userns) = (ptr::null::<libc::c_void>(), userns.map_or(-1, |fd| fd.as_raw_fd()));
        // SAFETY: as fork, without a signal at its end (whoever reaps children does not see it): the child has a copy
        // of memory and stack, touches only its registers and stack, makes async-signal-safe calls and never returns.
        unsafe {
            let pid = libc::syscall(libc::SYS_clone, namespaces, null, null, null, null);
            if pid == 0 {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                let entered = userns < 0 || libc::setns(userns, libc::CLONE_NEWUSER) == 0;
                libc::write(pipe[1], [u8::from(entered)].as_ptr().cast(), 1);
                loop {
                    libc::pause();
                }
            }
            let held = checked(pid).map(|pid| Self { pid: pid as i32 });
            libc::close(pipe[1]);
            let mut entered = [0u8];
            let got = libc::read(pipe[0], entered.as_mut_ptr().cast(), 1);
            libc::close(pipe[0]);
            held.and_then(
                |held| if got == 1 && entered == [1] { Ok(held) } else { Err(Errno::PERM) },
            )
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: the child is ours and not reaped by others: it ends without a signal, so that only __WALL finds it.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), libc::__WALL);
        }
    }
}

/// Runs the child's work and leaves without unwinding into, or running exit handlers of, the parent's copy.
pub(super) fn end(child: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(101);
    // SAFETY: `_exit` does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Closes every descriptor that is not in `keep`.
pub fn close_all_except(keep: &[RawFd]) {
    let mut keep: Vec<_> = keep.iter().map(|fd| *fd as u32).collect();
    keep.sort_unstable();
    let mut from = 0;
    for fd in keep.into_iter().chain([u32::MAX]) {
        if fd > from {
            // SAFETY: the process is about to exec or exit and owns no object that will use a closed descriptor.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0) };
        }
        from = fd.saturating_add(1);
    }
}

/// Closes this process' copy of a descriptor that was cloned with it and whose owner lives on in the parent.
pub(crate) fn close_copy(fd: BorrowedFd<'_>) {
    // SAFETY: the owner is never dropped here: a cloned process leaves by `_exit` from its own closure.
    unsafe { libc::close(fd.as_raw_fd()) };
}

/// Lets go of what is behind the descriptor in this process before its owner drops it: from now on it is standard input.
pub(crate) fn let_go(fd: BorrowedFd<'_>) {
    // SAFETY: the number stays open and its owner's.
    unsafe { libc::dup3(0, fd.as_raw_fd(), libc::O_CLOEXEC) };
}

/// Marks every descriptor from `first` on to be closed by exec.
pub fn cloexec_from(first: u32) {
    const CLOEXEC: libc::c_uint = 4;
    // SAFETY: only sets a flag on descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
}

/// Puts the three descriptors at 0, 1 and 2.
pub fn set_stdio(fds: [BorrowedFd<'_>; 3]) -> Result<(), Errno> {
    // First out of the way of each other: a source could itself be 0, 1 or 2.
    let mut high = [0; 3];
    for (slot, fd) in high.iter_mut().zip(fds) {
        // SAFETY: duplicates a descriptor we have borrowed.
        *slot = checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }.into())?
            as RawFd;
    }
    for (target, fd) in high.into_iter().enumerate() {
        // SAFETY: `fd` is ours; what was at `target` is meant to be replaced.
        checked(unsafe { libc::dup2(fd, target as RawFd) }.into())?;
        // SAFETY: `fd` was made above and is used by nobody else.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Every signal back to its default, none blocked: what a program expects to find.
pub fn reset_signals() {
    unignore_signals();
    let_signals_through();
}

/// Signals that a parent ignores stay ignored in all that it starts. A process that makes others takes that back once, for
/// all of them; but SIGPIPE, which Rust's own start ignores, it needs as it is.
pub fn unignore_signals() {
    // The kernel's sigaction: no handler, no flags, an empty mask.
    let default = [0u64; 4];
    let old = ptr::null::<u64>();
    for signal in (1..=64).filter(|signal| *signal != libc::SIGPIPE) {
        // By the kernel's call, for libc's refuses the two signals that it keeps for its threads, of which there are none yet.
        // SAFETY: it reads what lives across the call and installs no handler; KILL and STOP are refused harmlessly.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), old, 8) };
    }
}

/// None blocked, and SIGPIPE at its default, too.
pub(crate) fn let_signals_through() {
    // SAFETY: setting SIG_DFL installs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: an all-zero sigset_t is the empty set on Linux; the old mask is not asked for.
    unsafe {
        let empty: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, ptr::null_mut());
    }
}

/// The command starts with every signal at its default and none blocked.
pub fn with_default_signals(command: &mut std::process::Command) {
    let reset = || {
        reset_signals();
        Ok(())
    };
    // SAFETY: between fork and exec it makes only calls that are safe there: signal and sigprocmask.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, reset) };
}

/// Becomes another program. Returns only to say why not.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> Errno {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end in null and the strings outlive the call.
    exec(|| unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) }.into())
}

/// Becomes the program in an open file.
pub fn fexecve(fd: BorrowedFd<'_>, args: &[CString], env: &[CString]) -> Errno {
    let (args, env) = (pointers(args), pointers(env));
    let (fd, path, how) = (fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: as for `execve`; the path is an empty C string, which AT_EMPTY_PATH wants.
    exec(|| unsafe {
        libc::syscall(libc::SYS_execveat, fd, path, args.as_ptr(), env.as_ptr(), how)
    })
}

fn exec(call: impl FnOnce() -> libc::c_long) -> Errno {
    lend::IN_EXEC.store(true, Ordering::Relaxed);
    call();
    lend::IN_EXEC.store(false, Ordering::Relaxed);
    last()
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
}

/// SECCOMP_FILTER_FLAG_NEW_LISTENER.
pub(crate) const NEW_LISTENER: u32 = 1 << 3;

/// Loads a compiled seccomp program: an array of 8-byte `struct sock_filter`. Returns the listener when `flags` ask
/// for one.
pub fn load_seccomp(program: &[u8], flags: u32) -> Result<Option<OwnedFd>, Errno> {
    let filters: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|c| libc::sock_filter {
            code: u16::from_ne_bytes([c[0], c[1]]),
            jt: c[2],
            jf: c[3],
            k: u32::from_ne_bytes([c[4], c[5], c[6], c[7]]),
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| Errno::INVAL)?;
    let fprog = libc::sock_fprog { len, filter: filters.as_ptr().cast_mut() };
    // SAFETY: `fprog` describes `filters`, which outlives the call; the kernel only reads it.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog)
    };
    let fd = checked(result)? as RawFd;
    // SAFETY: with this flag the result is a fresh descriptor that nobody else owns; close-on-exec is the kernel's.
    Ok((flags & NEW_LISTENER != 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// A session keyring of our own, so that keys of the caller cannot be reached.
pub fn new_session_keyring(name: &CStr) -> Result<(), Errno> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: the name is a valid C string that the kernel copies.
    checked(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
        .map(|_| ())
}

/// Moves this thread into fresh namespaces (CLONE_NEW*), or lets it have its own working directory (CLONE_FS).
pub fn unshare(what: u64) -> Result<(), Errno> {
    // SAFETY: with these bits no memory or descriptor table changes hands.
    checked(unsafe { libc::unshare(what as libc::c_int) }.into()).map(|_| ())
}

/// Sends any signal, real-time ones included. `pid` must be a child that was not reaped, so that it cannot be another.
pub fn signal(pid: i32, number: i32) -> Result<(), Errno> {
    if pid <= 0 {
        return Err(Errno::SRCH);
    }
    // SAFETY: a plain system call without memory.
    checked(unsafe { libc::kill(pid, number) }.into()).map(|_| ())
}

/// Makes the terminal at `fd` the controlling one of this session.
pub fn set_controlling_terminal(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    // SAFETY: TIOCSCTTY takes an integer, not a pointer.
    checked(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }.into()).map(|_| ())
}
