//! What a successor needs, and being one: processes of a shim that died go on under this one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::{Empty, Held, Kind, Phase, Reply};
use rustix::event::epoll;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Pod;
use crate::link::Caller;
use crate::log::{Source, Stream};
use crate::member::{Deletion, External, Member};
use crate::serve::Token;
use crate::start::note;
use crate::sys;

/// The kernel tells how an adopted process ended once its new parent has reaped it, which init does at once.
const REAPING: Duration = Duration::from_secs(2);
/// The daemon's word that this pod is deleted, for a shim that could not be told.
const TOMBSTONE: &str = "tombstone";
/// Nobody waits for what a tombstone orders.
const NOBODY: Caller = Caller { link: 0, seq: 0 };

impl Pod {
    pub(crate) fn hold(&mut self, caller: Caller, id: &str) {
        const STAGE: &str = "hold";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let Some(member) = self.members.get(&key) else { return };
        if member.gone || member.phase == Phase::Exited {
            let why = format!("{id} has exited");
            return self.links.fail(caller, Kind::AlreadyExited, STAGE, why);
        }
        if Some(key) == self.sandbox {
            self.held(key, caller, &[None, None]);
        } else {
            self.pump.hold(key, caller); // it has the read ends
        }
    }

    /// Answers with the descriptors; of a container its read ends came from the log thread.
    pub(super) fn held(&mut self, key: u32, caller: Caller, outputs: &[Option<OwnedFd>; 2]) {
        const STAGE: &str = "hold";
        let Some(member) = self.members.get(&key).filter(|m| !m.gone) else {
            return self.links.fail(caller, Kind::AlreadyExited, STAGE, "it has exited");
        };
        let pid = Pid::from_raw(member.pid).ok_or(rustix::io::Errno::SRCH);
        let opened = match &member.adopted {
            Some(pidfd) => rustix::io::fcntl_dupfd_cloexec(pidfd, 3),
            None => pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty())),
        };
        let pidfd = match opened {
            Ok(pidfd) => pidfd,
            Err(e) => {
                let why = container::error::words(&e.into());
                return self.links.fail(caller, Kind::Failed, STAGE, why);
            }
        };
        let sandbox = Some(key) == self.sandbox;
        let terminal = member.stdio.terminal.is_some();
        let text = |path: Option<&Path>| path.map(|p| p.to_string_lossy().into_owned());
        let held = Held {
            state: Some(member.state()),
            sandbox,
            own_pids: member.own_pids,
            bundle: text(Some(&member.bundle)).unwrap_or_default(),
            handler: text(member.handler.as_ref().map(|h| h.binary.as_path())).unwrap_or_default(),
            seccomp_bpf: member.seccomp.clone(),
            log_path: text(member.stdio.log_path.as_deref()).unwrap_or_default(),
            limits: Some(member.stdio.limits.into()),
            shm_path: text(self.shm_path.as_deref().filter(|_| sandbox)).unwrap_or_default(),
            stdin: member.stdio.stdin.is_some(),
            terminal: terminal && outputs[0].is_some(),
            stdout: !terminal && outputs[0].is_some(),
            stderr: outputs[1].is_some(),
            interactive: member.stdio.interactive,
        };
        let mut fds: Vec<BorrowedFd<'_>> = vec![pidfd.as_fd()];
        fds.extend(member.stdio.stdin.as_ref().map(AsFd::as_fd));
        fds.extend(outputs.iter().flatten().map(AsFd::as_fd));
        self.links.answer_with(caller, Reply::Held(held), &fds);
    }

    pub(crate) fn adopt(&mut self, caller: Caller, held: Held, fds: Vec<OwnedFd>) {
        const STAGE: &str = "adopt";
        let state = held.state.clone().unwrap_or_default();
        let mut fds = fds.into_iter();
        let mut next = |there: bool| if there { fds.next() } else { None };
        let (pidfd, stdin) = (next(true), next(held.stdin));
        let (terminal, stdout, stderr) =
            (next(held.terminal), next(held.stdout), next(held.stderr));
        let why = match &pidfd {
            None => "its descriptors did not arrive",
            Some(_) if held.sandbox && self.sandbox.is_some() => "this shim has a sandbox already",
            Some(_) if self.key_of(&state.id).is_some() => "it is here already",
            Some(_) if self.is_stopping() => "this pod is being stopped",
            Some(_) => "",
        };
        let Some(pidfd) = pidfd.filter(|_| why.is_empty()) else {
            return self.links.fail(caller, Kind::InvalidState, STAGE, why);
        };
        let key = self.new_key();
        if let Err(e) = self.watch(pidfd.as_fd(), Token::Adopted(key)) {
            return self.links.fail(caller, Kind::Failed, STAGE, e.to_string());
        }
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        let mut member = Member::taken_over(&state, pidfd);
        (member.own_pids, member.seccomp) = (held.own_pids, held.seccomp_bpf);
        member.bundle = held.bundle.into();
        member.handler = path(&held.handler).map(|binary| {
            let deletion = Deletion::Due;
            External { binary, bundle: member.bundle.clone(), deletion }
        });
        member.memory_hits = self.node.memory_hits_above(&member.cgroup);
        member.stdio.limits = held.limits.map(Into::into).unwrap_or_default();
        member.stdio.log_path = path(&held.log_path);
        (member.stdio.stdin, member.stdio.interactive) = (stdin, held.interactive);
        member.stdio.terminal =
            terminal.as_ref().and_then(|t| rustix::io::fcntl_dupfd_cloexec(t, 3).ok());
        if held.sandbox {
            (self.sandbox, self.shm_path) = (Some(key), path(&held.shm_path));
        } else {
            let outputs = [(Stream::Stdout, terminal.or(stdout)), (Stream::Stderr, stderr)];
            member.logged = true;
            self.pump.add(Source {
                key,
                fds: outputs.into_iter().filter_map(|(s, fd)| Some((s, fd?))).collect(),
                path: member.stdio.log_path.clone(),
                limits: member.stdio.limits,
                interactive: member.stdio.interactive,
                counters: member.counters.clone(),
            });
        }
        self.members.insert(key, member);
        self.links.answer(caller, Reply::Done(Empty {}));
    }

    /// The pidfd of an adopted process is readable: it has ended, and is reaped by somebody or will be.
    pub(crate) fn adopted_ended(&mut self, key: u32) {
        let Some(member) = self.members.get_mut(&key).filter(|m| !m.gone) else { return };
        let Some(pidfd) = &member.adopted else { return };
        let status = sys::status_by_pidfd(pidfd.as_fd()).or_else(|| {
            // Its new parent takes its time: a zombie can be asked, too.
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", member.pid)).ok()?;
            zombie_status(&stat, member.start_ticks)
        });
        match status {
            Some(status) => self.adopted_exit(key, Some(code_of(status))),
            None if member.code_by.is_none() => {
                // From now on only the hang-up that follows its reaping is of interest.
                let token = epoll::EventData::new_u64(Token::Adopted(key).pack());
                let _ = epoll::modify(&self.epoll, pidfd, token, epoll::EventFlags::empty());
                member.code_by = Some(Instant::now() + REAPING);
            }
            None => {}
        }
    }

    pub(super) fn adopted_tick(&mut self, now: Instant) {
        let late = |m: &Member| m.code_by.is_some_and(|by| by <= now);
        let due: Vec<u32> =
            self.members.iter().filter(|(_, m)| late(m)).map(|(key, _)| *key).collect();
        for key in due {
            note("nobody can tell how a process ended that another shim had started");
            self.adopted_exit(key, None);
        }
    }

    fn adopted_exit(&mut self, key: u32, code: Option<i32>) {
        if let Some(member) = self.members.get_mut(&key) {
            if let Some(pidfd) = &member.adopted {
                let _ = epoll::delete(&self.epoll, pidfd);
            }
            member.code_by = None;
        }
        self.member_ended(key, code);
    }

    /// Ends a pod whose deletion this shim could not be told of. Looked at whenever a daemon comes or goes.
    pub(crate) fn obey_tombstone(&mut self) {
        if !self.is_stopping() && Path::new(TOMBSTONE).exists() {
            note("the pod was deleted while this shim could not be reached: it ends now");
            self.shutdown(NOBODY);
        }
    }
}

