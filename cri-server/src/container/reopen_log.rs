//! ReopenContainerLog: the kubelet has renamed the file; the next line goes into a new one.

use std::sync::Arc;

use super::state::{Decision, Request, decide};
use crate::app::Ctx;
use crate::error::Error;

pub(crate) async fn reopen_log(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let container = ctx.container(&id)?;
    if decide(&container.phase, Request::ReopenLog) != Decision::Proceed {
        return Err(Error::State {
            operation: "reopen the log of",
            kind: "container",
            id: container.id.to_string(),
            state: container.phase.word().to_owned(),
        });
    }
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    Ok(shim.reopen_log(container.id.as_str()).await?)
}
