//! Counters of a group: text in, numbers out; plus the OOM counter that decides `OOMKilled`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Hierarchies;

/// What a group has used. Times in nanoseconds, memory in bytes; a field is `None` when the kernel has no such file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu_total_ns: Option<u64>,
    pub cpu_user_ns: Option<u64>,
    pub cpu_system_ns: Option<u64>,
    pub cpu_throttled_periods: Option<u64>,
    pub memory_usage: Option<u64>,
    /// Usage less inactive file pages: what the kubelet calls the working set.
    pub memory_working_set: Option<u64>,
    pub memory_limit: Option<u64>,
    pub memory_rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub swap_usage: Option<u64>,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub oom_kills: Option<u64>,
}

/// v1 reports "no limit" as the largest page-aligned value; anything near it is no limit.
const UNLIMITED: u64 = 1 << 62;

impl Hierarchies {
    /// How many processes of the group the kernel has killed for want of memory. 0 when unknown.
    pub fn oom_kills(&self, group: &str) -> u64 {
        self.known_oom_kills(group).unwrap_or(0)
    }

    pub(crate) fn known_oom_kills(&self, group: &str) -> Option<u64> {
        if let Some(dir) = self.dir("memory", group) {
            return keyed(&dir.join("memory.oom_control"), "oom_kill");
        }
        keyed(&self.unified_dir(group)?.join("memory.events"), "oom_kill")
    }

    /// Reads the counters of a group.
    pub fn stats(&self, group: &str) -> Stats {
        match self.unified_dir(group).filter(|_| self.is_v2()) {
            Some(dir) => v2(&dir),
            None => self.v1_stats(group),
        }
    }

    fn v1_stats(&self, group: &str) -> Stats {
        let mut s = Stats::default();
        if let Some(dir) = self.dir("cpuacct", group) {
            s.cpu_total_ns = number(&dir.join("cpuacct.usage"));
            s.cpu_user_ns = number(&dir.join("cpuacct.usage_user"));
            s.cpu_system_ns = number(&dir.join("cpuacct.usage_sys"));
        }
        if let Some(dir) = self.dir("cpu", group) {
            s.cpu_throttled_periods = keyed(&dir.join("cpu.stat"), "nr_throttled");
        }
        if let Some(dir) = self.dir("memory", group) {
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            s.memory_usage = number(&dir.join("memory.usage_in_bytes"));
            s.memory_limit = number(&dir.join("memory.limit_in_bytes")).filter(|l| *l < UNLIMITED);
            s.memory_rss = value(&stat, "total_rss");
            s.swap_usage = value(&stat, "total_swap");
            s.page_faults = value(&stat, "total_pgfault");
            s.major_page_faults = value(&stat, "total_pgmajfault");
            s.memory_working_set = working_set(s.memory_usage, value(&stat, "total_inactive_file"));
        }
        if let Some(dir) = self.dir("pids", group) {
            s.pids = number(&dir.join("pids.current"));
            s.pids_limit = number(&dir.join("pids.max"));
        }
        s.oom_kills = Some(self.oom_kills(group));
        s
    }
}

fn v2(dir: &Path) -> Stats {
    let cpu = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let usage = number(&dir.join("memory.current"));
    let micros = |key| value(&cpu, key).map(|us| us.saturating_mul(1000));
    Stats {
        cpu_total_ns: micros("usage_usec"),
        cpu_user_ns: micros("user_usec"),
        cpu_system_ns: micros("system_usec"),
        cpu_throttled_periods: value(&cpu, "nr_throttled"),
        memory_usage: usage,
        memory_working_set: working_set(usage, value(&stat, "inactive_file")),
        memory_limit: number(&dir.join("memory.max")),
        memory_rss: value(&stat, "anon"),
        page_faults: value(&stat, "pgfault"),
        major_page_faults: value(&stat, "pgmajfault"),
        swap_usage: number(&dir.join("memory.swap.current")),
        pids: number(&dir.join("pids.current")),
        pids_limit: number(&dir.join("pids.max")),
        oom_kills: keyed(&dir.join("memory.events"), "oom_kill"),
    }
}

/// Usage less inactive file pages; an unknown part is not zero.
pub(crate) fn working_set(usage: Option<u64>, inactive_file: Option<u64>) -> Option<u64> {
    Some(usage?.saturating_sub(inactive_file?))
}

/// The value after `key` in a file of `key value` lines.
pub fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn keyed(path: &PathBuf, key: &str) -> Option<u64> {
    value(&fs::read_to_string(path).ok()?, key)
}

/// A file with one number; `max` and nonsense are `None`.
pub(crate) fn number(path: &Path) -> Option<u64> {
    crate::line(path).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_taken_for_its_own_prefix() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(value(text, "oom_kill"), Some(3));
        assert_eq!(value(text, "oom"), None);
    }
}
