//! From resources to properties of a unit: pure. What systemd has no property for is written to the group's files
//! like everything else, and systemd leaves it alone.

use cgroup::resources::{Cpu, Memory};
use cgroup::{Error, Resources, weight};

/// A property's value, as far as limits need kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Setting {
    Number(u64),
    Flag(bool),
    Text(String),
    /// A set of CPUs or memory nodes, bit n of byte n / 8.
    Mask(Vec<u8>),
    Pids(Vec<u32>),
}

pub type Property = (&'static str, Setting);

/// The way back from `new` to `old`: what only `new` names is no longer set.
pub fn back(new: &[Property], old: &[Property]) -> Vec<Property> {
    let unset = |(name, setting): &Property| match setting {
        Setting::Number(_) if *name == "MemoryLow" => (*name, Setting::Number(0)),
        Setting::Mask(_) => (*name, Setting::Mask(Vec::new())),
        // Of limits it is none, of weights and periods the default.
        _ => (*name, Setting::Number(INFINITY)),
    };
    let only_new = new.iter().filter(|(name, _)| !old.iter().any(|(known, _)| known == name));
    only_new.map(unset).chain(old.iter().cloned()).collect()
}

/// systemd's "no limit".
const INFINITY: u64 = u64::MAX;
/// systemd rounds a quota up to this: 10 ms per second.
const QUOTA_STEP_US: u64 = 10_000;
/// The kernel's default period.
const PERIOD_US: u64 = 100_000;

/// The limits of a scope. `v2`: the unified hierarchy, whose properties have other names and units.
///
/// # Errors
/// A list of CPUs or nodes that is none, or a swap limit below the memory limit.
pub fn properties(r: &Resources, v2: bool) -> Result<Vec<Property>, Error> {
    let mut out = Vec::new();
    if let Some(memory) = &r.memory {
        limit_memory(memory, v2, &mut out)?;
    }
    if let Some(cpu) = &r.cpu {
        limit_cpu(cpu, v2, &mut out)?;
    }
    if let Some(limit) = r.pids.as_ref().and_then(|p| p.limit) {
        // Zero would let nothing run; systemd has no such limit.
        out.push(("TasksMax", Setting::Number(or_infinity(limit.max(-1)).max(1))));
    }
    if let Some(weight) = r.block_io.as_ref().and_then(|b| b.weight).filter(|w| *w != 0) {
        let name = if v2 { "IOWeight" } else { "BlockIOWeight" };
        let weight = u64::from(weight);
        let scaled = if v2 { 1 + (weight.clamp(10, 1000) - 10) * 9999 / 990 } else { weight };
        out.push((name, Setting::Number(scaled)));
    }
    Ok(out)
}

fn or_infinity(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(INFINITY)
}

fn limit_memory(m: &Memory, v2: bool, out: &mut Vec<Property>) -> Result<(), Error> {
    let mut set = |name, value: i64| out.push((name, Setting::Number(or_infinity(value))));
    if let Some(limit) = m.limit.filter(|l| *l != 0) {
        set(if v2 { "MemoryMax" } else { "MemoryLimit" }, limit);
    }
    if !v2 {
        return Ok(());
    }
    if let Some(low) = m.reservation.filter(|l| *l != 0) {
        set("MemoryLow", low);
    }
    match (m.swap.filter(|s| *s != 0), m.limit) {
        (Some(-1), _) => set("MemorySwapMax", -1),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            set("MemorySwapMax", swap - limit)
        }
        (Some(swap), limit) => {
            let field = "linux.resources.memory.swap".to_owned();
            let reason = format!("{swap} goes with a memory limit up to it, not with {limit:?}");
            return Err(Error::BadResource { field, reason });
        }
        (None, _) => {}
    }
    Ok(())
}

fn limit_cpu(c: &Cpu, v2: bool, out: &mut Vec<Property>) -> Result<(), Error> {
    if let Some(shares) = c.shares.filter(|s| *s != 0) {
        out.push(if v2 {
            ("CPUWeight", Setting::Number(weight(shares)))
        } else {
            ("CPUShares", Setting::Number(shares))
        });
    }
    // Weight zero is systemd's word for idle.
    if c.idle == Some(1) && v2 {
        out.retain(|(name, _)| *name != "CPUWeight");
        out.push(("CPUWeight", Setting::Number(0)));
    }
    if let Some(period) = c.period.filter(|p| *p != 0) {
        out.push(("CPUQuotaPeriodUSec", Setting::Number(period)));
    }
    if let Some(quota) = c.quota.filter(|q| *q != 0) {
        let per_second = u64::try_from(quota).map_or(INFINITY, |quota| {
            let period = c.period.filter(|p| *p != 0).unwrap_or(PERIOD_US);
            quota.saturating_mul(1_000_000).div_ceil(period).next_multiple_of(QUOTA_STEP_US)
        });
        out.push(("CPUQuotaPerSecUSec", Setting::Number(per_second)));
    }
    let lists = [("AllowedCPUs", &c.cpus, "cpus"), ("AllowedMemoryNodes", &c.mems, "mems")];
    for (name, list, field) in lists {
        if let Some(list) = list.as_ref().filter(|l| !l.is_empty() && v2) {
            out.push((name, Setting::Mask(mask(list, field)?)));
        }
    }
    Ok(())
}

