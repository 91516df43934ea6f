//! A handle to one shim: calls with deadlines, answers matched by number, events to whoever listens.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protocol::{Ask, Body, Empty, News, Packet, Reply, Target};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{broadcast, oneshot};

use crate::error::{Error, ErrorKind};
use crate::request::{
    ContainerCreated, ContainerState, CreateContainer, CreateSandbox, Event, ExecOutput, ExecSync,
    Exit, Inventory, Phase, SandboxCreated, SandboxState, Started,
};
use crate::session::Sessions;
use crate::shims::LEAVE;

/// Calls that only change the shim's own state or send a signal.
pub(crate) const QUICK: Duration = Duration::from_secs(10);
/// Creating mounts things and may wait for a slow disk.
const CREATE: Duration = Duration::from_secs(120);
/// Killing and removing a group; the shim itself gives up sooner.
const END: Duration = Duration::from_secs(30);
/// What an exec may take beyond its own deadline, which the shim keeps: the drain and the way back.
const EXEC_SLACK: Duration = Duration::from_secs(5);
/// The version of the protocol since which a container can have our init and mounts by descriptor.
const PROCESS_VERSION: u32 = 3;
/// The one since which pause and containers can be started from a bare mount namespace.
const BARE_VERSION: u32 = 6;
/// The one since which more than `FEW_TREES` mounts by descriptor are taken.
const MANY_VERSION: u32 = 6;
const FEW_TREES: usize = 3;
/// Events kept for a slow listener. One who misses some reads the inventory.
const EVENTS: usize = 256;

/// A shim, spoken to over one connection. Cheap to clone; the connection closes with the last handle.
#[derive(Debug, Clone)]
pub struct Shim {
    inner: Arc<Inner>,
    _keep: Arc<Guard>,
}

#[derive(Debug)]
struct Inner {
    id: String,
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    pending: Mutex<Option<Pending>>,
    events: broadcast::Sender<Event>,
    pid: std::sync::atomic::AtomicI32,
    version: std::sync::atomic::AtomicU32,
    sessions: Sessions,
    /// What pause and containers start from; `None` for one that creates nothing.
    bare: Option<Arc<OwnedFd>>,
}

/// Who waits for which answer; gone with the connection.
type Pending = HashMap<u64, oneshot::Sender<(Reply, Vec<OwnedFd>)>>;

