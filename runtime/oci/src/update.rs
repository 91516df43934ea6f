//! `update`: new limits for a container that exists.

use std::io::Read;

use cgroup::resources::{BlockIo, Cpu, Memory, Pids};
use cgroup::{Hierarchies, Resources};

use crate::cli::{Cli, UpdateArgs};
use crate::error::Error;
use crate::{scope, state};

pub(crate) fn update(cli: &Cli, args: &UpdateArgs) -> Result<(), Error> {
    let record = state::load(cli, &args.id)?;
    let node = Hierarchies::detect()?;
    let resources = resources(args)?;
    check_usage(&resources, &node, &record.cgroup)?;
    let settings = cgroup::limits::settings(&resources, &node)?;
    if let Some(unit) = &record.scope {
        scope::limit(unit, &resources, &node)?;
    }
    Ok(node.apply(&record.cgroup, &settings)?)
}

/// `checkBeforeUpdate`: a limit below what is used would end the container instead of limiting it.
fn check_usage(r: &Resources, node: &Hierarchies, group: &str) -> Result<(), Error> {
    let memory = r.memory.as_ref().filter(|m| m.check_before_update == Some(true));
    let Some(limit) = memory.and_then(|m| u64::try_from(m.limit?).ok()).filter(|l| *l > 0) else {
        return Ok(());
    };
    match node.stats(group).memory_usage {
        Some(used) if used > limit => Err(Error::Usage(format!(
            "linux.resources.memory.limit {limit} is below what is used, {used} bytes"
        ))),
        _ => Ok(()),
    }
}

fn resources(args: &UpdateArgs) -> Result<Resources, Error> {
    let Some(path) = &args.resources else { return Ok(from_flags(args)) };
    let mut text = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut text).map_err(Error::file("read", path))?;
    } else {
        text = std::fs::read(path).map_err(Error::file("read", path))?;
    }
    serde_json::from_slice(&text).map_err(|source| Error::Json { path: path.clone(), source })
}

fn from_flags(a: &UpdateArgs) -> Resources {
    Resources {
        cpu: Some(Cpu {
            shares: a.cpu_share,
            quota: a.cpu_quota,
            burst: a.cpu_burst,
            period: a.cpu_period,
            realtime_runtime: a.cpu_rt_runtime,
            realtime_period: a.cpu_rt_period,
            cpus: a.cpuset_cpus.clone(),
            mems: a.cpuset_mems.clone(),
            idle: a.cpu_idle,
        }),
        memory: Some(Memory {
            limit: a.memory,
            reservation: a.memory_reservation,
            swap: a.memory_swap,
            ..Default::default()
        }),
        pids: Some(Pids { limit: a.pids_limit }),
        block_io: Some(BlockIo { weight: a.blkio_weight, ..Default::default() }),
        ..Default::default()
    }
}
