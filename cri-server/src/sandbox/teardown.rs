//! The one way down for a sandbox, whatever its state: StopPodSandbox, RemovePodSandbox, the
//! roll-back of a failed RunPodSandbox and recovery after a crash all walk it. Every step takes
//! «already gone» as done.

use std::sync::Arc;

use runtime::ErrorKind;

use super::Sandbox;
use super::spec::NamespaceMode;
use super::state::Phase;
use crate::app::Ctx;
use crate::container;
use crate::error::Error;
use crate::id::Id;
use crate::metrics::timeline::Timeline;
use crate::scope;
use crate::shims::{self, Reach};
use crate::store::disk;

/// Ends every process of the pod and gives its network back; the sandbox stays on record.
pub(crate) async fn stop(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let lock = ctx.locks.of(id);
    let _turn = lock.lock().await;
    stop_locked(ctx, id).await
}

async fn stop_locked(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let Some(sandbox) = ctx.world.snapshot().sandboxes.get(id).cloned() else { return Ok(()) };
    match sandbox.phase {
        Phase::NotReady => return Ok(()),
        Phase::Removing => {}
        // Nobody was told of it: whatever happens on the way down, it is one to finish.
        Phase::Starting => enter(ctx, id, Phase::Removing),
        Phase::Ready | Phase::Failed | Phase::Stopping => enter(ctx, id, Phase::Stopping),
    }
    let mut timeline = Timeline::begin(ctx, "stop_pod_sandbox", id.to_string());
    timeline.enter("processes");
    end_processes(ctx, &sandbox).await?;
    timeline.enter("network");
    if sandbox.spec.network != NamespaceMode::Node {
        ctx.network.detach(id, &sandbox.spec.metadata.pod()).await?;
    }
    timeline.enter("shim");
    end_shim(ctx, id).await?;
    scope::end(ctx, &sandbox.cgroup_of(id)).await?;
    timeline.enter("record");
    if sandbox.phase.is_shown() {
        enter(ctx, id, Phase::NotReady);
    }
    Ok(())
}

/// A full disk must not keep anything from being taken down.
fn enter(ctx: &Ctx, id: &Id, phase: Phase) {
    let entered = ctx.change_sandbox(id, |sandbox| {
        sandbox.phase = phase;
        true
    });
    if let Err(error) = entered {
        tracing::warn!(sandbox = %id, %error, "could not record that it is {}", phase.word());
    }
}

async fn end_processes(ctx: &Arc<Ctx>, sandbox: &Sandbox) -> Result<(), Error> {
    let reach = ctx.reach(&sandbox.id).await;
    if matches!(reach, Reach::Silent) {
        // Should it come to itself before it is killed, it finds this and ends its pod by itself.
        disk::write_plain(&ctx.sandbox_dir(&sandbox.id).join("tombstone"), b"")?;
    }
    if let Reach::Live(shim) = reach {
        match shim.stop_sandbox().await {
            Ok(()) => {
                let inventory = shim.inventory().await?;
                return container::state_changes::apply(ctx, &inventory.containers);
            }
            // A shim that is wedged is of no use to its pod.
            Err(error) if matches!(error.kind, ErrorKind::Timeout | ErrorKind::Gone) => {
                ctx.forget_shim(&sandbox.id);
            }
            Err(error) => return Err(error.into()),
        }
    }
    shims::abandon(ctx, sandbox).await
}

async fn end_shim(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    if let Reach::Live(shim) = ctx.reach(id).await {
        // Forgotten first: the end of its connection is no loss.
        ctx.forget_shim(id);
        if let Err(error) = shim.shutdown().await {
            ctx.remember_shim(id, shim);
            return Err(error.into());
        }
        ctx.shims.forget(id.as_str()).await?;
    }
    ctx.forget_shim(id);
    Ok(())
}

/// Stops the sandbox and takes back everything that its record stands for, the record last.
pub(crate) async fn remove(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let lock = ctx.locks.of(id);
    let turn = lock.lock().await;
    let Some(sandbox) = ctx.world.snapshot().sandboxes.get(id).cloned() else { return Ok(()) };
    stop_locked(ctx, id).await?;
    enter(ctx, id, Phase::Removing);
    for member in ctx.members(&sandbox) {
        container::remove::down(ctx, &member).await?;
        // One with a damaged record is known by its directory only, which goes with the pod's.
        ctx.images.discard(member.as_str()).await?;
    }
    if sandbox.owns_cgroup_parent {
        ctx.remove_cgroup(&sandbox.cgroup_parent).await?;
    }
    ctx.drop_sandbox(id)?;
    drop(turn);
    ctx.locks.forget(id);
    Ok(())
}

/// Ends a sandbox whose record is damaged: it is known by its directory alone, and so is what its
/// shim holds.
pub(crate) async fn stop_unrecorded(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    ctx.find_shim(id);
    end_shim(ctx, id).await?;
    ctx.shims.sweep(id.as_str(), &[ctx.own_cgroup_parent(id)]).await?;
    ctx.network.detach(id, "with a damaged record").await
}

/// Stops it and takes back what its directory stands for.
pub(crate) async fn remove_unrecorded(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    stop_unrecorded(ctx, id).await?;
    for member in crate::store::recover::ids_below(&ctx.sandbox_dir(id).join("containers")) {
        ctx.images.discard(member.as_str()).await?;
    }
    ctx.drop_sandbox(id)
}
