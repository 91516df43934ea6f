//! `create`, `start` and `run`.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cgroup::Hierarchies;
use container::hooks::Moment;
use container::plan::Namespace;
use container::sys::process::{close_all_except, fork, signal};
use container::sys::signals;
use container::{
    Creation, Extras, Facts, Plan, Program, Report, Rootfs, Seccomp, Spec, Start, Stdio, channel,
    identity,
};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

use crate::cli::{Cli, CreateArgs, RunArgs};
use crate::error::Error;
use crate::state::{self, Record, Status};
use crate::{bundle, end, handed, log, scope, seccomp, shown, terminal};

pub(crate) fn create(cli: &Cli, args: &CreateArgs) -> Result<(), Error> {
    make(cli, args, Console::Socket, Go::ByStart, &Hierarchies::detect()?).map(drop)
}

pub(crate) fn start(cli: &Cli, id: &str) -> Result<(), Error> {
    let record = state::load(cli, id)?;
    let node = Hierarchies::detect()?;
    match record.status(cli, &node) {
        Status::Created => go(cli, &record, knock(cli, &record)?.as_fd()),
        other => Err(Error::WrongState { verb: "start", id: id.to_owned(), status: other.word() }),
    }
}

pub(crate) fn run(cli: &Cli, args: &RunArgs) -> Result<u8, Error> {
    // Blocked before anything is forked: no signal and no end of a child is missed.
    signals::block_all_signals();
    let socket = args.detach || args.create.console_socket.is_some();
    let console = if socket { Console::Socket } else { Console::Here };
    let node = Hierarchies::detect()?;
    let Made { record, master, channel } = make(cli, &args.create, console, Go::ByUs, &node)?;
    let started = go(cli, &record, channel.as_fd());
    if args.detach && started.is_ok() {
        return Ok(0);
    }
    let waited = started.and_then(|()| terminal::attend(record.pid, master));
    if !args.keep {
        end::remove(cli, &record, &node)?;
    }
    waited
}

/// Where the terminal of a container goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Console {
    /// To the socket named on the command line.
    Socket,
    /// To this process, which connects it with its own.
    Here,
}

/// Who lets the waiting init go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Go {
    /// A later `start`, which finds it by a socket.
    ByStart,
    /// This process, which holds the other end of its channel.
    ByUs,
}

/// A container whose init waits.
struct Made {
    record: Record,
    /// The terminal, when this process attends to it.
    master: Option<OwnedFd>,
    channel: OwnedFd,
}

/// Makes everything up to the waiting init; on failure nothing is left.
fn make(
    cli: &Cli,
    args: &CreateArgs,
    console: Console,
    go: Go,
    node: &Hierarchies,
) -> Result<Made, Error> {
    let sockets = handed::sockets();
    handed::check(sockets.saturating_add(args.preserve_fds))?;
    let (spec, bundle) = bundle::open(&args.bundle)?;
    let rootfs = bundle::rootfs(&spec, &bundle)?;
    let wants_terminal = spec.process.as_ref().is_some_and(|p| p.terminal);
    if wants_terminal && console == Console::Socket && args.console_socket.is_none() {
        return Err(Error::Usage("process.terminal is set, so --console-socket is needed".into()));
    }
    let dir = state::dir(cli, &args.id)?;
    fs::create_dir_all(&cli.root).map_err(Error::file("make", &cli.root))?;
    match fs::create_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Error::Exists { id: args.id.clone() });
        }
        other => other.map_err(Error::file("make", &dir))?,
    }
    let (spec, bundle, dir) = (&spec, &*bundle, &*dir);
    let order = Order { cli, args, sockets, spec, bundle, rootfs, dir, console, go, node };
    order.make().inspect_err(|_| {
        let _ = fs::remove_dir_all(dir); // what failed is the message; this is only tidiness
    })
}

