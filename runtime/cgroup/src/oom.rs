//! Whose memory limit killed a process: counters read before and after, and the verdict.

use std::fs;
use std::path::Path;

use crate::Hierarchies;
use crate::stats::{number, value};

/// The exit code of a process that was ended by SIGKILL.
const KILLED: i32 = 128 + 9;

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
    /// How many processes were killed in the parent and in all that is or was below it (v2 only).
    pub killed_below_parent: u64,
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
    /// Where the counters stand above a group that was made just now, whose own are at nothing.
    pub fn memory_hits_above(&self, group: &str) -> Hits {
        let parent = group.trim_end_matches('/').rsplit_once('/').map_or("", |(parent, _)| parent);
        // The root of the hierarchy has no limit.
        let (hits, kills) = match parent {
            "" => (0, 0),
            _ => (self.hits_of(parent), if self.is_v2() { self.oom_kills(parent) } else { 0 }),
        };
        Hits { own: 0, parent: hits, killed_below_parent: kills }
    }

    /// Reads the counters. On v2 they count out-of-memory situations at exactly that level; v1 knows only how often
    /// the limit stood in the way, which includes the times when something could be reclaimed.
    fn memory_hits(&self, group: &str) -> Hits {
        Hits { own: self.hits_of(group), ..self.memory_hits_above(group) }
    }

    /// Whose limit ended a group's first process, which had this exit code; `None` when the kernel has killed nothing
    /// in the group for want of memory.
    pub fn oom_verdict(&self, group: &str, code: i32, before: Hits) -> Option<Level> {
        if code == 0 {
            return None;
        }
        let own_kills = self.known_oom_kills(group);
        if own_kills == Some(0) {
            return None;
        }
        let after = self.memory_hits(group);
        if own_kills.is_some() {
            return Some(after.blame(before));
        }
        // systemd removes a scope as soon as it is empty. What was killed in it the group above has counted.
        let killed = code == KILLED && after.killed_below_parent > before.killed_below_parent;
        killed.then_some(if after.parent > before.parent { Level::Parent } else { Level::Own })
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
    let number = |file: &str| number(&dir.join(format!("{what}.{file}")));
    let limit = number("limit_in_bytes");
    let reached = limit.is_some() && number("max_usage_in_bytes") >= limit;
    number("failcnt").unwrap_or(0).saturating_add(u64::from(reached))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_level_that_was_hit_meanwhile_is_to_blame() {
        let before = Hits { own: 2, parent: 5, killed_below_parent: 0 };
        for (after, want) in [
            (Hits { own: 3, parent: 9, ..before }, Level::Own),
            (Hits { own: 2, parent: 6, ..before }, Level::Parent),
            (before, Level::Above),
        ] {
            assert_eq!(after.blame(before), want, "{after:?}");
        }
    }

    #[test]
    fn a_group_that_is_gone_already_is_judged_by_what_the_one_above_has_counted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let node = Hierarchies { v1: vec![], unified: Some(dir.path().to_owned()) };
        let count = |group: &str, file: &str, text: &str| {
            let group = dir.path().join(group);
            fs::create_dir_all(&group).expect("make");
            fs::write(group.join(file), text).expect("write");
        };
        count("pod", "memory.events", "oom_kill 1\n");
        count("pod", "memory.events.local", "oom 0\n");
        let before = node.memory_hits("/pod/gone");
        let verdict = |code| node.oom_verdict("/pod/gone", code, before);
        assert_eq!(verdict(KILLED), None, "that kill was before");
        count("pod", "memory.events", "oom_kill 2\n");
        assert_eq!((verdict(KILLED), verdict(1), verdict(0)), (Some(Level::Own), None, None));
        count("pod", "memory.events.local", "oom 1\n");
        assert_eq!(verdict(KILLED), Some(Level::Parent));
        count("pod/gone", "memory.events", "oom_kill 0\n");
        assert_eq!(verdict(KILLED), None, "it is there and says that it was not");
    }
}
