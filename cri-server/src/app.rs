//! The one place where the daemon is wired together, started and drained.

use std::collections::BTreeSet;
use std::fs::TryLockError;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::container::exec_budget::ExecBudget;
use crate::container::oci_spec::NodeFacts;
use crate::container::state::Phase;
use crate::container::stop::Stops;
use crate::container::{Container, apparmor, writable_limit};
use crate::error::Error;
use crate::grpc;
use crate::id::Id;
use crate::locks::Locks;
use crate::log::Levels;
use crate::metrics::serve::Access;
use crate::metrics::{self, Metrics};
use crate::network::Network;
use crate::sandbox::Sandbox;
use crate::selinux;
use crate::share::Share;
use crate::shims::Links;
use crate::stats::{self, Stats};
use crate::store::disk;
use crate::store::operations::Operations;
use crate::store::recover;
use crate::store::world::World;
use crate::streaming::Streaming;

/// How long calls under way may take to finish after SIGTERM. Whatever is cut off then is
/// finished or taken back by the next start.
const DRAIN: Duration = Duration::from_secs(10);

/// How long the lock of a directory may still be held by what a killed daemon had just forked: a
/// shim lets it go when it is executed.
const LOCK_WAIT: Duration = Duration::from_secs(2);

/// How often the lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// How long the last answers may take to reach their callers.
const FLUSH: Duration = Duration::from_millis(100);

/// What every operation works with.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) config: Config,
    pub(crate) node: NodeFacts,
    pub(crate) apparmor: apparmor::Node,
    pub(crate) selinux: selinux::Node,
    pub(crate) world: World,
    pub(crate) images: image::ImageService,
    pub(crate) network: Network,
    pub(crate) seccomp: seccomp::Compiler,
    pub(crate) shims: runtime::Shims,
    pub(crate) cgroups: Arc<runtime::cgroup::Hierarchies>,
    /// Connected when the first pod comes whose parent is a slice.
    pub(crate) systemd: systemd::Bus,
    pub(crate) links: Links,
    pub(crate) operations: Operations,
    pub(crate) locks: Locks,
    pub(crate) streaming: Streaming,
    pub(crate) stops: Stops,
    pub(crate) exec_budget: ExecBudget,
    pub(crate) metrics: Metrics,
    pub(crate) stats: Stats,
    pub(crate) levels: Levels,
    /// How many calls are under way.
    pub(crate) calls: watch::Sender<usize>,
    /// Held while a record is read, changed and written: an exit that a shim reports and the call
    /// that caused it must not overwrite each other. Records are on a tmpfs, so this is short.
    pub(crate) recording: Mutex<()>,
}

impl Ctx {
    pub(crate) fn sandbox_dir(&self, id: &Id) -> PathBuf {
        self.config.state.join("pods").join(id.as_str())
    }

    /// The parent cgroup of a pod that comes without one.
    pub(crate) fn own_cgroup_parent(&self, id: &Id) -> String {
        format!("{}/pod-{id}", self.config.runtime.cgroup_parent)
    }

    pub(crate) fn bundle_dir(&self, container: &Container) -> PathBuf {
        let sandbox = self.sandbox_dir(&container.sandbox_id);
        sandbox.join("containers").join(container.id.as_str())
    }

    /// A new sandbox: on record first, then for all to see. In the same step it gets a level that no other has.
    pub(crate) fn add_sandbox(&self, mut sandbox: Sandbox) -> Result<Sandbox, Error> {
        let _turn = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let options = sandbox.spec.confinement.selinux.as_ref();
        let level = self.selinux.level(sandbox.id.as_str(), options, &self.world.snapshot());
        sandbox.selinux_level = level;
        self.record_sandbox(sandbox.clone())?;
        Ok(sandbox)
    }

    /// Changes a sandbox that is still there, if `change` says that it did; one step, so that
    /// nobody else's change is lost.
    pub(crate) fn change_sandbox(
        &self,
        id: &Id,
        change: impl FnOnce(&mut Sandbox) -> bool,
    ) -> Result<(), Error> {
        let _turn = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = self.world.snapshot().sandboxes.get(id).cloned() else { return Ok(()) };
        let mut next = Sandbox::clone(&now);
        match change(&mut next) {
            true => self.record_sandbox(next),
            false => Ok(()),
        }
    }

