//! The one way down for a sandbox, whatever its state: StopPodSandbox, RemovePodSandbox, the
//! roll-back of a failed RunPodSandbox and recovery after a crash all walk it. Every step takes
//! «already gone» as done.

use std::sync::Arc;

use super::Sandbox;
use super::spec::NamespaceMode;
use super::state::Phase;
use crate::app::Ctx;
use crate::container;
use crate::error::Error;
use crate::id::Id;
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
        Phase::Starting | Phase::Removing => {}
        Phase::Ready | Phase::Failed | Phase::Stopping => {
            ctx.change_sandbox(id, |sandbox| sandbox.phase = Phase::Stopping)?;
        }
    }
    end_processes(ctx, &sandbox).await?;
    if sandbox.spec.network != NamespaceMode::Node {
        ctx.network.detach(&sandbox).await?;
    }
    if let Some(shim) = ctx.shim(id).await {
        // Forgotten first: the end of its connection is no loss.
        ctx.forget_shim(id);
        if let Err(error) = shim.shutdown().await {
            ctx.adopt_shim(id, shim);
            return Err(error.into());
        }
        ctx.shims.forget(id.as_str()).await?;
    }
    ctx.forget_shim(id);
    if sandbox.phase.is_shown() {
        ctx.change_sandbox(id, |sandbox| sandbox.phase = Phase::NotReady)?;
    }
    Ok(())
}

async fn end_processes(ctx: &Arc<Ctx>, sandbox: &Sandbox) -> Result<(), Error> {
    if let Some(shim) = ctx.shim(&sandbox.id).await {
        shim.stop_sandbox().await?;
        let inventory = shim.inventory().await?;
        container::state_changes::apply(ctx, &inventory.containers)?;
        return Ok(());
    }
    let snapshot = ctx.world.snapshot();
    let members = snapshot.containers_of(&sandbox.id);
    let mut cgroups: Vec<String> = members.map(|member| member.cgroups_path.clone()).collect();
    cgroups.push(sandbox.cgroup_of(&sandbox.id));
    ctx.shims.sweep(sandbox.id.as_str(), &cgroups).await?;
    for member in snapshot.containers_of(&sandbox.id) {
        container::state_changes::lost(ctx, &member.id)?;
    }
    Ok(())
}

/// Stops the sandbox and takes back everything that its record stands for, the record last.
pub(crate) async fn remove(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let lock = ctx.locks.of(id);
    let turn = lock.lock().await;
    let Some(sandbox) = ctx.world.snapshot().sandboxes.get(id).cloned() else { return Ok(()) };
    stop_locked(ctx, id).await?;
    ctx.change_sandbox(id, |sandbox| sandbox.phase = Phase::Removing)?;
    let snapshot = ctx.world.snapshot();
    for member in snapshot.containers_of(id) {
        container::remove::down(ctx, &member.id).await?;
    }
    if sandbox.owns_cgroup_parent {
        ctx.remove_cgroup(&sandbox.cgroup_parent).await?;
    }
    disk::remove_dir(&ctx.sandbox_dir(id))?;
    ctx.world.change(|world| world.sandboxes.remove(id));
    drop(turn);
    ctx.locks.forget(id);
    Ok(())
}
