//! UpdatePodSandboxResources: what the pod as a whole may use, on record and, where the pod's
//! cgroup is ours, in the kernel.

use std::sync::Arc;

use super::Sandbox;
use super::state::Phase;
use crate::app::Ctx;
use crate::container::oci_spec;
use crate::container::spec::Resources;
use crate::container::update::merged;
use crate::error::Error;
use crate::shims::Reach;

/// What the call gives; absent is «leave as it is».
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) overhead: Option<Resources>,
    pub(crate) resources: Option<Resources>,
}

pub(crate) async fn update(ctx: Arc<Ctx>, id: String, given: Given) -> Result<(), Error> {
    let found = ctx.world.snapshot().sandbox(&id).map(|sandbox| sandbox.id.clone());
    let id = found.ok_or_else(|| Error::no_sandbox(&*id))?;
    let lock = ctx.locks.of(&id);
    let _turn = lock.lock().await;
    let found = ctx.world.snapshot().sandboxes.get(&id).cloned();
    let sandbox = found.ok_or_else(|| Error::no_sandbox(id.as_str()))?;
    if sandbox.phase != Phase::Ready {
        return Err(Error::State {
            operation: "update",
            kind: "pod sandbox",
            id: sandbox.id.to_string(),
            state: sandbox.phase.word().to_owned(),
        });
    }
    let mut next = Sandbox::clone(&sandbox);
    for (known, given) in
        [(&mut next.spec.overhead, given.overhead), (&mut next.spec.resources, given.resources)]
    {
        if let Some(given) = given {
            *known = merged(known, given);
        }
    }
    limit(&ctx, &next).await?;
    ctx.change_sandbox(&id, |known| {
        known.spec.overhead = next.spec.overhead;
        known.spec.resources = next.spec.resources;
        true
    })?;
    if let Reach::Live(shim) = ctx.reach(&id).await {
        ctx.entrust(&shim, &id, &id);
    }
    Ok(())
}

/// Writes the pod's limits to its cgroup, unless that is the kubelet's, which does so itself.
pub(super) async fn limit(ctx: &Arc<Ctx>, sandbox: &Sandbox) -> Result<(), Error> {
    let whole = total(&sandbox.spec.overhead, &sandbox.spec.resources);
    if !sandbox.owns_cgroup_parent || whole == Resources::default() {
        return Ok(());
    }
    let oci = oci_spec::resources(&whole, &[], ctx.node);
    let (cgroups, group) = (ctx.cgroups.clone(), sandbox.cgroup_parent.clone());
    let apply = move || {
        use runtime::cgroup::{Error as Problem, Resources, limits};
        let bad = |error: serde_json::Error| Problem::BadPath(error.to_string());
        let resources: Resources = serde_json::from_value(oci).map_err(bad)?;
        let settings = limits::settings(&resources, &cgroups)?;
        cgroups.create(&group)?;
        cgroups.update(&group, &settings)
    };
    let applied = tokio::task::spawn_blocking(apply).await;
    applied.map_err(|_| Error::Panicked { operation: "limit a pod" })?.map_err(Error::Cgroup)
}

/// What the handler needs comes on top of what the containers may have; where one of them has no
/// limit, neither has the pod.
fn total(overhead: &Resources, resources: &Resources) -> Resources {
    let sum = |over: i64, own: i64| if own > 0 { own.saturating_add(over.max(0)) } else { own };
    Resources {
        cpu_quota_us: sum(overhead.cpu_quota_us, resources.cpu_quota_us),
        cpu_shares: sum(overhead.cpu_shares, resources.cpu_shares),
        memory_limit_bytes: sum(overhead.memory_limit_bytes, resources.memory_limit_bytes),
        memory_swap_limit_bytes: sum(
            overhead.memory_swap_limit_bytes,
            resources.memory_swap_limit_bytes,
        ),
        // A score belongs to processes.
        oom_score_adj: 0,
        ..resources.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_comes_on_top_of_a_limit_and_never_makes_one() {
        let overhead = Resources {
            cpu_quota_us: 10_000,
            memory_limit_bytes: 5,
            cpu_shares: 100,
            ..Resources::default()
        };
        let own = Resources { memory_limit_bytes: 20, cpu_quota_us: -1, ..Resources::default() };
        let whole = total(&overhead, &own);
        assert_eq!((whole.memory_limit_bytes, whole.cpu_quota_us), (25, -1));
        assert_eq!(whole.cpu_shares, 0);
    }
}