    /// The end of a sandbox: its directory with the record, then the world's knowledge of it.
    pub(crate) fn drop_sandbox(&self, id: &Id) -> Result<(), Error> {
        let _turn = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        disk::remove_dir(&self.sandbox_dir(id))?;
        self.world.change(|world| world.sandboxes.remove(id));
        Ok(())
    }

    pub(crate) fn drop_container(&self, container: &Container) -> Result<(), Error> {
        let _turn = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        disk::remove_dir(&self.bundle_dir(container))?;
        self.world.change(|world| world.containers.remove(&container.id));
        Ok(())
    }

    /// Every container that a sandbox has or had, those with a damaged record included.
    pub(crate) fn members(&self, sandbox: &Sandbox) -> BTreeSet<Id> {
        let on_disk = recover::ids_below(&self.sandbox_dir(&sandbox.id).join("containers"));
        let snapshot = self.world.snapshot();
        let known = snapshot.containers_of(&sandbox.id).map(|member| member.id.clone());
        on_disk.into_iter().chain(known).collect()
    }

    fn record_sandbox(&self, sandbox: Sandbox) -> Result<(), Error> {
        let path = self.sandbox_dir(&sandbox.id).join("record");
        disk::write_record(&path, "sandbox", &sandbox)?;
        self.world.change(|world| world.sandboxes.insert(sandbox.id.clone(), Arc::new(sandbox)));
        Ok(())
    }

    /// Changes a container that is still there. `change` looks at the phase it finds and answers
    /// with the next one, or with `None` when there is nothing to do.
    pub(crate) fn change_phase(
        &self,
        id: &Id,
        change: impl FnOnce(&Phase) -> Option<Phase>,
    ) -> Result<(), Error> {
        self.change_container(id, |container| match change(&container.phase) {
            Some(next) => {
                container.phase = next;
                true
            }
            None => false,
        })
    }

    /// Changes a container that is still there, if `change` says that it did.
    pub(crate) fn change_container(
        &self,
        id: &Id,
        change: impl FnOnce(&mut Container) -> bool,
    ) -> Result<(), Error> {
        let _turn = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = self.world.snapshot().containers.get(id).cloned() else { return Ok(()) };
        let mut next = Container::clone(&now);
        if !change(&mut next) {
            return Ok(());
        }
        let written = self.write_container_record(&next);
        // An end is true even when the disk is too full to hold it, and a removal gives space.
        if written.is_err() && !matches!(next.phase, Phase::Exited(_) | Phase::Removing) {
            return written;
        }
        self.world.change(|world| world.containers.insert(next.id.clone(), Arc::new(next)));
        written
    }

    pub(crate) fn write_container_record(&self, container: &Container) -> Result<(), Error> {
        let path = self.bundle_dir(container).join("record");
        Ok(disk::write_record(&path, "container", container)?)
    }

    /// A container that is shown, by its id.
    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, Error> {
        let found = self.world.snapshot().container(id).cloned();
        found.filter(|container| container.phase.is_shown()).ok_or_else(|| Error::no_container(id))
    }

    /// Removes a cgroup that was made for a pod and is empty now; «already gone» is done.
    pub(crate) async fn remove_cgroup(&self, path: &str) -> Result<(), Error> {
        let (cgroups, group) = (self.cgroups.clone(), path.to_owned());
        let removed = tokio::task::spawn_blocking(move || cgroups.remove(&group)).await;
        match removed.map_err(|_| Error::Panicked { operation: "remove a cgroup" })? {
            Ok(runtime::cgroup::Removal::Gone) => Ok(()),
            Ok(runtime::cgroup::Removal::Busy) => Err(Error::State {
                operation: "remove",
                kind: "cgroup",
                id: path.to_owned(),
                state: "not empty".to_owned(),
            }),
            Err(source) => Err(Error::Cgroup(source)),
        }
    }
}

