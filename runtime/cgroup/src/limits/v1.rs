//! The names of the limits on v1 hierarchies.

use super::Setting;
use crate::resources::{BlockIo, Cpu, Memory, Network};
use crate::{Error, Resources};

pub(super) fn settings(r: &Resources) -> Result<Vec<Setting>, Error> {
    let mut out = Vec::new();
    r.memory.iter().for_each(|m| memory(m, &mut out));
    r.cpu.iter().for_each(|c| cpu(c, &mut out));
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        out.push(Setting::new("pids", "pids.max", super::v2::pids_max(limit)));
    }
    r.block_io.iter().for_each(|b| block_io(b, &mut out));
    for h in r.hugepage_limits.iter().flatten() {
        out.push(
            Setting::new("hugetlb", format!("hugetlb.{}.limit_in_bytes", h.page_size), h.limit)
                .or_ignore(),
        );
    }
    r.network.iter().for_each(|n| network(n, &mut out));
    for (device, rdma) in r.rdma.iter().flatten() {
        out.push(super::v2::rdma(device, rdma));
    }
    if let Some(key) = r.unified.as_ref().and_then(|u| u.keys().next()) {
        let reason =
            "invalid configuration: cgroup v2 only, this node runs v1 controllers".to_owned();
        return Err(Error::BadResource { field: format!("linux.resources.unified.{key}"), reason });
    }
    Ok(out)
}

fn memory(m: &Memory, out: &mut Vec<Setting>) {
    let mut set = |file: &str, value: String| out.push(Setting::new("memory", file, value));
    // Raising needs memsw first, lowering needs the limit first: `apply` tries again what came too early.
    if let Some(limit) = m.limit.filter(|l| *l != 0) {
        set("memory.limit_in_bytes", limit.to_string());
    }
    if let Some(v) = m.reservation.filter(|l| *l != 0) {
        set("memory.soft_limit_in_bytes", v.to_string());
    }
    if let Some(v) = m.kernel_tcp.filter(|l| *l != 0) {
        set("memory.kmem.tcp.limit_in_bytes", v.to_string());
    }
    if let Some(v) = m.swappiness {
        set("memory.swappiness", v.to_string());
    }
    if m.disable_oom_killer == Some(true) {
        set("memory.oom_control", "1".into());
    }
    // No limit on memory means none on memory with swap, which else would be below it.
    let swap = m.swap.filter(|l| *l != 0).or(m.limit.filter(|l| *l < 0));
    if let Some(v) = swap {
        // The file is absent when the kernel does not account swap: nothing to limit then.
        out.push(Setting::new("memory", "memory.memsw.limit_in_bytes", v).or_ignore());
    }
}

fn cpu(c: &Cpu, out: &mut Vec<Setting>) {
    let mut set = |file: &str, value: String| out.push(Setting::new("cpu", file, value));
    if let Some(idle) = c.idle {
        set("cpu.idle", idle.to_string());
    }
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        set("cpu.shares", shares.to_string());
    }
    if let Some(period) = c.period.filter(|p| *p != 0) {
        set("cpu.cfs_period_us", period.to_string());
    }
    if let Some(quota) = c.quota.filter(|q| *q != 0) {
        set("cpu.cfs_quota_us", quota.to_string());
    }
    if let Some(burst) = c.burst {
        set("cpu.cfs_burst_us", burst.to_string());
    }
    if let Some(period) = c.realtime_period.filter(|p| *p != 0) {
        set("cpu.rt_period_us", period.to_string());
    }
    if let Some(runtime) = c.realtime_runtime.filter(|r| *r != 0) {
        set("cpu.rt_runtime_us", runtime.to_string());
    }
    for (file, value) in [("cpuset.cpus", &c.cpus), ("cpuset.mems", &c.mems)] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            out.push(Setting::new("cpuset", file, value));
        }
    }
}

