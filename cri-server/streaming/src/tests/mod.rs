//! The whole server over real sockets, with processes of the host behind it.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

mod client;
mod limits;
mod ports;
mod remote_command;
mod replay;
mod tls;

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::{
    Address, Backend, Errand, Failure, Listen, Process, Server, Stdin, Timeouts, Tls, Wanted,
};

const PLAIN: Wanted = Wanted { stdin: true, stdout: true, stderr: true, tty: false };
const LIMITS: Timeouts =
    Timeouts { idle: Duration::from_secs(60), creation: Duration::from_secs(30) };

/// Runs shell scripts on this host; «absent» cannot be run. Ports are those of loopback.
#[derive(Debug, Default)]
struct Local {
    /// Processes that were started and are not known to have ended.
    running: Arc<AtomicUsize>,
}

impl Backend<String> for Local {
    fn exec<'a>(
        &'a self,
        target: &'a String,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Process, Failure>> {
        async move {
            if target == "absent" {
                return Err(Failure::new("no such file or directory"));
            }
            let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
            let mut child = Command::new("sh")
                .args(["-c", target])
                .stdin(pipe(wanted.stdin))
                .stdout(pipe(wanted.stdout))
                .stderr(pipe(wanted.stderr))
                .spawn()
                .unwrap();
            self.running.fetch_add(1, Ordering::SeqCst);
            let stdin = child.stdin.take().map(OwnedFd::from);
            let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
            let (kill, running) = (child.id(), self.running.clone());
            let ended = tokio::task::spawn_blocking(move || {
                let status = child.wait().unwrap();
                running.fetch_sub(1, Ordering::SeqCst);
                status.code().unwrap_or(128)
            });
            Ok(Process {
                stdin: stdin.map(|fd| Stdin { fd, guard: Box::new(()), terminal_end: false }),
                stdout: stdout.map(OwnedFd::from),
                stderr: stderr.map(OwnedFd::from),
                terminal: None,
                ended: async { Ok(ended.await.unwrap()) }.boxed(),
                guard: Box::new(Kill(kill)),
            })
        }
        .boxed()
    }

    fn attach<'a>(
        &'a self,
        target: &'a String,
        wanted: Wanted,
    ) -> BoxFuture<'a, Result<Process, Failure>> {
        self.exec(target, wanted)
    }

    /// With a script, that answers whatever the port.
    fn dial<'a>(
        &'a self,
        target: &'a String,
        port: u16,
    ) -> BoxFuture<'a, Result<TcpStream, Failure>> {
        async move {
            if target.is_empty() {
                let socket = TcpStream::connect(("127.0.0.1", port)).await;
                return socket.map_err(|error| Failure::new(error.to_string()));
            }
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let far = listener.accept().await.unwrap().0.into_std().unwrap();
            far.set_nonblocking(false).unwrap();
            let (stdin, stdout) = (OwnedFd::from(far.try_clone().unwrap()), OwnedFd::from(far));
            let mut command = Command::new("sh");
            command.args(["-c", target]).stdin(stdin).stdout(stdout);
            let mut child = command.spawn().unwrap();
            drop(command);
            tokio::task::spawn_blocking(move || child.wait());
            Ok(near)
        }
        .boxed()
    }
}

/// The process may have ended long ago; its pid is not given to another within a test.
struct Kill(u32);

impl Drop for Kill {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0.cast_signed()).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

struct Running {
    server: Server<String>,
    processes: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn start(timeouts: Timeouts, tls: Option<Tls>) -> Running {
    let backend = Arc::new(Local::default());
    let processes = backend.running.clone();
    let address = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listen = Listen { address, advertise: None, tls };
    let server = Server::bind(&listen, timeouts, backend).await.unwrap();
    let (stop, running) = (CancellationToken::new(), server.clone());
    let stopping = stop.clone();
    tokio::spawn(async move { running.run(stopping).await });
    Running { server, processes, stop }
}

impl Running {
    fn exec(&self, script: &str) -> String {
        self.server.issue(Errand::Exec(PLAIN), script.to_owned()).unwrap()
    }

    fn forward(&self, ports: &[u16]) -> String {
        self.server.issue(Errand::PortForward(ports.to_vec()), String::new()).unwrap()
    }

    /// Until nothing of any session is left.
    async fn settled(&self) {
        self.server.sessions().wait_for(|count| *count == 0).await.unwrap();
        while self.processes.load(Ordering::SeqCst) > 0 {
            tokio::task::yield_now().await;
        }
    }
}
