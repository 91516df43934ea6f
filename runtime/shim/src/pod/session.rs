//! ExecSync from call to answer.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use container::{Report, Stdio, channel, sys::process::fork};
use protocol::{ExecSync, Kind, Phase};
use rustix::io::Errno;

use super::create::output_pipe;
use super::{Pod, report_channel};
use crate::enter::{self, ExecJob};
use crate::exec::{Collector, DRAIN, SESSIONS_MAX, Session};
use crate::link::Caller;
use crate::member::Member;
use crate::serve::Token;
use crate::start::note;
use container::sys::signals::Ended;

/// Reads at the end of a session: what fits into a pipe, several times over.
const LAST_READS: usize = 32;
const STAGE: &str = "exec";

impl Pod {
    pub(crate) fn exec_sync(&mut self, caller: Caller, ask: &ExecSync) {
        if self.sessions.len() >= SESSIONS_MAX {
            let why = format!("{SESSIONS_MAX} processes are exec'd in this pod already");
            return self.links.fail(caller, Kind::Failed, STAGE, why);
        }
        let Some(key) = self.enterable(caller, &ask.id, &ask.seccomp_bpf) else { return };
        if let Err(e) = self.try_exec(caller, key, ask) {
            self.links.fail(caller, Kind::Failed, STAGE, container::error::words(&e.into()));
        }
    }

    /// The container if a process can be started in it; else the caller hears why not.
    pub(super) fn enterable(&mut self, caller: Caller, id: &str, seccomp: &str) -> Option<u32> {
        let key = self.find(caller, id, STAGE)?;
        let member = self.members.get(&key)?;
        let (kind, why) = if member.gone {
            (Kind::AlreadyExited, format!("{id} has exited"))
        } else if member.phase != Phase::Running {
            (Kind::InvalidState, format!("{id} is not running"))
        } else if member.paused {
            (Kind::InvalidState, format!("{id} is paused: resume it first"))
        } else if member.handler.is_some() && !seccomp.is_empty() {
            let why = "a filter of its own is not supported in a container of an external runtime";
            (Kind::Unsupported, why.to_owned())
        } else {
            return Some(key);
        };
        self.links.fail(caller, kind, STAGE, why);
        None
    }

    fn try_exec(&mut self, caller: Caller, key: u32, ask: &ExecSync) -> Result<(), Errno> {
        let number = self.new_key();
        let Some(member) = self.members.get(&key) else { return Err(Errno::SRCH) };
        let null = File::open("/dev/null").map_err(|_| Errno::NODEV)?;
        let ((out, stdout), (err, stderr)) = (output_pipe()?, output_pipe()?);
        let stdio = Stdio::Pipes([null.as_fd(), stdout.as_fd(), stderr.as_fd()]);
        let (ours, tracker) =
            self.enter(member, number, (&ask.process_json, &ask.seccomp_bpf), stdio)?;
        self.watch(ours.as_fd(), Token::ExecReport(number))?;
        self.watch(out.as_fd(), Token::ExecOutput(number, 0))?;
        self.watch(err.as_fd(), Token::ExecOutput(number, 1))?;
        let limit =
            (ask.timeout_ms > 0).then(|| Instant::now() + Duration::from_millis(ask.timeout_ms));
        let session = Session {
            caller: Some(caller),
            member: key,
            report: Some(ours),
            pid: 0,
            tracker,
            outputs: [Collector::new(out, ask.output_cap), Collector::new(err, ask.output_cap)],
            deadline: limit,
            code: None,
            drain_by: None,
        };
        self.sessions.insert(number, session);
        Ok(())
    }

    /// Forks the creator of a process in a container. Our end of its channel, and the group of its tree.
    pub(super) fn enter(
        &self,
        member: &Member,
        number: u32,
        (process_json, seccomp): (&[u8], &str),
        stdio: Stdio<'_>,
    ) -> Result<(OwnedFd, String), Errno> {
        let (ours, theirs) = report_channel()?;
        let tracker = format!("{}/lapstrake-exec-{number}", member.cgroup);
        let job = ExecJob {
            init_pid: member.pid,
            cgroup: &member.cgroup,
            tracker: &tracker,
            process_json,
            handler: member.handler.as_ref().map(|h| h.of(&member.id)),
            seccomp: if seccomp.is_empty() { &member.seccomp } else { seccomp },
            stdio,
            node: &self.node,
            facts: &self.facts,
            channel: theirs.as_fd(),
        };
        fork(|| enter::enter(&job))?;
        Ok((ours, tracker))
    }

