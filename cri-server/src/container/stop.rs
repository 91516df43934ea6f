//! StopContainer: asks, waits for the grace period, kills; returns when the process is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::state::{Decision, Phase, Request, decide};
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;
use crate::shims::Reach;

/// How long a killed process may take to be gone. Only a process in uninterruptible sleep takes
/// longer, and then the caller should hear about it.
pub(super) const KILL_WAIT: Duration = Duration::from_secs(10);

/// Longest grace that is taken at its word; more would overflow the clock and means «for ever».
const GRACE_MAX_S: u64 = 10 * 365 * 24 * 3600;

/// The deadlines of the stops under way: a later call with a shorter grace wins.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    deadlines: Mutex<HashMap<Id, watch::Sender<Instant>>>,
}

impl Stops {
    /// Whether this is the first call, which has to send the signal, and the deadline to watch.
    fn enter(&self, id: &Id, deadline: Instant) -> (bool, watch::Receiver<Instant>) {
        let mut deadlines = self.deadlines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = deadlines.get(id) {
            known.send_modify(|known| *known = deadline.min(*known));
            return (false, known.subscribe());
        }
        let (sender, receiver) = watch::channel(deadline);
        deadlines.insert(id.clone(), sender);
        (true, receiver)
    }

    pub(crate) fn forget(&self, id: &Id) {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// Idempotent; an unknown id is success.
pub(crate) async fn stop(ctx: Arc<Ctx>, id: String, grace_s: i64) -> Result<(), Error> {
    let found = ctx.world.snapshot().container(&id).cloned();
    let Some(container) = found.filter(|container| container.phase.is_shown()) else {
        return Ok(());
    };
    if decide(&container.phase, Request::Stop) == Decision::AlreadyDone {
        return Ok(());
    }
    let id = &container.id;
    let shim = match ctx.reach(&container.sandbox_id).await {
        Reach::Live(shim) => shim,
        Reach::Silent => ctx.live_shim(&container.sandbox_id).await?,
        // Without a shim the cgroup is the truth: empty it, and the container has ended.
        Reach::Gone => {
            ctx.shims.sweep(id.as_str(), std::slice::from_ref(&container.cgroups_path)).await?;
            return super::state_changes::lost(&ctx, id);
        }
    };
    let grace = Duration::from_secs(u64::try_from(grace_s).unwrap_or(0).min(GRACE_MAX_S));
    let ask = !grace.is_zero() && matches!(container.phase, Phase::Running { .. });
    if ask {
        let (first, deadline) = ctx.stops.enter(id, Instant::now() + grace);
        if first {
            match shim.signal(id.as_str(), container.stop_signal).await {
                Err(error) if error.kind != runtime::ErrorKind::AlreadyExited => {
                    ctx.stops.forget(id);
                    return Err(error.into());
                }
                _ => {}
            }
        }
        if ended_before(&ctx, id, deadline).await {
            return Ok(());
        }
    }
    match shim.kill(id.as_str()).await {
        Err(error) if error.kind != runtime::ErrorKind::AlreadyExited => return Err(error.into()),
        _ => {}
    }
    let (_keep, deadline) = watch::channel(Instant::now() + KILL_WAIT);
    if ended_before(&ctx, id, deadline).await {
        return Ok(());
    }
    Err(Error::State {
        operation: "stop",
        kind: "container",
        id: id.to_string(),
        state: format!(
            "still there {} s after SIGKILL; its processes are probably in uninterruptible sleep \
             (cgroup {})",
            KILL_WAIT.as_secs(),
            container.cgroups_path
        ),
    })
}

/// Waits for the end of the container or for the deadline, which may move closer meanwhile.
async fn ended_before(ctx: &Ctx, id: &Id, mut deadline: watch::Receiver<Instant>) -> bool {
    let mut changes = ctx.world.watch();
    loop {
        changes.mark_unchanged();
        let running = ctx.world.snapshot().containers.get(id).is_some_and(|container| {
            matches!(container.phase, Phase::Created { .. } | Phase::Running { .. })
        });
        if !running {
            return true;
        }
        let until = *deadline.borrow_and_update();
        tokio::select! {
            _ = changes.changed() => {}
            Ok(()) = deadline.changed() => {}
            () = tokio::time::sleep_until(until) => return false,
        }
    }
}
