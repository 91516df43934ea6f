//! The names of the limits on the v2 tree, and the conversions from v1 units.

use super::Setting;
use crate::resources::{BlockIo, Cpu, Memory, Rdma};
use crate::{Error, Resources};

pub(super) fn settings(r: &Resources) -> Result<Vec<Setting>, Error> {
    refuse_v1(r)?;
    let mut out = Vec::new();
    if let Some(m) = &r.memory {
        memory(m, &mut out)?;
    }
    r.cpu.iter().for_each(|c| cpu(c, &mut out));
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        out.push(Setting::new("pids", "pids.max", pids_max(limit)));
    }
    r.block_io.iter().for_each(|b| io(b, &mut out));
    for h in r.hugepage_limits.iter().flatten() {
        out.push(
            Setting::new("hugetlb", format!("hugetlb.{}.max", h.page_size), h.limit).or_ignore(),
        );
        out.push(
            Setting::new("hugetlb", format!("hugetlb.{}.rsvd.max", h.page_size), h.limit)
                .or_ignore(),
        );
    }
    for (device, limits) in r.rdma.iter().flatten() {
        out.push(rdma(device, limits));
    }
    for (file, value) in r.unified.iter().flatten() {
        if file.contains('/') || file.starts_with("cgroup.") {
            let reason = "must be a plain file of a controller".to_owned();
            return Err(Error::BadResource {
                field: format!("linux.resources.unified.{file}"),
                reason,
            });
        }
        out.push(Setting::new("unified", file.as_str(), value));
    }
    Ok(out)
}

fn refuse_v1(r: &Resources) -> Result<(), Error> {
    let memory = r.memory.clone().unwrap_or_default();
    let cpu = r.cpu.clone().unwrap_or_default();
    let network = r.network.clone().unwrap_or_default();
    let priorities = network.priorities.is_some_and(|p| !p.is_empty());
    let v1_only = [
        ("memory.kernelTCP", memory.kernel_tcp.is_some_and(|v| v > 0)),
        ("memory.swappiness", memory.swappiness.is_some()),
        ("memory.disableOOMKiller", memory.disable_oom_killer == Some(true)),
        ("cpu.realtimeRuntime", cpu.realtime_runtime.is_some_and(|v| v != 0)),
        ("cpu.realtimePeriod", cpu.realtime_period.is_some_and(|v| v != 0)),
        ("network.classID", network.class_id.is_some_and(|id| id != 0)),
        ("network.priorities", priorities),
    ];
    super::refuse(&v1_only, "cgroup v2 has no such limit, this node runs v2")
}

/// v2 writes "no limit" as `max`; v1 and the specification write -1.
fn or_max(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

pub(super) fn pids_max(limit: i64) -> String {
    or_max(if limit == 0 { 1 } else { limit })
}

fn memory(m: &Memory, out: &mut Vec<Setting>) -> Result<(), Error> {
    if let Some(swap) = m.swap.filter(|s| *s != 0) {
        out.push(Setting::new("memory", "memory.swap.max", swap_only(swap, m.limit)?).or_ignore());
    }
    if let Some(limit) = m.limit.filter(|l| *l != 0) {
        out.push(Setting::new("memory", "memory.max", or_max(limit)));
    }
    if let Some(low) = m.reservation.filter(|l| *l != 0) {
        out.push(Setting::new("memory", "memory.low", or_max(low)));
    }
    Ok(())
}

/// The specification's swap is memory plus swap; v2 limits swap alone.
fn swap_only(swap: i64, limit: Option<i64>) -> Result<String, Error> {
    let bad = |reason: &str| Error::BadResource {
        field: "linux.resources.memory.swap".into(),
        reason: reason.into(),
    };
    match (swap, limit) {
        (-1, _) => Ok("max".into()),
        (_, None | Some(0 | -1)) => Err(bad("a swap limit needs a memory limit")),
        (swap, Some(limit)) if swap < limit => Err(bad("memory+swap is below the memory limit")),
        (swap, Some(limit)) => Ok((swap - limit).to_string()),
    }
}

fn cpu(c: &Cpu, out: &mut Vec<Setting>) {
    if let Some(idle) = c.idle {
        out.push(Setting::new("cpu", "cpu.idle", idle));
    }
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        out.push(Setting::new("cpu", "cpu.weight", weight(shares)));
    }
    if c.quota.is_some_and(|q| q != 0) || c.period.is_some_and(|p| p != 0) {
        let quota = c.quota.filter(|q| *q > 0).map_or_else(|| "max".to_owned(), |q| q.to_string());
        let period = c.period.filter(|p| *p != 0).unwrap_or(DEFAULT_PERIOD_US);
        out.push(Setting::new("cpu", "cpu.max", format!("{quota} {period}")));
    }
    if let Some(burst) = c.burst {
        out.push(Setting::new("cpu", "cpu.max.burst", burst));
    }
    for (file, value) in [("cpuset.cpus", &c.cpus), ("cpuset.mems", &c.mems)] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            out.push(Setting::new("cpuset", file, value));
        }
    }
}