    pub(crate) fn exec_report(&mut self, number: u32) {
        loop {
            let Some(session) = self.sessions.get_mut(&number) else { return };
            let Some(report) = &session.report else { return };
            match channel::listen(report.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(Report::Init { pid } | Report::External { pid }) => {
                    session.pid = pid;
                    if session.caller.is_none() {
                        // Its time was up before it existed.
                        let _ = container::sys::process::signal(pid, libc::SIGKILL);
                    }
                }
                Ok(Report::Failed(e)) => {
                    session.fail(&mut self.links, Kind::Failed, &e.stage, &e.message)
                }
                Ok(Report::Clamped(text)) => note(&text),
                Ok(Report::Ready { .. } | Report::Listener(_)) => {}
                Err(_) | Ok(Report::Closed) => {
                    if let Some(report) = session.report.take() {
                        let _ = rustix::event::epoll::delete(&self.epoll, report.as_fd());
                    }
                    if session.pid == 0 {
                        session.fail(
                            &mut self.links,
                            Kind::Failed,
                            "exec",
                            "the process was killed while it was set up",
                        );
                        self.drop_session(number);
                    }
                    return;
                }
            }
        }
    }

    pub(crate) fn exec_output(&mut self, number: u32, stream: usize, buffer: &mut [u8]) {
        if let Some(session) = self.sessions.get_mut(&number) {
            session.outputs[stream].take(buffer);
            self.finish_if_complete(number);
        }
    }

    /// False when no session has that process.
    pub(super) fn session_ended(&mut self, ended: Ended) -> bool {
        let found = self
            .sessions
            .iter()
            .find(|(_, s)| s.pid == ended.pid && s.code.is_none())
            .map(|(n, _)| *n);
        let Some(number) = found else { return self.stream_ended(ended) };
        // Why it could not become its program, if so.
        self.exec_report(number);
        let Some(session) = self.sessions.get_mut(&number) else { return true };
        session.code = Some(ended.code);
        session.drain_by = Some(Instant::now() + DRAIN);
        let mut buffer = [0u8; 4096];
        for output in &mut session.outputs {
            for _ in 0..LAST_READS {
                if !output.take(&mut buffer) {
                    break;
                }
            }
        }
        self.finish_if_complete(number);
        true
    }

    fn finish_if_complete(&mut self, number: u32) {
        let Some(session) = self.sessions.get_mut(&number) else { return };
        if session.is_complete(Instant::now()) {
            session.answer(&mut self.links);
            self.drop_session(number);
        }
    }

    /// The group stays only when the process left children behind; it goes with the container then.
    fn drop_session(&mut self, number: u32) {
        if let Some(session) = self.sessions.remove(&number)
            && self.members.contains_key(&session.member)
        {
            let _ = self.node.remove_tracker(&session.tracker);
        }
    }

    pub(super) fn sessions_tick(&mut self, now: Instant) {
        let due: Vec<u32> = self.sessions.keys().copied().collect();
        for number in due {
            let Some(session) = self.sessions.get_mut(&number) else { continue };
            let late = session.deadline.is_some_and(|d| d <= now) && session.caller.is_some();
            if late && session.code.is_none() {
                // The whole tree goes, then the answer; the main process is reaped like any other.
                let _ = self.node.kill(&session.tracker);
                if session.pid > 0 {
                    let _ = container::sys::process::signal(session.pid, libc::SIGKILL);
                }
                session.fail(
                    &mut self.links,
                    Kind::Timeout,
                    "exec",
                    "deadline exceeded; the process tree was killed",
                );
                session.deadline = None;
            }
            self.finish_if_complete(number);
        }
    }
}
