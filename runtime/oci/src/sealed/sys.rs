//! The entry of the program: before the C library, and before the program is relocated.
//!
//! So this code calls nothing but itself, and reads no table: pointers in one are not right yet.
#![allow(unsafe_code)]

use std::arch::{asm, global_asm};
use std::ffi::c_char;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use super::Start;

/// A `Start`, and the reason.
static START: AtomicI32 = AtomicI32::new(Start::Unsealed as i32);
static ERRNO: AtomicI32 = AtomicI32::new(0);

pub(super) fn start() -> (Start, i32) {
    use Start::{Again, Clone, Look, NoEffect, ReadOnly, Sealed};
    let all = [Sealed, Look, Clone, ReadOnly, NoEffect, Again];
    let kept = START.load(Relaxed);
    let start = all.into_iter().find(|start| *start as i32 == kept).unwrap_or(Start::Unsealed);
    (start, ERRNO.load(Relaxed))
}

// The kernel enters here (`build.rs` tells the linker) with the number of arguments at the top of the stack, and
// expects nothing back. `_start` is the C library's entry, which is to find all as the kernel left it.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl sealed_start",
    "sealed_start:",
    "mov rbx, rdx", // a dynamic loader's exit function
    "mov rbp, rsp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {first}",
    "mov rsp, rbp",
    "mov rdx, rbx",
    "jmp _start",
    first = sym first,
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl sealed_start",
    "sealed_start:",
    "mov x19, x0", // a dynamic loader's exit function
    "mov x0, sp",
    "bl {first}",
    "mov x0, x19",
    "b _start",
    first = sym first,
);

/// `stack`: the number of arguments, they, null, the environment, null (psABI, initial process stack).
unsafe extern "C" fn first(stack: *const usize) {
    // SAFETY: the kernel made the stack as described; what is read stays within it.
    unsafe {
        let (argc, argv) = (*stack, stack.add(1).cast::<*const c_char>());
        if (0..argc).any(|n| enters(*argv.add(n))) {
            let (start, errno) = seal(argv, argv.add(argc + 1));
            START.store(start as i32, Relaxed);
            ERRNO.store(errno, Relaxed);
        }
    }
}

/// Whether it is the name of a command that goes into a container.
unsafe fn enters(word: *const c_char) -> bool {
    // SAFETY: all of them end in a zero byte. Volatile, so that no call of the C library's `strcmp` is made of it.
    let same = |name: *const c_char| unsafe {
        let mut n = 0;
        loop {
            let (a, b) = (word.add(n).read_volatile(), name.add(n).read_volatile());
            if a != b || a == 0 {
                break a == b;
            }
            n += 1;
        }
    };
    same(c"create".as_ptr()) || same(c"run".as_ptr()) || same(c"exec".as_ptr())
}

/// Starts the program again from a read-only mount, unless it runs from one.
unsafe fn seal(argv: *const *const c_char, envp: *const *const c_char) -> (Start, i32) {
    const AT_FDCWD: usize = libc::AT_FDCWD as usize;
    const CLONE: usize = (libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC) as usize;
    const EMPTY_PATH: usize = libc::AT_EMPTY_PATH as usize;
    const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    let (exe, empty) = (c"/proc/self/exe".as_ptr() as usize, c"".as_ptr() as usize);
    // SAFETY: the strings end in a zero byte, the structures are as long as the kernel takes them to be.
    unsafe {
        let mut stat = Stat::uninit();
        let result = call(libc::SYS_statfs, [exe, stat.as_mut_ptr() as usize, 0, 0, 0]);
        if result < 0 {
            return (Start::Look, -result as i32);
        }
        if flags(&stat) & RDONLY != 0 {
            return (Start::Sealed, 0);
        }
        let fd = call(libc::SYS_open_tree, [AT_FDCWD, exe, CLONE, 0, 0]);
        if fd < 0 {
            return (Start::Clone, -fd as i32);
        }
        let fd = fd as usize;
        let attributes = [RDONLY, 0, 0, 0]; // struct mount_attr: set, clear, propagation, userns_fd
        let attributes = [(&raw const attributes) as usize, size_of_val(&attributes)];
        let result =
            call(libc::SYS_mount_setattr, [fd, empty, EMPTY_PATH, attributes[0], attributes[1]]);
        if result < 0 {
            return (Start::ReadOnly, -result as i32);
        }
        // Where that has no effect, starting again would have no end.
        let result = call(libc::SYS_fstatfs, [fd, stat.as_mut_ptr() as usize, 0, 0, 0]);
        if result < 0 || flags(&stat) & RDONLY == 0 {
            return (Start::NoEffect, -result as i32);
        }
        let again = [fd, empty, argv as usize, envp as usize, EMPTY_PATH];
        (Start::Again, -call(libc::SYS_execveat, again) as i32)
    }
}

/// `struct statfs` of 64-bit machines, of which `f_flags` is the eleventh word.
type Stat = MaybeUninit<[u64; 15]>;

/// The flags of the mount; ST_RDONLY and MOUNT_ATTR_RDONLY are the same bit.
unsafe fn flags(stat: &Stat) -> u64 {
    // SAFETY: the kernel has filled it.
    unsafe { stat.as_ptr().cast::<u64>().add(10).read() }
}

/// A system call, with the negative errno for a failure. That of the C library keeps errno in what it has not set up.
unsafe fn call(number: libc::c_long, args: [usize; 5]) -> isize {
    let [a, b, c, d, e] = args;
    let result: isize;
    // SAFETY: by the kernel's convention; what the arguments point to is the caller's to answer for.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
            in("x4") e, options(nostack));
    }
    result
}
