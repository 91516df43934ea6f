//! StartContainer: lets the waiting process exec.

use std::sync::Arc;

use super::state::Phase;
use super::state_changes;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;
use crate::metrics::timeline::Timeline;

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
    let mut timeline = Timeline::begin(&ctx, "start_container", container.id.to_string());
    timeline.enter("shim");
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    match shim.start_container(container.id.as_str()).await {
        Ok(started) => {
            ctx.keep(&shim, &container.sandbox_id, &container.id);
            running(&ctx, &container.id, pid, started.at_ns)
        }
        Err(error) => {
            // The kubelet expects the container EXITED with the reason, not gone.
            if error.kind == runtime::ErrorKind::Failed {
                state_changes::start_failed(&ctx, &container.id, error.to_string())?;
            } else if let Ok(inventory) = shim.inventory().await {
                // Too slow an answer is no answer: what became of it, the shim knows.
                state_changes::apply(&ctx, &inventory.containers)?;
            }
            Err(error.into())
        }
    }
}

/// A short-lived program may have ended before its start was reported: then only the time of the
/// start is still to be filled in.
fn running(ctx: &Ctx, id: &Id, pid: i32, started_at_ns: i64) -> Result<(), Error> {
    ctx.change_phase(id, |now| match now.clone() {
        Phase::Created { .. } => Some(Phase::Running { pid, started_at_ns }),
        Phase::Exited(mut exit) => {
            exit.started_at_ns = started_at_ns;
            exit.finished_at_ns = exit.finished_at_ns.max(started_at_ns);
            Some(Phase::Exited(exit))
        }
        Phase::Creating | Phase::Running { .. } | Phase::Removing => None,
    })
}
