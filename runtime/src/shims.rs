//! Starting shims from one sealed image, and finding those that live.

use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{
    FlockOperation, MemfdFlags, Mode, OFlags, SealFlags, fcntl_add_seals, flock, memfd_create,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::bare;
use crate::client::Shim;
use crate::error::{Error, ErrorKind};
use crate::spawn::Spawner;

/// From exec to hello; a start takes about two milliseconds on an idle machine.
const SPAWN: Duration = Duration::from_secs(20);
/// After it has answered `shutdown`, a shim only has to exit.
pub(crate) const LEAVE: Duration = Duration::from_secs(2);

/// Where shims live: groups of their own, outside the pods' and outside the daemon's.
#[derive(Debug, Clone)]
pub struct ShimCgroup {
    /// Path from the root of every hierarchy, such as `lapstrake/shims`.
    pub parent: String,
}

impl ShimCgroup {
    fn of(&self, pod: &str) -> String {
        format!("/{}/{pod}", self.parent.trim_matches('/'))
    }
}

/// The sealed image of the shim, and where its processes go.
#[derive(Debug, Clone)]
pub struct Shims {
    image: Arc<OwnedFd>,
    bare: Option<Arc<OwnedFd>>,
    spawner: Arc<Spawner>,
    group: ShimCgroup,
    pub(crate) node: Arc<cgroup::Hierarchies>,
}

impl Shims {
    /// Copies the binary into memory that nobody can change, from where all shims and pauses are started: they share
    /// its pages, and no container can reach a file of the host through `/proc/<pid>/exe`.
    pub fn open(shim_binary: &Path, cgroup: ShimCgroup) -> Result<Self, Error> {
        raise_open_files();
        let shown = shim_binary.display().to_string();
        let fail = |e: io::Error| Error::new(ErrorKind::Failed, &shown, "load the shim", e);
        let mut file = File::open(shim_binary).map_err(fail)?;
        let mut image = File::from(executable_memfd().map_err(|e| fail(e.into()))?);
        io::copy(&mut file, &mut image).map_err(fail)?;
        image.rewind().map_err(fail)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&image, seals).map_err(|e| fail(e.into()))?;
        let node =
            cgroup::Hierarchies::detect().map_err(|e| fail(io::Error::other(e.to_string())))?;
        // Read-only from here: a file open for writing cannot be executed.
        let image = File::open(format!("/proc/self/fd/{}", image.as_raw_fd())).map_err(fail)?;
        let image = Arc::new(OwnedFd::from(image));
        let spawner = Arc::new(Spawner::new(&image).map_err(fail)?);
        let bare = bare::namespace(&node).inspect_err(|error| {
            tracing::warn!(%error, "no bare mount namespace: each pod and container copies all mounts of the node");
        });
        let bare = bare.ok().map(Arc::new);
        Ok(Self { image, bare, spawner, group: cgroup, node: Arc::new(node) })
    }

    /// Starts a detached shim for the pod whose directory is `pod_dir`; returns when it has said hello.
    pub async fn spawn(&self, id: &str, pod_dir: &Path) -> Result<Shim, Error> {
        let (this, name, dir) = (self.clone(), id.to_owned(), pod_dir.to_owned());
        let started = tokio::task::spawn_blocking(move || this.start(&name, &dir));
        let socket = started
            .await
            .map_err(io::Error::other)
            .and_then(|r| r)
            .map_err(|e| Error::new(ErrorKind::Failed, id, "start the shim", e))?;
        let greeted = Shim::greet(id, socket, self.bare.clone(), SPAWN).await;
        greeted.map_err(|e| match e.kind {
            ErrorKind::Gone => {
                Error::new(ErrorKind::Failed, id, "start the shim", last_words(pod_dir))
            }
            _ => e,
        })
    }

    /// The program leaves at once, handing over to its own child, so there is no zombie and no parenthood.
    fn start(&self, id: &str, pod_dir: &Path) -> io::Result<OwnedFd> {
        let (ours, theirs) = protocol::pair()?;
        let command = || {
            let mut command = Command::new(format!("/proc/self/fd/{}", self.image.as_raw_fd()));
            command
                .arg0("lapstrake-shim")
                .arg(id)
                .arg(self.group.of(id))
                .env_clear()
                .current_dir(pod_dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            command
        };
        let status = self.spawner.spawn(command, theirs)?.wait()?;
        if status.success() {
            Ok(ours)
        } else {
            Err(io::Error::other(format!("{status}; {}", last_words(pod_dir))))
        }
    }

    /// Finds the living shim of a pod again. Kind `Gone` when none lives, `Timeout` when it does not answer.
    pub async fn connect(
        &self,
        id: &str,
        pod_dir: &Path,
        deadline: Duration,
    ) -> Result<Shim, Error> {
        Shim::connect_with(id, pod_dir, self.bare.clone(), deadline).await
    }

    /// Waits for the process of a shim that was shut down, and removes its group.
    pub async fn forget(&self, id: &str) -> Result<(), Error> {
        let group = self.group.of(id);
        let deadline = tokio::time::Instant::now() + LEAVE;
        loop {
            let (node, name) = (Arc::clone(&self.node), group.clone());
            let removed = tokio::task::spawn_blocking(move || node.remove(&name)).await;
            match removed {
                Ok(Ok(cgroup::Removal::Gone)) => return Ok(()),
                Ok(Ok(cgroup::Removal::Busy)) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                Ok(Ok(cgroup::Removal::Busy)) => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        id,
                        "remove the shim's cgroup",
                        "the shim does not end",
                    ));
                }
                Ok(Err(e)) => {
                    return Err(Error::new(ErrorKind::Failed, id, "remove the shim's cgroup", e));
                }
                Err(e) => {
                    return Err(Error::new(ErrorKind::Failed, id, "remove the shim's cgroup", e));
                }
            }
        }
    }

    pub(crate) fn image(&self) -> &OwnedFd {
        &self.image
    }

    pub(crate) fn group_of(&self, id: &str) -> String {
        self.group.of(id)
    }

    /// Removes the parent of all shims' groups when the last one is gone. For a daemon that leaves the node.
    pub fn prune(&self) {
        self.node.prune(&format!("/{}", self.group.parent.trim_matches('/')));
    }
}

