//! Creating and starting: fork a creator, listen to what it and init report.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::identity::start_ticks;
use container::{Layers, Report, Rootfs, SharedMemory, Stdio, Upper, channel, sys::process::fork};
use protocol::{CreateContainer, CreateSandbox, Created, Exit, Kind, Phase, Reply, Started};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::{MEMBERS_MAX, Pod, now_ns};
use crate::creator::{self, Job, Role};
use crate::link::Caller;
use crate::log::{Limits, Source, Stream};
use crate::member::{self, Deletion, External, Member};
use crate::serve::Token;
use crate::start::note;

/// What a start that never reached the workload counts as, by convention of the CRI runtimes.
const START_ERROR: i32 = 128;

/// What is different between a sandbox and a container.
struct Order<'a> {
    id: &'a str,
    bundle: &'a Path,
    rootfs: Rootfs,
    seccomp: &'a str,
    handler: Option<PathBuf>,
    log_path: Option<PathBuf>,
    limits: Limits,
    terminal: bool,
    stdin: bool,
    netns: Option<OwnedFd>,
    bare: Option<OwnedFd>,
    trees: Vec<(PathBuf, OwnedFd)>,
    init: bool,
    sandbox: bool,
}

impl Pod {
    pub(crate) fn create_sandbox(
        &mut self,
        caller: Caller,
        ask: &CreateSandbox,
        fds: Vec<OwnedFd>,
    ) {
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
        let mut fds = fds.into_iter();
        let netns = ask.has_netns.then(|| fds.next()).flatten();
        let order = Order {
            id: &ask.id,
            bundle: Path::new(&ask.bundle),
            rootfs: Rootfs::Empty { shm_size: ask.shm_size },
            seccomp: &ask.seccomp_bpf,
            handler: None,
            log_path: None,
            limits: Limits::default(),
            terminal: false,
            stdin: false,
            netns,
            bare: fds.next(),
            trees: Vec::new(),
            init: false,
            sandbox: true,
        };
        if ask.shm_size > 0 {
            self.shm_path = Some(Path::new(&ask.bundle).join("shm"));
        }
        self.sandbox = self.create(caller, order);
    }

    pub(crate) fn create_container(
        &mut self,
        caller: Caller,
        ask: CreateContainer,
        mut trees: Vec<OwnedFd>,
    ) {
        const STAGE: &str = "create";
        if let Some(why) = refused_by_handler(&ask) {
            return self.links.fail(caller, Kind::Unsupported, STAGE, why);
        }
        if trees.len() != ask.trees.len() + usize::from(ask.has_mounts) {
            let why = "the descriptors of its mounts did not arrive";
            return self.links.fail(caller, Kind::InvalidArgument, STAGE, why);
        }
        let bare = ask.has_mounts.then(|| trees.pop()).flatten();
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
        let rootfs = ask.rootfs.unwrap_or_default();
        if rootfs.lowers.is_empty() {
            return self.links.fail(
                caller,
                Kind::InvalidArgument,
                STAGE,
                "the root file system has no layers",
            );
        }
        let upper = (!rootfs.upper.is_empty())
            .then(|| Upper { upper: rootfs.upper.into(), work: rootfs.work.into() });
        let layers = Layers {
            lowers: rootfs.lowers.into_iter().map(PathBuf::from).collect(),
            upper,
            volatile: rootfs.volatile,
        };
        let order = Order {
            id: &ask.id,
            bundle: Path::new(&ask.bundle),
            rootfs: Rootfs::Layers(layers),
            seccomp: &ask.seccomp_bpf,
            handler: (!ask.handler.is_empty()).then(|| PathBuf::from(&ask.handler)),
            log_path: (!ask.log_path.is_empty()).then(|| PathBuf::from(&ask.log_path)),
            limits: ask.limits.map(Limits::from).unwrap_or_default(),
            terminal: ask.tty,
            stdin: ask.stdin,
            netns: None,
            bare,
            trees: ask.trees.into_iter().map(PathBuf::from).zip(trees).collect(),
            init: ask.init,
            sandbox: false,
        };
        self.create(caller, order);
    }

    fn create(&mut self, caller: Caller, order: Order<'_>) -> Option<u32> {
        match self.try_create(caller, order) {
            Ok(key) => Some(key),
            Err(e) => {
                self.links.fail(
                    caller,
                    Kind::Failed,
                    "create",
                    format!("fork: {}", container::error::words(&e.into())),
                );
                None
            }
        }
    }

