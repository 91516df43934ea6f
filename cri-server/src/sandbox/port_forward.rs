//! PortForward: gives a client the URL by which it reaches ports of a pod, also those of its loopback.

use std::sync::Arc;

use ::streaming::Errand;

use super::state::Phase;
use crate::app::Ctx;
use crate::error::Error;
use crate::streaming::{Target, What};

/// No ports: any.
pub(crate) async fn port_forward(
    ctx: Arc<Ctx>,
    id: String,
    ports: Vec<u16>,
) -> Result<String, Error> {
    let snapshot = ctx.world.snapshot();
    let found = snapshot.sandbox(&id).filter(|sandbox| sandbox.phase.is_shown());
    let sandbox = found.ok_or_else(|| Error::no_sandbox(id))?;
    if sandbox.phase != Phase::Ready {
        return Err(Error::State {
            operation: "forward ports of",
            kind: "pod sandbox",
            id: sandbox.id.to_string(),
            state: "not ready".to_owned(),
        });
    }
    let target = Target { pod: sandbox.id.to_string(), what: What::PortForward };
    Ok(ctx.streaming.issue(Errand::PortForward(ports), target).await?)
}