struct Order<'a> {
    cli: &'a Cli,
    args: &'a CreateArgs,
    /// Come before those that are preserved.
    sockets: u32,
    spec: &'a Spec,
    bundle: &'a Path,
    rootfs: PathBuf,
    dir: &'a Path,
    console: Console,
    go: Go,
    node: &'a Hierarchies,
}

impl Order<'_> {
    fn make(&self) -> Result<Made, Error> {
        let seccomp = seccomp::compile(self.cli, self.spec, self.dir)?;
        let facts = Facts {
            id: self.args.id.clone(),
            seccomp_compiled: seccomp.is_some(),
            later_hooks: true,
            ..container::own_facts()
        };
        let unit = scope::unit(self.cli, self.spec, &self.args.id)?;
        let mut plan = container::plan(self.spec, &facts)?.at(self.bundle, &self.rootfs);
        plan.process.env.extend(handed::environment(self.sockets));
        if let Some(unit) = &unit {
            plan.cgroup = unit.group();
        }
        let node = self.node;
        // In a pod these say mostly that there are none, which may be left out; here somebody has asked.
        if plan.resources.hugepage_limits.as_ref().is_some_and(|l| !l.is_empty())
            && !node.has("hugetlb")
        {
            return Err(Error::Unsupported(
                "linux.resources.hugepageLimits: this node has no hugetlb controller mounted",
            ));
        }
        if !node.pids(&plan.cgroup)?.is_empty() {
            return Err(Error::Occupied { id: self.args.id.clone(), group: plan.cgroup });
        }
        if is_frozen(node, &plan.cgroup) {
            return Err(Error::Frozen { id: self.args.id.clone(), group: plan.cgroup });
        }
        // Only without a mount namespace of its own does anything of the container show there.
        let shared = !plan.namespaces.makes(Namespace::Mount);
        let before = shared.then(|| shown::mount_at(&self.rootfs)).transpose()?;
        let ours =
            || shown::mount_at(&self.rootfs).ok().filter(|id| before.is_some_and(|b| b != *id));
        let undo = |_: &Error| {
            let _ = ours().map(|id| shown::take_away(&self.rootfs, id));
            end::clear_group(node, &plan.cgroup, unit.as_ref());
            let _ = container::rdt::remove(&rdt_of(&plan));
        };
        let scope = unit.as_ref().map(|unit| scope::start(unit, &plan.resources, node));
        let scope = scope.transpose().inspect_err(undo)?;
        let made = self.make_init(&plan, seccomp.as_ref().map(|(_, loaded)| loaded));
        let (pid, master, channel) = made.inspect_err(undo)?;
        drop(scope); // the container holds it now
        let mut record = self.record(&plan, pid, seccomp.map(|(kept, _)| kept));
        record.scope = unit.as_ref().map(|unit| unit.scope.clone());
        record.shown = ours();
        let finished = record.save(self.dir).and_then(|()| self.hand_over(pid, master));
        finished.map(|master| Made { record, master, channel }).inspect_err(undo)
    }

    /// Creates, by a fork where this process would lose its own namespaces by it, and listens until init waits.
    fn make_init(
        &self,
        plan: &Plan,
        seccomp: Option<&Seccomp>,
    ) -> Result<(i32, Option<OwnedFd>, OwnedFd), Error> {
        let listener = (self.go == Go::ByStart).then(|| listen_at(self.dir)).transpose()?;
        let listener = listener.as_ref().map(AsFd::as_fd);
        let (ours, theirs) = channel_pair()?;
        let stdio = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
        let handed = self.sockets.saturating_add(self.args.preserve_fds);
        let creation = Creation {
            id: &self.args.id,
            bundle: self.bundle,
            plan,
            node: self.node,
            has_sibling: false,
            rootfs: Rootfs::Directory(self.rootfs.clone()),
            stdio: if plan.process.terminal { Stdio::Terminal } else { Stdio::Pipes(stdio) },
            program: Program::Args,
            netns: None,
            userns: None,
            seccomp,
            shm: None,
            bare: None,
            trees: &[],
            channel: theirs.as_fd(),
            words: None,
            start: listener.map_or(Start::Channel, Start::Listener),
            sibling: false,
            extras: Extras {
                preserve_fds: handed,
                keep_keyring: self.args.no_new_keyring,
                no_pivot: self.args.no_pivot,
            },
        };
        // The connection to systemd may have threads, of which only a fork is free.
        if creation.spares_its_creator() && !self.cli.systemd_cgroup {
            let own = [ours.as_fd(), theirs.as_fd()].into_iter().chain(listener);
            close_all_except(&kept(handed, own));
            container::create(&creation)?;
        } else {
            let keep = kept(handed, [theirs.as_fd()].into_iter().chain(listener));
            let creation = Creation { sibling: true, ..creation };
            fork(|| run_creator(&creation, &keep)).map_err(Error::system("fork"))?;
        }
        drop(theirs);
        let (pid, master) = listen_until_ready(self.cli, ours.as_fd())?;
        Ok((pid, master, ours))
    }

    fn record(&self, plan: &Plan, pid: i32, seccomp: Option<seccomp::Kept>) -> Record {
        Record {
            oci_version: self.spec.version.clone(),
            id: self.args.id.clone(),
            pid,
            start_ticks: identity::start_ticks(pid),
            bundle: self.bundle.to_owned(),
            rootfs: self.rootfs.clone(),
            created: state::now(),
            cgroup: plan.cgroup.clone(),
            scope: None,
            shown: None,
            rdt: rdt_of(plan),
            own_pids: plan.namespaces.makes(Namespace::Pid),
            annotations: self.spec.annotations.clone().unwrap_or_default(),
            seccomp,
            memory_policy: self.spec.linux.as_ref().and_then(|l| l.memory_policy.clone()),
            hooks: plan.hooks.clone(),
        }
    }

    /// The pid file and the terminal; the master stays here when this process attends to it.
    fn hand_over(&self, pid: i32, master: Option<OwnedFd>) -> Result<Option<OwnedFd>, Error> {
        if let Some(path) = &self.args.pid_file {
            fs::write(path, pid.to_string()).map_err(Error::file("write", path))?;
        }
        if let Some(socket) = &self.args.pidfd_socket {
            terminal::send_pidfd(socket, pid)?;
        }
        match (&master, &self.args.console_socket) {
            (Some(fd), Some(socket)) if self.console == Console::Socket => {
                terminal::send(socket, fd.as_fd())?;
                Ok(None)
            }
            _ => {
                if let Some(master) = &master {
                    terminal::plain_newlines(master.as_fd());
                }
                Ok(master)
            }
        }
    }
}

