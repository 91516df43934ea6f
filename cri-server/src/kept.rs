//! What the daemon keeps of running pods in case a shim dies, and how the pod goes on under another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use runtime::cgroup::Removal;
use runtime::{Held, Shim};

use crate::app::Ctx;
use crate::container::state::Phase;
use crate::container::state_changes;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox::Sandbox;

/// How long the processes of a dead shim's container may take to end after they were killed.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// By sandbox, what is kept of it and its containers.
#[derive(Debug)]
pub(crate) struct Kept<T = Held>(Mutex<HashMap<Id, Objects<T>>>);

type Objects<T> = HashMap<Id, Arc<T>>;

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Kept<T> {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Objects<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever drops has seen to it before that `lives` says no: what comes late is not kept for ever.
    fn keep(&self, sandbox: &Id, object: &Id, held: T, lives: impl FnOnce() -> bool) {
        let mut all = self.all();
        if lives() {
            all.entry(sandbox.clone()).or_default().insert(object.clone(), Arc::new(held));
        }
    }

    /// An ended container needs no successor.
    pub(crate) fn drop(&self, sandbox: &Id, object: &Id) {
        if let Some(of_sandbox) = self.all().get_mut(sandbox) {
            of_sandbox.remove(object);
        }
    }

    pub(crate) fn drop_all(&self, sandbox: &Id) {
        self.all().remove(sandbox);
    }

    fn of(&self, sandbox: &Id) -> Objects<T> {
        self.all().get(sandbox).cloned().unwrap_or_default()
    }
}

impl Ctx {
    /// Begins to keep a sandbox (when both ids are the same) or a running container; nobody waits for that.
    pub(crate) fn keep(self: &Arc<Self>, shim: &Shim, sandbox: &Id, object: &Id) {
        let (ctx, shim) = (self.clone(), shim.clone());
        let (sandbox, object) = (sandbox.clone(), object.clone());
        tokio::spawn(async move {
            match shim.hold(object.as_str()).await {
                Ok(held) => {
                    let snapshot = ctx.world.snapshot();
                    let container = snapshot.containers.get(&object);
                    let once = container.is_some_and(|container| container.spec.stdin_once);
                    let held = if once { held.without_stdin() } else { held };
                    let lives = || ctx.lives(&sandbox, &object);
                    ctx.links.kept.keep(&sandbox, &object, held, lives);
                }
                // It has ended meanwhile, or its shim is too old: then it is lost with its shim, as it was before.
                Err(error) => {
                    tracing::debug!(sandbox = %sandbox, %object, %error, "cannot be kept");
                }
            }
        });
    }

    /// Whether there is still something to keep.
    fn lives(&self, sandbox: &Id, object: &Id) -> bool {
        let snapshot = self.world.snapshot();
        let ended = |phase: &Phase| matches!(phase, Phase::Exited(_) | Phase::Removing);
        let container = snapshot.containers.get(object).filter(|it| !ended(&it.phase));
        self.links.knows(sandbox) && (object == sandbox || container.is_some())
    }
}

/// Gives a pod whose shim died another one. `None`: there is not enough of it left.
pub(crate) async fn revive(ctx: &Arc<Ctx>, sandbox: &Sandbox) -> Result<Option<Shim>, Error> {
    let kept = ctx.links.kept.of(&sandbox.id);
    let Some(pause) = kept.get(&sandbox.id) else { return Ok(None) };
    let shim = ctx.shims.spawn(sandbox.id.as_str(), &ctx.sandbox_dir(&sandbox.id)).await?;
    shim.adopt(pause).await?;
    ctx.entrust(&shim, &sandbox.id, &sandbox.id);
    let snapshot = ctx.world.snapshot();
    for container in snapshot.containers_of(&sandbox.id) {
        let runs = matches!(container.phase, Phase::Running { .. });
        let adopted = match kept.get(&container.id).filter(|_| runs) {
            Some(held) => shim.adopt(held).await.is_ok(),
            None => false,
        };
        if adopted {
            ctx.entrust(&shim, &sandbox.id, &container.id);
        }
        if !adopted {
            end(ctx, &container.cgroups_path).await;
            state_changes::lost(ctx, &container.id)?;
        }
    }
    tracing::warn!(sandbox = %sandbox.id, pid = shim.pid(), "the shim died; another one took over");
    Ok(Some(shim))
}

/// What nobody looks after any more ends, and so does the group that the dead shim would have removed.
async fn end(ctx: &Arc<Ctx>, group: &str) {
    for _ in 0..TRIES {
        let (cgroups, path) = (ctx.cgroups.clone(), group.to_owned());
        let removal = move || cgroups.kill(&path).and_then(|_| cgroups.remove(&path));
        match tokio::task::spawn_blocking(removal).await {
            Ok(Ok(Removal::Gone)) => return,
            Ok(Ok(Removal::Busy)) => tokio::time::sleep(PAUSE).await,
            Ok(Err(error)) => {
                return tracing::warn!(group, %error, "could not end what a dead shim left");
            }
            Err(_) => return,
        }
    }
    tracing::warn!(group, "processes that a dead shim left do not end");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_before_it_could_be_kept_is_not() {
        let kept = Kept::default();
        let [pod, container] = ["a", "b"].map(|digit| Id::parse(&digit.repeat(64)).unwrap());
        kept.keep(&pod, &pod, 1, || true);
        kept.keep(&pod, &container, 2, || true);
        kept.drop(&pod, &container);
        kept.keep(&pod, &container, 3, || false);
        assert_eq!(kept.of(&pod), HashMap::from([(pod.clone(), Arc::new(1))]));
        kept.drop_all(&pod);
        kept.keep(&pod, &pod, 4, || false);
        assert_eq!(kept.all().len(), 0);
    }
}
