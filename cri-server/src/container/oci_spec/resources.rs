//! Limits in OCI's terms. Pure.

use serde_json::{Value, json};

use super::NodeFacts;
use crate::container::spec::Resources;

/// CRI's values as OCI's; «not given» leaves the field out. Serves updates as well.
pub(crate) fn resources(given: &Resources, device_rules: &[Value], node: NodeFacts) -> Value {
    let mut cpu = json!({});
    for (key, value) in [
        ("shares", given.cpu_shares),
        ("quota", given.cpu_quota_us),
        ("period", given.cpu_period_us),
    ] {
        if value != 0 {
            cpu[key] = json!(value);
        }
    }
    for (key, value) in [("cpus", &given.cpuset_cpus), ("mems", &given.cpuset_mems)] {
        if !value.is_empty() {
            cpu[key] = json!(value);
        }
    }
    let mut memory = json!({});
    if given.memory_limit_bytes != 0 {
        memory["limit"] = json!(given.memory_limit_bytes);
    }
    if node.swap_accounting {
        match (given.memory_swap_limit_bytes, given.memory_limit_bytes) {
            (0, 0) => {}
            // Without a word about swap a limited container gets none.
            (0, limit) => memory["swap"] = json!(limit),
            (swap, _) => memory["swap"] = json!(swap),
        }
    }
    let mut resources = json!({ "cpu": cpu, "memory": memory });
    if !device_rules.is_empty() {
        resources["devices"] = json!(device_rules);
    }
    let pages: Vec<_> = given
        .hugepage_limits
        .iter()
        .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
        .collect();
    if !pages.is_empty() {
        resources["hugepageLimits"] = json!(pages);
    }
    if !given.unified.is_empty() {
        resources["unified"] = json!(given.unified);
    }
    resources
}
