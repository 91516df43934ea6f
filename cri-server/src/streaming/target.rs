//! What clients reach: processes and ports of pods, by way of the pods' shims.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::streaming::{Backend, Failure, Process, Stdin, Wanted};
use futures::FutureExt;
use futures::future::BoxFuture;
use runtime::{Attach, Event, Exec, Family, Shim};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{broadcast, oneshot};

use super::message::{Target, What};

/// A shim answers within milliseconds; the client is told after this.
const CONNECT: Duration = Duration::from_secs(5);
/// Loopback answers at once, or the pod's queue of connections is full.
const DIAL: Duration = Duration::from_secs(10);
/// A command whose client has gone notices by its closed streams; what has not ended after this is killed.
const GRACE: Duration = Duration::from_secs(1);

/// Output that an attached client may be behind: the largest pipe that the kernel gives without being asked to.
const ATTACHED: usize = 1 << 20;

/// The pods of the node.
#[derive(Debug)]
pub(super) struct Pods {
    dir: PathBuf,
    shims: Arc<Mutex<HashMap<String, Known>>>,
}

/// A connection that its sessions share: a shim takes a handful.
#[derive(Debug)]
struct Known {
    shim: Shim,
    users: usize,
}

/// A use of a shim's connection, which closes with its last user.
#[derive(Debug)]
struct Lease {
    pod: String,
    shim: Shim,
    shims: Arc<Mutex<HashMap<String, Known>>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut shims = self.shims.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shims.get_mut(&self.pod) {
            known.users -= 1;
            if known.users == 0 {
                shims.remove(&self.pod);
            }
        }
    }
}

impl Pods {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, shims: Arc::default() }
    }

    async fn lease(&self, pod: &str) -> Result<Lease, Failure> {
        if let Some(lease) = self.share(pod) {
            return Ok(lease);
        }
        let shim = Shim::connect(pod, &self.dir.join(pod), CONNECT).await.map_err(failure)?;
        let mut shims = self.shims.lock().unwrap_or_else(PoisonError::into_inner);
        // Another client may have come first meanwhile; then its connection serves both.
        let known = shims.entry(pod.to_owned()).or_insert(Known { shim, users: 0 });
        Ok(self.lend(pod, known))
    }

    fn share(&self, pod: &str) -> Option<Lease> {
        let mut shims = self.shims.lock().unwrap_or_else(PoisonError::into_inner);
        Some(self.lend(pod, shims.get_mut(pod)?))
    }

    fn lend(&self, pod: &str, known: &mut Known) -> Lease {
        known.users += 1;
        Lease { pod: pod.to_owned(), shim: known.shim.clone(), shims: self.shims.clone() }
    }

    async fn exec(&self, target: &Target, wanted: Wanted) -> Result<Process, Failure> {
        let What::Exec { container, process } = &target.what else { return Err(confused()) };
        let lease = self.lease(&target.pod).await?;
        let request = Exec {
            id: container.clone(),
            process_json: process.clone().into_bytes(),
            tty: wanted.tty,
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
        };
        let mut session = lease.shim.exec(request).await.map_err(failure)?;
        let streams = std::mem::take(&mut session.streams);
        let ends = Ends::of(streams, wanted.stdin, wanted.tty)?;
        let (guard, dropped) = oneshot::channel::<()>();
        let (tell, code) = oneshot::channel();
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = session.wait() => Some(ended),
                _ = dropped => tokio::time::timeout(GRACE, session.wait()).await.ok(),
            };
            match ended {
                Some(ended) => drop(tell.send(ended.map_err(failure))),
                None => {
                    // It has ended by itself after all, or its container is gone.
                    let _ = session.kill().await;
                }
            }
            drop(lease);
        });
        let ended = async { code.await.unwrap_or_else(|_| Err(Failure::new("was ended"))) };
        Ok(ends.into_process(ended.boxed(), Box::new(()), Box::new(guard), wanted.tty))
    }

    async fn attach(&self, target: &Target, wanted: Wanted) -> Result<Process, Failure> {
        let What::Attach { container, stdin, stdin_once, replay } = &target.what else {
            return Err(confused());
        };
        let lease = self.lease(&target.pod).await?;
        // Heard of from here on, so that an end during the call is not missed.
        let events = lease.shim.events();
        let request = Attach {
            id: container.clone(),
            stdin: wanted.stdin && *stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr && !wanted.tty,
            replay: *replay,
        };
        let streams = lease.shim.attach(request).await.map_err(failure)?;
        // The shim waits for no client: one that falls behind by this much is cut off.
        for output in streams.stdout.iter().chain(&streams.stderr) {
            let _ = rustix::pipe::fcntl_setpipe_size(output, ATTACHED);
        }
        let ends = Ends::of(streams, wanted.stdin && *stdin, false)?;
        let input: Box<dyn Send> = match *stdin_once && wanted.stdin {
            true => Box::new(InputEnd { shim: lease.shim.clone(), container: container.clone() }),
            false => Box::new(()),
        };
        let ended = exit_of(events, container.clone());
        Ok(ends.into_process(ended, input, Box::new(lease), false))
    }

    async fn dial(&self, target: &Target, port: u16) -> Result<TcpStream, Failure> {
        let lease = self.lease(&target.pod).await?;
        let mut first = None;
        // What listens on one of both alone is reached all the same.
        for (family, address) in [
            (Family::V4, IpAddr::from(Ipv4Addr::LOCALHOST)),
            (Family::V6, IpAddr::from(Ipv6Addr::LOCALHOST)),
        ] {
            let connected = match lease.shim.socket(family).await {
                Ok(socket) => connect(socket, SocketAddr::new(address, port)).await,
                Err(error) => Err(failure(error)),
            };
            match connected {
                Ok(socket) => return Ok(socket),
                Err(failure) => first = first.or(Some(failure)),
            }
        }
        Err(first.unwrap_or_else(confused))
    }
}

