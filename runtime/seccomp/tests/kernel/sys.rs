//! Loads a program into a child and makes raw calls there.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Instant;

/// A raw system call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: i64,
    pub(crate) args: [i64; 6],
    /// By the 32-bit door of x86 (three arguments).
    pub(crate) compat: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Who {
    Self_,
    /// uid 65534 without capabilities.
    Nobody,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) load_us: u64,
    pub(crate) bare_getpid_ns: u64,
    pub(crate) getpid_ns: u64,
    pub(crate) clone_refused_ns: u64,
}

/// The errno of each call, 0 for one that succeeded, made in order by a child under the program.
pub(crate) fn answers(program: &[u8], who: Who, calls: &[Call]) -> Vec<i32> {
    let bytes = in_child(calls.len() * 4, |out| {
        if matches!(who, Who::Nobody) {
            // SAFETY: plain calls that change the ids of this child only. Raw, because libc's
            // setuid would look for other threads.
            unsafe {
                libc::syscall(libc::SYS_setresgid, 65534, 65534, 65534);
                if libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) != 0 {
                    return false;
                }
            }
        }
        if load(program).is_err() {
            return false;
        }
        for (slot, call) in out.chunks_exact_mut(4).zip(calls) {
            slot.copy_from_slice(&make(*call).to_ne_bytes());
        }
        true
    });
    bytes
        .chunks_exact(4)
        .map(|four| i32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
        .collect()
}

/// Lets the command start under the program.
pub(crate) fn inside(command: &mut Command, program: Vec<u8>) -> &mut Command {
    // SAFETY: `load` makes two system calls and does not allocate.
    unsafe { command.pre_exec(move || load(&program)) }
}

/// Medians would be better; a mean of many is enough to see an order of magnitude.
pub(crate) fn cost(program: &[u8]) -> Figures {
    const ROUNDS: u32 = 200_000;
    let bytes = in_child(32, |out| {
        let each = |call: Call| {
            let begun = Instant::now();
            for _ in 0..ROUNDS {
                make(call);
            }
            (begun.elapsed().as_nanos() / u128::from(ROUNDS)) as u64
        };
        let getpid = Call { number: libc::SYS_getpid, args: [0; 6], compat: false };
        let flags = i64::from(libc::CLONE_NEWUSER);
        let clone = Call { number: libc::SYS_clone, args: [flags, 0, 0, 0, 0, 0], compat: false };
        let bare = each(getpid);
        let begun = Instant::now();
        if load(program).is_err() {
            return false;
        }
        let figures = [begun.elapsed().as_micros() as u64, bare, each(getpid), each(clone)];
        for (slot, figure) in out.chunks_exact_mut(8).zip(figures) {
            slot.copy_from_slice(&figure.to_ne_bytes());
        }
        true
    });
    let mut figures = bytes
        .chunks_exact(8)
        .map(|eight| eight.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)));
    let mut next = || figures.next().unwrap();
    Figures { load_us: next(), bare_getpid_ns: next(), getpid_ns: next(), clone_refused_ns: next() }
}

/// Runs `work` in a forked child and returns what it wrote. The bytes come through shared memory,
/// because the filter under test may refuse what a pipe needs.
fn in_child(size: usize, work: impl FnOnce(&mut [u8]) -> bool) -> Vec<u8> {
    let writable = libc::PROT_READ | libc::PROT_WRITE;
    let shared = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, checked, used within its size and unmapped once at the end. The child
    // does not allocate, lock or return: it calls `work` and ends by a raw exit_group.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), size, writable, shared, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        let child = libc::fork();
        if child == 0 {
            let done = work(std::slice::from_raw_parts_mut(memory.cast(), size));
            libc::syscall(libc::SYS_exit_group, i64::from(!done));
        }
        assert!(child > 0, "fork: {}", io::Error::last_os_error());
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        let bytes = std::slice::from_raw_parts(memory.cast::<u8>(), size).to_vec();
        libc::munmap(memory, size);
        assert_eq!(status, 0, "the child could not load the program, or died of it");
        bytes
    }
}

/// no_new_privs and the filter, as the init stage does it.
fn load(program: &[u8]) -> io::Result<()> {
    let length = (program.len() / 8) as libc::c_ushort;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the kernel copies `len` instructions of 8 bytes each from the slice and keeps no
    // pointer; it does not ask for alignment.
    let failed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn make(call: Call) -> i32 {
    let result = if call.compat { make_compat(call) } else { make_native(call) };
    if result < 0 { (-result) as i32 } else { 0 }
}

fn make_native(call: Call) -> i64 {
    let [a, b, c, d, e, f] = call.args;
    // SAFETY: the callers pass invalid descriptors and unmapped pointers, or arguments without
    // effect on memory.
    let result = unsafe { libc::syscall(call.number, a, b, c, d, e, f) };
    if result == -1 {
        // SAFETY: errno of this thread.
        return -i64::from(unsafe { *libc::__errno_location() });
    }
    result
}

#[cfg(target_arch = "x86_64")]
fn make_compat(call: Call) -> i64 {
    let [a, b, c, ..] = call.args;
    let result: i64;
    // SAFETY: as above; rbx belongs to the compiler and is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {first}",
            "int 0x80",
            "xchg rbx, {first}",
            first = inout(reg) a => _,
            inlateout("rax") call.number => result,
            in("rcx") b,
            in("rdx") c,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i64::from(result as i32)
}

#[cfg(not(target_arch = "x86_64"))]
fn make_compat(_: Call) -> i64 {
    unreachable!("only the test for x86_64 asks for it")
}
