//! The creator: opens what the host must open, clones init, and makes the control group.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::channel::Word;
use crate::error::{At, Error};
use crate::gate::Gate;
use crate::groups::Groups;
use crate::identity::start_ticks;
use crate::mapper::Mapper;
use crate::plan::{Namespace, Plan};
use crate::sources::{self, Sources, View};
use crate::sys::beside::beside;
use crate::sys::lend::{Born, LENDS, lend};
use crate::sys::process::{CloneArgs, NEW_LISTENER, clone, let_go};
use crate::users::Users;
use crate::{channel, groups, init, process, rdt};

pub use crate::overlay::Upper;

/// One container to create.
#[derive(Debug)]
pub struct Creation<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub plan: &'a Plan,
    pub node: &'a cgroup::Hierarchies,
    /// The calling process has created another one before, in a group beside it.
    pub has_sibling: bool,
    pub rootfs: Rootfs,
    pub stdio: Stdio<'a>,
    pub program: Program<'a>,
    /// Joined instead of the network namespace that the plan names.
    pub netns: Option<BorrowedFd<'a>>,
    /// Joined instead of the user namespace that the plan names.
    pub userns: Option<BorrowedFd<'a>>,
    pub seccomp: Option<&'a Seccomp>,
    pub shm: Option<SharedMemory>,
    /// A mount namespace with nothing in it: where it can, the container starts from a copy of it, not of the host's many
    /// mounts.
    pub bare: Option<BorrowedFd<'a>>,
    /// Detached mounts that take the place of the sources of bind mounts, by destination.
    pub trees: &'a [(PathBuf, OwnedFd)],
    /// Init's end of the report channel.
    pub channel: BorrowedFd<'a>,
    /// Where a creator that has nothing else to do says its [`Word`]s; without it init says itself who it is, by `channel`.
    pub words: Option<BorrowedFd<'a>>,
    pub start: Start<'a>,
    /// Make init a sibling of the caller, child of the caller's parent.
    pub sibling: bool,
    pub extras: Extras,
}

/// How a waiting init is told to go on.
#[derive(Debug, Clone, Copy)]
pub enum Start<'a> {
    /// By the report channel, whose other end stays open.
    Channel,
    /// By whoever connects to this listening SEQPACKET socket first; that connection becomes the report channel.
    Listener(BorrowedFd<'a>),
}

/// What only command line callers ask for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Extras {
    /// Descriptors 3 to 3 + n are for the program.
    pub preserve_fds: u32,
    /// Stay in the caller's session keyring.
    pub keep_keyring: bool,
    /// Move the root over that of the mount namespace instead of pivoting, for hosts that run from their initramfs.
    pub no_pivot: bool,
}

/// A compiled seccomp program and how to load it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seccomp {
    /// An array of `struct sock_filter`, 8 bytes each.
    pub program: Vec<u8>,
    /// SECCOMP_FILTER_FLAG_* bits. With NEW_LISTENER the listener comes by `Report::Listener`, just before exec.
    pub flags: u32,
}

impl Seccomp {
    pub(crate) fn has_listener(&self) -> bool {
        self.flags & NEW_LISTENER != 0
    }
}

#[derive(Debug, Clone)]
pub enum Rootfs {
    Layers(Layers),
    /// A directory used as it is.
    Directory(PathBuf),
    /// An empty read-only root; `/dev/shm` of so many bytes when not 0. For the pause process.
    Empty {
        shm_size: u64,
    },
}

/// Layers top first; no upper means read-only.
#[derive(Debug, Clone)]
pub struct Layers {
    pub lowers: Vec<PathBuf>,
    pub upper: Option<Upper>,
    /// Skip all syncing: the data dies with the node.
    pub volatile: bool,
}

