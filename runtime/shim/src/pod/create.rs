//! Creating and starting: give a creator its order, listen to what it and init report.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::error::words;
use container::identity::start_ticks;
use container::{Report, channel};
use protocol::{
    Ask, CreateContainer, CreateSandbox, Created, Exit, Kind, Packet, Phase, Reply, Started,
};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{MEMBERS_MAX, Pod, now_ns};
use crate::link::Caller;
use crate::log::{Limits, Source, Stream};
use crate::member::{self, Deletion, External, Member};
use crate::start::note;

/// What a start that never reached the workload counts as, by convention of the CRI runtimes.
const START_ERROR: i32 = 128;

impl Pod {
    pub(crate) fn create_sandbox(&mut self, caller: Caller, ask: CreateSandbox, fds: Vec<OwnedFd>) {
        if self.is_stopping() {
            return self.links.fail(
                caller,
                Kind::InvalidState,
                "create the sandbox",
                "this pod is being stopped",
            );
        }
        if self.sandbox.is_some() {
            return self.links.fail(
                caller,
                Kind::InvalidState,
                "create the sandbox",
                "this shim has one already",
            );
        }
        if fds.len() != usize::from(ask.has_netns) + usize::from(ask.has_mounts) {
            let why = "the descriptors of its namespaces did not arrive";
            return self.links.fail(caller, Kind::InvalidArgument, "create the sandbox", why);
        }
        if ask.shm_size > 0 {
            self.shm_path = Some(Path::new(&ask.bundle).join("shm"));
        }
        let mut member = Member::new(ask.id.clone(), caller);
        member.seccomp = ask.seccomp_bpf.clone();
        member.bundle = PathBuf::from(&ask.bundle);
        let ends = null().and_then(|one| Ok([one, null()?, null()?]));
        self.sandbox = self.create(member, ends.map(Some), Ask::CreateSandbox(ask), fds);
    }

    pub(crate) fn create_container(
        &mut self,
        caller: Caller,
        ask: CreateContainer,
        fds: Vec<OwnedFd>,
    ) {
        const STAGE: &str = "create";
        if let Some(why) = refused_by_handler(&ask) {
            return self.links.fail(caller, Kind::Unsupported, STAGE, why);
        }
        if fds.len() != ask.trees.len() + usize::from(ask.has_mounts) {
            let why = "the descriptors of its mounts did not arrive";
            return self.links.fail(caller, Kind::InvalidArgument, STAGE, why);
        }
        if self.is_stopping() {
            return self.links.fail(caller, Kind::InvalidState, STAGE, "this pod is being stopped");
        }
        if self.key_of(&ask.id).is_some() {
            return self.links.fail(
                caller,
                Kind::InvalidState,
                STAGE,
                format!("{} exists already", ask.id),
            );
        }
        if self.members.len() >= MEMBERS_MAX {
            let why = format!("{MEMBERS_MAX} containers exist; delete some");
            return self.links.fail(caller, Kind::InvalidState, STAGE, why);
        }
        if ask.rootfs.as_ref().is_none_or(|rootfs| rootfs.lowers.is_empty()) {
            let why = "the root file system has no layers";
            return self.links.fail(caller, Kind::InvalidArgument, STAGE, why);
        }
        let mut member = Member::new(ask.id.clone(), caller);
        member.seccomp = ask.seccomp_bpf.clone();
        member.bundle = PathBuf::from(&ask.bundle);
        member.handler = (!ask.handler.is_empty()).then(|| External {
            binary: PathBuf::from(&ask.handler),
            bundle: PathBuf::from(&ask.bundle),
            deletion: Deletion::Due,
        });
        let ends = stdio(&ask).map(|(ours, theirs)| {
            member.stdio = ours;
            theirs
        });
        self.create(member, ends, Ask::CreateContainer(ask), fds);
    }

