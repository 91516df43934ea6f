//! Starts a program from a process with many descriptors. A child gets a copy of each and closes them one by one when it
//! executes; a daemon has five to eleven for each pod and container.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use rustix::io::{DupFlags, dup3};

/// A node of some ten pods; below that a thread would cost more.
const MANY: RawFd = 128;

/// Holds a place among the first descriptors for the one that a child is to get.
#[derive(Debug)]
pub(crate) struct Spawner {
    place: Mutex<OwnedFd>,
    last: RawFd,
}

impl Spawner {
    /// To be made while the process has few. What is open now stays open in children until they execute.
    pub(crate) fn new(low: &OwnedFd) -> io::Result<Self> {
        let place = low.try_clone()?;
        let last = place.as_raw_fd().max(low.as_raw_fd());
        Ok(Self { place: Mutex::new(place), last })
    }

    /// The command gets `stdin`, of which no copy stays here.
    pub(crate) fn spawn(
        &self,
        command: impl FnOnce() -> Command + Send,
        stdin: OwnedFd,
    ) -> io::Result<Child> {
        if stdin.as_raw_fd() < MANY {
            return command().stdin(stdin).spawn();
        }
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let holder = place.try_clone()?;
        dup3(&stdin, &mut place, DupFlags::CLOEXEC)?;
        drop(stdin);
        let started = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                crate::sys::leave_descriptors_above(self.last)?;
                // Made and dropped here: the numbers in it are of this thread's table.
                command().stdin(Stdio::from(place.try_clone()?)).spawn()
            });
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
        });
        dup3(&holder, &mut place, DupFlags::CLOEXEC)?;
        started
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_child_gets_its_end_whatever_else_is_open_and_nothing_of_it_stays() {
        let null = || File::open("/dev/null").expect("null");
        let low = OwnedFd::from(null());
        let spawner = Spawner::new(&low).expect("spawner");
        let others: Vec<File> = (0..MANY).map(|_| null()).collect();
        for _ in 0..3 {
            let (mut ours, theirs) = UnixStream::pair().expect("pair");
            assert!(theirs.as_raw_fd() >= MANY);
            let command = || {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "echo here >&0"]);
                command
            };
            let mut child = spawner.spawn(command, theirs.into()).expect("spawned");
            let mut text = String::new();
            ours.read_to_string(&mut text).expect("to its end"); // which a copy here would put off for ever
            assert_eq!(text, "here\n");
            assert!(child.wait().expect("waited for").success());
        }
        assert!(others.iter().all(|it| it.metadata().is_ok()), "all that was open is");
    }
}