impl Layers {
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.lowers.iter().chain(self.upper.iter().flat_map(|u| [&u.upper, &u.work]))
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    Pipes([BorrowedFd<'a>; 3]),
    /// Init makes a pseudo-terminal and sends its master with `Ready`.
    Terminal,
}

/// What init becomes.
#[derive(Debug, Clone, Copy)]
pub enum Program<'a> {
    /// `args[0]`, looked up in the container.
    Args,
    /// An open executable: the built-in pause.
    Sealed(BorrowedFd<'a>),
    /// An open executable that is told what to run: see `INIT_NAME`.
    Init(BorrowedFd<'a>),
}

/// A bind from `path` means the `/dev/shm` of this pause process.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    pub path: PathBuf,
    pub pause_pid: i32,
}

impl Creation<'_> {
    /// Whether the process that creates it stays what it is: it joins nothing, takes on nothing that init is to
    /// inherit, and keeps no hooks.
    pub fn spares_its_creator(&self) -> bool {
        let joins = !self.plan.namespaces.join.is_empty() || self.netns.is_some();
        !joins && self.plan.process.oom_score_adj.is_none() && !self.marks_its_creator()
    }

    /// Whether that process takes on what it cannot take back.
    pub(crate) fn marks_its_creator(&self) -> bool {
        let plan = self.plan;
        plan.process.apparmor.is_some()
            || plan.process.selinux.is_some()
            || plan.rdt.is_some()
            || plan.namespaces.has(Namespace::User)
            || Gate::is_needed(plan)
    }
}

/// Creates the container up to the point where init waits for start; init reports over the channel by itself.
/// Returns init's pid as this process sees it; with `words` it may return only when init has been started, and does not
/// hold the channel until then. The caller must have one thread, and unless [`Creation::spares_its_creator`] it is left in
/// changed namespaces: it should end soon or come back by [`crate::Home`]. On failure the control group may exist: the
/// caller's clean-up removes it as after an exit.
pub fn create(c: &Creation<'_>) -> Result<i32, Error> {
    let users = Users::of(c)?;
    let groups = Groups::new(c, users.as_ref())?;
    match c.words {
        Some(words) if groups.beside && is_lendable(c.plan) => lending(c, &groups, words),
        _ => copying(c, users, &groups),
    }
}

/// Init has a copy of this process.
fn copying(c: &Creation<'_>, users: Option<Users>, groups: &Groups) -> Result<i32, Error> {
    let mut ready = Ready::new(c, users.as_ref())?;
    let args = ready.clone_args(c, groups);
    let pid = clone(args, || ready.run_init(c, groups)).at("clone init", args)?;
    if let Some(words) = c.words {
        say_born(pid, words)?;
    }
    if groups.beside {
        groups.make(c)?;
    }
    let passed = ready.gate.take().map_or(Ok(()), |gate| gate.open(pid));
    // After the gate, whose keeper has copies.
    ready.sources.mapper.take().into_iter().for_each(Mapper::end);
    passed?;
    c.words.map_or(Ok(()), |words| say_made(c, words))?;
    Ok(pid)
}

/// Init works in this process' memory: a copy of it costs a twentieth of a container's life in page tables and faults. This
/// thread waits until init has become its program, and another one makes the groups. Where these are made beside init,
/// there is neither a gate nor a mapper.
fn lending(c: &Creation<'_>, groups: &Groups, words: BorrowedFd<'_>) -> Result<i32, Error> {
    let born = Born::default();
    let make = || {
        let made = groups.make(c);
        let Some(pid) = born.wait() else { return made };
        say_born(pid, words)?;
        made?;
        say_made(c, words)?;
        // Its end is what tells that init has become its program.
        let_go(c.channel);
        Ok(())
    };
    let init = || {
        let ready = Ready::new(c, None)?;
        let args = ready.clone_args(c, groups);
        lend(args, &born, || ready.run_init(c, groups)).at("clone init", args)
    };
    let work = || init().inspect_err(|_| born.nobody());
    let (became, made) = beside(make, work).at(
        groups::STAGE,
        "start a thread for it (too many processes in the shim's group or on the node?)",
    )?;
    made.unwrap_or_else(|_| Err(Error::new(groups::STAGE, "its thread panicked")))?;
    match (became?, born.wait()) {
        (true, Some(pid)) => Ok(pid),
        _ => Err(Error::new("start", "init ended before it became its program")),
    }
}

fn is_lendable(plan: &Plan) -> bool {
    let namespaces = &plan.namespaces;
    let joins_clocks = namespaces.join.iter().any(|(kind, _)| *kind == Namespace::Time);
    LENDS && !joins_clocks && !namespaces.makes(Namespace::Time)
}

fn say_born(pid: i32, words: BorrowedFd<'_>) -> Result<(), Error> {
    Word::Born { pid, start_ticks: start_ticks(pid) }.say(words)
}

fn say_made(c: &Creation<'_>, words: BorrowedFd<'_>) -> Result<(), Error> {
    // The pod's own limit counts the others of the pod, too: only what is added from here on matters.
    Word::Made { hits: c.node.memory_hits_above(&c.plan.cgroup) }.say(words)
}

/// What the host has to give, opened, and the creator where init is to come from.
struct Ready {
    sources: Sources,
    gate: Option<Gate>,
    own_users: bool,
}

impl Ready {
    fn new(c: &Creation<'_>, users: Option<&Users>) -> Result<Self, Error> {
        let sources = sources::open_all(c, users)?;
        if let Stdio::Pipes(fds) = c.stdio {
            let uid = c.plan.process.uid;
            own_pipes(&fds, users.map_or(Some(uid), |u| u.mappings.host_uid(uid)));
        }
        // Hooks run on the host, so their keeper must be made before this process goes elsewhere.
        let gate = Gate::new(c)?;
        // Written here, where /proc is the host's and this process may: init inherits it.
        process::host_settings(&c.plan.process, c.channel)?;
        if let Some(class) = &c.plan.rdt {
            rdt::enter(rdt::root().as_deref(), class)?;
        }
        for (kind, fd) in &sources.joins {
            init::join(*kind, fd)?;
        }
        // Last: from here on this process has no power over the host's objects but those it has opened.
        if let Some(users) = users {
            if let View::BareOfUsers(bare, whole) = &sources.view {
                init::join(Namespace::Mount, bare)?;
                whole.show()?;
            }
            init::join(Namespace::User, &users.fd)?;
        }
        Ok(Self { sources, gate, own_users: users.is_some() })
    }