async fn connect(socket: OwnedFd, address: SocketAddr) -> Result<TcpStream, Failure> {
    let socket = TcpSocket::from_std_stream(std::net::TcpStream::from(socket));
    let words = |error: std::io::Error| Failure::new(format!("connect to {address}: {error}"));
    match tokio::time::timeout(DIAL, socket.connect(address)).await {
        Ok(connected) => connected.map_err(words),
        Err(_) => Err(words(std::io::ErrorKind::TimedOut.into())),
    }
}

/// The outer ends of a process' streams.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
}

impl Ends {
    /// What the terminal carries, if there is one: input, output.
    fn of(streams: runtime::Streams, input: bool, output: bool) -> Result<Self, Failure> {
        let again = |fd: &Option<OwnedFd>, wanted: bool| {
            let copy = fd.as_ref().filter(|_| wanted).map(OwnedFd::try_clone).transpose();
            copy.map_err(|error| Failure::new(format!("copy the terminal's descriptor: {error}")))
        };
        let runtime::Streams { terminal, stdin, stdout, stderr } = streams;
        Ok(Self {
            stdin: stdin.or(again(&terminal, input)?),
            stdout: stdout.or(again(&terminal, output)?),
            stderr,
            terminal,
        })
    }

    fn into_process(
        self,
        ended: BoxFuture<'static, Result<i32, Failure>>,
        input: Box<dyn Send>,
        guard: Box<dyn Send>,
        terminal_end: bool,
    ) -> Process {
        let stdin = self.stdin.map(|fd| Stdin { fd, guard: input, terminal_end });
        let Self { stdout, stderr, terminal, .. } = self;
        Process { stdin, stdout, stderr, terminal, ended, guard }
    }
}

/// Ends the input of a container that takes it from one client only.
struct InputEnd {
    shim: Shim,
    container: String,
}

impl Drop for InputEnd {
    fn drop(&mut self) {
        let (shim, container) = (self.shim.clone(), self.container.clone());
        tokio::spawn(async move {
            if let Err(error) = shim.close_stdin(&container).await {
                tracing::debug!(container, %error, "end of the input");
            }
        });
    }
}

fn exit_of(
    mut events: broadcast::Receiver<Event>,
    container: String,
) -> BoxFuture<'static, Result<i32, Failure>> {
    async move {
        loop {
            match events.recv().await {
                Ok(Event::Exited { id, exit }) if id == container => return Ok(exit.code),
                // Then the streams end as well, which ends the session.
                Err(broadcast::error::RecvError::Lagged(_)) | Ok(Event::Exited { .. }) => {}
                Ok(Event::Lost) | Err(broadcast::error::RecvError::Closed) => {
                    return Err(Failure::new("the shim of the pod is gone"));
                }
            }
        }
    }
    .boxed()
}

impl Backend<Target> for Pods {
    fn exec<'a>(
        &'a self,
        target: &'a Target,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Process, Failure>> {
        self.exec(target, wanted).boxed()
    }

    fn attach<'a>(
        &'a self,
        target: &'a Target,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Process, Failure>> {
        self.attach(target, wanted).boxed()
    }

    fn dial<'a>(
        &'a self,
        target: &'a Target,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Failure>> {
        self.dial(target, port).boxed()
    }
}

fn failure(error: runtime::Error) -> Failure {
    Failure::new(error.to_string())
}

fn confused() -> Failure {
    Failure::new("the ticket is for something else")
}
