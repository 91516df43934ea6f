//! RemoveContainer, and the one way down for a container, whatever its state.

use std::sync::Arc;

use super::Container;
use super::state::Phase;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;
use crate::store::disk;

/// Idempotent; an unknown id is success. A running container is killed.
pub(crate) async fn remove(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let found = ctx.world.snapshot().container(&id).map(|container| container.id.clone());
    match found {
        Some(id) => down(&ctx, &id).await,
        None => Ok(()),
    }
}

/// Takes back everything that the record stands for, the record last. Serves RemoveContainer,
/// the roll-back of a failed CreateContainer, the removal of a sandbox and recovery.
pub(crate) async fn down(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let lock = ctx.locks.of(id);
    let turn = lock.lock().await;
    let Some(container) = ctx.world.snapshot().containers.get(id).cloned() else { return Ok(()) };
    ctx.save_container(Container { phase: Phase::Removing, ..(*container).clone() })?;
    match ctx.shim(&container.sandbox_id).await {
        Some(shim) => shim.delete_container(id.as_str()).await?,
        None => ctx.shims.sweep(id.as_str(), &[container.cgroups_path.clone()]).await?,
    }
    ctx.images.discard(id.as_str()).await?;
    disk::remove_dir(&ctx.bundle_dir(&container))?;
    ctx.world.change(|world| world.containers.remove(id));
    drop(turn);
    ctx.locks.forget(id);
    ctx.stops.forget(id);
    Ok(())
}
