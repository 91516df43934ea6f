//! What a creator does with an order: read the bundle, plan, and make a container.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::plan::Namespace;
use container::{
    Creation, Error, Extras, Facts, Home, Layers, Plan, Program, Rootfs, Seccomp, SharedMemory,
    Spec, Start, Stdio, Upper, Word,
};
use protocol::{CreateContainer, CreateSandbox};

use crate::creator::Base;
use crate::{bundle, handler};

/// Makes one after another. Each time it says whether another one may be made by this process.
pub(crate) struct Maker<'a> {
    base: &'a Base<'a>,
    orders: BorrowedFd<'a>,
    home: Home,
    shm: Option<SharedMemory>,
    /// That of the group of the one before. Room for it there is from the beginning: what is allocated with an order and
    /// kept would keep the room of all that came with it.
    parent_group: String,
}

impl<'a> Maker<'a> {
    pub(crate) fn new(base: &'a Base<'a>, orders: BorrowedFd<'a>) -> Self {
        Self {
            base,
            orders,
            home: Home::default(),
            shm: base.shm.clone(),
            parent_group: String::with_capacity(libc::PATH_MAX as usize),
        }
    }

    pub(crate) fn sandbox(
        &mut self,
        ask: &CreateSandbox,
        mut fds: impl Iterator<Item = OwnedFd>,
        channel: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        let stdio = take_stdio(&mut fds)?;
        let netns = ask.has_netns.then(|| fds.next()).flatten();
        let bare = ask.has_mounts.then(|| fds.next()).flatten();
        self.make(&Job {
            id: &ask.id,
            bundle: Path::new(&ask.bundle),
            rootfs: Rootfs::Empty { shm_size: ask.shm_size },
            stdio: Stdio::Pipes(stdio.each_ref().map(AsFd::as_fd)),
            role: Role::Pause,
            trees: &[],
            netns: netns.as_ref().map(AsFd::as_fd),
            bare: bare.as_ref().map(AsFd::as_fd),
            seccomp: &ask.seccomp_bpf,
            handler: None,
            log_path: None,
            shm: None,
            channel,
            orders: self.orders,
        })
    }

    pub(crate) fn container(
        &mut self,
        ask: CreateContainer,
        mut fds: impl Iterator<Item = OwnedFd>,
        channel: BorrowedFd<'_>,
    ) -> Result<bool, Error> {
        let stdio = if ask.tty { None } else { Some(take_stdio(&mut fds)?) };
        let trees: Vec<_> = ask.trees.into_iter().map(PathBuf::from).zip(&mut fds).collect();
        let bare = ask.has_mounts.then(|| fds.next()).flatten();
        let rootfs = ask.rootfs.unwrap_or_default();
        let upper = (!rootfs.upper.is_empty())
            .then(|| Upper { upper: rootfs.upper.into(), work: rootfs.work.into() });
        let given = |text: &'_ str| (!text.is_empty()).then(|| PathBuf::from(text));
        let (handler, log_path) = (given(&ask.handler), given(&ask.log_path));
        self.make(&Job {
            id: &ask.id,
            bundle: Path::new(&ask.bundle),
            rootfs: Rootfs::Layers(Layers {
                lowers: rootfs.lowers.into_iter().map(PathBuf::from).collect(),
                upper,
                volatile: rootfs.volatile,
            }),
            stdio: match &stdio {
                Some(fds) => Stdio::Pipes(fds.each_ref().map(AsFd::as_fd)),
                None => Stdio::Terminal,
            },
            role: if ask.init { Role::Init } else { Role::Program },
            trees: &trees,
            netns: None,
            bare: bare.as_ref().map(AsFd::as_fd),
            seccomp: &ask.seccomp_bpf,
            handler: handler.as_deref(),
            log_path: log_path.as_deref(),
            shm: self.shm.clone(),
            channel,
            orders: self.orders,
        })
    }