/// A daemon that is ready to serve.
pub(crate) struct App {
    ctx: Arc<Ctx>,
    listener: UnixListener,
    metrics_listener: metrics::tls::Front,
    access: Access,
    share: Option<Share>,
    /// Held as long as the daemon lives: no second one on the same directories.
    _locks: [std::fs::File; 2],
}

impl App {
    pub(crate) async fn build(config: Config, levels: Levels) -> anyhow::Result<Self> {
        for dir in [config.root.clone(), config.state.join("pods")] {
            disk::create_dir(&dir)?;
        }
        let locks = [lock(&config.root)?, lock(&config.state)?];
        let metrics = Metrics::new(config.log.slow)?;
        let access = Access::open(config.metrics.token_file.as_deref())?;
        let tls = config.metrics.tls.as_ref().map(metrics::tls::acceptor).transpose()?;
        let shim = config.shim_binary();
        let cgroup = runtime::ShimCgroup { parent: config.runtime.shim_cgroup.clone() };
        let shims = runtime::Shims::open(&shim, cgroup)
            .with_context(|| format!("prepare the shim {}", shim.display()))?;
        let images = image::ImageService::open(image_config(&config, &metrics)).await?;
        let share = match &config.images.share {
            Some(share) => Some(Share::open(share, images.clone()).await?),
            None => None,
        };
        let network = Network::open(&config, &metrics.families).context("open the pod network")?;
        let seccomp = seccomp::Compiler::open(config.root.join("seccomp"))?;
        let recovered = recover::load(&config.state.join("pods"));
        let metrics_listener = tokio::net::TcpListener::bind(config.metrics_listen)
            .await
            .with_context(|| format!("listen on {} for metrics", config.metrics_listen))?;
        let metrics_listener = metrics::tls::Front::new(metrics_listener, tls);
        let listener = bind(&config.listen)?;
        let cgroups = runtime::cgroup::Hierarchies::detect().context("find the cgroups")?;
        let cgroups = Arc::new(cgroups);
        let ctx = Arc::new(Ctx {
            node: node_facts(),
            apparmor: apparmor::Node::look(),
            selinux: selinux::Node::look(),
            world: World::new(recovered),
            images,
            network,
            seccomp,
            shims,
            cgroups: cgroups.clone(),
            systemd: systemd::Bus::default(),
            links: Links::default(),
            operations: Operations::default(),
            locks: Locks::default(),
            streaming: Streaming::new(&config, cgroups, metrics.families.sessions.clone()),
            stops: Stops::default(),
            exec_budget: ExecBudget::default(),
            metrics,
            stats: Stats::default(),
            levels,
            calls: watch::Sender::new(0),
            recording: Mutex::default(),
            config,
        });
        Ok(Self { ctx, listener, metrics_listener, access, share, _locks: locks })
    }

    /// Serves until SIGTERM or SIGINT, then lets calls under way finish. Containers stay.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let (stop, stopping) = watch::channel(false);
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        recover::resume(&self.ctx).await;
        let socket = self.ctx.config.listen.clone();
        tracing::info!(
            socket = %socket.display(),
            metrics = %axum::serve::Listener::local_addr(&self.metrics_listener)?,
            version = env!("CARGO_PKG_VERSION"),
            "serving"
        );
        let mut served = tokio::spawn(grpc::serve(self.ctx.clone(), self.listener, stopping));
        let watched = self.ctx.clone();
        tokio::spawn(async move { watched.network.watch(&watched.world).await });
        if let Some(share) = self.share {
            tracing::info!(address = %share.address()?, "sharing images");
            tokio::spawn(share.serve());
        }
        stats::sampler::start(&self.ctx).context("start the sampler")?;
        stats::census::start(&self.ctx).context("start the census")?;
        tokio::spawn(metrics::timeline::watch(self.ctx.clone()));
        tokio::spawn(metrics::logs::watch(self.ctx.clone()));
        tokio::spawn(writable_limit::watch(self.ctx.clone()));
        tokio::spawn(metrics::serve::serve(self.ctx.clone(), self.metrics_listener, self.access));
        // Nobody listens when the daemon is not under systemd.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            ended = &mut served => return ended?.context("serve CRI"),
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
        tracing::info!("draining; pods keep running");
        stop.send_replace(true);
        // A pull could keep the others waiting for long; the next daemon goes on with what is here.
        if let Err(error) = self.ctx.images.close().await {
            tracing::warn!(%error, "the images will be checked at the next start");
        }
        // Calls count, not connections: an idle client may keep its own open for ever.
        let mut calls = self.ctx.calls.subscribe();
        match tokio::time::timeout(DRAIN, calls.wait_for(|calls| *calls == 0)).await {
            Ok(_) => {
                let _ = tokio::time::timeout(FLUSH, served).await;
            }
            Err(_) => tracing::warn!(seconds = DRAIN.as_secs(), "calls were still under way"),
        }
        self.ctx.streaming.leave().await;
        let _ = std::fs::remove_file(&socket);
        // A node without pods keeps no trace of us.
        self.ctx.shims.prune();
        Ok(())
    }
}

