//! Processes and containers whose stdio is handed over, and sockets in a pod: what a streaming server needs.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use protocol::{Ask, Empty, Reply};
use tokio::sync::watch;

use crate::client::{QUICK, Shim, target};
use crate::error::{Error, ErrorKind};

/// From the request until the process is its program: setting up, like a creation, can wait for a slow disk.
const BEGIN: Duration = Duration::from_secs(120);

/// A process to start in a running container, its stdio for the caller.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    pub id: String,
    /// The OCI `process` object; its `consoleSize` is the first size of the terminal.
    pub process_json: Vec<u8>,
    /// A terminal instead of pipes; the three below do not count then.
    pub tty: bool,
    /// What is not wanted is `/dev/null`.
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Copies of a container's output, and its input.
#[derive(Debug, Clone, Default)]
pub struct Attach {
    pub id: String,
    pub stdin: bool,
    pub stdout: bool,
    /// Of a container with a terminal there is none.
    pub stderr: bool,
    /// Bytes of earlier output that come first, as far as the log still has them.
    pub replay: u64,
}

/// The outer ends of somebody's stdio, all of them non-blocking.
#[derive(Debug, Default)]
pub struct Streams {
    /// The master of the terminal. Of an exec'd process it carries both directions; of an attached container only
    /// input and size, because its output is read by the shim.
    pub terminal: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// A process that was started. Its tree is killed when the connection it was started over ends.
#[derive(Debug)]
pub struct ExecSession {
    pub streams: Streams,
    number: u32,
    code: watch::Receiver<Option<i32>>,
    shim: Shim,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Shim {
    /// Returns when the process is its program. An error of stage `exec` says why it could not become that.
    pub async fn exec(&self, req: Exec) -> Result<ExecSession, Error> {
        let stage = "exec";
        let ask = protocol::Exec {
            id: req.id.clone(),
            process_json: req.process_json,
            tty: req.tty,
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            seccomp_bpf: String::new(),
        };
        match self.call(Ask::Exec(ask), &[], (stage, &req.id), Some(BEGIN)).await? {
            (Reply::Opened(opened), fds) => {
                let streams = streams(&opened, fds).ok_or_else(|| self.confused(stage))?;
                let number = opened.session;
                let code = self.sessions().watch(number);
                let code = code.ok_or_else(|| Error::gone(&req.id, stage))?;
                Ok(ExecSession { streams, number, code, shim: self.clone() })
            }
            _ => Err(self.confused(stage)),
        }
    }

    /// Joins a running container. The ends of its output that come back end with the container, or when their reader
    /// falls more than a pipe's capacity behind.
    pub async fn attach(&self, req: Attach) -> Result<Streams, Error> {
        let stage = "attach";
        let id = req.id.clone();
        let ask = protocol::Attach {
            id: req.id,
            stdin: req.stdin,
            stdout: req.stdout,
            stderr: req.stderr,
            replay: req.replay,
        };
        match self.call(Ask::Attach(ask), &[], (stage, &id), Some(QUICK)).await? {
            (Reply::Opened(opened), fds) => {
                streams(&opened, fds).ok_or_else(|| self.confused(stage))
            }
            _ => Err(self.confused(stage)),
        }
    }

    /// The container's stdin ends with the last attached writer: for `stdin_once`. Idempotent; no effect on a terminal.
    pub async fn close_stdin(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::CloseStdin(target(id)), "close stdin", id, QUICK).await
    }

    /// The size of a container's terminal.
    pub async fn resize(&self, id: &str, rows: u16, columns: u16) -> Result<(), Error> {
        let ask =
            protocol::Resize { id: id.to_owned(), rows: rows.into(), columns: columns.into() };
        self.done(Ask::Resize(ask), "resize", id, QUICK).await
    }

    /// A new TCP socket in the pod's network namespace, non-blocking and not connected.
    pub async fn socket(&self, family: Family) -> Result<OwnedFd, Error> {
        let (stage, id) = ("open a socket in the pod", self.id().to_owned());
        let family = match family {
            Family::V4 => protocol::Family::Inet,
            Family::V6 => protocol::Family::Inet6,
        };
        let ask = Ask::Socket(protocol::Socket { family: family.into() });
        match self.call(ask, &[], (stage, &id), Some(QUICK)).await? {
            (Reply::Done(Empty {}), mut fds) => fds.pop().ok_or_else(|| self.confused(stage)),
            _ => Err(self.confused(stage)),
        }
    }

    /// Stops every process of a container where it stands.
    pub async fn pause(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::Pause(target(id)), "pause", id, QUICK).await
    }

    pub async fn resume(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::Resume(target(id)), "resume", id, QUICK).await
    }
}

impl ExecSession {
    /// The exit code of the process (128 + n for signal n). Output may still be in the pipes.
    pub async fn wait(&mut self) -> Result<i32, Error> {
        let code = self.code.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        code.ok_or_else(|| {
            Error::new(ErrorKind::Gone, self.shim.id(), "wait for the process", GONE)
        })
    }

    /// SIGKILL to the process and everything it has started.
    pub async fn kill(&self) -> Result<(), Error> {
        let ask = Ask::KillSession(protocol::SessionRef { session: self.number });
        self.shim.done(ask, "kill the process", self.shim.id(), QUICK).await
    }
}

const GONE: &str = "the shim is gone";

impl Drop for ExecSession {
    fn drop(&mut self) {
        self.shim.sessions().forget(self.number);
    }
}

fn streams(opened: &protocol::Opened, fds: Vec<OwnedFd>) -> Option<Streams> {
    let mut fds = fds.into_iter();
    let mut take = |there: bool| if there { fds.next().map(Some) } else { Some(None) };
    Some(Streams {
        terminal: take(opened.terminal)?,
        stdin: take(opened.stdin)?,
        stdout: take(opened.stdout)?,
        stderr: take(opened.stderr)?,
    })
}

/// The exec'd processes of one connection, from the answer that names them until their handle is dropped.
#[derive(Debug, Default)]
pub(crate) struct Sessions(Mutex<HashMap<u32, watch::Sender<Option<i32>>>>);

impl Sessions {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<u32, watch::Sender<Option<i32>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 0 names no process.
    pub(crate) fn begin(&self, number: u32) {
        if number != 0 {
            self.all().insert(number, watch::Sender::new(None));
        }
    }

    fn watch(&self, number: u32) -> Option<watch::Receiver<Option<i32>>> {
        self.all().get(&number).map(watch::Sender::subscribe)
    }

    pub(crate) fn end(&self, number: u32, code: i32) {
        if let Some(session) = self.all().get(&number) {
            session.send_replace(Some(code));
        }
    }

    pub(crate) fn forget(&self, number: u32) {
        self.all().remove(&number);
    }

    /// The connection is gone: nobody will say how they end.
    pub(crate) fn lose(&self) {
        self.all().clear();
    }
}