impl Shim {
    /// Connects to the living shim of a pod. Kind `Gone` when none lives, `Timeout` when it does not answer.
    pub async fn connect(id: &str, pod_dir: &Path, deadline: Duration) -> Result<Self, Error> {
        Self::connect_with(id, pod_dir, None, deadline).await
    }

    async fn connect_with(
        id: &str,
        pod_dir: &Path,
        bare: Option<Arc<OwnedFd>>,
        deadline: Duration,
    ) -> Result<Self, Error> {
        let stage = "connect to the shim";
        let dir = pod_dir.to_owned();
        let socket =
            tokio::task::spawn_blocking(move || dial(&dir)).await.map_err(io::Error::other);
        let socket = match socket.and_then(|r| r.map_err(io::Error::from)) {
            Ok(socket) => socket,
            Err(e) if is_gone(&e) => return Err(Error::gone(id, stage)),
            Err(e) => return Err(Error::new(ErrorKind::Failed, id, stage, e)),
        };
        Self::greet(id, socket, bare, deadline).await
    }
}

/// A node full of pods needs some descriptors for each; what is started for a pod is given its own limit anyway.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(e) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(error = %e, "could not raise the soft limit of open files to the hard one");
    }
}

fn executable_memfd() -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create("lapstrake-shim", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every memfd was executable and the flag unknown.
        Err(Errno::INVAL) => memfd_create("lapstrake-shim", flags),
        other => other,
    }
}

/// A living shim holds the lock; a socket without it is a leftover.
fn dial(pod_dir: &Path) -> Result<OwnedFd, Errno> {
    let lock = rustix::fs::open(
        pod_dir.join("shim.lock"),
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Err(Errno::WOULDBLOCK) => {}
        Ok(()) => return Err(Errno::CONNREFUSED),
        Err(e) => return Err(e),
    }
    let dir = rustix::fs::open(
        pod_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // The pod's directory may be too deep for a socket address of 108 bytes.
    let short = PathBuf::from(format!("/proc/self/fd/{}/shim.sock", dir.as_raw_fd()));
    connect(&socket, &SocketAddrUnix::new(short.as_path())?)?;
    Ok(socket)
}

fn is_gone(e: &io::Error) -> bool {
    let gone = [Errno::CONNREFUSED, Errno::NOENT].map(Errno::raw_os_error);
    e.raw_os_error().is_some_and(|code| gone.contains(&code))
}

/// Why a shim did not come up, as far as it could say.
fn last_words(pod_dir: &Path) -> String {
    let text = std::fs::read_to_string(pod_dir.join("shim.log")).unwrap_or_default();
    let last = text.lines().last().map_or("it ended without a word", str::trim);
    last.to_owned()
}
