//! UpdateContainerResources: only the values given change, and they stay after a restart.

use std::sync::Arc;

use super::oci_spec;
use super::spec::Resources;
use super::state::{Decision, Request, decide};
use crate::app::Ctx;
use crate::error::Error;

pub(crate) async fn update(ctx: Arc<Ctx>, id: String, change: Resources) -> Result<(), Error> {
    let container = ctx.container(&id)?;
    let lock = ctx.locks.of(&container.id);
    let _turn = lock.lock().await;
    let container = ctx.container(container.id.as_str())?;
    if decide(&container.phase, Request::Update) != Decision::Proceed {
        return Err(Error::State {
            operation: "update",
            kind: "container",
            id: container.id.to_string(),
            state: container.phase.word().to_owned(),
        });
    }
    let resources = merged(&container.spec.resources, change);
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    // The device rules are not part of an update: they stay as they are.
    let oci = oci_spec::resources(&resources, &[], ctx.node).to_string();
    shim.update_container(container.id.as_str(), oci.as_bytes()).await?;
    ctx.change_container(&container.id, |container| {
        container.spec.resources = resources;
        true
    })
}

/// Zero and empty mean «leave as it is», as on the wire.
fn merged(old: &Resources, change: Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: String| if new.is_empty() { old.clone() } else { new };
    let mut unified = old.unified.clone();
    unified.extend(change.unified);
    Resources {
        cpu_period_us: number(old.cpu_period_us, change.cpu_period_us),
        cpu_quota_us: number(old.cpu_quota_us, change.cpu_quota_us),
        cpu_shares: number(old.cpu_shares, change.cpu_shares),
        memory_limit_bytes: number(old.memory_limit_bytes, change.memory_limit_bytes),
        memory_swap_limit_bytes: number(
            old.memory_swap_limit_bytes,
            change.memory_swap_limit_bytes,
        ),
        oom_score_adj: number(old.oom_score_adj, change.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, change.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, change.cpuset_mems),
        hugepage_limits: match change.hugepage_limits.is_empty() {
            true => old.hugepage_limits.clone(),
            false => change.hugepage_limits,
        },
        unified,
    }
}
