//! What the shims report, written into the world: started, exited, lost.

use std::sync::Arc;

use super::state::{Exit, Phase, Reason};
use super::writable_limit;
use crate::app::Ctx;
use crate::clock;
use crate::error::Error;
use crate::id::Id;

/// The exit code of a container whose end nobody saw, as the peers report it.
const LOST_CODE: i32 = 255;
/// An older kernel tells only the parent of a process how it ended, and that was the shim.
const LOST_WHY: &str = "the shim of the pod died, and with it the exit status";

/// The exit code of a container whose program never ran.
const START_ERROR_CODE: i32 = 128;

/// A container ended. Said twice, the first word stays.
pub(crate) fn exited(ctx: &Ctx, id: &Id, exit: &runtime::Exit) -> Result<(), Error> {
    let (code, reason, message) = match (&exit.start_error, exit.oom_killed, exit.code) {
        (Some(message), _, _) => (START_ERROR_CODE, Reason::StartError, message.clone()),
        (None, true, code) => (code, Reason::OomKilled, String::new()),
        (None, false, _) if exit.unknown => (LOST_CODE, Reason::ShimLost, LOST_WHY.to_owned()),
        (None, false, 0) => (0, Reason::Completed, String::new()),
        (None, false, code) => (code, Reason::Error, String::new()),
    };
    finish(ctx, id, |started_at_ns| Exit {
        code,
        started_at_ns,
        finished_at_ns: exit.at_ns.max(started_at_ns),
        reason,
        message,
    })
}

/// The shim is gone and nobody can tell how the container ended.
pub(crate) fn lost(ctx: &Ctx, id: &Id) -> Result<(), Error> {
    finish(ctx, id, |started_at_ns| Exit {
        code: LOST_CODE,
        started_at_ns,
        finished_at_ns: clock::now_ns(),
        reason: Reason::ShimLost,
        message: LOST_WHY.to_owned(),
    })
}

/// The program could not be started.
pub(crate) fn start_failed(ctx: &Ctx, id: &Id, message: String) -> Result<(), Error> {
    finish(ctx, id, |_| {
        let now = clock::now_ns();
        Exit {
            code: START_ERROR_CODE,
            started_at_ns: now,
            finished_at_ns: now,
            reason: Reason::StartError,
            message,
        }
    })
}

fn finish(ctx: &Ctx, id: &Id, exit: impl FnOnce(i64) -> Exit) -> Result<(), Error> {
    ctx.change_container(id, |container| {
        let started_at_ns = match &container.phase {
            Phase::Running { started_at_ns, .. } => *started_at_ns,
            // The shim tells the end only of what it has created, but may tell it before we wrote so.
            Phase::Created { .. } | Phase::Creating => 0,
            Phase::Exited(_) | Phase::Removing => return false,
        };
        let mut exit = exit(started_at_ns);
        if let (Reason::Error, Some(written), Some(limit)) =
            (exit.reason, container.over_limit, container.writable_limit)
        {
            exit.reason = Reason::WritableLimit;
            exit.message = writable_limit::message(written, limit);
        }
        container.phase = Phase::Exited(exit);
        true
    })
}

/// Brings the world in line with what a shim knows.
pub(crate) fn apply(ctx: &Arc<Ctx>, containers: &[runtime::ContainerState]) -> Result<(), Error> {
    for state in containers {
        let Some(id) = Id::parse(&state.id) else { continue };
        match &state.phase {
            runtime::Phase::Created => {}
            runtime::Phase::Running => ctx.change_phase(&id, |now| match now {
                Phase::Created { pid } => {
                    Some(Phase::Running { pid: *pid, started_at_ns: state.started_at_ns })
                }
                _ => None,
            })?,
            runtime::Phase::Exited(exit) => exited(ctx, &id, exit)?,
        }
    }
    Ok(())
}
