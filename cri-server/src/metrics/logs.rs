//! What the shims have counted of the logs, put together for the whole node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::app::Ctx;
use crate::id::Id;
use crate::shims::Reach;
use crate::store::world::Snapshot;

/// How often the shims are asked: each question wakes a process that has nothing else to do. What a
/// container wrote between the last question and its removal is not counted.
const EVERY: Duration = Duration::from_secs(10);

/// Shims asked at the same time; one that does not answer must not hold up the others.
const AT_ONCE: usize = 8;

/// Of one container, from its start on.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    bytes: u64,
    lines: u64,
    failed: u64,
    limited: u64,
}

/// Asks again and again; never returns.
pub(crate) async fn watch(ctx: Arc<Ctx>) {
    let mut last: HashMap<String, Counts> = HashMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        let world = ctx.world.snapshot();
        let found = ask(&ctx, &world).await;
        let families = &ctx.metrics.families;
        for (id, now) in &found {
            let before = last.get(id).copied().unwrap_or_default();
            // A shim that was replaced counts anew.
            let grown = |now: u64, before: u64| now.saturating_sub(before);
            families.log_bytes.inc_by(grown(now.bytes, before.bytes));
            families.log_lines.inc_by(grown(now.lines, before.lines));
            let dropped = |why| families.log_dropped.with_label_values(&[why]);
            dropped("failed").inc_by(grown(now.failed, before.failed));
            dropped("limited").inc_by(grown(now.limited, before.limited));
        }
        // One whose shim did not answer this time is not to be counted twice later.
        last.retain(|id, _| world.container(id).is_some());
        last.extend(found);
    }
}

async fn ask(ctx: &Arc<Ctx>, world: &Snapshot) -> HashMap<String, Counts> {
    let shown = world.sandboxes.values().filter(|sandbox| sandbox.phase.is_shown());
    let ids: Vec<Id> = shown.map(|sandbox| sandbox.id.clone()).collect();
    let answers = ids.into_iter().map(|id| counts(ctx.clone(), id));
    let answers: Vec<Vec<_>> =
        futures::stream::iter(answers).buffer_unordered(AT_ONCE).collect().await;
    answers.into_iter().flatten().collect()
}

async fn counts(ctx: Arc<Ctx>, sandbox: Id) -> Vec<(String, Counts)> {
    let Reach::Live(shim) = ctx.reach(&sandbox).await else { return Vec::new() };
    let inventory = shim.inventory().await;
    let containers = inventory.map(|inventory| inventory.containers).unwrap_or_default();
    let counts = containers.into_iter().map(|container| {
        let counts = Counts {
            bytes: container.log_bytes,
            lines: container.log_lines,
            failed: container.log_dropped_bytes,
            limited: container.log_limited_bytes,
        };
        (container.id, counts)
    });
    counts.collect()
}