    fn make(&mut self, job: &Job<'_>) -> Result<bool, Error> {
        let spec = bundle::specification(job.bundle)?;
        let seccomp = bundle::filter(job.seccomp)?;
        if let Some(path) = job.log_path {
            crate::log::touch(path).map_err(|e| {
                Error::new(
                    "open the log",
                    format!("open {}: {}", path.display(), container::error::words(&e.into())),
                )
            })?;
        }
        if let Some(binary) = job.handler {
            let group = handler::create(binary, job, &spec)?;
            Word::Made { hits: self.base.node.memory_hits_above(&group) }.say(self.orders)?;
            return Ok(false);
        }
        let plan = self.plan(job, &spec, seccomp.is_some())?;
        let goes_on = self.create(job, &plan, seccomp.as_ref())?;
        if goes_on {
            Word::Free.say(self.orders)?;
        }
        Ok(goes_on)
    }

    fn plan(&self, job: &Job<'_>, spec: &Spec, seccomp_compiled: bool) -> Result<Plan, Error> {
        let facts = Facts { id: job.id.to_owned(), seccomp_compiled, ..self.base.facts.clone() };
        let mut plan = container::plan(spec, &facts)?;
        if job.role == Role::Pause {
            // Pause sees nothing but its own empty root.
            plan.mounts.clear();
            plan.masked.clear();
            plan.readonly.clear();
        }
        Ok(plan)
    }

    fn create(
        &mut self,
        job: &Job<'_>,
        plan: &Plan,
        seccomp: Option<&Seccomp>,
    ) -> Result<bool, Error> {
        let own_pids = plan.namespaces.new & Namespace::Pid as u64 != 0;
        Word::Planned { cgroup: plan.cgroup.clone(), own_pids }.say(self.orders)?;
        let (parent, _) = plan.cgroup.rsplit_once('/').unwrap_or_default();
        let creation = Creation {
            id: job.id,
            bundle: job.bundle,
            plan,
            node: self.base.node,
            has_sibling: self.parent_group == parent,
            rootfs: job.rootfs.clone(),
            stdio: job.stdio,
            program: match job.role {
                Role::Pause => Program::Sealed(self.base.image),
                Role::Init => Program::Init(self.base.image),
                Role::Program => Program::Args,
            },
            trees: job.trees,
            netns: job.netns,
            bare: job.bare,
            userns: None,
            seccomp,
            shm: job.shm.clone(),
            channel: job.channel,
            words: Some(self.orders),
            start: Start::Channel,
            sibling: true,
            extras: Extras::default(),
        };
        let pid = container::create(&creation)?;
        self.parent_group.clear();
        self.parent_group.push_str(parent);
        if let (Role::Pause, Rootfs::Empty { shm_size: 1.. }) = (job.role, &job.rootfs) {
            self.shm = Some(SharedMemory { path: job.bundle.join("shm"), pause_pid: pid });
        }
        Ok(self.home.come_back(&creation))
    }
}

fn take_stdio(fds: &mut impl Iterator<Item = OwnedFd>) -> Result<[OwnedFd; 3], Error> {
    let first: Vec<_> = fds.take(3).collect();
    first
        .try_into()
        .map_err(|_| Error::new("create", "the descriptors of its stdio did not arrive"))
}

/// What is to be made.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: Rootfs,
    pub(crate) stdio: Stdio<'a>,
    role: Role,
    /// Mounts that were made elsewhere, by destination.
    trees: &'a [(PathBuf, OwnedFd)],
    netns: Option<BorrowedFd<'a>>,
    bare: Option<BorrowedFd<'a>>,
    seccomp: &'a str,
    /// An external runtime that makes the container instead of this one.
    handler: Option<&'a Path>,
    /// Opened once here, so that a log that cannot be written fails the creation.
    log_path: Option<&'a Path>,
    pub(crate) shm: Option<SharedMemory>,
    pub(crate) channel: BorrowedFd<'a>,
    pub(crate) orders: BorrowedFd<'a>,
}

/// What the first process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Built in, instead of the specification's command.
    Pause,
    /// Built in, and the specification's command its child.
    Init,
    Program,
}
