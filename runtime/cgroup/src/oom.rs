//! Whose memory limit killed a process: counters read before and after, and the verdict.

use std::fs;
use std::path::Path;

use crate::Hierarchies;
use crate::stats::value;

/// The level whose limit could not be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The group's own limit.
    Own,
    /// That of the group it is in: of the pod.
    Parent,
    /// One further up, or the node's memory as a whole.
    Above,
}

/// How often the limits of a group and of its parent were hit so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    pub own: u64,
    pub parent: u64,
}

impl Hits {
    /// The level to blame for a kill between `before` and `self`. The lowest one that was hit meanwhile: a limit
    /// further up that was hit, too, would have killed somewhere below it, but not necessarily here.
    pub fn blame(self, before: Self) -> Level {
        if self.own > before.own {
            Level::Own
        } else if self.parent > before.parent {
            Level::Parent
        } else {
            Level::Above
        }
    }
}

impl Hierarchies {
    /// Reads the counters. On v2 they count out-of-memory situations at exactly that level; v1 knows only how often
    /// the limit stood in the way, which includes the times when something could be reclaimed.
    pub fn memory_hits(&self, group: &str) -> Hits {
        let parent = group.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
        // The root of the hierarchy has no limit.
        let parent = if parent.is_empty() { 0 } else { self.hits_of(parent) };
        Hits { own: self.hits_of(group), parent }
    }

    fn hits_of(&self, group: &str) -> u64 {
        if let Some(dir) = self.dir("memory", group) {
            return ["memory", "memory.memsw"].into_iter().map(|what| v1_hits(&dir, what)).sum();
        }
        let events = self.unified_dir(group).map(|dir| dir.join("memory.events.local"));
        let text = events.and_then(|path| fs::read_to_string(path).ok());
        text.and_then(|text| value(&text, "oom")).unwrap_or(0)
    }
}

/// The kernel counts failures of the first counter only, but of both it knows whether the limit was ever reached.
fn v1_hits(dir: &Path, what: &str) -> u64 {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(dir.join(format!("{what}.{file}"))).ok()?.trim().parse().ok()
    };
    let limit = number("limit_in_bytes");
    let reached = limit.is_some() && number("max_usage_in_bytes") >= limit;
    number("failcnt").unwrap_or(0).saturating_add(u64::from(reached))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_level_that_was_hit_meanwhile_is_to_blame() {
        let before = Hits { own: 2, parent: 5 };
        for (after, want) in [
            (Hits { own: 3, parent: 9 }, Level::Own),
            (Hits { own: 2, parent: 6 }, Level::Parent),
            (before, Level::Above),
        ] {
            assert_eq!(after.blame(before), want, "{after:?}");
        }
    }
}
