//! ExecSync sessions: one deadline for spawn, run and drain; output capped here; the whole tree found by its group.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use protocol::{Kind, Output, Reply};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{Errno, read, write};

use crate::link::{Caller, Links};

/// After the main process has ended, what its children still hold open is not awaited longer than this.
pub(crate) const DRAIN: Duration = Duration::from_millis(250);
/// Output up to this travels inside the answer, and is all that a session keeps in the heap.
const INLINE: usize = 8 * 1024;
/// At most so many sessions at once in a pod; the kubelet runs one per probe.
pub(crate) const SESSIONS_MAX: usize = 64;

/// One exec'd process whose output is collected.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) caller: Option<Caller>,
    /// The container it runs in.
    pub(crate) member: u32,
    pub(crate) report: Option<OwnedFd>,
    pub(crate) pid: i32,
    pub(crate) tracker: String,
    pub(crate) outputs: [Collector; 2],
    pub(crate) deadline: Option<Instant>,
    /// Set when the main process has ended.
    pub(crate) code: Option<i32>,
    pub(crate) drain_by: Option<Instant>,
}

/// One stream.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    pub(crate) pipe: Option<OwnedFd>,
    inline: Vec<u8>,
    spilled: Option<OwnedFd>,
    len: u64,
    cap: u64,
}

impl Collector {
    pub(crate) fn new(pipe: OwnedFd, cap: u64) -> Self {
        Self { pipe: Some(pipe), cap, ..Default::default() }
    }

    /// Takes one buffer full from the pipe; beyond the cap it is read and dropped, so that the writer never blocks.
    /// False when there is nothing more now or ever.
    pub(crate) fn take(&mut self, buffer: &mut [u8]) -> bool {
        let Some(pipe) = &self.pipe else { return false };
        match read(pipe, &mut *buffer) {
            Ok(n) if n > 0 => {
                let room = (self.cap - self.len).min(n as u64) as usize;
                self.keep(&buffer[..room]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                self.pipe = None;
                false
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.len += bytes.len() as u64;
        if self.spilled.is_none() && self.inline.len() + bytes.len() <= INLINE {
            return self.inline.extend_from_slice(bytes);
        }
        if self.spilled.is_none() {
            self.spilled = memfd_create("lapstrake-exec-output", MemfdFlags::CLOEXEC).ok();
            let inline = std::mem::take(&mut self.inline);
            self.append(&inline);
        }
        self.append(bytes);
    }

    fn append(&self, mut bytes: &[u8]) {
        let Some(memfd) = &self.spilled else { return };
        while let Ok(n) = write(memfd, bytes) {
            bytes = &bytes[n..];
            if bytes.is_empty() {
                break;
            }
        }
    }
}

impl Session {
    /// The main process has ended and its output is complete, or nothing more is awaited.
    pub(crate) fn is_complete(&self, now: Instant) -> bool {
        let drained = self.outputs.iter().all(|o| o.pipe.is_none())
            || self.drain_by.is_some_and(|d| d <= now);
        self.code.is_some() && drained
    }

    /// Answers with what was collected and closes the read ends.
    pub(crate) fn answer(&mut self, links: &mut Links) {
        let (Some(caller), Some(code)) = (self.caller.take(), self.code) else { return };
        let [out, err] = &mut self.outputs;
        let spilled = |c: &Collector| if c.spilled.is_some() { c.len } else { 0 };
        let output = Output {
            exit_code: code,
            stdout: std::mem::take(&mut out.inline),
            stderr: std::mem::take(&mut err.inline),
            stdout_spilled: spilled(out),
            stderr_spilled: spilled(err),
        };
        let fds: Vec<_> =
            [&*out, &*err].iter().filter_map(|c| c.spilled.as_ref()).map(AsFd::as_fd).collect();
        links.answer_with(caller, Reply::Output(output), &fds);
        self.outputs = [Collector::default(), Collector::default()];
    }

    pub(crate) fn fail(&mut self, links: &mut Links, kind: Kind, stage: &str, message: &str) {
        if let Some(caller) = self.caller.take() {
            links.fail(caller, kind, stage, message);
        }
        self.outputs = [Collector::default(), Collector::default()];
    }
}
