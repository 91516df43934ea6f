//! StopPodSandbox: idempotent, and callable again after any failure.

use std::sync::Arc;

use super::teardown;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;

/// An unknown id is success: the kubelet may ask long after everything is gone.
pub(crate) async fn stop(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let found = ctx.world.snapshot().sandbox(&id).map(|sandbox| sandbox.id.clone());
    match found {
        Some(id) => teardown::stop(&ctx, &id).await,
        None => match Id::parse(&id).filter(|id| ctx.sandbox_dir(id).exists()) {
            Some(id) => teardown::stop_unrecorded(&ctx, &id).await,
            None => Ok(()),
        },
    }
}
