//! The shims of the pods: found again after a restart, listened to, and missed when they die.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::{Event, Shim};
use tokio::sync::{broadcast, watch};

use crate::app::Ctx;
use crate::container::state_changes;
use crate::error::Error;
use crate::id::Id;
use crate::kept::{self, Kept};
use crate::sandbox::Sandbox;
use crate::sandbox::state::Phase;

/// How long a shim may take to answer a daemon that has just started. A shim answers within
/// milliseconds or is wedged, and a wedged one must not hold up the node.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A shim that lives and does not answer is asked again, ever more rarely: the node may just be
/// overloaded, and nothing of the pod is touched meanwhile.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
enum Link {
    Connecting,
    Live(Shim),
    /// It holds its lock, but does not answer.
    Silent,
    Gone,
}

/// How the shim of a sandbox can be reached.
pub(crate) enum Reach {
    Live(Shim),
    Silent,
    Gone,
}

/// The way to each pod's shim.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: Mutex<HashMap<Id, watch::Sender<Link>>>,
    pub(crate) kept: Kept,
}

impl Links {
    fn set(&self, id: &Id, link: Link) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        match links.get(id) {
            Some(known) => {
                known.send_replace(link);
            }
            None => {
                links.insert(id.clone(), watch::Sender::new(link));
            }
        }
    }

    /// Sets the link of a sandbox that is not forgotten meanwhile.
    fn replace(&self, id: &Id, link: Link) -> bool {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(id).map(|known| known.send_replace(link)).is_some()
    }

    /// Whether the sandbox is not forgotten.
    pub(crate) fn knows(&self, id: &Id) -> bool {
        self.watch(id).is_some()
    }

    fn watch(&self, id: &Id) -> Option<watch::Receiver<Link>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(id).map(watch::Sender::subscribe)
    }

    /// How many there are in each state.
    pub(crate) fn states(&self) -> [(&'static str, usize); 4] {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let in_state =
            |fits: fn(&Link) -> bool| links.values().filter(|link| fits(&link.borrow())).count();
        [
            ("connecting", in_state(|link| matches!(link, Link::Connecting))),
            ("live", in_state(|link| matches!(link, Link::Live(_)))),
            ("silent", in_state(|link| matches!(link, Link::Silent))),
            ("gone", in_state(|link| matches!(link, Link::Gone))),
        ]
    }

    fn forget(&self, id: &Id) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.kept.drop_all(id);
    }
}

impl Ctx {
    /// The shim of a sandbox, once it is known whether it lives.
    pub(crate) async fn reach(&self, sandbox: &Id) -> Reach {
        let Some(mut link) = self.links.watch(sandbox) else { return Reach::Gone };
        let settled = link.wait_for(|link| !matches!(link, Link::Connecting)).await;
        match settled.as_deref() {
            Ok(Link::Live(shim)) => Reach::Live(shim.clone()),
            Ok(Link::Silent) => Reach::Silent,
            Ok(Link::Connecting | Link::Gone) | Err(_) => Reach::Gone,
        }
    }

    /// The shim, for an operation that cannot do without.
    pub(crate) async fn live_shim(&self, sandbox: &Id) -> Result<Shim, Error> {
        let state = match self.reach(sandbox).await {
            Reach::Live(shim) => return Ok(shim),
            Reach::Silent => "there, but its shim does not answer; StopPodSandbox ends it",
            Reach::Gone => "without its shim",
        };
        Err(Error::State {
            operation: "reach the processes of",
            kind: "pod sandbox",
            id: sandbox.to_string(),
            state: state.to_owned(),
        })
    }

    pub(crate) fn adopt_shim(self: &Arc<Self>, sandbox: &Id, shim: Shim) {
        // Subscribed before anything can happen in it, so that no event is missed.
        let events = shim.events();
        self.links.set(sandbox, Link::Live(shim));
        spawn_listener(self, sandbox, events);
    }

    pub(crate) fn forget_shim(&self, sandbox: &Id) {
        self.links.forget(sandbox);
    }

    /// Takes back `forget_shim`: the shim could not be ended.
    pub(crate) fn remember_shim(&self, sandbox: &Id, shim: Shim) {
        self.links.set(sandbox, Link::Live(shim));
    }

    /// Begins to look for the shim of a sandbox that was found on record.
    pub(crate) fn find_shim(self: &Arc<Self>, sandbox: &Id) {
        self.links.set(sandbox, Link::Connecting);
        let (ctx, id) = (self.clone(), sandbox.clone());
        tokio::spawn(async move { reconnect(&ctx, &id).await });
    }
}

async fn listen(ctx: Arc<Ctx>, sandbox: Id, mut events: broadcast::Receiver<Event>) {
    loop {
        let result = match events.recv().await {
            Ok(Event::Exited { id, exit }) if id == sandbox.as_str() => {
                tracing::debug!(sandbox = %sandbox, code = exit.code, "pause ended");
                fail(&ctx, &sandbox)
            }
            Ok(Event::Exited { id, exit }) => match Id::parse(&id) {
                Some(id) => {
                    let recorded = state_changes::exited(&ctx, &id, &exit);
                    ctx.links.kept.drop(&sandbox, &id);
                    recorded
                }
                None => Ok(()),
            },
            // Too slow for the buffer: the shim still knows everything.
            Err(broadcast::error::RecvError::Lagged(_)) => catch_up(&ctx, &sandbox).await,
            Ok(Event::Lost) | Err(broadcast::error::RecvError::Closed) => {
                if ctx.links.replace(&sandbox, Link::Connecting) {
                    reconnect(&ctx, &sandbox).await;
                }
                return;
            }
        };
        if let Err(error) = result {
            tracing::error!(sandbox = %sandbox, %error, "could not record an exit");
        }
    }
}

