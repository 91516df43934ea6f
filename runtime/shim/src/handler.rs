//! An external OCI runtime, driven by its command line: what the forked helpers of the shim do with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio as Standard};
use std::time::Duration;

use cgroup::unit::Unit;
use container::sys::process::reset_signals;
use container::{Error, Rootfs, Spec, Stdio, Word, channel};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::clamp;
use crate::console::Console;
use crate::enter::ExecJob;
use crate::maker::Job;
use crate::start::note;

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

/// Up to the point where init waits for `start`. Leaves this process in a mount namespace of its own. Returns the
/// container's group.
pub(crate) fn create(binary: &Path, job: &Job<'_>, spec: &Spec) -> Result<String, Error> {
    let Rootfs::Layers(layers) = &job.rootfs else {
        return Err(Error::new("create", "an external runtime takes layers only"));
    };
    let linux = spec.linux.as_ref();
    let path = linux.and_then(|l| l.cgroups_path.as_deref());
    let unit = path.filter(|path| Unit::is_form(path)).map(Unit::parse).transpose();
    let unit = unit.map_err(|e| Error::new("create the cgroup", e.to_string()))?;
    let group = match &unit {
        Some(unit) => unit.group(),
        None => container::plan::cgroup_path(path, job.id)?,
    };
    let new_pids = |n: &container::spec::Namespace| {
        n.kind == "pid" && n.path.as_ref().is_none_or(|p| p.as_os_str().is_empty())
    };
    let own_pids = linux.is_some_and(|l| l.namespaces.iter().flatten().any(new_pids));
    Word::Planned { cgroup: group.clone(), own_pids }.say(job.orders)?;
    let handler = Handler { binary, id: job.id, bundle: job.bundle };
    let log = handler.log();
    let by_systemd: &[&str] = if unit.is_some() { &["--systemd-cgroup"] } else { &[] };
    let mut command = handler.command(by_systemd, "create", &log)?;
    clamp_config(job.bundle)?;
    let console = match job.stdio {
        Stdio::Pipes(_) => None,
        Stdio::Terminal => Some(Console::listen(job.bundle, "console.sock")?),
    };
    let label = linux.and_then(|l| l.mount_label.as_deref()).filter(|label| !label.is_empty());
    container::external::prepare(job.bundle, layers, job.shm.as_ref(), label)?;
    let pid_file = job.bundle.join("init.pid");
    command.arg("--bundle").arg(job.bundle).arg("--pid-file").arg(&pid_file);
    set_stdio(&mut command, job.stdio, console.as_ref())?;
    command.arg(job.id);
    handler.run(command, "create", &log)?;
    let pid = std::fs::read_to_string(&pid_file).ok().and_then(|t| t.trim().parse().ok());
    let pid = pid.ok_or_else(|| {
        Error::new("create", format!("{} left no pid in {}", binary.display(), pid_file.display()))
    })?;
    channel::say_external(job.channel, pid)?;
    let master = console.map(|it| it.receive()).transpose()?;
    channel::say_ready(job.channel, master.as_ref().map(AsFd::as_fd))?;
    Ok(group)
}

/// Starts a process by `exec` of the runtime, which leaves it to us: what it leaves behind when it has ended is given to
/// this process first, and to the shim, which waits for it, only after the shim was told of it.
pub(crate) fn exec(handler: &Handler<'_>, job: &ExecJob<'_>) -> Result<(), Error> {
    let failed = |e: Errno| Error::new("exec", container::error::words(&e.into()));
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(failed)?;
    let tracker = Path::new(job.tracker).file_name().unwrap_or_default();
    let name = tracker.to_string_lossy();
    job.node
        .create_tracker(job.cgroup, &name)
        .map_err(|e| Error::new("create the cgroup of the process", e.to_string()))?;
    // Not close-on-exec: the runtime opens it by its number.
    let process = memfd_create("process.json", MemfdFlags::empty()).map_err(failed)?;
    let terminal = matches!(job.stdio, Stdio::Terminal);
    let json = with_terminal(job.process_json, terminal)?;
    let mut rest = json.as_slice();
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&process, rest).map_err(failed)?..];
    }
    let mut group = OsString::new();
    if let Some(controller) = job.node.tracking_controller() {
        group.push(format!("{controller}:"));
    }
    group.push(tracker);
    let log = handler.bundle.join(format!("{name}.log"));
    let pid_file = handler.bundle.join(format!("{name}.pid"));
    let mut command = handler.command(&[], "exec", &log)?;
    command.arg("--detach").arg("--pid-file").arg(&pid_file).arg("--cgroup").arg(group);
    command.arg("--process").arg(format!("/proc/self/fd/{}", process.as_raw_fd()));
    let console = match terminal {
        false => None,
        true => Some(Console::listen(handler.bundle, &format!("{name}.sock"))?),
    };
    set_stdio(&mut command, job.stdio, console.as_ref())?;
    command.arg(handler.id);
    let ran = handler.run(command, "exec", &log);
    let pid = std::fs::read_to_string(&pid_file).ok().and_then(|t| t.trim().parse().ok());
    for file in [&log, &pid_file] {
        let _ = std::fs::remove_file(file);
    }
    ran?;
    let pid =
        pid.ok_or_else(|| Error::new("exec", format!("{} left no pid", handler.binary.display())))?;
    channel::say_external(job.channel, pid)?;
    match console {
        None => Ok(()),
        Some(console) => channel::say_ready(job.channel, Some(console.receive()?.as_fd())),
    }
}

