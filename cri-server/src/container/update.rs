//! UpdateContainerResources: only the values given change, all of them or none, and they stay
//! after a restart. A limit is lifted by its explicit «none»: −1, or the kernel's default.

use std::sync::Arc;

use super::oci_spec;
use super::spec::Resources;
use super::state::{Decision, Request, decide};
use super::{Container, oom_score};
use crate::app::Ctx;
use crate::error::Error;
use crate::scope;

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
    let old = &container.spec.resources;
    let resources = merged(old, change);
    room(&ctx, &container, &resources).await?;
    let shim = ctx.live_shim(&container.sandbox_id).await?;
    // The device rules are not part of an update: they stay as they are. The shim takes back what
    // it has written when the kernel refuses the rest.
    let oci = |of: &Resources| oci_spec::resources(of, &[], ctx.node);
    let (before, now) = (oci(old), oci(&resources));
    let told = scope::limit(&ctx, &container.cgroups_path, &before, &now).await?;
    let updated = shim.update_container(container.id.as_str(), now.to_string().as_bytes()).await;
    if let Err(error) = updated {
        if let Some(told) = told {
            scope::take_back(&ctx, told).await;
        }
        return Err(error.into());
    }
    if resources.oom_score_adj != old.oom_score_adj {
        oom_score::set(&ctx, &container, resources.oom_score_adj).await?;
    }
    ctx.change_container(&container.id, |container| {
        container.spec.resources = resources;
        true
    })?;
    ctx.entrust(&shim, &container.sandbox_id, &container.id);
    Ok(())
}

/// On cgroup v2 a limit below what is in use kills; v1 refuses it by itself.
async fn room(ctx: &Arc<Ctx>, container: &Container, next: &Resources) -> Result<(), Error> {
    let limit = next.memory_limit_bytes;
    if !ctx.node.cgroup_v2 || limit <= 0 || limit == container.spec.resources.memory_limit_bytes {
        return Ok(());
    }
    let (cgroups, group) = (ctx.cgroups.clone(), container.cgroups_path.clone());
    let used = tokio::task::spawn_blocking(move || cgroups.stats(&group).memory_rss).await;
    let used = used.map_err(|_| Error::Panicked { operation: "read memory usage" })?;
    match used {
        Some(used) if used > limit.unsigned_abs() => Err(Error::invalid(
            "linux.memory_limit_in_bytes",
            format!("{limit} is below the {used} bytes in use: the container would be killed"),
        )),
        _ => Ok(()),
    }
}

/// Zero and empty mean «leave as it is»: the kubelet's CPU manager sends a cpuset and nothing else.
pub(crate) fn merged(old: &Resources, change: Resources) -> Resources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: String| if new.is_empty() { old.clone() } else { new };
    let mut unified = old.unified.clone();
    unified.extend(change.unified);
    let mut pages = old.hugepage_limits.clone();
    for (size, limit) in change.hugepage_limits {
        match pages.iter_mut().find(|(known, _)| *known == size) {
            Some(known) => known.1 = limit,
            None => pages.push((size, limit)),
        }
    }
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
        hugepage_limits: pages,
        unified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays_and_none_is_said_explicitly() {
        let old = Resources {
            cpu_quota_us: 50_000,
            memory_limit_bytes: 1 << 20,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![("2MB".into(), 0)],
            ..Resources::default()
        };
        let change = Resources {
            cpu_quota_us: -1,
            hugepage_limits: vec![("1GB".into(), 5)],
            ..Resources::default()
        };
        let next = merged(&old, change);
        assert_eq!((next.cpu_quota_us, next.memory_limit_bytes), (-1, 1 << 20));
        assert_eq!((next.cpuset_cpus.as_str(), next.hugepage_limits.len()), ("0", 2));
    }
}