/// The wait status in the `/proc/<pid>/stat` of a zombie that started at `ticks`.
fn zombie_status(stat: &str, ticks: u64) -> Option<i32> {
    const START: usize = 22;
    const STATUS: usize = 52;
    // The name may contain anything; after it comes field 3.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3);
    let same = field(START)?.parse() == Ok(ticks);
    (same && fields[0] == "Z").then(|| field(STATUS)?.parse().ok())?
}

/// 128 + n for signal n, from a wait status.
fn code_of(status: i32) -> i32 {
    match status & 0x7f {
        0 => status >> 8 & 0xff,
        signal => 128 + signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_tells_how_it_ended_and_another_process_of_its_number_does_not() {
        let stat = |state: &str| {
            let mut fields: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
            fields[22 - 4] = "777".into();
            fields[52 - 4] = "2304".into();
            format!("12 (a) b) {state} {}\n", fields.join(" "))
        };
        assert_eq!(zombie_status(&stat("Z"), 777), Some(9 << 8));
        assert_eq!(zombie_status(&stat("Z"), 776), None);
        assert_eq!(zombie_status(&stat("S"), 777), None);
    }

    #[test]
    fn a_wait_status_becomes_an_exit_code() {
        assert_eq!(code_of(7 << 8), 7);
        assert_eq!(code_of(libc::SIGKILL), 137);
        assert_eq!(code_of(libc::SIGSEGV | 0x80), 139, "with a core dump");
    }
}
