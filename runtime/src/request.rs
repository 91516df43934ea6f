//! What is asked of a shim and what it answers, in the daemon's own types.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// A sandbox to create from the `config.json` in `bundle`, the pod's directory.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    pub id: String,
    pub bundle: PathBuf,
    /// Bytes of the pod's `/dev/shm`; 0: the pod uses the host's IPC namespace and gets none.
    pub shm_size: u64,
    /// File with the compiled BPF program of the pause process.
    pub seccomp_bpf: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxCreated {
    pub pause_pid: i32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub pause_start_ticks: u64,
}

/// A container to create from the `config.json` in `bundle`.
#[derive(Debug, Default)]
pub struct CreateContainer {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Rootfs,
    /// None: output is read and dropped.
    pub log_path: Option<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    pub stdin_once: bool,
    /// An external OCI runtime; None: the built-in one.
    pub handler: Option<PathBuf>,
    /// File with a compiled BPF program.
    pub seccomp_bpf: Option<PathBuf>,
    pub limits: LogLimits,
    /// An init of ours is the first process, and the program its child.
    pub init: bool,
    /// Detached mounts for mounts of the specification, by destination.
    pub trees: Vec<(PathBuf, OwnedFd)>,
}

#[derive(Debug, Clone, Default)]
pub struct Rootfs {
    /// Top first.
    pub lowers: Vec<PathBuf>,
    /// None: the root is read-only.
    pub upper: Option<PathBuf>,
    pub work: Option<PathBuf>,
    pub volatile: bool,
}

/// Zero means unlimited, except where it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogLimits {
    /// Content bytes per log line; 0: 16 KiB.
    pub line_max: u32,
    /// Bytes of output per second.
    pub rate: u64,
    /// Bytes of the log file until it is rotated.
    pub size: u64,
    /// Beyond the limits the container waits, instead of its output being dropped and counted.
    pub block: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContainerCreated {
    pub pid: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Unix nanoseconds.
    pub at_ns: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// 128 + n for signal n.
    pub code: i32,
    /// Unix nanoseconds.
    pub at_ns: i64,
    pub oom_killed: bool,
    /// Whose limit it was, when `oom_killed`.
    pub oom_scope: OomScope,
    /// Why the workload never ran.
    pub start_error: Option<String>,
    /// Nobody could tell how it ended.
    pub unknown: bool,
}

/// At which level memory was short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OomScope {
    /// A shim that is too old to tell, or a kernel that does not.
    #[default]
    Unknown,
    Container,
    Pod,
    /// A group above the pod's, or the node itself.
    Ancestor,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A container, or the sandbox (its pause process), has ended and its output is in the log.
    Exited { id: String, exit: Exit },
    /// The connection is gone: connect again and read the inventory.
    Lost,
}

#[derive(Debug, Clone)]
pub struct ExecSync {
    pub id: String,
    /// The OCI `process` object.
    pub process_json: Vec<u8>,
    pub timeout: Option<Duration>,
    /// Bytes kept of each stream.
    pub output_cap: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    pub exit_code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    pub sandbox: Option<SandboxState>,
    pub containers: Vec<ContainerState>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxState {
    pub id: String,
    pub pause_pid: i32,
    pub pause_start_ticks: u64,
    pub phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    pub id: String,
    pub pid: i32,
    pub phase: Phase,
    /// Unix nanoseconds; 0: never started.
    pub started_at_ns: i64,
    /// Output that could not be written to the log.
    pub log_dropped_bytes: u64,
    /// Output that the log's limits kept from it.
    pub log_limited_bytes: u64,
    /// Written to the log, what its format adds included.
    pub log_bytes: u64,
    pub log_lines: u64,
    /// From the root of every hierarchy; empty when the shim is too old to tell.
    pub cgroup: String,
    pub paused: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    Created,
    Running,
    Exited(Exit),
}

impl From<protocol::Exit> for Exit {
    fn from(e: protocol::Exit) -> Self {
        let oom_scope = match e.oom_scope() {
            protocol::OomScope::Unknown => OomScope::Unknown,
            protocol::OomScope::Container => OomScope::Container,
            protocol::OomScope::Pod => OomScope::Pod,
            protocol::OomScope::Ancestor => OomScope::Ancestor,
        };
        let start_error = (!e.start_error.is_empty()).then_some(e.start_error);
        let protocol::Exit { code, at_ns, oom_killed, unknown, .. } = e;
        Self { code, at_ns, oom_killed, oom_scope, start_error, unknown }
    }
}

impl Phase {
    pub(crate) fn of(state: &protocol::State) -> Self {
        match (state.phase(), &state.exit) {
            (protocol::Phase::Exited, exit) => {
                Self::Exited(exit.clone().unwrap_or_default().into())
            }
            (protocol::Phase::Running, _) => Self::Running,
            _ => Self::Created,
        }
    }
}
