//! `--systemd-cgroup`: the container's group as a scope of systemd.

use std::future::Future;

use cgroup::unit::Unit;
use cgroup::{Hierarchies, Resources};
use container::Spec;
use container::sys::process::Held;
use systemd::{Bus, properties};

use crate::cli::Cli;
use crate::error::Error;

/// The scope's name before the container's id, where the specification names no group.
const PREFIX: &str = "lapstrake";

/// The unit that the specification names (or one named after the container), when the command line asks for systemd.
///
/// # Errors
/// A path where a unit must be named, or a unit without the flag.
pub(crate) fn unit(cli: &Cli, spec: &Spec, id: &str) -> Result<Option<Unit>, Error> {
    let path = spec.linux.as_ref().and_then(|l| l.cgroups_path.as_deref());
    match path.filter(|p| !p.is_empty()) {
        Some(path) if cli.systemd_cgroup => Ok(Some(Unit::parse(path)?)),
        None if cli.systemd_cgroup => Ok(Some(Unit::parse(&format!(":{PREFIX}:{id}"))?)),
        Some(path) if Unit::is_form(path) => Err(Error::Usage(format!(
            "linux.cgroupsPath {path:?} names a unit of systemd: --systemd-cgroup is needed"
        ))),
        _ => Ok(None),
    }
}

/// A scope that was made, and the process that keeps it until the container's is in it.
#[derive(Debug)]
pub(crate) struct Scope {
    _holder: Held,
}

pub(crate) fn start(unit: &Unit, r: &Resources, node: &Hierarchies) -> Result<Scope, Error> {
    let limits = properties(r, node.is_v2())?;
    let holder = Held::clone(0).map_err(Error::system("clone"))?;
    let pid = holder.pid().unsigned_abs();
    wait(async { Bus::default().start_scope(unit, pid, &limits).await })?;
    Ok(Scope { _holder: holder })
}

pub(crate) fn limit(scope: &str, r: &Resources, node: &Hierarchies) -> Result<(), Error> {
    let limits = properties(r, node.is_v2())?;
    wait(async { Bus::default().limit(scope, &limits).await })
}

pub(crate) fn stop(scope: &str) -> Result<(), Error> {
    wait(async { Bus::default().stop(scope).await })
}

/// On this thread, which is the only one: what comes after forks.
fn wait<T>(answer: impl Future<Output = Result<T, systemd::Error>>) -> Result<T, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(Error::system("start a runtime"))?.block_on(answer)?)
}
