//! What a session is about: the other side of the server, which knows containers.

use std::os::fd::OwnedFd;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// Which streams a client may have. With a terminal there is no stderr: the kernel mixes both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// What a client may do, and once only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Errand {
    Exec(Wanted),
    Attach(Wanted),
    /// Empty: any port.
    PortForward(Vec<u16>),
}

/// Carries out errands on a target `T`, which this crate does not look into.
pub trait Backend<T>: Send + Sync + 'static {
    /// Starts the command.
    fn exec<'a>(&'a self, target: &'a T, wanted: Wanted)
    -> BoxFuture<'a, Result<Process, Failure>>;

    /// Joins what runs.
    fn attach<'a>(
        &'a self,
        target: &'a T,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Process, Failure>>;

    /// Connects to a port of the pod.
    fn dial<'a>(&'a self, target: &'a T, port: u16) -> BoxFuture<'a, Result<TcpStream, Failure>>;
}

/// A running process, as far as a client can touch it.
pub struct Process {
    pub stdin: Option<Stdin>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    /// The terminal's master, when there is one.
    pub terminal: Option<OwnedFd>,
    /// The end of the process, with its exit code.
    pub ended: BoxFuture<'static, Result<i32, Failure>>,
    /// Dropped with the session: whatever it started and has not ended yet is to end then.
    pub guard: Box<dyn Send>,
}

/// Where the client's input goes.
pub struct Stdin {
    pub fd: OwnedFd,
    /// Dropped when the client's input has ended, or the client is gone.
    pub guard: Box<dyn Send>,
    /// A terminal has no end of file but the character that stands for it.
    pub terminal_end: bool,
}

/// Why an errand could not be done, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub message: String,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("stdin", &self.stdin).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stdin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stdin").field("fd", &self.fd).finish_non_exhaustive()
    }
}
