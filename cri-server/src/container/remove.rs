//! RemoveContainer, and the one way down for a container, whatever its state.

use std::sync::Arc;

use runtime::ErrorKind;

use super::state::Phase;
use super::stop::KILL_WAIT;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;
use crate::scope;
use crate::shims::Reach;

/// Idempotent; an unknown id is success. A running container is killed.
pub(crate) async fn remove(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let found = ctx.world.snapshot().container(&id).map(|container| container.id.clone());
    match found {
        Some(id) => down(&ctx, &id).await,
        None => Ok(()),
    }
}

/// Kills what still runs; the shim forgets only what has ended, as most have by now.
async fn delete(shim: &runtime::Shim, id: &Id) -> Result<(), Error> {
    match shim.delete_container(id.as_str()).await {
        Err(error) if error.kind == ErrorKind::InvalidState => {}
        done => return Ok(done?),
    }
    match shim.kill(id.as_str()).await {
        Err(error) if !matches!(error.kind, ErrorKind::AlreadyExited | ErrorKind::NotFound) => {
            return Err(error.into());
        }
        _ => {}
    }
    match shim.wait(id.as_str(), Some(KILL_WAIT)).await {
        Err(error) if error.kind != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(shim.delete_container(id.as_str()).await?)
}

/// Takes back everything that the record stands for, the record last. Serves RemoveContainer,
/// the roll-back of a failed CreateContainer, the removal of a sandbox and recovery.
pub(crate) async fn down(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let lock = ctx.locks.of(id);
    let turn = lock.lock().await;
    let Some(container) = ctx.world.snapshot().containers.get(id).cloned() else { return Ok(()) };
    if let Err(error) = ctx.change_phase(id, |_| Some(Phase::Removing)) {
        // A full disk must not keep anything from being removed.
        tracing::warn!(container = %id, %error, "could not record the removal");
    }
    match ctx.reach(&container.sandbox_id).await {
        Reach::Live(shim) => delete(&shim, id).await?,
        Reach::Silent => {
            ctx.live_shim(&container.sandbox_id).await?;
        }
        Reach::Gone => {
            ctx.shims.sweep(id.as_str(), std::slice::from_ref(&container.cgroups_path)).await?
        }
    }
    scope::end(ctx, &container.cgroups_path).await?;
    ctx.images.discard(id.as_str()).await?;
    ctx.drop_container(&container)?;
    drop(turn);
    ctx.locks.forget(id);
    ctx.stops.forget(id);
    Ok(())
}
