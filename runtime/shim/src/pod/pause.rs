//! Pausing a container: asked of the kernel, awaited for a bounded time, taken back when it does not come.

use std::time::{Duration, Instant};

use protocol::{Empty, Kind, Phase, Reply};

use super::Pod;
use crate::link::Caller;

/// A process in uninterruptible sleep cannot stop; after this long the container runs on and the caller hears so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// A container on its way to a stop.
#[derive(Debug)]
pub(super) struct Pausing {
    key: u32,
    caller: Caller,
    since: Instant,
    pub(super) next: Instant,
}

impl Pod {
    pub(crate) fn pause(&mut self, caller: Caller, id: &str) {
        const STAGE: &str = "pause";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let Some(member) = self.members.get(&key) else { return };
        if member.gone || member.phase != Phase::Running {
            let why = format!("{id} is not running");
            return self.links.fail(caller, Kind::InvalidState, STAGE, why);
        }
        if let Err(e) = self.node.freeze(&member.cgroup) {
            return self.links.fail(caller, Kind::Failed, STAGE, e.to_string());
        }
        let now = Instant::now();
        self.pausing.push(Pausing { key, caller, since: now, next: now });
    }

    pub(crate) fn resume(&mut self, caller: Caller, id: &str) {
        const STAGE: &str = "resume";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let Some(member) = self.members.get_mut(&key) else { return };
        match self.node.thaw(&member.cgroup) {
            Ok(()) => {
                member.paused = false;
                self.links.answer(caller, Reply::Done(Empty {}));
            }
            Err(e) => self.links.fail(caller, Kind::Failed, STAGE, e.to_string()),
        }
    }

    pub(super) fn pausing_tick(&mut self, now: Instant) {
        for mut p in std::mem::take(&mut self.pausing) {
            if p.next > now {
                self.pausing.push(p);
                continue;
            }
            let Some(member) = self.members.get_mut(&p.key).filter(|m| !m.gone) else {
                let why = "it ended before it was paused";
                self.links.fail(p.caller, Kind::AlreadyExited, "pause", why);
                continue;
            };
            if self.node.is_frozen(&member.cgroup).unwrap_or(false) {
                member.paused = true;
                self.links.answer(p.caller, Reply::Done(Empty {}));
            } else if now - p.since > PATIENCE {
                let _ = self.node.thaw(&member.cgroup);
                let why = "a process does not stop (in uninterruptible sleep?); it runs on";
                self.links.fail(p.caller, Kind::Timeout, "pause", why);
            } else {
                p.next = now + PAUSE;
                self.pausing.push(p);
            }
        }
    }
}