/// An advisory lock on a directory, so that it has one daemon.
pub(crate) fn lock(dir: &Path) -> anyhow::Result<std::fs::File> {
    let path = dir.join("lock");
    let file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    let end = Instant::now() + LOCK_WAIT;
    while let Err(error) = file.try_lock() {
        if Instant::now() < end && matches!(error, TryLockError::WouldBlock) {
            std::thread::sleep(LOCK_POLL);
            continue;
        }
        return Err(error).with_context(|| {
            format!(
                "another lapstrake daemon uses {}; give this one a --root, a --state and a \
                 --listen of its own",
                dir.display()
            )
        });
    }
    Ok(file)
}

/// A socket file that a dead daemon left is replaced: the lock says that it is dead.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        disk::create_dir_shared(parent)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replace the socket {}", path.display()));
        }
        _ => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

fn image_config(config: &Config, metrics: &Metrics) -> image::Config {
    let stages = metrics.families.stage_seconds.clone();
    let observe = image::Observe::new(move |stage, time| {
        stages.with_label_values(&["pull_image", stage]).observe(time.as_secs_f64());
    });
    image::Config {
        certs_d: config.images.certs_d.clone(),
        registries_conf: config.images.registries_conf.clone(),
        auth_files: config.images.auth_files.clone(),
        policy: config.images.policy.clone(),
        allowed_digests: config.images.allowed_digests.clone(),
        keep_blobs: config.images.keep_blobs,
        pinned: config.images.pinned.clone(),
        max_concurrent_downloads: config.images.max_concurrent_downloads,
        progress_timeout: Duration::from_secs(config.images.progress_timeout_s),
        observe,
        ..image::Config::new(config.root.clone())
    }
}

/// The first kernel that maps the ids of everything a pod has: of image layers since 5.19, of tmpfs,
/// where its own files and Kubernetes' secrets are, since this one.
const MAPPED_MOUNTS: (u32, u32) = (6, 3);

/// Without namespaces left to make, a pod could not have one.
fn has_user_namespaces() -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let release = read("/proc/sys/kernel/osrelease");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    let most = read("/proc/sys/user/max_user_namespaces").trim().parse::<u64>();
    version.is_some_and(|version| version >= MAPPED_MOUNTS) && most.is_ok_and(|most| most > 0)
}

fn node_facts() -> NodeFacts {
    NodeFacts {
        user_namespaces: has_user_namespaces(),
        cgroup_v2: Path::new("/sys/fs/cgroup/cgroup.controllers").exists(),
        swap_accounting: ["memory/memory.memsw.limit_in_bytes", "memory.swap.max"]
            .iter()
            .any(|file| Path::new("/sys/fs/cgroup").join(file).exists())
            || std::fs::read_dir("/sys/fs/cgroup").is_ok_and(|entries| {
                // The root of a v2 hierarchy has no limits; any child tells.
                entries.flatten().any(|entry| entry.path().join("memory.swap.max").exists())
            }),
    }
}