/// `0-3,7` as a bit mask.
fn mask(list: &str, field: &str) -> Result<Vec<u8>, Error> {
    const MOST: usize = 8192; // as many CPUs as Linux is built for
    let bad = || Error::BadResource {
        field: format!("linux.resources.cpu.{field}"),
        reason: format!("{list:?} is no list like \"0-3,7\""),
    };
    let mut mask = Vec::new();
    for part in list.split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let number = |n: &str| n.trim().parse::<usize>().ok().filter(|n| *n < MOST).ok_or_else(bad);
        for n in number(from)?..=number(to)? {
            if mask.len() <= n / 8 {
                mask.resize(n / 8 + 1, 0);
            }
            mask[n / 8] |= 1 << (n % 8);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(v2: bool, r: Resources) -> Vec<Property> {
        properties(&r, v2).expect("valid")
    }

    fn cpu(cpu: Cpu) -> Resources {
        Resources { cpu: Some(cpu), ..Default::default() }
    }

    #[test]
    fn each_limit_has_its_property_in_both_versions() {
        let memory = Memory {
            limit: Some(4096),
            swap: Some(5000),
            reservation: Some(9),
            ..Default::default()
        };
        let r = Resources { memory: Some(memory), ..Default::default() };
        let n = Setting::Number;
        let want = [("MemoryMax", n(4096)), ("MemoryLow", n(9)), ("MemorySwapMax", n(904))];
        assert_eq!(of(true, r.clone()), want);
        assert_eq!(of(false, r), [("MemoryLimit", n(4096))]);
        let shares = cpu(Cpu { shares: Some(1024), ..Default::default() });
        assert_eq!(of(true, shares.clone()), [("CPUWeight", n(100))]);
        assert_eq!(of(false, shares), [("CPUShares", n(1024))]);
        for (limit, want) in [(-1, INFINITY), (0, 1), (7, 7)] {
            let pids = Some(cgroup::resources::Pids { limit: Some(limit) });
            let r = Resources { pids, ..Default::default() };
            assert_eq!(of(true, r), [("TasksMax", n(want))], "{limit}");
        }
    }

    #[test]
    fn the_way_back_unsets_what_was_not_set_before() {
        let n = Setting::Number;
        let new =
            [("MemoryMax", n(7)), ("MemoryLow", n(3)), ("AllowedCPUs", Setting::Mask(vec![1]))];
        let back = back(&new, &[("MemoryMax", n(5))]);
        let mask = ("AllowedCPUs", Setting::Mask(vec![]));
        assert_eq!(back, [("MemoryLow", n(0)), mask, ("MemoryMax", n(5))]);
    }

    #[test]
    fn a_quota_is_per_second_and_rounded_up_as_systemd_does() {
        for (quota, period, want) in [
            (50_000, Some(100_000), 500_000),
            (1001, Some(100_000), 20_000),
            (-1, None, INFINITY),
            (200_000, None, 2_000_000),
        ] {
            let got = of(true, cpu(Cpu { quota: Some(quota), period, ..Default::default() }));
            assert_eq!(got.last(), Some(&("CPUQuotaPerSecUSec", Setting::Number(want))));
        }
    }

    #[test]
    fn cpus_are_a_mask_and_nonsense_is_refused_by_name() {
        let of_list = |list: &str| {
            properties(&cpu(Cpu { cpus: Some(list.into()), ..Default::default() }), true)
        };
        let want = [("AllowedCPUs", Setting::Mask(vec![0b1000_1111, 0b10]))];
        assert_eq!(of_list("0-3,7,9").expect("valid"), want);
        for bad in ["x", "0-", "99999999999"] {
            let error = of_list(bad).expect_err(bad).to_string();
            assert!(error.contains("cpu.cpus"), "{error}");
        }
    }
}
