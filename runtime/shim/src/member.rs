//! One process tree of the pod, the sandbox's pause or a container: its state from creation to deletion.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use protocol::{Exit, Phase, State};
use rustix::io::Errno;

use crate::link::Caller;
use crate::log::{Counters, Limits};

/// Everything the shim remembers of a container until it is deleted.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) id: String,
    pub(crate) phase: Phase,
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
    pub(crate) started_at_ns: i64,
    /// When its program was told to run.
    pub(crate) let_go_at_ns: Option<i64>,
    /// Empty until the creator has decided.
    pub(crate) cgroup: String,
    /// Init is pid 1 of its own namespace.
    pub(crate) own_pids: bool,
    /// Our end of the report channel; closed after exec.
    pub(crate) report: Option<OwnedFd>,
    /// Who waits for `Ready` or for exec.
    pub(crate) waiting: Option<Caller>,
    /// Init has been reaped.
    pub(crate) gone: bool,
    /// Why it could not be created or started.
    pub(crate) failure: Option<container::Error>,
    pub(crate) exit: Option<Exit>,
    /// The log thread has its output.
    pub(crate) logged: bool,
    /// When the exit is published even if the log thread has not answered (a frozen file system).
    pub(crate) publish_by: Option<Instant>,
    pub(crate) stdio: Stdio,
    /// Waiting for its control group to go: who asked for the deletion, and what to answer.
    pub(crate) deleting: Vec<Caller>,
    pub(crate) seccomp: String,
    /// It is another shim's child, taken over after that one died: its pidfd.
    pub(crate) adopted: Option<OwnedFd>,
    /// Adopted and ended: when its exit code is given up on.
    pub(crate) code_by: Option<Instant>,
    pub(crate) bundle: PathBuf,
    /// The daemon's record of it: a file that is never read here.
    pub(crate) record: Option<OwnedFd>,
    /// Made by an external runtime: the runtime and the bundle.
    pub(crate) handler: Option<External>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) paused: bool,
    /// How often its and its pod's memory limit had been hit when it was made.
    pub(crate) memory_hits: cgroup::oom::Hits,
    /// The log could not be opened anew; kept for the reader of the inventory.
    pub(crate) reopening: Vec<Caller>,
}

/// What is known of a container that an external runtime made.
#[derive(Debug)]
pub(crate) struct External {
    pub(crate) binary: PathBuf,
    pub(crate) bundle: PathBuf,
    pub(crate) deletion: Deletion,
}

/// The external runtime's own deletion, which comes before ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    Due,
    UnderWay,
    Done,
}

/// Our ends of the container's stdio while it is being created.
#[derive(Debug, Default)]
pub(crate) struct Stdio {
    pub(crate) outputs: Vec<(crate::log::Stream, OwnedFd)>,
    /// The write end of stdin, kept for those who attach.
    pub(crate) stdin: Option<OwnedFd>,
    /// A copy of the terminal's master, for input and for its size.
    pub(crate) terminal: Option<OwnedFd>,
    /// Whoever reads along may slow the container down for a moment: see `log::readers`.
    pub(crate) interactive: bool,
    /// Kept for a successor of this shim.
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) limits: Limits,
}

impl Member {
    /// One whose creation somebody waits for.
    pub(crate) fn new(id: String, caller: Caller) -> Self {
        Self {
            id,
            phase: Phase::Creating,
            pid: 0,
            start_ticks: 0,
            started_at_ns: 0,
            let_go_at_ns: None,
            cgroup: String::new(),
            own_pids: true,
            report: None,
            waiting: Some(caller),
            gone: false,
            failure: None,
            exit: None,
            logged: false,
            publish_by: None,
            stdio: Stdio::default(),
            deleting: Vec::new(),
            seccomp: String::new(),
            adopted: None,
            code_by: None,
            bundle: PathBuf::new(),
            record: None,
            handler: None,
            counters: Arc::default(),
            paused: false,
            memory_hits: cgroup::oom::Hits::default(),
            reopening: Vec::new(),
        }
    }

    /// A process that another shim had started.
    pub(crate) fn taken_over(state: &State, pidfd: OwnedFd) -> Self {
        let nobody = Caller { link: 0, seq: 0 };
        Self {
            phase: Phase::Running,
            pid: state.pid,
            start_ticks: state.start_ticks,
            started_at_ns: state.started_at_ns,
            let_go_at_ns: None,
            cgroup: state.cgroup.clone(),
            paused: state.paused,
            report: None,
            waiting: None,
            adopted: Some(pidfd),
            ..Self::new(state.id.clone(), nobody)
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.pid > 0 && !self.gone
    }

    /// Sends a signal to init, which is known not to be another process: our child and not reaped, or known by pidfd.
    pub(crate) fn signal(&self, number: i32) -> Result<(), Errno> {
        match &self.adopted {
            None => container::sys::process::signal(self.pid, number),
            Some(pidfd) => crate::sys::signal_by_pidfd(pidfd.as_fd(), number),
        }
    }

    pub(crate) fn state(&self) -> State {
        State {
            id: self.id.clone(),
            pid: self.pid,
            phase: self.phase.into(),
            started_at_ns: self.started_at_ns,
            exit: self.exit.clone().filter(|_| self.phase == Phase::Exited),
            start_ticks: self.start_ticks,
            log_dropped_bytes: self.counters.dropped.load(Ordering::Relaxed),
            log_bytes: self.counters.bytes.load(Ordering::Relaxed),
            log_lines: self.counters.lines.load(Ordering::Relaxed),
            log_limited_bytes: self.counters.limited.load(Ordering::Relaxed),
            cgroup: self.cgroup.clone(),
            paused: self.paused,
        }
    }
}
