//! What the forked creators do: read the bundle, plan, and make or enter a container. They exit at once, so that
//! nothing of it stays in the shim's memory.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use container::sys::process::close_all_except;
use container::{
    Creation, Entry, Error, Extras, Facts, Program, Rootfs, Seccomp, SharedMemory, Spec, Start,
    Stdio, channel,
};

use crate::handler::{self, Handler};

/// The longest `config.json` that is read: a specification with every list at its limits stays below.
const CONFIG_MAX: u64 = 16 << 20;
/// The longest seccomp program: the kernel takes 4096 instructions of 8 bytes.
const SECCOMP_MAX: u64 = 4096 * 8;

/// What a creator of a container or sandbox is given.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: Rootfs,
    pub(crate) stdio: Stdio<'a>,
    /// Our own sealed image, for what is built into it.
    pub(crate) image: BorrowedFd<'a>,
    pub(crate) role: Role,
    /// Mounts that were made elsewhere, by destination.
    pub(crate) trees: &'a [(PathBuf, OwnedFd)],
    pub(crate) netns: Option<BorrowedFd<'a>>,
    pub(crate) bare: Option<BorrowedFd<'a>>,
    pub(crate) seccomp: &'a str,
    /// An external runtime that makes the container instead of this one.
    pub(crate) handler: Option<&'a Path>,
    /// Opened once here, so that a log that cannot be written fails the creation.
    pub(crate) log_path: Option<&'a Path>,
    pub(crate) shm: Option<SharedMemory>,
    pub(crate) node: &'a cgroup::Hierarchies,
    pub(crate) facts: &'a Facts,
    pub(crate) channel: BorrowedFd<'a>,
}

/// What the first process is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Built in, instead of the specification's command.
    Pause,
    /// Built in, and the specification's command its child.
    Init,
    Program,
}

/// Runs in the forked child; its result is the child's exit code.
pub(crate) fn create(job: Job<'_>) -> i32 {
    let fds = [Some(job.channel), job.netns, job.bare, Some(job.image)].into_iter().flatten();
    keep_only(job.stdio, fds.chain(job.trees.iter().map(|(_, tree)| tree.as_fd())));
    let channel = job.channel;
    report(channel, try_create(job))
}

fn try_create(job: Job<'_>) -> Result<(), Error> {
    let text = read(&job.bundle.join("config.json"), CONFIG_MAX, "read the specification")?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|e| Error::new("read the specification", format!("config.json: {e}")))?;
    let seccomp = filter(job.seccomp)?;
    let facts =
        Facts { id: job.id.to_owned(), seccomp_compiled: seccomp.is_some(), ..job.facts.clone() };
    if let Some(path) = job.log_path {
        crate::log::touch(path).map_err(|e| {
            Error::new(
                "open the log",
                format!("open {}: {}", path.display(), container::error::words(&e.into())),
            )
        })?;
    }
    if let Some(binary) = job.handler {
        return handler::create(binary, &job, &spec);
    }
    let mut plan = container::plan(&spec, &facts)?;
    if job.role == Role::Pause {
        // Pause sees nothing but its own empty root.
        plan.mounts.clear();
        plan.masked.clear();
        plan.readonly.clear();
    }
    let own_pids = plan.namespaces.new & container::plan::Namespace::Pid as u64 != 0;
    channel::say_planned(job.channel, &plan.cgroup, own_pids)?;
    let creation = Creation {
        id: job.id,
        bundle: job.bundle,
        plan: &plan,
        node: job.node,
        rootfs: job.rootfs,
        stdio: job.stdio,
        program: match job.role {
            Role::Pause => Program::Sealed(job.image),
            Role::Init => Program::Init(job.image),
            Role::Program => Program::Args,
        },
        trees: job.trees,
        netns: job.netns,
        bare: job.bare,
        userns: None,
        seccomp: seccomp.as_ref(),
        shm: job.shm,
        channel: job.channel,
        start: Start::Channel,
        sibling: true,
        extras: Extras::default(),
    };
    container::create(&creation).map(|_| ())
}

