//! Those who read a container's output along with its log: each has a pipe for a buffer, and none may hold it up.
//!
//! A reader whose pipe is full is cut off. Only where the container is interactive (a terminal or stdin, where a person
//! or a pipeline waits at the other end) it is waited for first, as long as it goes on reading: a program in a terminal
//! runs no faster than the terminal either.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::{Errno, write};

/// How long an interactive container is held up by a reader that takes nothing at all.
pub(super) const STALL: Duration = Duration::from_secs(1);
/// Readers of one container; each costs a pipe.
pub(super) const READERS_MAX: usize = 64;

/// One stream's copy for one reader.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) fd: OwnedFd,
    pub(super) stream: usize,
    /// What did not fit into the pipe; while there is any, the stream is not read.
    backlog: Vec<u8>,
    /// When it is cut off unless it takes something before.
    pub(super) until: Option<Instant>,
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    All,
    /// The rest is kept until the pipe has room.
    Partly,
    /// It is gone, or too slow: let go of it.
    Lost,
}

impl Reader {
    pub(super) fn new(fd: OwnedFd, stream: usize) -> Self {
        Self { fd, stream, backlog: Vec::new(), until: None }
    }

    /// Passes on what was just read. `wait`: keep what does not fit instead of giving up on the reader.
    pub(super) fn offer(&mut self, bytes: &[u8], wait: bool, now: Instant) -> Taken {
        if self.is_behind() {
            // Only the rest of an ended container comes although its reader is behind: bounded by the pipe it was in.
            self.backlog.extend_from_slice(bytes);
            return Taken::Partly;
        }
        match push(&self.fd, bytes) {
            Err(_) => Taken::Lost,
            Ok(n) if n == bytes.len() => Taken::All,
            Ok(n) if wait => {
                self.backlog = bytes[n..].to_vec();
                self.until = Some(now + STALL);
                Taken::Partly
            }
            Ok(_) => Taken::Lost,
        }
    }

    /// The pipe has room again.
    pub(super) fn flush(&mut self, now: Instant) -> Taken {
        match push(&self.fd, &self.backlog) {
            Err(_) => Taken::Lost,
            Ok(n) if n == self.backlog.len() => {
                (self.backlog, self.until) = (Vec::new(), None);
                Taken::All
            }
            Ok(n) => {
                if n > 0 {
                    self.backlog.drain(..n);
                    self.until = Some(now + STALL);
                }
                Taken::Partly
            }
        }
    }

    pub(super) fn is_behind(&self) -> bool {
        !self.backlog.is_empty()
    }
}

/// How much the pipe took.
fn push(fd: &OwnedFd, bytes: &[u8]) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match write(fd, &bytes[done..]) {
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};

    fn reader() -> (OwnedFd, Reader, usize) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("pipe");
        let size = fcntl_getpipe_size(&write).expect("size");
        (read, Reader::new(write, 0), size)
    }

    #[test]
    fn a_full_pipe_costs_a_reader_its_place_when_nobody_waits() {
        let (_read, mut reader, size) = reader();
        let now = Instant::now();
        assert_eq!(reader.offer(&vec![0; size], false, now), Taken::All);
        assert_eq!(reader.offer(b"x", false, now), Taken::Lost);
    }

    #[test]
    fn an_interactive_container_waits_for_a_reader_that_goes_on_reading() {
        let (read, mut reader, size) = reader();
        let now = Instant::now();
        assert_eq!(reader.offer(&vec![b'a'; size + 5], true, now), Taken::Partly);
        assert_eq!((reader.is_behind(), reader.until), (true, Some(now + STALL)));
        assert_eq!(reader.flush(now + STALL / 2), Taken::Partly);
        assert_eq!(reader.until, Some(now + STALL), "it has taken nothing");
        assert_eq!(rustix::io::read(&read, &mut vec![0; size]).expect("read"), size);
        assert_eq!((reader.flush(now), reader.is_behind()), (Taken::All, false));
    }

    #[test]
    fn a_reader_that_is_gone_is_let_go() {
        let (read, mut reader, _) = reader();
        drop(read);
        assert_eq!(reader.offer(b"x", true, Instant::now()), Taken::Lost);
    }
}
