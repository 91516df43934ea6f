//! StartContainer: lets the waiting process exec.

use std::sync::Arc;

use super::state::{Decision, Phase, Request, decide};
use super::{Container, state_changes};
use crate::app::Ctx;
use crate::error::Error;

pub(crate) async fn start(ctx: Arc<Ctx>, id: String) -> Result<(), Error> {
    let container = ctx.container(&id)?;
    let lock = ctx.locks.of(&container.id);
    let _turn = lock.lock().await;
    let container = ctx.container(container.id.as_str())?;
    let Phase::Created { pid } = container.phase else {
        return Err(Error::State {
            operation: "start",
            kind: "container",
            id: container.id.to_string(),
            state: container.phase.word().to_owned(),
        });
    };
    debug_assert_eq!(decide(&container.phase, Request::Start), Decision::Proceed);
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    match shim.start_container(container.id.as_str()).await {
        Ok(started) => running(&ctx, &container, pid, started.at_ns),
        Err(error) => {
            // The kubelet expects the container EXITED with the reason, not gone.
            if error.kind == runtime::ErrorKind::Failed {
                state_changes::start_failed(&ctx, &container.id, error.to_string())?;
            }
            Err(error.into())
        }
    }
}

/// A short-lived program may have ended before its start was reported: then only the time of the
/// start is still to be filled in.
fn running(ctx: &Ctx, created: &Container, pid: i32, started_at_ns: i64) -> Result<(), Error> {
    let now = ctx.container(created.id.as_str())?;
    let phase = match now.phase.clone() {
        Phase::Created { .. } => Phase::Running { pid, started_at_ns },
        Phase::Exited(mut exit) => {
            exit.started_at_ns = started_at_ns;
            exit.finished_at_ns = exit.finished_at_ns.max(started_at_ns);
            Phase::Exited(exit)
        }
        other => other,
    };
    ctx.save_container(Container { phase, ..(*now).clone() })
}