/// Ends the reading task with the last handle.
#[derive(Debug)]
struct Guard(tokio::task::AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Shim {
    /// Says hello over a connected socket.
    pub(crate) async fn greet(
        id: &str,
        socket: OwnedFd,
        bare: Option<Arc<OwnedFd>>,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let fail = |e: std::io::Error| Error::new(ErrorKind::Failed, id, "connect to the shim", e);
        rustix::io::ioctl_fionbio(&socket, true).map_err(|e| fail(e.into()))?;
        let socket = crate::sys::watch(socket, Interest::READABLE).map_err(fail)?;
        let inner = Arc::new(Inner {
            id: id.to_owned(),
            socket,
            next: AtomicU64::new(1),
            pending: Mutex::new(Some(HashMap::new())),
            events: broadcast::Sender::new(EVENTS),
            pid: 0.into(),
            version: 0.into(),
            sessions: Sessions::default(),
            bare,
        });
        let task = tokio::spawn(read_all(Arc::clone(&inner)));
        let shim = Self { inner, _keep: Arc::new(Guard(task.abort_handle())) };
        let hello = protocol::Hello { version: protocol::VERSION, pid: std::process::id() as i32 };
        match shim.call(Ask::Hello(hello), &[], ("connect to the shim", id), Some(deadline)).await?
        {
            (Reply::Hello(hello), _) => {
                shim.inner.pid.store(hello.pid, Ordering::Relaxed);
                let common = hello.version.min(protocol::VERSION);
                shim.inner.version.store(common, Ordering::Relaxed);
            }
            _ => return Err(shim.confused("connect to the shim")),
        }
        Ok(shim)
    }

    /// The shim's process.
    pub fn pid(&self) -> i32 {
        self.inner.pid.load(Ordering::Relaxed)
    }

    pub(crate) fn id(&self) -> &str {
        &self.inner.id
    }

    /// What an older shim would pass over is refused by name.
    pub(crate) fn speaks(&self, version: u32, id: &str, stage: &str) -> Result<(), Error> {
        match self.version() {
            spoken if spoken >= version => Ok(()),
            spoken => {
                let why = format!(
                    "this pod's shim speaks version {spoken} of the protocol and {version} is needed: run the pod anew"
                );
                Err(Error::new(ErrorKind::InvalidArgument, id, stage, why))
            }
        }
    }

    fn bare(&self) -> Option<BorrowedFd<'_>> {
        let bare = self.inner.bare.as_ref().filter(|_| self.version() >= BARE_VERSION);
        bare.map(|it| it.as_fd())
    }

    /// The newest version of the protocol that both sides speak.
    pub fn version(&self) -> u32 {
        self.inner.version.load(Ordering::Relaxed)
    }

    /// What happens from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// Makes the sandbox: its namespaces and the pause process, in `netns` or, without it, in the host's network.
    pub async fn create_sandbox(
        &self,
        req: CreateSandbox,
        netns: Option<OwnedFd>,
    ) -> Result<SandboxCreated, Error> {
        let stage = "create the sandbox";
        let id = req.id.clone();
        let bare = self.bare();
        let ask = protocol::CreateSandbox {
            id: req.id,
            bundle: text(&req.bundle, &id, stage)?,
            shm_size: req.shm_size,
            has_netns: netns.is_some(),
            has_mounts: bare.is_some(),
            seccomp_bpf: match &req.seccomp_bpf {
                Some(file) => text(file, &id, stage)?,
                None => String::new(),
            },
        };
        if req.seccomp_bpf.is_some() {
            self.speaks(PROCESS_VERSION, &id, stage)?;
        }
        let fds: Vec<_> = netns.iter().map(AsFd::as_fd).chain(bare).collect();
        match self.call(Ask::CreateSandbox(ask), &fds, (stage, &id), Some(CREATE)).await? {
            (Reply::Created(c), _) => {
                Ok(SandboxCreated { pause_pid: c.pid, pause_start_ticks: c.start_ticks })
            }
            _ => Err(self.confused(stage)),
        }
    }

    /// Returns when the container's init has set everything up and waits before exec.
    pub async fn create_container(&self, req: CreateContainer) -> Result<ContainerCreated, Error> {
        let stage = "create";
        let id = req.id.clone();
        let path = |p: &Path| text(p, &id, stage);
        let optional =
            |p: &Option<std::path::PathBuf>| p.as_deref().map_or(Ok(String::new()), path);
        let rootfs = protocol::Rootfs {
            lowers: req.rootfs.lowers.iter().map(|l| path(l)).collect::<Result<_, _>>()?,
            upper: optional(&req.rootfs.upper)?,
            work: optional(&req.rootfs.work)?,
            volatile: req.rootfs.volatile,
        };
        let bare = self.bare();
        let ask = protocol::CreateContainer {
            id: req.id.clone(),
            bundle: path(&req.bundle)?,
            rootfs: Some(rootfs),
            log_path: optional(&req.log_path)?,
            tty: req.tty,
            stdin: req.stdin,
            stdin_once: req.stdin_once,
            handler: optional(&req.handler)?,
            seccomp_bpf: optional(&req.seccomp_bpf)?,
            limits: Some(protocol::LogLimits {
                line_max: req.limits.line_max,
                rate: req.limits.rate,
                size: req.limits.size,
                policy: if req.limits.block {
                    protocol::LogPolicy::Block.into()
                } else {
                    protocol::LogPolicy::Drop.into()
                },
            }),
            init: req.init,
            trees: req.trees.iter().map(|(at, _)| path(at)).collect::<Result<_, _>>()?,
            has_mounts: bare.is_some(),
        };
        if req.init || !req.trees.is_empty() {
            self.speaks(PROCESS_VERSION, &id, stage)?;
        }
        if req.trees.len() > FEW_TREES {
            self.speaks(MANY_VERSION, &id, stage)?;
        }
        let fds: Vec<_> = req.trees.iter().map(|(_, tree)| tree.as_fd()).chain(bare).collect();
        match self.call(Ask::CreateContainer(ask), &fds, (stage, &id), Some(CREATE)).await? {
            (Reply::Created(c), _) => Ok(ContainerCreated { pid: c.pid }),
            _ => Err(self.confused(stage)),
        }
    }

    /// Returns after execve succeeded. An error of stage `exec` means that the container is EXITED with a start error.
    pub async fn start_container(&self, id: &str) -> Result<Started, Error> {
        match self.call(Ask::Start(target(id)), &[], ("start", id), Some(QUICK)).await? {
            (Reply::Started(s), _) => Ok(Started { at_ns: s.at_ns }),
            _ => Err(self.confused("start")),
        }
    }

    /// Sends a signal to the container's init.
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.done(Ask::Signal(protocol::Signal { id: id.to_owned(), signal }), "signal", id, QUICK)
            .await
    }

    /// SIGKILL to init and everything in its control group.
    pub async fn kill(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::Kill(target(id)), "kill", id, QUICK).await
    }

    /// Waits for the exit; `None` when `timeout` passes first. Needs no memory in the shim: it listens to events and
    /// asks once for what may have happened before.
    pub async fn wait(&self, id: &str, timeout: Option<Duration>) -> Result<Option<Exit>, Error> {
        let waiting = self.wait_for_exit(id);
        match timeout {
            None => waiting.await.map(Some),
            Some(limit) => match tokio::time::timeout(limit, waiting).await {
                Ok(result) => result.map(Some),
                Err(_) => Ok(None),
            },
        }
    }

    async fn wait_for_exit(&self, id: &str) -> Result<Exit, Error> {
        let mut events = self.events();
        loop {
            let inventory = self.inventory().await?;
            let sandbox = inventory.sandbox.filter(|s| s.id == id).map(|s| s.phase);
            let found = sandbox
                .or_else(|| inventory.containers.into_iter().find(|c| c.id == id).map(|c| c.phase));
            match found {
                Some(Phase::Exited(exit)) => return Ok(exit),
                Some(_) => {}
                None => {
                    return Err(Error::new(ErrorKind::NotFound, id, "wait", "no such container"));
                }
            }
            loop {
                match events.recv().await {
                    Ok(Event::Exited { id: who, exit }) if who == id => return Ok(exit),
                    Ok(Event::Exited { .. }) => {}
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Ok(Event::Lost) | Err(broadcast::error::RecvError::Closed) => {
                        return Err(Error::gone(id, "wait"));
                    }
                }
            }
        }
    }

    /// Runs a process in the container. Kind `Timeout` when its deadline passed; the process tree is dead then.
    pub async fn exec_sync(&self, req: ExecSync) -> Result<ExecOutput, Error> {
        let stage = "exec";
        let ask = protocol::ExecSync {
            id: req.id.clone(),
            process_json: req.process_json,
            // Zero means no limit on the wire, so the shortest limit is a millisecond.
            timeout_ms: req
                .timeout
                .map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX).max(1)),
            output_cap: req.output_cap as u64,
            seccomp_bpf: String::new(),
        };
        let limit = req.timeout.map(|t| t.saturating_add(EXEC_SLACK));
        let (Reply::Output(o), fds) =
            self.call(Ask::ExecSync(ask), &[], (stage, &req.id), limit).await?
        else {
            return Err(self.confused(stage));
        };
        let cap = req.output_cap as u64;
        let (exit_code, id) = (o.exit_code, req.id);
        // Reading a memfd is a copy in memory, but of up to 16 MiB twice: not on a reactor thread.
        let read = tokio::task::spawn_blocking(move || {
            let mut fds = fds.into_iter();
            let mut stream = |inline: Vec<u8>, spilled: u64| match spilled {
                0 => Ok(inline),
                len => fds
                    .next()
                    .ok_or_else(|| std::io::Error::other("its descriptor did not arrive"))
                    .and_then(|fd| protocol::wire::read_memfd(fd, len.min(cap))),
            };
            Ok::<_, std::io::Error>((
                stream(o.stdout, o.stdout_spilled)?,
                stream(o.stderr, o.stderr_spilled)?,
            ))
        });
        let result = read.await.map_err(std::io::Error::other).and_then(|r| r);
        let (stdout, stderr) =
            result.map_err(|e| Error::new(ErrorKind::Failed, &id, "read the output", e))?;
        Ok(ExecOutput { exit_code, stdout, stderr })
    }

    /// Goes on in a new file of the same name, after the old one was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::ReopenLog(target(id)), "reopen the log", id, QUICK).await
    }

    /// Changes limits; `resources_json` is an OCI `linux.resources` object.
    pub async fn update_container(&self, id: &str, resources_json: &[u8]) -> Result<(), Error> {
        let ask = protocol::Update { id: id.to_owned(), resources_json: resources_json.to_vec() };
        self.done(Ask::Update(ask), "update resources", id, QUICK).await
    }

    /// Forgets an exited container (a created one is killed first) and removes its control group. Idempotent.
    pub async fn delete_container(&self, id: &str) -> Result<(), Error> {
        self.done(Ask::Delete(target(id)), "delete", id, END).await
    }

    /// Kills all containers and pause; they stay in the inventory until deleted. Idempotent.
    pub async fn stop_sandbox(&self) -> Result<(), Error> {
        let id = self.inner.id.clone();
        self.done(Ask::StopSandbox(Empty {}), "stop the sandbox", &id, END).await
    }

    /// Kills everything, removes every control group of the pod, and ends the shim. A gone shim is fine.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let id = self.inner.id.clone();
        // While it lives its pid is its own.
        let process = Pid::from_raw(self.pid()).map(|pid| pidfd_open(pid, PidfdFlags::empty()));
        match self.done(Ask::Shutdown(Empty {}), "shut down", &id, END).await {
            Err(e) if e.kind == ErrorKind::Gone => return Ok(()),
            other => other?,
        }
        // Its group can go when it has gone; who cannot wait for that asks again and again.
        if let Some(Ok(process)) = process
            && let Ok(process) = crate::sys::watch(process, Interest::READABLE)
        {
            let _ = tokio::time::timeout(LEAVE, process.readable()).await;
        }
        Ok(())
    }

    /// Everything the shim knows.
    pub async fn inventory(&self) -> Result<Inventory, Error> {
        let (stage, id) = ("read the inventory", self.inner.id.clone());
        let (Reply::Inventory(i), _) =
            self.call(Ask::Inventory(Empty {}), &[], (stage, &id), Some(QUICK)).await?
        else {
            return Err(self.confused(stage));
        };
        let container = |s: protocol::State| ContainerState {
            phase: Phase::of(&s),
            pid: s.pid,
            started_at_ns: s.started_at_ns,
            log_dropped_bytes: s.log_dropped_bytes,
            log_limited_bytes: s.log_limited_bytes,
            log_bytes: s.log_bytes,
            log_lines: s.log_lines,
            paused: s.paused,
            cgroup: s.cgroup,
            id: s.id,
        };
        let sandbox = i.sandbox.map(|s| SandboxState {
            phase: Phase::of(&s),
            pause_pid: s.pid,
            pause_start_ticks: s.start_ticks,
            id: s.id,
        });
        Ok(Inventory { sandbox, containers: i.containers.into_iter().map(container).collect() })
    }

    pub(crate) async fn done(
        &self,
        ask: Ask,
        stage: &str,
        object: &str,
        limit: Duration,
    ) -> Result<(), Error> {
        match self.call(ask, &[], (stage, object), Some(limit)).await? {
            (Reply::Done(_), _) => Ok(()),
            _ => Err(self.confused(stage)),
        }
    }

    pub(crate) async fn call(
        &self,
        ask: Ask,
        fds: &[BorrowedFd<'_>],
        (stage, object): (&str, &str),
        limit: Option<Duration>,
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let seq = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        match &mut *lock(&self.inner.pending) {
            Some(pending) => pending.insert(seq, sender),
            None => return Err(Error::gone(object, stage)),
        };
        // Removed on every way out, also when the caller drops this future.
        let _forget = Forget { inner: &self.inner, seq };
        let packet = Packet::call(seq, ask);
        let exchange = async {
            send(&self.inner.socket, &packet, fds).await.map_err(|_| Error::gone(object, stage))?;
            receiver.await.map_err(|_| Error::gone(object, stage))
        };
        let answered = match limit {
            None => exchange.await,
            Some(limit) => tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                let text = format!("no answer from the shim within {limit:?}");
                Err(Error::new(ErrorKind::Timeout, object, stage, text))
            }),
        };
        match answered? {
            (Reply::Failed(failed), _) => Err(Error::answered(object, failed)),
            reply => Ok(reply),
        }
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.inner.sessions
    }

    pub(crate) fn confused(&self, stage: &str) -> Error {
        Error::new(ErrorKind::Failed, &self.inner.id, stage, "the shim answered something else")
    }
}

