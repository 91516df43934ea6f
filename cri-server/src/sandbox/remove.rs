//! RemovePodSandbox: idempotent; takes the pod's containers with it, running or not.

use std::sync::Arc;

use super::teardown;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;

/// An unknown id is success.
pub(crate) async fn remove(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let found = ctx.world.snapshot().sandbox(&id).map(|sandbox| sandbox.id.clone());
    match found {
        Some(id) => teardown::remove(&ctx, &id).await,
        None => match Id::parse(&id).filter(|id| ctx.sandbox_dir(id).exists()) {
            Some(id) => teardown::remove_unrecorded(&ctx, &id).await,
            None => Ok(()),
        },
    }
}
