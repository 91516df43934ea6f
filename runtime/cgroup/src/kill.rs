//! Ending every process of a group: `cgroup.kill` on v2, freeze and signal on v1.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

use crate::group::children;
use crate::{Error, Hierarchies};

/// Rounds of the v1 loop. Frozen processes cannot fork, so the second round only sees those that were forked
/// between the listing and the freeze; more rounds are for a freezer that answers slowly.
const ROUNDS: usize = 8;

impl Hierarchies {
    /// Sends SIGKILL to every process in the group and below it. Returns how many were signalled (0 when the
    /// kernel did it by itself); their end is seen by whoever reaps them.
    pub fn kill(&self, group: &str) -> Result<usize, Error> {
        if let Some(dir) = self.unified_dir(group).filter(|_| self.is_v2()) {
            let file = dir.join("cgroup.kill");
            match fs::write(&file, "1") {
                Ok(()) => return Ok(0),
                Err(_) if !dir.exists() => return Ok(0),
                Err(_) => {} // before Linux 5.14: the loop below
            }
        }
        self.freeze(group)?;
        let mut killed = BTreeSet::new();
        for _ in 0..ROUNDS {
            let mut fresh = false;
            for pid in self.pids(group)? {
                fresh |= killed.insert(pid);
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = kill_process(pid, Signal::KILL); // gone already is what we want
                }
            }
            if !fresh {
                break;
            }
        }
        self.thaw(group)?;
        Ok(killed.len())
    }

    /// Every process in the group and below it.
    pub fn pids(&self, group: &str) -> Result<Vec<i32>, Error> {
        let mut pids = Vec::new();
        if let Some(dir) = self.tracking_dir(group) {
            collect(&dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// The v1 controller by which processes are counted and frozen; `None` on v2.
    pub fn tracking_controller(&self) -> Option<&str> {
        let known = ["freezer", "pids"].into_iter().find(|c| self.dir(c, "/").is_some());
        known.or_else(|| self.v1.first().and_then(|h| h.controllers.first()).map(String::as_str))
    }

    /// The directory by which processes are counted and frozen.
    pub(crate) fn tracking_dir(&self, group: &str) -> Option<PathBuf> {
        if self.is_v2() {
            return self.unified_dir(group);
        }
        self.dir("freezer", group)
            .or_else(|| self.dir("pids", group))
            .or_else(|| self.v1.first().map(|h| crate::hierarchy::under(&h.mount, group)))
    }
}

fn collect(dir: &Path, pids: &mut Vec<i32>) -> Result<(), Error> {
    let file = dir.join("cgroup.procs");
    match fs::read_to_string(&file) {
        Ok(text) => {
            pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|p| *p > 0))
        }
        Err(_) if !dir.exists() => return Ok(()),
        Err(e) => return Err(Error::file("read", file, e)),
    }
    children(dir)?.iter().try_for_each(|c| collect(c, pids))
}