struct Forget<'a> {
    inner: &'a Inner,
    seq: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if let Some(pending) = &mut *lock(&self.inner.pending) {
            pending.remove(&self.seq);
        }
    }
}

/// The socket itself is watched for reading only: else each request that the shim takes would wake this process, to tell
/// it of room that it does not need.
async fn send(
    socket: &AsyncFd<OwnedFd>,
    packet: &Packet,
    fds: &[BorrowedFd<'_>],
) -> Result<(), protocol::WireError> {
    let mut room = None;
    loop {
        match protocol::send(socket.get_ref().as_fd(), packet, fds) {
            Err(e) if e.is_would_block() => {}
            other => return other,
        }
        let room = match &room {
            Some(room) => room,
            None => {
                let copy = socket.get_ref().try_clone()?;
                room.insert(crate::sys::watch(copy, Interest::WRITABLE)?)
            }
        };
        room.writable().await?.clear_ready();
    }
}

/// Reads until the connection ends, then tells everybody who still waits.
async fn read_all(inner: Arc<Inner>) {
    let mut buffer = vec![0u8; protocol::wire::INLINE_MAX];
    while let Ok(mut ready) = inner.socket.ready(Interest::READABLE).await {
        match protocol::receive(inner.socket.get_ref().as_fd(), &mut buffer) {
            Ok(Some((packet, fds))) => deliver(&inner, packet, fds),
            Err(e) if e.is_would_block() => ready.clear_ready(),
            Ok(None) => break,
            Err(e) => {
                tracing::warn!(pod = inner.id, error = %e, "shim connection broken");
                break;
            }
        }
    }
    *lock(&inner.pending) = None;
    inner.sessions.lose();
    let _ = inner.events.send(Event::Lost); // nobody listening is fine
}

fn deliver(inner: &Inner, packet: Packet, fds: Vec<OwnedFd>) {
    match packet.body {
        Some(Body::Answer(answer)) => {
            // Before anybody can hear of its end.
            if let Some(Reply::Opened(opened)) = &answer.reply {
                inner.sessions.begin(opened.session);
            }
            let waiting = lock(&inner.pending).as_mut().and_then(|p| p.remove(&packet.seq));
            let Some(reply) = answer.reply else { return };
            let unheard = match waiting {
                Some(waiting) => waiting.send((reply, fds)).err().map(|(reply, _)| reply),
                None => Some(reply),
            };
            // Whoever asked has given up: nobody would ever end that process.
            if let Some(Reply::Opened(protocol::Opened { session: session @ 1.., .. })) = unheard {
                inner.sessions.forget(session);
                let kill = Packet::call(0, Ask::KillSession(protocol::SessionRef { session }));
                let _ = protocol::send(inner.socket.get_ref().as_fd(), &kill, &[]);
            }
        }
        Some(Body::Notice(notice)) => {
            match notice.news {
                Some(News::Exited(e)) => {
                    let event = Event::Exited { id: e.id, exit: e.exit.unwrap_or_default().into() };
                    let _ = inner.events.send(event);
                }
                Some(News::SessionEnded(e)) => inner.sessions.end(e.session, e.code),
                // News of a newer shim, which this daemon can do without.
                None => {}
            }
        }
        _ => {
            tracing::warn!(pod = inner.id, "shim sent something that is neither answer nor notice")
        }
    }
}

/// Nothing panics while holding it, so the data of a poisoned lock is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn target(id: &str) -> Target {
    Target { id: id.to_owned() }
}

fn text(path: &Path, object: &str, stage: &str) -> Result<String, Error> {
    let utf8 = path.to_str().map(str::to_owned);
    utf8.ok_or_else(|| {
        Error::new(ErrorKind::InvalidArgument, object, stage, format!("{path:?} is not UTF-8"))
    })
}