    fn create(
        &mut self,
        member: Member,
        stdio: io::Result<Option<[OwnedFd; 3]>>,
        ask: Ask,
        fds: Vec<OwnedFd>,
    ) -> Option<u32> {
        let caller = member.waiting;
        let stdio = stdio.map_err(|e| format!("open its stdio: {}", words(&e)));
        let key = self.new_key();
        let ordered = stdio.and_then(|stdio| {
            let fds: Vec<_> = stdio.iter().flatten().chain(&fds).map(AsFd::as_fd).collect();
            self.order(key, &Packet::call(0, ask), &fds)
        });
        match ordered {
            Ok(report) => {
                self.members.insert(key, Member { report: Some(report), ..member });
                Some(key)
            }
            Err(why) => {
                if let Some(caller) = caller {
                    self.links.fail(caller, Kind::Failed, "create", why);
                }
                None
            }
        }
    }

    /// Init of a container (or its creator) has something to say.
    pub(crate) fn report(&mut self, key: u32) {
        loop {
            let Some(member) = self.members.get_mut(&key) else { return };
            let Some(report) = &member.report else { return };
            let said = match channel::listen(report.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                said => said,
            };
            self.hear_creators(); // who it is and where it lives
            let Some(member) = self.members.get_mut(&key) else { return };
            match said {
                Err(_) | Ok(Report::Closed) => return self.report_closed(key),
                Ok(Report::Init { pid } | Report::External { pid }) => {
                    self.born(key, pid, start_ticks(pid));
                }
                Ok(Report::Listener(_)) => {} // no filter of ours is loaded with one
                Ok(Report::Clamped(text)) => note(&format!("{}: {text}", member.id)),
                Ok(Report::Failed(error)) => self.report_failed(key, error),
                Ok(Report::Ready { terminal, pid }) => {
                    if member.pid == 0 {
                        self.born(key, pid, start_ticks(pid)); // it was quicker than its creator
                    }
                    self.report_ready(key, terminal);
                }
            }
        }
    }

    fn report_ready(&mut self, key: u32, terminal: Option<OwnedFd>) {
        let sandbox = Some(key) == self.sandbox;
        let Some(member) = self.members.get_mut(&key) else { return };
        member.phase = Phase::Created;
        let mut outputs = std::mem::take(&mut member.stdio.outputs);
        if let Some(master) = terminal {
            let _ = rustix::io::ioctl_fionbio(&master, true);
            member.stdio.terminal = rustix::io::fcntl_dupfd_cloexec(&master, 3).ok();
            outputs.push((Stream::Stdout, master));
        }
        // First the word that somebody waits for.
        if sandbox {
            // Pause has nothing to wait for: created is started.
            let _ = member.report.as_ref().map(|report| channel::say_start(report.as_fd()));
        } else if let Some(caller) = member.waiting.take() {
            let created = Created { pid: member.pid, start_ticks: member.start_ticks };
            self.links.answer(caller, Reply::Created(created));
        }
        if sandbox {
            return;
        }
        member.logged = true;
        self.pump.add(Source {
            key,
            fds: outputs,
            path: member.stdio.log_path.clone(),
            limits: member.stdio.limits,
            interactive: member.stdio.interactive,
            counters: member.counters.clone(),
        });
        if self.is_stopping() {
            self.kill_member(key); // asked for while this one was being made
        }
    }

