//! The messages. A tag that is gone from here stays reserved for ever: write it in the comment above its message.

use prost::{Message, Oneof};

/// One datagram. `seq` ties an answer to its call; notices carry 0.
#[derive(Clone, PartialEq, Message)]
pub struct Packet {
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    #[prost(oneof = "Body", tags = "2, 3, 4, 5")]
    pub body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Body {
    /// Daemon to shim.
    #[prost(message, tag = "2")]
    Call(Call),
    /// Shim to daemon: exactly one per call.
    #[prost(message, tag = "3")]
    Answer(Answer),
    /// Shim to daemon, unasked.
    #[prost(message, tag = "4")]
    Notice(Notice),
    /// The real packet is in the last descriptor that came with this one.
    #[prost(message, tag = "5")]
    Spilled(Spilled),
}

/// `len` bytes of an encoded `Packet` from offset 0 of a sealed memfd.
#[derive(Clone, PartialEq, Message)]
pub struct Spilled {
    #[prost(uint64, tag = "1")]
    pub len: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Call {
    #[prost(
        oneof = "Ask",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25"
    )]
    pub ask: Option<Ask>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Ask {
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Descriptors: the network namespace, when `has_netns`; when `has_mounts`, a mount namespace that holds
    /// nothing but read-only directories, of which pause gets a copy instead of one of the host's. Two of them the shim
    /// uses where it finds them: `/empty` and `/cgroup`, which has a directory for each v1 hierarchy.
    #[prost(message, tag = "2")]
    CreateSandbox(CreateSandbox),
    /// Descriptors: detached mounts, one for each of `trees`; a mount namespace as with `CreateSandbox`, when
    /// `has_mounts`.
    #[prost(message, tag = "3")]
    CreateContainer(CreateContainer),
    #[prost(message, tag = "4")]
    Start(Target),
    #[prost(message, tag = "5")]
    Signal(Signal),
    /// SIGKILL to everything in the container's group.
    #[prost(message, tag = "6")]
    Kill(Target),
    #[prost(message, tag = "7")]
    ExecSync(ExecSync),
    #[prost(message, tag = "8")]
    ReopenLog(Target),
    #[prost(message, tag = "9")]
    Update(Update),
    #[prost(message, tag = "10")]
    Delete(Target),
    #[prost(message, tag = "11")]
    StopSandbox(Empty),
    /// The one way to end a shim that has a pod.
    #[prost(message, tag = "12")]
    Shutdown(Empty),
    #[prost(message, tag = "13")]
    Inventory(Empty),
    // Since version 2.
    /// A process whose stdio goes to the caller: see `Opened`.
    #[prost(message, tag = "14")]
    Exec(Exec),
    /// SIGKILL to the whole tree of an exec'd process.
    #[prost(message, tag = "15")]
    KillSession(SessionRef),
    /// Copies of a container's output, and its input: see `Opened`.
    #[prost(message, tag = "16")]
    Attach(Attach),
    /// The shim lets go of its end of the container's stdin, so that the last attached writer's close is the end of
    /// it. No effect on a terminal.
    #[prost(message, tag = "17")]
    CloseStdin(Target),
    /// A new socket in the pod's network namespace, not connected. Descriptor in the answer: the socket, non-blocking.
    #[prost(message, tag = "18")]
    Socket(Socket),
    /// Answered when every process of the container has stopped.
    #[prost(message, tag = "19")]
    Pause(Target),
    #[prost(message, tag = "20")]
    Resume(Target),
    /// The size of a container's terminal.
    #[prost(message, tag = "21")]
    Resize(Resize),
    /// What another shim needs to go on with a running container or the sandbox, should this one die: see `Held`.
    #[prost(message, tag = "22")]
    Hold(Target),
    /// To the successor of a dead shim, with the descriptors of `Held`; the sandbox comes first.
    #[prost(message, tag = "23")]
    Adopt(Held),
    // Since version 4.
    /// The daemon's record of a container or the sandbox, to be kept in case the daemon loses it. Descriptor: a file
    /// with it, which the shim never reads; the last one counts.
    #[prost(message, tag = "24")]
    Remember(Target),
    /// Descriptor in the answer: what was to be remembered.
    #[prost(message, tag = "25")]
    Recall(Target),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    #[prost(int32, tag = "2")]
    pub pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Target {
    #[prost(string, tag = "1")]
    pub id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateSandbox {
    #[prost(string, tag = "1")]
    pub id: String,
    /// Directory with `config.json`.
    #[prost(string, tag = "2")]
    pub bundle: String,
    /// Bytes of the pod's `/dev/shm`; 0 means the pod uses the host's IPC and gets none.
    #[prost(uint64, tag = "3")]
    pub shm_size: u64,
    #[prost(bool, tag = "4")]
    pub has_netns: bool,
    /// Since version 3: the filter of the pause process, as in `CreateContainer`.
    #[prost(string, tag = "5")]
    pub seccomp_bpf: String,
    /// Since version 6.
    #[prost(bool, tag = "6")]
    pub has_mounts: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateContainer {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub bundle: String,
    #[prost(message, optional, tag = "3")]
    pub rootfs: Option<Rootfs>,
    /// Empty: output is read and dropped.
    #[prost(string, tag = "4")]
    pub log_path: String,
    #[prost(bool, tag = "5")]
    pub tty: bool,
    #[prost(bool, tag = "6")]
    pub stdin: bool,
    #[prost(bool, tag = "7")]
    pub stdin_once: bool,
    /// Path of an external OCI runtime; empty: the built-in one.
    #[prost(string, tag = "8")]
    pub handler: String,
    /// File with a compiled BPF program (array of `struct sock_filter`); empty: none.
    #[prost(string, tag = "9")]
    pub seccomp_bpf: String,
    #[prost(message, optional, tag = "10")]
    pub limits: Option<LogLimits>,
    /// Since version 3: the shim's own init is the first process; it starts the program, reaps and hands signals on.
    #[prost(bool, tag = "11")]
    pub init: bool,
    /// Since version 3: destinations of mounts whose trees come along, a descriptor for each, in this order.
    #[prost(string, repeated, tag = "12")]
    pub trees: Vec<String>,
    /// Since version 6.
    #[prost(bool, tag = "13")]
    pub has_mounts: bool,
}

/// Layers top first. No `upper` means a read-only root. `plain` is a ready directory used as it is.
#[derive(Clone, PartialEq, Message)]
pub struct Rootfs {
    #[prost(string, repeated, tag = "1")]
    pub lowers: Vec<String>,
    #[prost(string, tag = "2")]
    pub upper: String,
    #[prost(string, tag = "3")]
    pub work: String,
    #[prost(bool, tag = "4")]
    pub volatile: bool,
}

/// Zero means unlimited.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct LogLimits {
    /// Content bytes per log line before it is split; 0 means the default of 16 KiB.
    #[prost(uint32, tag = "1")]
    pub line_max: u32,
    // Since version 2.
    /// Bytes of output per second that reach the log.
    #[prost(uint64, tag = "2")]
    pub rate: u64,
    /// Bytes of the log file beyond which nothing is written until it is rotated.
    #[prost(uint64, tag = "3")]
    pub size: u64,
    /// What happens to output beyond the limits.
    #[prost(enumeration = "LogPolicy", tag = "4")]
    pub policy: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum LogPolicy {
    /// It is counted and gone.
    Drop = 0,
    /// It is not read: the container waits.
    Block = 1,
}

#[derive(Clone, PartialEq, Message)]
pub struct Signal {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int32, tag = "2")]
    pub signal: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ExecSync {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The OCI `process` object.
    #[prost(bytes = "vec", tag = "2")]
    pub process_json: Vec<u8>,
    /// Milliseconds for spawn, run and drain together; 0: no limit.
    #[prost(uint64, tag = "3")]
    pub timeout_ms: u64,
    /// Bytes kept of each stream; the rest is read and dropped.
    #[prost(uint64, tag = "4")]
    pub output_cap: u64,
    /// Filter for the new process, as in `CreateContainer`; empty: that of the container.
    #[prost(string, tag = "5")]
    pub seccomp_bpf: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Update {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The OCI `linux.resources` object.
    #[prost(bytes = "vec", tag = "2")]
    pub resources_json: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The OCI `process` object; its `consoleSize` is the first size of the terminal.
    #[prost(bytes = "vec", tag = "2")]
    pub process_json: Vec<u8>,
    /// A terminal instead of pipes; the three below do not count then.
    #[prost(bool, tag = "3")]
    pub tty: bool,
    #[prost(bool, tag = "4")]
    pub stdin: bool,
    #[prost(bool, tag = "5")]
    pub stdout: bool,
    #[prost(bool, tag = "6")]
    pub stderr: bool,
    /// As in `ExecSync`.
    #[prost(string, tag = "7")]
    pub seccomp_bpf: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Attach {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(bool, tag = "2")]
    pub stdin: bool,
    #[prost(bool, tag = "3")]
    pub stdout: bool,
    #[prost(bool, tag = "4")]
    pub stderr: bool,
    /// Bytes of earlier output that come first, as far as the log still has them.
    #[prost(uint64, tag = "5")]
    pub replay: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct SessionRef {
    #[prost(uint32, tag = "1")]
    pub session: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Socket {
    #[prost(enumeration = "Family", tag = "1")]
    pub family: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Family {
    Inet = 0,
    Inet6 = 1,
}

#[derive(Clone, PartialEq, Message)]
pub struct Resize {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(uint32, tag = "2")]
    pub rows: u32,
    #[prost(uint32, tag = "3")]
    pub columns: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Answer {
    #[prost(oneof = "Reply", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub reply: Option<Reply>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum Reply {
    #[prost(message, tag = "1")]
    Failed(Failed),
    #[prost(message, tag = "2")]
    Done(Empty),
    #[prost(message, tag = "3")]
    Hello(Hello),
    #[prost(message, tag = "4")]
    Created(Created),
    #[prost(message, tag = "5")]
    Started(Started),
    #[prost(message, tag = "6")]
    Output(Output),
    #[prost(message, tag = "7")]
    Inventory(Inventory),
    // Since version 2.
    #[prost(message, tag = "8")]
    Opened(Opened),
    #[prost(message, tag = "9")]
    Held(Held),
}

/// A running container or sandbox as its shim knows it. Whoever holds it need not understand it. The descriptors in
/// this order: the pidfd of its init; the write end of stdin, when it says so; the terminal's master or the read ends
/// of stdout and stderr, when it says so.
#[derive(Clone, PartialEq, Message)]
pub struct Held {
    #[prost(message, optional, tag = "1")]
    pub state: Option<State>,
    #[prost(bool, tag = "2")]
    pub sandbox: bool,
    #[prost(bool, tag = "3")]
    pub own_pids: bool,
    #[prost(string, tag = "4")]
    pub bundle: String,
    #[prost(string, tag = "5")]
    pub handler: String,
    #[prost(string, tag = "6")]
    pub seccomp_bpf: String,
    #[prost(string, tag = "7")]
    pub log_path: String,
    #[prost(message, optional, tag = "8")]
    pub limits: Option<LogLimits>,
    /// Of a sandbox: where its shared memory is mounted from.
    #[prost(string, tag = "9")]
    pub shm_path: String,
    #[prost(bool, tag = "10")]
    pub stdin: bool,
    #[prost(bool, tag = "11")]
    pub terminal: bool,
    #[prost(bool, tag = "12")]
    pub stdout: bool,
    #[prost(bool, tag = "13")]
    pub stderr: bool,
    #[prost(bool, tag = "14")]
    pub interactive: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Failed {
    #[prost(enumeration = "Kind", tag = "1")]
    pub kind: i32,
    #[prost(string, tag = "2")]
    pub stage: String,
    #[prost(string, tag = "3")]
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    Failed = 0,
    NotFound = 1,
    AlreadyExited = 2,
    InvalidState = 3,
    InvalidArgument = 4,
    Timeout = 5,
    Unsupported = 6,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Created {
    #[prost(int32, tag = "1")]
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: with the pid it names the process for ever.
    #[prost(uint64, tag = "2")]
    pub start_ticks: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Started {
    /// Unix nanoseconds.
    #[prost(int64, tag = "1")]
    pub at_ns: i64,
}

/// A stream longer than a few pages comes in a memfd: stdout's descriptor first, then stderr's.
#[derive(Clone, PartialEq, Message)]
pub struct Output {
    #[prost(int32, tag = "1")]
    pub exit_code: i32,
    #[prost(bytes = "vec", tag = "2")]
    pub stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub stderr: Vec<u8>,
    /// Bytes in stdout's memfd; 0: it is inline.
    #[prost(uint64, tag = "4")]
    pub stdout_spilled: u64,
    #[prost(uint64, tag = "5")]
    pub stderr_spilled: u64,
}

/// The process is its program, or the container is attached to. The descriptors in this order, each when it says so:
/// the terminal's master; the write end of stdin; the read ends of stdout and stderr. All are non-blocking.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Opened {
    /// Names an exec'd process in `KillSession` and `SessionEnded`; 0 when attached. It is killed with its tree when
    /// the connection it was asked for over ends.
    #[prost(uint32, tag = "1")]
    pub session: u32,
    #[prost(bool, tag = "2")]
    pub terminal: bool,
    #[prost(bool, tag = "3")]
    pub stdin: bool,
    #[prost(bool, tag = "4")]
    pub stdout: bool,
    #[prost(bool, tag = "5")]
    pub stderr: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct Inventory {
    #[prost(message, optional, tag = "1")]
    pub sandbox: Option<State>,
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<State>,
}

#[derive(Clone, PartialEq, Message)]
pub struct State {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(int32, tag = "2")]
    pub pid: i32,
    #[prost(enumeration = "Phase", tag = "3")]
    pub phase: i32,
    #[prost(int64, tag = "4")]
    pub started_at_ns: i64,
    #[prost(message, optional, tag = "5")]
    pub exit: Option<Exit>,
    #[prost(uint64, tag = "6")]
    pub start_ticks: u64,
    /// Bytes of output that never reached the log because it could not be written.
    #[prost(uint64, tag = "7")]
    pub log_dropped_bytes: u64,
    // Since version 2.
    /// Its control group, from the root of every hierarchy.
    #[prost(string, tag = "8")]
    pub cgroup: String,
    #[prost(bool, tag = "9")]
    pub paused: bool,
    /// Bytes and lines that were written to the log, what the format adds included.
    #[prost(uint64, tag = "10")]
    pub log_bytes: u64,
    #[prost(uint64, tag = "11")]
    pub log_lines: u64,
    /// Bytes of output that its limits kept from the log.
    #[prost(uint64, tag = "12")]
    pub log_limited_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    Creating = 0,
    Created = 1,
    Running = 2,
    Exited = 3,
}

#[derive(Clone, PartialEq, Message)]
pub struct Exit {
    /// 128 + n for signal n.
    #[prost(int32, tag = "1")]
    pub code: i32,
    #[prost(int64, tag = "2")]
    pub at_ns: i64,
    #[prost(bool, tag = "3")]
    pub oom_killed: bool,
    /// Why the workload never ran; empty: it did.
    #[prost(string, tag = "4")]
    pub start_error: String,
    // Since version 2.
    /// Whose limit it was, when `oom_killed`.
    #[prost(enumeration = "OomScope", tag = "5")]
    pub oom_scope: i32,
    // Since version 5.
    /// Nobody could tell how it ended; `code` is 255 then.
    #[prost(bool, tag = "6")]
    pub unknown: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum OomScope {
    Unknown = 0,
    Container = 1,
    Pod = 2,
    /// A group above the pod's, or the node itself.
    Ancestor = 3,
}

#[derive(Clone, PartialEq, Message)]
pub struct Notice {
    #[prost(oneof = "News", tags = "1, 2")]
    pub news: Option<News>,
}

#[derive(Clone, PartialEq, Oneof)]
pub enum News {
    #[prost(message, tag = "1")]
    Exited(Exited),
    // Since version 2.
    /// To the connection that asked for the exec only.
    #[prost(message, tag = "2")]
    SessionEnded(SessionEnded),
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct SessionEnded {
    #[prost(uint32, tag = "1")]
    pub session: u32,
    /// 128 + n for signal n.
    #[prost(int32, tag = "2")]
    pub code: i32,
}

/// A container, or the sandbox itself (its pause process), has ended and its output is in the log.
#[derive(Clone, PartialEq, Message)]
pub struct Exited {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, optional, tag = "2")]
    pub exit: Option<Exit>,
}

impl Packet {
    pub fn call(seq: u64, ask: Ask) -> Self {
        Self { seq, body: Some(Body::Call(Call { ask: Some(ask) })) }
    }

    pub fn answer(seq: u64, reply: Reply) -> Self {
        Self { seq, body: Some(Body::Answer(Answer { reply: Some(reply) })) }
    }

    pub fn notice(news: News) -> Self {
        Self { seq: 0, body: Some(Body::Notice(Notice { news: Some(news) })) }
    }
}

impl Failed {
    pub fn new(kind: Kind, stage: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: kind.into(), stage: stage.into(), message: message.into() }
    }
}