/// What of resctrl is the container's alone.
fn rdt_of(plan: &Plan) -> Vec<PathBuf> {
    let made = |rdt| container::rdt::root().map(|root| container::rdt::made(&root, rdt));
    plan.rdt.as_ref().and_then(made).unwrap_or_default()
}

/// Whether the group or one above it that is there already is frozen: what is made in it would never say anything.
fn is_frozen(node: &Hierarchies, group: &str) -> bool {
    let above = Path::new(group).ancestors().filter(|path| path.parent().is_some());
    above.map(|path| path.to_string_lossy()).any(|path| node.is_frozen(&path).unwrap_or(false))
}

fn run_creator(creation: &Creation<'_>, keep: &[i32]) -> i32 {
    close_all_except(keep);
    match container::create(creation) {
        Ok(_) => 0,
        Err(error) => {
            channel::say_failed(creation.channel, &error);
            1
        }
    }
}

/// The numbers of stdio, of what is preserved for the program, and of our own.
pub(crate) fn kept<'a>(preserve: u32, ours: impl IntoIterator<Item = BorrowedFd<'a>>) -> Vec<i32> {
    let first = 3 + i32::try_from(preserve).unwrap_or(0);
    (0..first).chain(ours.into_iter().map(|fd| fd.as_raw_fd())).collect()
}