    fn clone_args(&self, c: &Creation<'_>, groups: &Groups) -> CloneArgs {
        let mut by_init =
            Namespace::Cgroup as u64 | Namespace::Time as u64 | Namespace::User as u64;
        if matches!(self.sources.view, View::Bare(_)) {
            by_init |= Namespace::Mount as u64;
        }
        let namespaces = c.plan.namespaces.new & !by_init;
        let cgroup = groups.born.as_ref().map(AsRawFd::as_raw_fd);
        CloneArgs { namespaces, sibling: c.sibling, cgroup }
    }

    fn run_init(&self, c: &Creation<'_>, groups: &Groups) -> i32 {
        let gate = || self.gate.as_ref().map_or(Ok(()), Gate::pass);
        let error = init::run(c, (&self.sources, groups), self.own_users, &gate);
        channel::say_failed(c.channel.as_fd(), &error);
        1
    }
}

/// Non-root users must be able to reopen `/dev/stderr`, which is the pipe. Best effort: it may be a file of others.
pub(crate) fn own_pipes(fds: &[BorrowedFd<'_>; 3], uid: Option<u32>) {
    let uid = uid.map(rustix::fs::Uid::from_raw).filter(|uid| !uid.is_root());
    let Some(uid) = uid else { return };
    for fd in fds {
        let fifo = rustix::fs::fstat(fd).is_ok_and(|s| {
            rustix::fs::FileType::from_raw_mode(s.st_mode) == rustix::fs::FileType::Fifo
        });
        if fifo {
            let _ = rustix::fs::fchown(fd, Some(uid), None);
        }
    }
}
