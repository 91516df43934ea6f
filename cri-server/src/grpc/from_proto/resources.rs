//! `LinuxContainerResources` → `container::spec::Resources`, for containers, pods and updates.

use proto::cri::v1 as cri;

use crate::container::spec::Resources;
use crate::error::Error;
use crate::sandbox::update::Given;

/// −1 means no limit where it has a meaning. `path` is the message's own, such as
/// `config.linux.resources`.
pub(crate) fn resources(
    path: &str,
    resources: Option<cri::LinuxContainerResources>,
) -> Result<Resources, Error> {
    let given = resources.unwrap_or_default();
    let field = |name: &str| format!("{path}.{name}");
    for (name, value, least) in [
        ("cpu_period", given.cpu_period, 0),
        ("cpu_quota", given.cpu_quota, -1),
        ("cpu_shares", given.cpu_shares, 0),
        ("memory_limit_in_bytes", given.memory_limit_in_bytes, -1),
        ("memory_swap_limit_in_bytes", given.memory_swap_limit_in_bytes, -1),
    ] {
        if value < least {
            return Err(Error::invalid(field(name), format!("{value} is below {least}")));
        }
    }
    let page_size = |size: &str| {
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if let Some(limit) = given.hugepage_limits.iter().find(|limit| !page_size(&limit.page_size)) {
        let problem = format!("{:?} is no page size such as 2MB", limit.page_size);
        return Err(Error::invalid(field("hugepage_limits"), problem));
    }
    if !(-1000..=1000).contains(&given.oom_score_adj) {
        let problem = format!("{} is not between -1000 and 1000", given.oom_score_adj);
        return Err(Error::invalid(field("oom_score_adj"), problem));
    }
    if let Some(key) = given.unified.keys().find(|key| key.contains('/') || !key.contains('.')) {
        return Err(Error::invalid(field("unified"), format!("{key:?} is no cgroup v2 file")));
    }
    for (name, list) in [("cpuset_cpus", &given.cpuset_cpus), ("cpuset_mems", &given.cpuset_mems)] {
        if list.contains(|c: char| !c.is_ascii_digit() && !"-,".contains(c)) {
            return Err(Error::invalid(field(name), format!("{list:?} is no list such as 0-3,7")));
        }
    }
    Ok(Resources {
        cpu_period_us: given.cpu_period,
        cpu_quota_us: given.cpu_quota,
        cpu_shares: given.cpu_shares,
        memory_limit_bytes: given.memory_limit_in_bytes,
        memory_swap_limit_bytes: given.memory_swap_limit_in_bytes,
        oom_score_adj: given.oom_score_adj,
        cpuset_cpus: given.cpuset_cpus,
        cpuset_mems: given.cpuset_mems,
        hugepage_limits: given
            .hugepage_limits
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect(),
        unified: given.unified.into_iter().collect(),
    })
}

/// What an update changes.
pub(crate) fn update(request: cri::UpdateContainerResourcesRequest) -> Result<Resources, Error> {
    if request.windows.is_some() {
        return Err(Error::Unsupported {
            field: "windows".to_owned(),
            hint: "this node runs Linux containers only".to_owned(),
        });
    }
    resources("linux", request.linux)
}

/// What an update changes of a sandbox.
pub(crate) fn update_sandbox(
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<Given, Error> {
    let read = |field, given: Option<cri::LinuxContainerResources>| {
        given.map(|given| resources(field, Some(given))).transpose()
    };
    Ok(Given {
        overhead: read("overhead", request.overhead)?,
        resources: read("resources", request.resources)?,
    })
}