/// Runs in the forked child: one call of an external runtime about a container that exists.
pub(crate) fn call(h: &Handler<'_>, verb: &str, options: &[&str], channel: BorrowedFd<'_>) -> i32 {
    close_all_except(&[0, 1, 2, channel.as_raw_fd()]);
    report(channel, h.call(verb, options))
}

/// What a creator of an exec'd process is given.
#[derive(Debug)]
pub(crate) struct ExecJob<'a> {
    pub(crate) init_pid: i32,
    pub(crate) cgroup: &'a str,
    pub(crate) tracker: &'a str,
    pub(crate) process_json: &'a [u8],
    /// The external runtime that made the container.
    pub(crate) handler: Option<Handler<'a>>,
    pub(crate) seccomp: &'a str,
    pub(crate) stdio: Stdio<'a>,
    pub(crate) node: &'a cgroup::Hierarchies,
    pub(crate) facts: &'a Facts,
    pub(crate) channel: BorrowedFd<'a>,
}

/// Runs in the forked child; its result is the child's exit code.
pub(crate) fn enter(job: &ExecJob<'_>) -> i32 {
    keep_only(job.stdio, [job.channel].into_iter());
    let result = match &job.handler {
        Some(handler) => handler::exec(handler, job),
        None => try_enter(job),
    };
    report(job.channel, result)
}

fn try_enter(job: &ExecJob<'_>) -> Result<(), Error> {
    let process: container::spec::Process = serde_json::from_slice(job.process_json)
        .map_err(|e| Error::new("read the process", format!("process object: {e}")))?;
    let process = container::plan::plan_process(&process, job.facts)?;
    let seccomp = filter(job.seccomp)?;
    let name = Path::new(job.tracker)
        .file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default();
    job.node
        .create_tracker(job.cgroup, &name)
        .map_err(|e| Error::new("create the cgroup of the process", e.to_string()))?;
    let entry = Entry {
        init_pid: job.init_pid,
        process: &process,
        node: job.node,
        cgroup: job.cgroup,
        tracker: Some(job.tracker),
        below: &[],
        stdio: job.stdio,
        seccomp: seccomp.as_ref(),
        memory_policy: None,
        channel: job.channel,
        sibling: true,
        preserve_fds: 0,
    };
    container::enter(&entry).map(|_| ())
}

/// The copies of the shim's other descriptors go first: nothing of other containers may reach this one.
fn keep_only<'a>(stdio: Stdio<'a>, others: impl Iterator<Item = BorrowedFd<'a>>) {
    let mut keep: Vec<_> = others.map(|f| f.as_raw_fd()).chain([0, 1, 2]).collect();
    if let Stdio::Pipes(fds) = stdio {
        keep.extend(fds.map(|f| f.as_raw_fd()));
    }
    close_all_except(&keep);
}

fn report(channel: BorrowedFd<'_>, result: Result<(), Error>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(error) => {
            channel::say_failed(channel, &error);
            1
        }
    }
}

fn filter(path: &str) -> Result<Option<Seccomp>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let program = read(&PathBuf::from(path), SECCOMP_MAX, "seccomp")?;
    if program.is_empty() || program.len() % 8 != 0 {
        return Err(Error::new(
            "seccomp",
            format!("{path}: {} bytes are no BPF program", program.len()),
        ));
    }
    // Kernels before 5.16 (those of Debian 11 and Ubuntu 22.04) slow a filtered process down by mitigations that others
    // may choose by prctl; other runtimes do not ask for that either.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    Ok(Some(Seccomp { program, flags }))
}

fn read(path: &Path, max: u64, stage: &str) -> Result<Vec<u8>, Error> {
    let fail = |e: std::io::Error| {
        Error::new(stage, format!("open {}: {}", path.display(), container::error::words(&e)))
    };
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len().min(max);
    let mut bytes = Vec::with_capacity(length as usize + 1); // all of it, and its end, by one allocation
    file.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > max {
        return Err(Error::new(stage, format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(bytes)
}