fn block_io(b: &BlockIo, out: &mut Vec<Setting>) {
    // The bfq files are there when that scheduler is; the plain ones were CFQ's and are gone since 5.0.
    if let Some(w) = b.weight.filter(|w| *w != 0) {
        out.push(Setting::new("blkio", "blkio.bfq.weight", w).or_ignore());
    }
    for d in b.weight_device.iter().flatten() {
        if let Some(w) = d.weight {
            let value = format!("{}:{} {w}", d.major, d.minor);
            out.push(Setting::new("blkio", "blkio.bfq.weight_device", value).or_ignore());
        }
    }
    let throttles = [
        ("blkio.throttle.read_bps_device", &b.throttle_read_bps_device),
        ("blkio.throttle.write_bps_device", &b.throttle_write_bps_device),
        ("blkio.throttle.read_iops_device", &b.throttle_read_iops_device),
        ("blkio.throttle.write_iops_device", &b.throttle_write_iops_device),
    ];
    for (file, devices) in throttles {
        for d in devices.iter().flatten() {
            out.push(Setting::new("blkio", file, format!("{}:{} {}", d.major, d.minor, d.rate)));
        }
    }
}

fn network(n: &Network, out: &mut Vec<Setting>) {
    if let Some(class) = n.class_id {
        out.push(Setting::new("net_cls", "net_cls.classid", class));
    }
    for p in n.priorities.iter().flatten() {
        out.push(Setting::new(
            "net_prio",
            "net_prio.ifpriomap",
            format!("{} {}", p.name, p.priority),
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(json: &str) -> Vec<(String, String)> {
        let r: Resources = serde_json::from_str(json).expect("resources");
        settings(&r).expect("settings").into_iter().map(|s| (s.file, s.value)).collect()
    }

    #[test]
    fn each_resource_becomes_its_v1_file() {
        let cases = [
            (r#"{"memory":{"limit":1048576}}"#, "memory.limit_in_bytes", "1048576"),
            (r#"{"memory":{"reservation":4096}}"#, "memory.soft_limit_in_bytes", "4096"),
            (r#"{"memory":{"swap":-1}}"#, "memory.memsw.limit_in_bytes", "-1"),
            (r#"{"memory":{"swappiness":10}}"#, "memory.swappiness", "10"),
            (r#"{"memory":{"disableOOMKiller":true}}"#, "memory.oom_control", "1"),
            (r#"{"cpu":{"shares":102}}"#, "cpu.shares", "102"),
            (r#"{"cpu":{"quota":-1}}"#, "cpu.cfs_quota_us", "-1"),
            (r#"{"cpu":{"period":50000}}"#, "cpu.cfs_period_us", "50000"),
            (r#"{"cpu":{"burst":7}}"#, "cpu.cfs_burst_us", "7"),
            (r#"{"cpu":{"idle":1}}"#, "cpu.idle", "1"),
            (r#"{"cpu":{"cpus":"0-1"}}"#, "cpuset.cpus", "0-1"),
            (r#"{"pids":{"limit":64}}"#, "pids.max", "64"),
            (r#"{"pids":{"limit":-1}}"#, "pids.max", "max"),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
                "hugetlb.2MB.limit_in_bytes",
                "0",
            ),
            (r#"{"network":{"classID":5}}"#, "net_cls.classid", "5"),
            (
                r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":9}]}}"#,
                "blkio.throttle.read_bps_device",
                "8:0 9",
            ),
        ];
        for (json, file, value) in cases {
            assert_eq!(written(json), [(file.to_owned(), value.to_owned())], "{json}");
        }
    }

    #[test]
    fn v2_only_settings_are_refused_by_name() {
        let r: Resources =
            serde_json::from_str(r#"{"unified":{"memory.high":"1"}}"#).expect("resources");
        let text = settings(&r).expect_err("no v2 here").to_string();
        assert!(text.contains("memory.high"), "{text}");
    }
}