async fn catch_up(ctx: &Arc<Ctx>, sandbox: &Id) -> Result<(), Error> {
    let shim = ctx.live_shim(sandbox).await?;
    state_changes::apply(ctx, &shim.inventory().await?.containers)
}

async fn reconnect(ctx: &Arc<Ctx>, sandbox: &Id) {
    let dir = ctx.sandbox_dir(sandbox);
    let mut pause = RETRY_FIRST;
    loop {
        let connected = ctx.shims.connect(sandbox.as_str(), &dir, CONNECT_TIMEOUT).await;
        let result = match connected {
            Ok(shim) => take_over(ctx, sandbox, shim).await,
            Err(error) if error.kind == runtime::ErrorKind::Gone => {
                tracing::warn!(sandbox = %sandbox, "the shim is gone");
                if replaced(ctx, sandbox).await {
                    return;
                }
                if let Err(error) = gone(ctx, sandbox).await {
                    tracing::error!(sandbox = %sandbox, %error, "could not end what it left");
                }
                return;
            }
            Err(error) => Err(error.into()),
        };
        let Err(error) = result else { return };
        tracing::warn!(sandbox = %sandbox, %error, "the shim does not answer");
        if !ctx.links.replace(sandbox, Link::Silent) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn take_over(ctx: &Arc<Ctx>, sandbox: &Id, shim: Shim) -> Result<(), Error> {
    // Listening starts before the inventory: what ends in between is told twice, never missed.
    let events = shim.events();
    let inventory = shim.inventory().await?;
    state_changes::apply(ctx, &inventory.containers)?;
    let pause_lives =
        inventory.sandbox.is_some_and(|state| !matches!(state.phase, runtime::Phase::Exited(_)));
    if !pause_lives {
        fail(ctx, sandbox)?;
    }
    if pause_lives {
        ctx.keep(&shim, sandbox, sandbox);
    }
    for container in &inventory.containers {
        if let (runtime::Phase::Running, Some(id)) = (&container.phase, Id::parse(&container.id)) {
            ctx.keep(&shim, sandbox, &id);
        }
    }
    if ctx.links.replace(sandbox, Link::Live(shim)) {
        spawn_listener(ctx, sandbox, events);
    }
    Ok(())
}

/// A pod that is to run gets another shim, when enough of the old one was kept.
async fn replaced(ctx: &Arc<Ctx>, sandbox: &Id) -> bool {
    let known = ctx.world.snapshot().sandboxes.get(sandbox).cloned();
    let Some(known) = known.filter(|known| known.phase == Phase::Ready) else { return false };
    let revived = match kept::revive(ctx, &known).await {
        Ok(Some(shim)) => take_over(ctx, sandbox, shim).await.map(|()| true),
        Ok(None) => Ok(false),
        Err(error) => Err(error),
    };
    revived.unwrap_or_else(|error| {
        tracing::error!(sandbox = %sandbox, %error, "could not replace its shim");
        false
    })
}

fn spawn_listener(ctx: &Arc<Ctx>, sandbox: &Id, events: broadcast::Receiver<Event>) {
    tokio::spawn(listen(ctx.clone(), sandbox.clone(), events));
}

/// Without the shim nobody reaps or logs: what is left of the pod is ended, and said so.
async fn gone(ctx: &Arc<Ctx>, sandbox: &Id) -> Result<(), Error> {
    let known = ctx.world.snapshot().sandboxes.get(sandbox).cloned();
    let ended = match known {
        Some(known) => abandon(ctx, &known).await,
        None => Ok(()),
    };
    // Whatever the sweep says: nobody may wait for this shim any more.
    ctx.links.replace(sandbox, Link::Gone);
    ended?;
    fail(ctx, sandbox)
}

/// Ends the processes of a pod by its cgroups alone, the shim last, and says so of its containers.
pub(crate) async fn abandon(ctx: &Arc<Ctx>, sandbox: &Sandbox) -> Result<(), Error> {
    let members = ctx.members(sandbox);
    let mut cgroups: Vec<_> = members.iter().map(|member| sandbox.cgroup_of(member)).collect();
    cgroups.push(sandbox.cgroup_of(&sandbox.id));
    ctx.shims.sweep(sandbox.id.as_str(), &cgroups).await?;
    for member in &members {
        state_changes::lost(ctx, member)?;
    }
    Ok(())
}

/// A sandbox whose holder died is no longer ready, nor can it become so.
fn fail(ctx: &Ctx, sandbox: &Id) -> Result<(), Error> {
    ctx.change_sandbox(sandbox, |known| {
        let holds = matches!(known.phase, Phase::Starting | Phase::Ready);
        if holds {
            known.phase = Phase::Failed;
        }
        holds
    })
}