/// The kernel's own default for `cpu.max`.
const DEFAULT_PERIOD_US: u64 = 100_000;

/// v1 shares (2..=262144, default 1024) to v2 weight (1..=10000, default 100), on the curve that Kubernetes and
/// the OCI runtimes agreed on in 2025: it maps default to default, which the older straight line did not.
pub fn weight(shares: u64) -> u64 {
    let s = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (s * s + 125.0 * s) / 612.0 - 7.0 / 34.0;
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

fn io(b: &BlockIo, out: &mut Vec<Setting>) {
    if let Some(w) = b.weight.filter(|w| *w != 0) {
        out.push(Setting::new("io", "io.weight", format!("default {}", io_weight(w))));
    }
    for d in b.weight_device.iter().flatten() {
        if let Some(w) = d.weight.filter(|w| *w != 0) {
            let value = format!("{}:{} {}", d.major, d.minor, io_weight(w));
            out.push(Setting::new("io", "io.weight", value));
        }
    }
    let throttles = [
        ("rbps", &b.throttle_read_bps_device),
        ("wbps", &b.throttle_write_bps_device),
        ("riops", &b.throttle_read_iops_device),
        ("wiops", &b.throttle_write_iops_device),
    ];
    for (key, devices) in throttles {
        for d in devices.iter().flatten() {
            out.push(Setting::new(
                "io",
                "io.max",
                format!("{}:{} {key}={}", d.major, d.minor, d.rate),
            ));
        }
    }
}

/// v1 weights are 10..=1000, io.weight is 1..=10000.
fn io_weight(w: u16) -> u64 {
    1 + (u64::from(w).clamp(10, 1000) - 10) * 9999 / 990
}

pub(super) fn rdma(device: &str, r: &Rdma) -> Setting {
    let field = |name: &str, v: Option<u32>| v.map(|v| format!(" {name}={v}")).unwrap_or_default();
    let value = format!(
        "{device}{}{}",
        field("hca_handle", r.hca_handles),
        field("hca_object", r.hca_objects)
    );
    Setting::new("rdma", "rdma.max", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Vec<(String, String)> {
        let r: Resources = serde_json::from_str(json).expect("resources");
        settings(&r).expect("settings").into_iter().map(|s| (s.file, s.value)).collect()
    }

    #[test]
    fn each_resource_becomes_its_v2_file() {
        let cases = [
            (r#"{"memory":{"limit":1048576}}"#, "memory.max", "1048576"),
            (r#"{"memory":{"limit":-1}}"#, "memory.max", "max"),
            (r#"{"memory":{"reservation":4096}}"#, "memory.low", "4096"),
            (r#"{"cpu":{"quota":20000}}"#, "cpu.max", "20000 100000"),
            (r#"{"cpu":{"quota":-1,"period":50000}}"#, "cpu.max", "max 50000"),
            (r#"{"cpu":{"idle":1}}"#, "cpu.idle", "1"),
            (r#"{"cpu":{"burst":9}}"#, "cpu.max.burst", "9"),
            (r#"{"pids":{"limit":0}}"#, "pids.max", "1"),
            (r#"{"pids":{"limit":-1}}"#, "pids.max", "max"),
            (r#"{"pids":{"limit":3}}"#, "pids.max", "3"),
            (r#"{"blockIO":{"weight":1000}}"#, "io.weight", "default 10000"),
            (r#"{"unified":{"memory.high":"1"}}"#, "memory.high", "1"),
            (r#"{"rdma":{"mlx5_1":{"hcaHandles":3}}}"#, "rdma.max", "mlx5_1 hca_handle=3"),
        ];
        for (json, file, value) in cases {
            assert_eq!(written(json), [(file.to_owned(), value.to_owned())], "{json}");
        }
    }

    #[test]
    fn swap_is_written_alone_and_before_the_limit_it_depends_on() {
        let w = written(r#"{"memory":{"limit":100,"swap":150}}"#);
        assert_eq!(w[0], ("memory.swap.max".into(), "50".into()));
        assert_eq!(w[1], ("memory.max".into(), "100".into()));
    }

    #[test]
    fn default_shares_become_the_default_weight_and_the_ends_meet() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 100, 10_000));
    }

    #[test]
    fn what_only_v1_has_is_refused_by_name() {
        for (json, field) in [
            (r#"{"memory":{"swappiness":0}}"#, "memory.swappiness"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.disableOOMKiller"),
            (r#"{"cpu":{"realtimeRuntime":1}}"#, "cpu.realtimeRuntime"),
            (r#"{"network":{"classID":1}}"#, "network.classID"),
        ] {
            let r: Resources = serde_json::from_str(json).expect("resources");
            assert!(settings(&r).expect_err(field).to_string().contains(field), "{field}");
        }
    }

    #[test]
    fn a_unified_key_cannot_leave_its_directory_nor_move_processes() {
        for key in ["../x", "cgroup.procs"] {
            let r = Resources {
                unified: Some([(key.to_owned(), "1".to_owned())].into()),
                ..Default::default()
            };
            assert!(settings(&r).is_err(), "{key}");
        }
    }
}
