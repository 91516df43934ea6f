//! A process that works in the memory of its parent, as by vfork(2), until it becomes another program.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::thread::futex;

use super::arena::Arena;
use super::process::{CloneArgs, RawArgs, end};

/// Set while a process is in exec. One that has ended otherwise may have been killed with a lock held or a value half
/// written.
pub(super) static IN_EXEC: AtomicBool = AtomicBool::new(false);

/// Whether it is written for this processor.
pub(crate) const LENDS: bool = cfg!(target_arch = "x86_64");

/// Who the child is, for another thread.
#[derive(Debug, Default)]
pub(crate) struct Born(AtomicU32);

impl Born {
    /// No pid is that large.
    const NOBODY: u32 = u32::MAX;

    /// Waits until the child is there; `None` when there will be none.
    pub(crate) fn wait(&self) -> Option<i32> {
        loop {
            match self.0.load(Ordering::Acquire) {
                // It has changed, or wakes: either is seen above.
                0 => _ = futex::wait(&self.0, futex::Flags::PRIVATE, 0, None),
                Self::NOBODY => return None,
                pid => return Some(pid as i32),
            }
        }
    }

    pub(crate) fn nobody(&self) {
        self.0.store(Self::NOBODY, Ordering::Release);
        self.wake();
    }

    fn wake(&self) {
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
    }
}

/// Runs `child` in a new process without the page tables and page faults of a copy: it has this one's memory, and the
/// calling thread goes on when the child has become another program (true) or has ended. Other threads go on meanwhile.
/// What it allocates in the arena is free again afterwards; it should own nothing else, since nothing of it is dropped.
/// For one thread of a process at a time, and not for a child that joins a namespace of clocks: the kernel lets nobody in
/// who shares memory.
pub(crate) fn lend<F: FnOnce() -> i32>(
    args: CloneArgs,
    born: &Born,
    child: F,
) -> Result<bool, Errno> {
    let mut raw = RawArgs::from(args);
    raw.flags |= (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PARENT_SETTID) as u64;
    raw.parent_tid = born.0.as_ptr() as u64;
    let mut child = ManuallyDrop::new(|| {
        born.wake();
        child()
    });
    IN_EXEC.store(false, Ordering::Relaxed);
    let mark = Arena::mark();
    // SAFETY: `raw` is a valid clone_args; what is called takes the child once, and `lend` does not drop it then.
    let result = unsafe { clone3_below(&mut raw, begin_of(&child), (&raw mut child).cast()) };
    if result < 0 {
        // SAFETY: there is no child that has taken it.
        unsafe { ManuallyDrop::drop(&mut child) };
        return Err(Errno::from_raw_os_error(-result as i32));
    }
    born.wake(); // it may have been killed before it could
    Arena::back_to(mark);
    Ok(IN_EXEC.load(Ordering::Relaxed))
}

type Begin = unsafe extern "C" fn(*mut c_void) -> !;

fn begin_of<F: FnOnce() -> i32>(_: &ManuallyDrop<F>) -> Begin {
    begin::<F>
}

unsafe extern "C" fn begin<F: FnOnce() -> i32>(child: *mut c_void) -> ! {
    // SAFETY: by the caller of this call's caller: it is there, and read once.
    end(unsafe { child.cast::<F>().read() })
}

/// Far enough below the caller's stack for what the compiler keeps there.
const BELOW: u64 = 8192;

/// clone3, whose child calls `entry` on the part of the stack that its parent does not use. Gives the kernel's result.
///
/// # Safety
/// `raw` asks for CLONE_VM and CLONE_VFORK: the parent stands still until the child is gone, so that to all that is here
/// the child is a call of `entry`.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_below(raw: &mut RawArgs, entry: Begin, argument: *mut c_void) -> libc::c_long {
    // The kernel takes a stack by its lower end (at offset 40) and its size, and begins at the sum.
    raw.stack_size = BELOW / 2;
    let result: libc::c_long;
    // SAFETY: by the caller; the child never returns to here.
    unsafe {
        std::arch::asm!(
            "lea {stack}, [rsp - {below}]",
            "and {stack}, -16",
            "mov [rdi + 40], {stack}",
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "push 0", // where backtraces end
            "jmp r13",
            "2:",
            stack = out(reg) _,
            below = const BELOW,
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") raw,
            in("rsi") size_of::<RawArgs>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone3_below(_: &mut RawArgs, _: Begin, _: *mut c_void) -> libc::c_long {
    -libc::c_long::from(libc::ENOSYS)
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use std::ffi::CString;

    use super::super::process::execve;
    use super::*;

    fn ended(born: &Born) -> i32 {
        let (pid, mut status) = (born.wait().expect("born"), 0);
        // SAFETY: it writes the one number.
        let got = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        assert_eq!(got, pid, "a child of ours");
        libc::WEXITSTATUS(status)
    }

    /// Uses a good part of a stack.
    fn deep(n: u64) -> u64 {
        let block = std::hint::black_box([n; 100]);
        if n == 0 { 0 } else { block[50] + deep(n - 1) }
    }

    // One test, for only one thread of a process lends its memory.
    #[test]
    fn a_child_works_here_until_it_ends_or_execs() {
        let (born, mut sum, local) = (Born::default(), 0, std::hint::black_box([7u8; 4096]));
        let became = lend(CloneArgs::default(), &born, || {
            assert_eq!(born.wait(), Some(std::process::id() as i32), "known before it is there");
            sum = deep(300);
            3
        });
        assert_eq!((became, ended(&born)), (Ok(false), 3));
        assert_eq!((sum, local), (300 * 301 / 2, [7; 4096]));

        let panics =
            lend(CloneArgs::default(), &born, || panic!("in the child, as the test wants it"));
        assert_eq!((panics, ended(&born)), (Ok(false), 101));

        let args = [CString::from(c"sh"), c"-c".into(), c"exit 5".into()];
        let became = lend(CloneArgs::default(), &born, || {
            execve(c"/no/such/program", &args, &[]);
            execve(c"/bin/sh", &args, &[]);
            1
        });
        assert_eq!((became, ended(&born)), (Ok(true), 5));
        let missing = lend(CloneArgs::default(), &born, || {
            execve(c"/no/such/program", &args, &[]);
            1
        });
        assert_eq!((missing, ended(&born)), (Ok(false), 1));

        let owned = std::sync::Arc::new(());
        let held = owned.clone();
        // The kernel refuses a user namespace beside shared roots.
        let args = CloneArgs {
            namespaces: (libc::CLONE_NEWUSER | libc::CLONE_FS) as u64,
            ..Default::default()
        };
        let refused = lend(args, &born, move || {
            drop(held);
            1
        });
        assert_eq!(refused, Err(Errno::INVAL));
        assert_eq!(std::sync::Arc::strong_count(&owned), 1, "what it would have had is dropped");
        born.nobody();
        assert_eq!(born.wait(), None);
    }
}
