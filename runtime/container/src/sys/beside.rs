//! Two things at once, each of which may borrow what the other does.

use std::any::Any;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;

use rustix::io::Errno;

use super::arena::Arena;
use super::schedule::send_away;

/// How it ended: with a panic, or so.
type Ended<T> = Result<T, Box<dyn Any + Send>>;

struct Job<F, T> {
    job: Option<F>,
    ended: Option<Ended<T>>,
}

/// Enough for making groups; a page of it costs memory when it is first used.
const STACK: usize = 1 << 20;

/// Runs `job` on a thread of its own while `work` runs here, and returns when both are done.
///
/// Not `std::thread::scope`, for two reasons. This may be a fork of a process with threads, and what std does at the
/// beginning of each thread takes a lock that may have been held at that moment, for ever; libc's own survive its fork.
/// And a scheduler may have a new thread wait behind the one that made it while other processors have nothing to do.
pub(crate) fn beside<F: FnOnce() -> T + Send, T: Send, R>(
    job: F,
    work: impl FnOnce() -> R,
) -> Result<(R, Ended<T>), Errno> {
    let mut shared = Job { job: Some(job), ended: None };
    // SAFETY: the thread is joined before what it has is gone: a panic waits, too.
    let thread = unsafe { start(&mut shared) }?;
    let done = catch_unwind(AssertUnwindSafe(work));
    // SAFETY: it was started above, and is joined once.
    unsafe { libc::pthread_join(thread, ptr::null_mut()) };
    let ended = shared.ended.unwrap_or_else(|| Err(Box::new("it was ended")));
    done.map_or_else(|panic| resume_unwind(panic), |done| Ok((done, ended)))
}

/// # Safety
/// The job stays where it is until the thread is joined.
unsafe fn start<F: FnOnce() -> T, T>(shared: &mut Job<F, T>) -> Result<libc::pthread_t, Errno> {
    let argument = ptr::from_mut(shared).cast();
    // What it frees at its end must not be the arena's. SAFETY: the attributes live until they are destroyed, and `run` is
    // given what it takes.
    Arena::aside(|| unsafe {
        let (mut thread, mut attributes) = std::mem::zeroed();
        libc::pthread_attr_init(&raw mut attributes);
        libc::pthread_attr_setstacksize(&raw mut attributes, STACK);
        let error =
            libc::pthread_create(&raw mut thread, &raw const attributes, run::<F, T>, argument);
        libc::pthread_attr_destroy(&raw mut attributes);
        if error != 0 {
            return Err(Errno::from_raw_os_error(error));
        }
        send_away(thread);
        Ok(thread)
    })
}

extern "C" fn run<F: FnOnce() -> T, T>(shared: *mut c_void) -> *mut c_void {
    // SAFETY: it is this thread's until it is joined.
    let shared = unsafe { &mut *shared.cast::<Job<F, T>>() };
    shared.ended = shared.job.take().map(|job| catch_unwind(AssertUnwindSafe(job)));
    ptr::null_mut()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::time::Duration;

    use super::super::process::fork;
    use super::*;

    #[test]
    fn both_are_done_with_what_they_share() {
        let shared = AtomicU32::new(1);
        let both = std::sync::Barrier::new(2);
        let (here, there) = beside(
            || {
                both.wait();
                shared.fetch_add(10, Ordering::Relaxed)
            },
            || {
                shared.fetch_add(100, Ordering::Relaxed);
                both.wait();
                "here"
            },
        )
        .expect("a thread");
        assert_eq!((here, there.expect("no panic")), ("here", 101));
        assert_eq!(shared.into_inner(), 111);
        let panics = beside(|| panic!("as the test wants it"), || 1).expect("a thread");
        assert!(matches!(panics, (1, Err(_))));
    }

    #[test]
    fn a_panic_waits_for_the_other_one() {
        let (shared, pause) = (AtomicU32::new(1), Duration::from_millis(20));
        let job = || {
            std::thread::sleep(pause);
            shared.fetch_add(1, Ordering::Relaxed)
        };
        let work = || panic!("as the test wants it");
        let panicked = catch_unwind(AssertUnwindSafe(|| beside(job, work)));
        assert!(panicked.is_err());
        assert_eq!(shared.into_inner(), 2);
    }

    #[test]
    fn it_works_in_a_fork_whatever_other_threads_were_at() {
        let done = AtomicBool::new(false);
        // These take all locks that a beginning takes, and allocate meanwhile, since they are many.
        let begin_threads = || {
            while !done.load(Ordering::Relaxed) {
                let begin =
                    |_| std::thread::spawn(|| std::thread::sleep(Duration::from_micros(100)));
                let begun: Vec<_> = (0..40).map(begin).collect();
                begun.into_iter().for_each(|thread| thread.join().expect("no panic"));
            }
        };
        let fork_and_try = || {
            let child = fork(|| {
                // SAFETY: a plain system call; its signal ends the process.
                unsafe { libc::alarm(5) };
                i32::from(beside(|| 1, || 2).is_err())
            });
            let child = rustix::process::Pid::from_raw(child.expect("fork"));
            let status = rustix::process::waitpid(child, rustix::process::WaitOptions::empty());
            status.expect("waited").expect("ended").1.exit_status()
        };
        std::thread::scope(|scope| {
            scope.spawn(begin_threads);
            let ended: Vec<_> = (0..1000).map(|_| fork_and_try()).collect();
            done.store(true, Ordering::Relaxed);
            assert_eq!(ended, [Some(0); 1000]);
        });
    }
}
