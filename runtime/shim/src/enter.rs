//! What the forked helpers of the shim do about a container that exists: enter it, or call its external runtime. They exit
//! at once, so that nothing of it stays in the shim's memory.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use container::sys::arena::Arena;
use container::sys::process::close_all_except;
use container::{Entry, Error, Facts, Stdio, channel};

use crate::bundle;
use crate::handler::{self, Handler};

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
    Arena::begin();
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
    let seccomp = bundle::filter(job.seccomp)?;
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
