//! Two things at once, each of which may borrow what the other does.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread::{Builder, JoinHandle, Result, Thread};

use super::arena::Arena;

/// Runs `job` on a thread of its own while `work` runs here, and returns when both are done. As `std::thread::scope`, but
/// on another processor from the beginning where there is one: a scheduler may have a new thread wait behind the one that
/// made it while others have nothing to do.
pub(crate) fn beside<T: Send, R>(
    job: impl FnOnce() -> T + Send,
    work: impl FnOnce(&Thread) -> R,
) -> io::Result<(R, Result<T>)> {
    // SAFETY: it is joined before anything that it borrows is gone: a panic waits, too.
    let thread = Arena::aside(|| unsafe { Builder::new().spawn_unchecked(job) })?;
    send_away(&thread);
    let done = catch_unwind(AssertUnwindSafe(|| work(thread.thread())));
    let job_done = thread.join();
    done.map_or_else(|panic| resume_unwind(panic), |done| Ok((done, job_done)))
}

/// To any processor that we may use but this one. Best effort: there may be none.
fn send_away<T>(thread: &JoinHandle<T>) {
    let mut others = [0u64; 128]; // 8192 processors, the most that Linux is built for
    let size = size_of_val(&others);
    // SAFETY: the masks are as long as said, the thread was not joined, and getcpu is asked for one number only.
    unsafe {
        libc::syscall(libc::SYS_sched_getaffinity, 0, size, others.as_mut_ptr());
        let here = libc::sched_getcpu() as usize;
        others[here / 64 % 128] &= !(1 << (here % 64));
        libc::pthread_setaffinity_np(thread.as_pthread_t() as _, size, others.as_ptr().cast());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn both_are_done_with_what_they_share() {
        let shared = AtomicU32::new(1);
        let (here, there) = beside(
            || {
                std::thread::park();
                shared.fetch_add(10, Ordering::Relaxed)
            },
            |other| {
                shared.fetch_add(100, Ordering::Relaxed);
                other.unpark();
                "here"
            },
        )
        .expect("a thread");
        assert_eq!((here, there.expect("no panic")), ("here", 101));
        assert_eq!(shared.into_inner(), 111);
    }

    #[test]
    fn a_panic_waits_for_the_other_one() {
        let (shared, pause) = (AtomicU32::new(1), std::time::Duration::from_millis(20));
        let job = || {
            std::thread::sleep(pause);
            shared.fetch_add(1, Ordering::Relaxed)
        };
        let work = |_: &Thread| panic!("as the test wants it");
        let panicked = catch_unwind(AssertUnwindSafe(|| beside(job, work)));
        assert!(panicked.is_err());
        assert_eq!(shared.into_inner(), 2);
    }
}