    fn report_failed(&mut self, key: u32, error: container::Error) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if let Some(External { deletion: Deletion::UnderWay, .. }) = member.handler {
            return note(&format!("{}: {error}", member.id)); // ours follows and is thorough
        }
        if member.phase == Phase::Created && Some(key) != self.sandbox {
            let exit = Exit {
                code: START_ERROR,
                at_ns: now_ns(),
                start_error: error.to_string(),
                ..Default::default()
            };
            member.exit = Some(exit);
            if let Some(caller) = member.waiting.take() {
                self.links.fail(caller, Kind::Failed, &error.stage, error.message.clone());
            }
            if member.handler.is_some() && member.is_alive() {
                // It still waits for a start that failed outside of it.
                let _ = member.signal(libc::SIGKILL);
            }
        }
        if member.failure.is_none() {
            member.failure = Some(error);
        }
    }

    /// All ends are closed: init has become its program, or everybody has died.
    fn report_closed(&mut self, key: u32) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if let Some(report) = member.report.take() {
            let _ = rustix::event::epoll::delete(&self.epoll, report.as_fd());
        }
        let sandbox = Some(key) == self.sandbox;
        if self.handler_deleted(key) {
            return;
        }
        let Some(member) = self.members.get_mut(&key) else { return };
        match member.phase {
            Phase::Created if member.failure.is_none() => self.started(key),
            Phase::Creating => self.give_up(key),
            Phase::Created if sandbox => {
                member.phase = Phase::Creating;
                self.give_up(key);
            }
            _ => {}
        }
    }

    /// Init has become its program: whoever waits for that hears it.
    pub(super) fn started(&mut self, key: u32) {
        let sandbox = Some(key) == self.sandbox;
        let Some(member) = self.members.get_mut(&key) else { return };
        let Some(caller) = member.waiting.take() else { return };
        member.phase = Phase::Running;
        // The program runs from when it was let go, however late its first sign of life is read here.
        member.started_at_ns = member.let_go_at_ns.unwrap_or_else(now_ns);
        let reply = if sandbox {
            Reply::Created(Created { pid: member.pid, start_ticks: member.start_ticks })
        } else {
            Reply::Started(Started { at_ns: member.started_at_ns })
        };
        self.links.answer(caller, reply);
    }

    pub(crate) fn start(&mut self, caller: Caller, id: &str) {
        const STAGE: &str = "start";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.phase == Phase::Created && member.waiting.is_none() {
            member.let_go_at_ns = Some(now_ns());
        }
        if member.handler.is_some() && member.phase == Phase::Created && member.waiting.is_none() {
            return self.start_by_handler(caller, key);
        }
        let (kind, why) = match (member.phase, &member.report, member.waiting) {
            (Phase::Created, Some(report), None) => match channel::say_start(report.as_fd()) {
                Ok(()) => {
                    member.waiting = Some(caller);
                    return;
                }
                Err(e) => (Kind::AlreadyExited, format!("init is gone: {e}")),
            },
            (Phase::Created, None, _) | (Phase::Exited, ..) => {
                (Kind::AlreadyExited, format!("{id} has exited"))
            }
            _ => (Kind::InvalidState, format!("{id} is started already or still being created")),
        };
        self.links.fail(caller, kind, STAGE, why);
    }
}

/// What an external runtime cannot be given is refused by name.
fn refused_by_handler(ask: &CreateContainer) -> Option<String> {
    let unserved = [
        // The runtime compiles filters by itself, from `linux.seccomp` of the specification.
        ("a compiled seccomp program", !ask.seccomp_bpf.is_empty()),
        ("an init of ours", ask.init),
        ("a mount by descriptor", !ask.trees.is_empty()),
    ];
    let (what, _) = unserved.iter().find(|(_, used)| *used && !ask.handler.is_empty())?;
    Some(format!("{what} is not supported with the external runtime {}", ask.handler))
}

/// Our ends and the container's ends; no ends of the container's when init makes a terminal.
fn stdio(ask: &CreateContainer) -> io::Result<(member::Stdio, Option<[OwnedFd; 3]>)> {
    let mut ours = member::Stdio {
        log_path: (!ask.log_path.is_empty()).then(|| PathBuf::from(&ask.log_path)),
        limits: ask.limits.map(Limits::from).unwrap_or_default(),
        interactive: ask.tty || ask.stdin,
        ..Default::default()
    };
    if ask.tty {
        return Ok((ours, None));
    }
    let stdin = if ask.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?; // for those who attach: we never write
        ours.stdin = Some(write);
        read
    } else {
        null()?
    };
    let mut output = |stream: Stream| -> io::Result<OwnedFd> {
        let (read, write) = output_pipe()?;
        ours.outputs.push((stream, read));
        Ok(write)
    };
    let (stdout, stderr) = (output(Stream::Stdout)?, output(Stream::Stderr)?);
    Ok((ours, Some([stdin, stdout, stderr])))
}

/// What the shim itself has as its stdio.
fn null() -> io::Result<OwnedFd> {
    rustix::stdio::stdin().try_clone_to_owned()
}

/// A pipe whose read end never blocks; the write end is an ordinary one.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}
