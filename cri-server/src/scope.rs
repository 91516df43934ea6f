//! Pods whose cgroup parent is a slice of systemd: the group of each of their processes is a transient scope, which
//! systemd makes before the shim creates the process, and whose limits it is told. To everything else a scope is a path.

use runtime::Holder;
use runtime::cgroup::unit::Unit;
use runtime::cgroup::{Error as Problem, Resources};
use serde_json::Value;
use systemd::Property;

use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;

/// The scope's name before the id.
pub(crate) const PREFIX: &str = "lapstrake";

/// Whether systemd is this machine's first process, as `sd_booted` has it.
pub(crate) fn is_booted() -> bool {
    std::path::Path::new("/run/systemd/system").is_dir()
}

/// Where a member of a pod is, in the slice of its pod.
pub(crate) fn group(slice: &str, member: &Id) -> String {
    format!("{slice}/{PREFIX}-{member}.scope")
}

/// How OCI runtimes that speak to systemd by themselves are told of a group that is a scope.
pub(crate) fn unit_form(group: &str, member: &Id) -> Option<String> {
    Unit::of_group(group).map(|unit| format!("{}:{PREFIX}:{member}", unit.slice))
}

/// Makes the scope whose group this is, if it is one, with the limits of OCI's `resources`. It lasts until it is empty:
/// its process must be in it before the holder goes.
pub(crate) async fn make(
    ctx: &Ctx,
    group: &str,
    member: &Id,
    resources: &Value,
) -> Result<Option<Holder>, Error> {
    let Some(unit) = Unit::of_group(group) else { return Ok(None) };
    let limits = properties(ctx, resources)?;
    let holder = ctx.shims.holder(member.as_str())?;
    ctx.systemd.start_scope(&unit, holder.pid(), &limits).await?;
    Ok(Some(holder))
}

/// What systemd was told of new limits, and how that is taken back.
#[derive(Debug)]
pub(crate) struct Told {
    scope: String,
    back: Vec<Property>,
}

/// Tells systemd of new limits, when the group is a scope: those it does not know it may undo.
pub(crate) async fn limit(
    ctx: &Ctx,
    group: &str,
    old: &Value,
    new: &Value,
) -> Result<Option<Told>, Error> {
    let Some(Unit { scope, .. }) = Unit::of_group(group) else { return Ok(None) };
    let (old, new) = (properties(ctx, old)?, properties(ctx, new)?);
    let told = Told { back: systemd::back(&new, &old), scope };
    match ctx.systemd.limit(&told.scope, &new).await {
        Ok(()) => Ok(Some(told)),
        Err(error) => {
            take_back(ctx, told).await; // some of it may have been taken
            Err(error.into())
        }
    }
}

/// The kernel has refused what systemd was told.
pub(crate) async fn take_back(ctx: &Ctx, told: Told) {
    if let Err(error) = ctx.systemd.limit(&told.scope, &told.back).await {
        tracing::warn!(scope = %told.scope, %error, "could not take back new limits");
    }
}

/// Ends the scope whose group this is, if it is one; its processes have ended.
pub(crate) async fn end(ctx: &Ctx, group: &str) -> Result<(), Error> {
    let Some(unit) = Unit::of_group(group) else { return Ok(()) };
    match ctx.systemd.stop(&unit.scope).await {
        // Without processes and group there is nothing that systemd would keep: nobody has to wait for its bus.
        Err(error) if !ctx.cgroups.exists(group) => {
            tracing::warn!(scope = %unit.scope, %error, "could not end an empty scope");
            Ok(())
        }
        ended => Ok(ended?),
    }
}

fn properties(ctx: &Ctx, resources: &Value) -> Result<Vec<Property>, Error> {
    let bad = |error: serde_json::Error| Error::Cgroup(Problem::BadPath(error.to_string()));
    let resources: Resources = serde_json::from_value(resources.clone()).map_err(bad)?;
    systemd::properties(&resources, ctx.cgroups.is_v2()).map_err(Error::Cgroup)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;

    #[test]
    fn members_of_a_pod_in_a_slice_are_scopes_and_others_are_groups_by_their_id() {
        let mut sandbox = testing::sandbox();
        let member = sandbox.id.clone();
        let plain = sandbox.cgroup_of(&member);
        assert!(plain.ends_with(&format!("/{member}")), "{plain}");
        assert_eq!(unit_form(&plain, &member), None);
        sandbox.cgroup_parent = "/kubepods.slice/kubepods-pod1.slice".into();
        let scope = sandbox.cgroup_of(&member);
        let slices = "/kubepods.slice/kubepods-pod1.slice";
        assert_eq!(scope, format!("{slices}/lapstrake-{member}.scope"));
        let form = format!("kubepods-pod1.slice:lapstrake:{member}");
        assert_eq!(unit_form(&scope, &member), Some(form));
    }
}
