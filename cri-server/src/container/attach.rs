//! Attach: gives a client the URL by which it joins what a container runs.

use std::sync::Arc;

use ::streaming::{Errand, Wanted};

use crate::app::Ctx;
use crate::error::Error;
use crate::streaming::{Target, What};

pub(crate) async fn attach(ctx: Arc<Ctx>, id: String, wanted: Wanted) -> Result<String, Error> {
    let container = super::exec::running(&ctx, &id, "attach to")?;
    let what = What::Attach {
        container: container.id.to_string(),
        stdin: container.spec.stdin,
        stdin_once: container.spec.stdin_once,
        replay: ctx.streaming.replay(),
    };
    let target = Target { pod: container.sandbox_id.to_string(), what };
    Ok(ctx.streaming.issue(Errand::Attach(wanted), target).await?)
}