    fn try_create(&mut self, caller: Caller, order: Order<'_>) -> Result<u32, Errno> {
        let (ours, theirs) = protocol::pair()?;
        channel::expect_credentials(ours.as_fd())?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let (stdio, ends) = stdio(&order)?;
        let pause = self.sandbox.and_then(|key| self.members.get(&key)).map(|m| m.pid);
        let shm = self.shm_path.clone().filter(|_| !order.sandbox).zip(pause);
        let job = Job {
            id: order.id,
            bundle: order.bundle,
            rootfs: order.rootfs,
            stdio: match &ends {
                Some(fds) => Stdio::Pipes([fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()]),
                None => Stdio::Terminal,
            },
            image: self.image.as_fd(),
            role: match (order.sandbox, order.init) {
                (true, _) => Role::Pause,
                (false, true) => Role::Init,
                (false, false) => Role::Program,
            },
            trees: &order.trees,
            netns: order.netns.as_ref().map(AsFd::as_fd),
            bare: order.bare.as_ref().map(AsFd::as_fd),
            seccomp: order.seccomp,
            handler: order.handler.as_deref(),
            log_path: stdio.log_path.as_deref(),
            shm: shm.map(|(path, pause_pid)| SharedMemory { path, pause_pid }),
            node: &self.node,
            facts: &self.facts,
            channel: theirs.as_fd(),
        };
        // Its reports are read when it has ended, which is before init is ready: to be woken for each would only take
        // the processor from both.
        let creator = fork(|| creator::create(job))?;
        let key = self.new_key();
        let mut member = Member::new(order.id.to_owned(), caller, ours);
        member.creator = creator;
        member.seccomp = order.seccomp.to_owned();
        member.bundle = order.bundle.to_owned();
        member.stdio = stdio;
        member.handler = order.handler.map(|binary| External {
            binary,
            bundle: order.bundle.to_owned(),
            deletion: Deletion::Due,
        });
        self.members.insert(key, member);
        Ok(key)
    }

    /// A creator has ended: what it and its init have said is read, and what init will say is waited for.
    pub(super) fn creator_ended(&mut self, key: u32) {
        self.report(key);
        let Some(member) = self.members.get_mut(&key) else { return };
        // The pod's own limit counts the others of the pod, too: only what is added from here on matters.
        member.memory_hits = self.node.memory_hits_above(&member.cgroup);
        let Some(report) = self.members.get(&key).and_then(|m| m.report.as_ref()) else { return };
        if self.watch(report.as_fd(), Token::Report(key)).is_err() {
            self.report_closed(key); // as if init had died: it is ended
        }
    }

    /// Init of a container (or its creator) has something to say.
    pub(crate) fn report(&mut self, key: u32) {
        loop {
            let Some(member) = self.members.get_mut(&key) else { return };
            let Some(report) = &member.report else { return };
            match channel::listen(report.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Err(_) | Ok(Report::Closed) => return self.report_closed(key),
                Ok(Report::Planned { cgroup, own_pids }) => {
                    (member.cgroup, member.own_pids) = (cgroup, own_pids);
                }
                Ok(Report::Init { pid } | Report::External { pid }) => {
                    member.pid = pid;
                    member.start_ticks = start_ticks(pid);
                }
                Ok(Report::Listener(_)) => {} // no filter of ours is loaded with one
                Ok(Report::Clamped(text)) => note(&format!("{}: {text}", member.id)),
                Ok(Report::Failed(error)) => self.report_failed(key, error),
                Ok(Report::Ready { terminal }) => self.report_ready(key, terminal),
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
fn stdio(order: &Order<'_>) -> Result<(member::Stdio, Option<[OwnedFd; 3]>), Errno> {
    let mut ours = member::Stdio {
        log_path: order.log_path.clone(),
        limits: order.limits,
        interactive: order.terminal || order.stdin,
        ..Default::default()
    };
    if order.terminal {
        return Ok((ours, None));
    }
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .map(OwnedFd::from)
            .map_err(|_| Errno::NODEV)
    };
    if order.sandbox {
        return Ok((ours, Some([null()?, null()?, null()?])));
    }
    let stdin = if order.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?; // for those who attach: we never write
        ours.stdin = Some(write);
        read
    } else {
        null()?
    };
    let mut output = |stream: Stream| -> Result<OwnedFd, Errno> {
        let (read, write) = output_pipe()?;
        ours.outputs.push((stream, read));
        Ok(write)
    };
    let (stdout, stderr) = (output(Stream::Stdout)?, output(Stream::Stderr)?);
    Ok((ours, Some([stdin, stdout, stderr])))
}

/// A pipe whose read end never blocks; the write end is an ordinary one.
pub(super) fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, write))
}