impl Handler<'_> {
    /// `start ID` or `delete --force ID`.
    pub(crate) fn call(&self, verb: &str, options: &[&str]) -> Result<(), Error> {
        let log = self.log();
        let mut command = self.command(&[], verb, &log)?;
        command.args(options).arg(self.id);
        command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null());
        self.run(command, verb, &log)
    }

    /// The runtime keeps its state in the pod's directory, our working directory, and dies with the pod.
    fn command(&self, options: &[&str], verb: &str, log: &Path) -> Result<Command, Error> {
        let pod = std::env::current_dir()
            .map_err(|e| Error::new(verb, format!("find the pod's directory: {e}")))?;
        let mut command = Command::new(self.binary);
        command.env_clear().env("PATH", SEARCH_PATH).current_dir(self.bundle);
        command.arg("--root").arg(pod.join("handler"));
        command.arg("--log").arg(log).args(["--log-format", "json"]).args(options).arg(verb);
        Ok(command)
    }

    fn log(&self) -> PathBuf {
        self.bundle.join("handler.log")
    }

    fn run(&self, mut command: Command, verb: &str, log: &Path) -> Result<(), Error> {
        let _ = std::fs::remove_file(log); // only the complaint of this call is of interest
        reset_signals();
        let name = self.binary.display();
        let failed = |e: std::io::Error| {
            Error::new(verb, format!("run {name}: {}", container::error::words(&e)))
        };
        let mut child = command.spawn().map_err(failed)?;
        match wait(&mut child).map_err(failed)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::new(verb, format!("{name}: {}", complaint(log, status)))),
            None => {
                let seconds = PATIENCE.as_secs();
                Err(Error::new(verb, format!("{name} did not end within {seconds} s; killed")))
            }
        }
    }
}

/// The last error the runtime wrote to its log.
fn complaint(log: &Path, status: ExitStatus) -> String {
    let mut text = String::new();
    if let Ok(file) = File::open(log) {
        let _ = file.take(LOG_MAX).read_to_string(&mut text);
    }
    last_error(&text).unwrap_or_else(|| format!("{status}, and no reason in its log"))
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

/// What every runtime takes: crun before 1.9 refuses later ones by their number, and none decides by it what a field means.
const OCI_VERSION: &str = "1.0.2";

/// Rewrites the bundle's specification: its version, and where this node cannot grant what it asks for.
fn clamp_config(bundle: &Path) -> Result<(), Error> {
    const STAGE: &str = "read the specification";
    let path = bundle.join("config.json");
    let failed = |e: std::io::Error| {
        Error::new(STAGE, format!("{}: {}", path.display(), container::error::words(&e)))
    };
    let text = std::fs::read(&path).map_err(failed)?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
    let said = clamp::process(&mut config["process"]);
    if !said.is_empty() {
        note(&said.join("; "));
    }
    config["ociVersion"] = OCI_VERSION.into();
    std::fs::write(&path, config.to_string()).map_err(failed)
}

/// The `process` object, saying of its terminal what is the case.
fn with_terminal(json: &[u8], terminal: bool) -> Result<Vec<u8>, Error> {
    let mut process: serde_json::Value = serde_json::from_slice(json)
        .map_err(|e| Error::new("read the process", format!("process object: {e}")))?;
    process["terminal"] = terminal.into();
    clamp::process(&mut process);
    Ok(process.to_string().into_bytes())
}

fn set_stdio(
    command: &mut Command,
    stdio: Stdio<'_>,
    console: Option<&Console>,
) -> Result<(), Error> {
    if let Some(console) = console {
        command.arg("--console-socket").arg(console.name());
    }
    match stdio {
        Stdio::Pipes(fds) => attach(command, fds),
        Stdio::Terminal => {
            command.stdin(Standard::null()).stdout(Standard::null()).stderr(Standard::null());
            Ok(())
        }
    }
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
