//! The creator: makes the control group, opens what the host must open, and clones init.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::error::{At, Error};
use crate::hooks::Moment;
use crate::plan::{Namespace, Plan};
use crate::sources::{self, Sources};
use crate::sys::process::{CloneArgs, clone, close_copy};
use crate::{channel, init};

pub use crate::overlay::Upper;

/// One container to create.
#[derive(Debug)]
pub struct Creation<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    pub plan: &'a Plan,
    pub node: &'a cgroup::Hierarchies,
    pub rootfs: Rootfs,
    pub stdio: Stdio<'a>,
    pub program: Program<'a>,
    /// Joined instead of the network namespace that the plan names.
    pub netns: Option<BorrowedFd<'a>>,
    /// Compiled seccomp program.
    pub seccomp: Option<Vec<u8>>,
    pub shm: Option<SharedMemory>,
    /// Init's end of the report channel.
    pub channel: BorrowedFd<'a>,
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
}

/// A bind from `path` means the `/dev/shm` of this pause process.
#[derive(Debug, Clone)]
pub struct SharedMemory {
    pub path: PathBuf,
    pub pause_pid: i32,
}

/// Creates the container up to the point where init waits for start; init reports over the channel by itself.
/// Returns init's pid as this process sees it. The caller must have one thread and is left in changed namespaces:
/// it should end soon. On failure the control group may exist: the caller's clean-up removes it as after an exit.
pub fn create(c: &Creation<'_>) -> Result<i32, Error> {
    limit(c)?;
    let sources = sources::open_all(c)?;
    for (kind, fd) in &sources.joins {
        // A process cannot change its own pid namespace, only that of its children.
        if *kind == Namespace::Pid {
            crate::init::join(*kind, fd)?;
        }
    }
    let namespaces = c.plan.namespaces.new & !(Namespace::Cgroup as u64);
    let cgroup = sources.groups.born.as_ref().map(AsRawFd::as_raw_fd);
    let args = CloneArgs { namespaces, sibling: c.sibling, cgroup };
    let gate = Gate::new(c.plan)?;
    let pid = clone(args, || run_init(c, &sources, gate.as_ref()))
        .at("clone init", format!("clone3 with namespaces {namespaces:#x}"))?;
    match gate {
        None => Ok(pid),
        Some(gate) => gate.keep(c, pid).map(|()| pid),
    }
}

/// Where init waits for the hooks that run on the host.
#[derive(Debug)]
struct Gate {
    creator: OwnedFd,
    init: OwnedFd,
}

impl Gate {
    /// None when there are no such hooks.
    fn new(plan: &Plan) -> Result<Option<Self>, Error> {
        if plan.hooks.create_runtime.is_empty() {
            return Ok(None);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (creator, init) = socketpair(family, kind, SocketFlags::CLOEXEC, None)
            .at("createRuntime hook", "make a socket pair")?;
        Ok(Some(Self { creator, init }))
    }

    /// The creator's side: when init has come to the gate, the hooks run, and then it may pass.
    fn keep(self, c: &Creation<'_>, pid: i32) -> Result<(), Error> {
        drop(self.init);
        let mut byte = [0];
        if !matches!(
            rustix::io::retry_on_intr(|| rustix::io::read(&self.creator, &mut byte)),
            Ok(1)
        ) {
            return Ok(()); // init has failed on the way and has said so
        }
        let result = c.plan.hooks.run(Moment::CreateRuntime, pid, c.bundle);
        match &result {
            Ok(()) => drop(rustix::io::write(&self.creator, &byte)),
            // Before the gate closes, so that this is the reason that is heard first.
            Err(error) => channel::say_failed(c.channel, error),
        }
        result
    }

    /// Init's side.
    fn pass(&self) -> Result<(), Error> {
        const STAGE: &str = "createRuntime hook";
        close_copy(self.creator.as_fd());
        rustix::io::write(&self.init, b"?").at(STAGE, "tell the creator")?;
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.init, &mut byte)) {
            Ok(1) => Ok(()),
            _ => Err(Error::new(STAGE, "the creator gave up")),
        }
    }
}

fn run_init(c: &Creation<'_>, sources: &Sources, gate: Option<&Gate>) -> i32 {
    let error = init::run(c, sources, &|| gate.map_or(Ok(()), Gate::pass));
    channel::say_failed(c.channel.as_fd(), &error);
    1
}

/// Makes the group and writes its limits, so that init is born limited.
fn limit(c: &Creation<'_>) -> Result<(), Error> {
    let stage = |e: cgroup::Error| Error::new("create the cgroup", e.to_string());
    c.node.create(&c.plan.cgroup).map_err(stage)?;
    let r = &c.plan.resources;
    let settings = cgroup::limits::settings(r, c.node).map_err(stage)?;
    c.node.apply(&c.plan.cgroup, &settings).map_err(stage)?;
    match &r.devices {
        Some(rules) => c.node.restrict_devices(&c.plan.cgroup, rules).map_err(stage),
        None => Ok(()),
    }
}
