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
use crate::sandbox::state::Phase;

/// How long a shim may take to answer a daemon that has just started. A shim answers within
/// milliseconds or is wedged, and a wedged one must not hold up the node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Link {
    Connecting,
    Live(Shim),
    Gone,
}

/// The way to each pod's shim.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: Mutex<HashMap<Id, watch::Sender<Link>>>,
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

    fn watch(&self, id: &Id) -> Option<watch::Receiver<Link>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(id).map(watch::Sender::subscribe)
    }

    fn forget(&self, id: &Id) {
        self.links.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

impl Ctx {
    /// The shim of a sandbox, once it is known whether it lives.
    pub(crate) async fn shim(&self, sandbox: &Id) -> Option<Shim> {
        let mut link = self.links.watch(sandbox)?;
        let settled = link.wait_for(|link| !matches!(link, Link::Connecting)).await.ok()?;
        match &*settled {
            Link::Live(shim) => Some(shim.clone()),
            Link::Connecting | Link::Gone => None,
        }
    }

    /// The shim, for an operation that cannot do without.
    pub(crate) async fn live_shim(&self, sandbox: &Id) -> Result<Shim, Error> {
        self.shim(sandbox).await.ok_or_else(|| Error::State {
            operation: "reach the processes of",
            kind: "pod sandbox",
            id: sandbox.to_string(),
            state: "without its shim".to_owned(),
        })
    }

    pub(crate) fn adopt_shim(self: &Arc<Self>, sandbox: &Id, shim: Shim) {
        // Subscribed before anything can happen in it, so that no event is missed.
        let events = shim.events();
        self.links.set(sandbox, Link::Live(shim));
        tokio::spawn(listen(self.clone(), sandbox.clone(), events));
    }

    pub(crate) fn forget_shim(&self, sandbox: &Id) {
        self.links.forget(sandbox);
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
                Some(id) => state_changes::exited(&ctx, &id, &exit),
                None => Ok(()),
            },
            // Too slow for the buffer: the shim still knows everything.
            Err(broadcast::error::RecvError::Lagged(_)) => catch_up(&ctx, &sandbox).await,
            Ok(Event::Lost) | Err(broadcast::error::RecvError::Closed) => {
                if ctx.links.watch(&sandbox).is_some() {
                    ctx.links.set(&sandbox, Link::Connecting);
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
    let result = match ctx.shims.connect(sandbox.as_str(), &dir, CONNECT_TIMEOUT).await {
        Ok(shim) => take_over(ctx, sandbox, shim).await,
        Err(error) => {
            tracing::warn!(sandbox = %sandbox, %error, "the shim is gone");
            gone(ctx, sandbox).await
        }
    };
    if let Err(error) = result {
        tracing::error!(sandbox = %sandbox, %error, "could not bring the pod's state up to date");
    }
}

async fn take_over(ctx: &Arc<Ctx>, sandbox: &Id, shim: Shim) -> Result<(), Error> {
    // Listening starts before the inventory: what ends in between is told twice, never missed.
    ctx.adopt_shim(sandbox, shim.clone());
    let inventory = shim.inventory().await?;
    state_changes::apply(ctx, &inventory.containers)?;
    let pause_lives =
        inventory.sandbox.is_some_and(|state| !matches!(state.phase, runtime::Phase::Exited(_)));
    if pause_lives { Ok(()) } else { fail(ctx, sandbox) }
}

/// Without the shim nobody reaps or logs: what is left of the pod is ended, and said so.
async fn gone(ctx: &Arc<Ctx>, sandbox: &Id) -> Result<(), Error> {
    let snapshot = ctx.world.snapshot();
    if let Some(known) = snapshot.sandboxes.get(sandbox) {
        let members = snapshot.containers_of(sandbox);
        let mut cgroups: Vec<_> = members.map(|member| member.cgroups_path.clone()).collect();
        cgroups.push(known.cgroup_of(sandbox));
        ctx.shims.sweep(sandbox.as_str(), &cgroups).await?;
    }
    ctx.links.set(sandbox, Link::Gone);
    for member in snapshot.containers_of(sandbox) {
        state_changes::lost(ctx, &member.id)?;
    }
    fail(ctx, sandbox)
}

/// A ready sandbox whose holder died is no longer ready.
fn fail(ctx: &Ctx, sandbox: &Id) -> Result<(), Error> {
    ctx.change_sandbox(sandbox, |known| {
        if known.phase == Phase::Ready {
            known.phase = Phase::Failed;
        }
    })
}