/// Our end and the new process' end of a report channel.
pub(crate) fn channel_pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let pair = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    let (ours, theirs) = pair.map_err(Error::system("socketpair"))?;
    channel::expect_credentials(ours.as_fd()).map_err(Error::system("SO_PASSCRED"))?;
    Ok((ours, theirs))
}

fn listen_until_ready(cli: &Cli, ours: BorrowedFd<'_>) -> Result<(i32, Option<OwnedFd>), Error> {
    let mut pid = 0;
    loop {
        match channel::listen(ours).map_err(Error::system("listen to init"))? {
            Report::Init { pid: own } => pid = own,
            Report::Ready { terminal, .. } => return Ok((pid, terminal)),
            Report::Failed(error) => return Err(error.into()),
            Report::Closed => {
                return Err(
                    container::Error::new("create", "init was killed while it was set up").into()
                );
            }
            Report::External { .. } | Report::Listener(_) => {}
            Report::Clamped(text) => log::warn(cli, &text),
        }
    }
}

/// Where `start` will knock.
fn listen_at(dir: &Path) -> Result<OwnedFd, Error> {
    let socket = seqpacket()?;
    let (address, _dir) = address(dir)?;
    bind(&socket, &address).map_err(Error::system("bind start.sock"))?;
    listen(&socket, 1).map_err(Error::system("listen on start.sock"))?;
    Ok(socket)
}

/// The channel to the init that waits for a start. It takes one caller, ever: from here on nobody else starts it.
fn knock(cli: &Cli, record: &Record) -> Result<OwnedFd, Error> {
    let dir = state::dir(cli, &record.id)?;
    let socket = seqpacket()?;
    let (address, _dir) = address(&dir)?;
    connect(&socket, &address).map_err(Error::system("connect to the waiting init"))?;
    let path = dir.join("start.sock");
    fs::remove_file(&path).map_err(Error::file("remove", &path))?;
    Ok(socket)
}

/// Lets the waiting init go; returns when it has become the program, or with the reason why not.
/// Then the poststart hooks run; when one fails, the container is ended.
fn go(cli: &Cli, record: &Record, channel: BorrowedFd<'_>) -> Result<(), Error> {
    tell(cli, record, channel)?;
    record.hooks.run(Moment::Poststart, record.pid, &record.bundle).inspect_err(|_| {
        let _ = signal(record.pid, libc::SIGKILL); // has ended already: just as well
    })?;
    Ok(())
}

fn tell(cli: &Cli, record: &Record, channel: BorrowedFd<'_>) -> Result<(), Error> {
    channel::say_start(channel).map_err(Error::system("tell init to start"))?;
    loop {
        match channel::listen(channel).map_err(Error::system("listen to init"))? {
            Report::Closed => return Ok(()),
            Report::Failed(error) => return Err(error.into()),
            Report::Clamped(text) => log::warn(cli, &text),
            Report::Listener(fd) => {
                if let Some(kept) = &record.seccomp {
                    kept.hand_over(record, Status::Created, record.pid, &fd).inspect_err(|_| {
                        let _ = signal(record.pid, libc::SIGKILL); // it waits for an answer for ever
                    })?;
                }
            }
            _ => {}
        }
    }
}

fn seqpacket() -> Result<OwnedFd, Error> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(Error::system("socket"))
}

/// Through the directory's descriptor: its path may be longer than a socket address.
fn address(dir: &Path) -> Result<(SocketAddrUnix, OwnedFd), Error> {
    let fd =
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| Error::file("open", dir)(e.into()))?;
    let path = format!("/proc/self/fd/{}/start.sock", fd.as_raw_fd());
    Ok((SocketAddrUnix::new(path).map_err(Error::system("socket address"))?, fd))
}
