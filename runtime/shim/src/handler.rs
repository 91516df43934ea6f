//! An external OCI runtime, driven by its command line: what the forked helpers of the shim do with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio as Standard};
use std::time::Duration;

use container::sys::process::reset_signals;
use container::{Error, Rootfs, Spec, Stdio, channel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::creator::{ExecJob, Job};

/// One call of the runtime takes tens of milliseconds; this long means that it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the runtime's log only so much is searched for its complaint.
const LOG_MAX: u64 = 64 * 1024;
/// Where the runtime finds its own helpers; nothing else of the daemon's environment is its business.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The runtime and whose container it is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handler<'a> {
    pub(crate) binary: &'a Path,
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
}

/// Up to the point where init waits for `start`. Leaves this process in a mount namespace of its own.
pub(crate) fn create(binary: &Path, job: &Job<'_>, spec: &Spec) -> Result<(), Error> {
    let (Rootfs::Layers(layers), Stdio::Pipes(fds)) = (&job.rootfs, job.stdio) else {
        return Err(Error::new("create", "an external runtime takes layers and pipes only"));
    };
    let linux = spec.linux.as_ref();
    let group = linux.and_then(|l| l.cgroups_path.as_deref());
    let group = container::plan::cgroup_path(group, job.id)?;
    let new_pids = |n: &container::spec::Namespace| {
        n.kind == "pid" && n.path.as_ref().is_none_or(|p| p.as_os_str().is_empty())
    };
    let own_pids = linux.is_some_and(|l| l.namespaces.iter().flatten().any(new_pids));
    channel::say_planned(job.channel, &group, own_pids)?;
    let handler = Handler { binary, id: job.id, bundle: job.bundle };
    let mut command = handler.command("create")?;
    container::external::prepare(job.bundle, layers, job.shm.as_ref())?;
    let pid_file = job.bundle.join("init.pid");
    command.arg("--bundle").arg(job.bundle).arg("--pid-file").arg(&pid_file).arg(job.id);
    attach(&mut command, fds)?;
    handler.run(command, "create")?;
    let pid = std::fs::read_to_string(&pid_file).ok().and_then(|t| t.trim().parse().ok());
    let pid = pid.ok_or_else(|| {
        Error::new("create", format!("{} left no pid in {}", binary.display(), pid_file.display()))
    })?;
    channel::say_external(job.channel, pid)?;
    channel::say_ready(job.channel, None)
}

/// Becomes `exec` of the runtime, whose exit code is that of the process. Returns only to say why not.
pub(crate) fn exec(handler: &Handler<'_>, job: &ExecJob<'_>) -> Error {
    match try_exec(handler, job) {
        Ok(mut command) => {
            let e = command.exec();
            Error::new(
                "exec",
                format!("{}: {}", handler.binary.display(), container::error::words(&e)),
            )
        }
        Err(e) => e,
    }
}

fn try_exec(handler: &Handler<'_>, job: &ExecJob<'_>) -> Result<Command, Error> {
    let Stdio::Pipes(fds) = job.stdio else {
        return Err(Error::new("exec", "an external runtime takes pipes only"));
    };
    let failed = |e: Errno| Error::new("exec", container::error::words(&e.into()));
    rustix::process::setsid().map_err(failed)?;
    channel::say_init(job.channel)?;
    let tracker = Path::new(job.tracker).file_name().unwrap_or_default();
    job.node
        .create_tracker(job.cgroup, &tracker.to_string_lossy())
        .map_err(|e| Error::new("create the cgroup of the process", e.to_string()))?;
    // Not close-on-exec: the runtime opens it by its number.
    let process = memfd_create("process.json", MemfdFlags::empty()).map_err(failed)?;
    let mut rest = job.process_json;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&process, rest).map_err(failed)?..];
    }
    let mut group = OsString::new();
    if let Some(controller) = job.node.tracking_controller() {
        group.push(format!("{controller}:"));
    }
    group.push(tracker);
    let mut command = handler.command("exec")?;
    command.arg("--cgroup").arg(group);
    command.arg("--process").arg(format!("/proc/self/fd/{}", process.as_raw_fd()));
    command.arg(handler.id);
    attach(&mut command, fds)?;
    std::mem::forget(process); // stays open across exec
    reset_signals();
    Ok(command)
}

impl Handler<'_> {
    /// `start ID` or `delete --force ID`.
    pub(crate) fn call(&self, verb: &str, options: &[&str]) -> Result<(), Error> {
        let mut command = self.command(verb)?;
        command.args(options).arg(self.id);
        command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null());
        self.run(command, verb)
    }

    /// The runtime keeps its state in the pod's directory, our working directory, and dies with the pod.
    fn command(&self, verb: &str) -> Result<Command, Error> {
        let pod = std::env::current_dir()
            .map_err(|e| Error::new(verb, format!("find the pod's directory: {e}")))?;
        let mut command = Command::new(self.binary);
        command.env_clear().env("PATH", SEARCH_PATH).current_dir(self.bundle);
        command.arg("--root").arg(pod.join("handler"));
        command.arg("--log").arg(self.log()).arg("--log-format").arg("json").arg(verb);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("handler.log")
    }

    fn run(&self, mut command: Command, verb: &str) -> Result<(), Error> {
        let _ = std::fs::remove_file(self.log()); // only the complaint of this call is of interest
        reset_signals();
        let name = self.binary.display();
        let failed = |e: std::io::Error| {
            Error::new(verb, format!("run {name}: {}", container::error::words(&e)))
        };
        let mut child = command.spawn().map_err(failed)?;
        match wait(&mut child).map_err(failed)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::new(verb, format!("{name}: {}", self.complaint(status)))),
            None => {
                let seconds = PATIENCE.as_secs();
                Err(Error::new(verb, format!("{name} did not end within {seconds} s; killed")))
            }
        }
    }

    /// The last error the runtime wrote to its log.
    fn complaint(&self, status: ExitStatus) -> String {
        let mut text = String::new();
        if let Ok(file) = File::open(self.log()) {
            let _ = file.take(LOG_MAX).read_to_string(&mut text);
        }
        last_error(&text).unwrap_or_else(|| format!("{status}, and no reason in its log"))
    }
}

/// `None` when it did not end in time and was killed.
fn wait(child: &mut Child) -> Result<Option<ExitStatus>, std::io::Error> {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience))? > 0;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    Ok(ended.then_some(status))
}

fn last_error(log: &str) -> Option<String> {
    let lines = log.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let mut errors = lines.filter(|l| l["level"] == "error" || l["level"] == "fatal");
    errors.next_back().and_then(|l| l["msg"].as_str().map(str::to_owned))
}

fn attach(command: &mut Command, fds: [BorrowedFd<'_>; 3]) -> Result<(), Error> {
    let own = |fd: BorrowedFd<'_>| {
        let copy = fd.as_fd().try_clone_to_owned();
        copy.map(Standard::from).map_err(|e| Error::new("set up stdio", e.to_string()))
    };
    let [stdin, stdout, stderr] = fds;
    command.stdin(own(stdin)?).stdout(own(stdout)?).stderr(own(stderr)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error_in_the_log_whatever_else_is_there() {
        let log = "{\"level\":\"error\",\"msg\":\"first\"}\nnoise\n{\"level\":\"error\",\"msg\":\"last\"}\n\
            {\"level\":\"info\",\"msg\":\"bye\"}\n";
        assert_eq!(last_error(log).as_deref(), Some("last"));
        assert_eq!(last_error(""), None);
    }
}
