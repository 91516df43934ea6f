//! How things end: reaping, publishing exits, killing, removing control groups, deleting, shutting down.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cgroup::oom::Level;
use protocol::{Empty, Exit, Exited, Kind, News, OomScope, Phase, Reply};

use super::{Pod, now_ns};
use crate::link::Caller;
use container::sys::signals::{self, Ended};

/// The exit is published at the latest this long after it, even when the log thread hangs in a frozen file system:
/// twice the drain deadline of that thread.
const PUBLISH: Duration = Duration::from_millis(500);
/// How the end of a process counts that nobody can tell.
const UNKNOWN_CODE: i32 = 255;
/// A group that is still busy this long after its kill is reported; the caller may ask again.
const REMOVAL: Duration = Duration::from_secs(2);
/// First and longest pause between attempts to remove a group.
const RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(64));

/// A control group on its way out.
#[derive(Debug)]
pub(crate) struct Removing {
    key: u32,
    since: Instant,
    pause: Duration,
    pub(crate) next: Instant,
}

impl Pod {
    /// Takes every ended child; those that are nobody's were orphans of the pod.
    pub(crate) fn reap(&mut self) {
        while let Some(ended) = signals::reap() {
            if !self.ended(ended) {
                // A process says who it is before it can end, so what it said has arrived by now.
                self.listen_all();
                if !self.ended(ended) {
                    self.unknown_ended(ended);
                }
            }
        }
    }

    /// False when nobody is known by that pid.
    fn ended(&mut self, ended: Ended) -> bool {
        if self.creator_ended(ended.pid) {
            return true;
        }
        match self.members.iter().find(|(_, m)| m.pid == ended.pid && !m.gone).map(|(k, _)| *k) {
            Some(key) => {
                // Whether exec had succeeded is to be known before the end is.
                self.report(key);
                self.member_ended(key, Some(ended.code));
                true
            }
            None => self.session_ended(ended),
        }
    }

    fn listen_all(&mut self) {
        self.hear_creators();
        let reports: Vec<u32> =
            self.members.iter().filter(|(_, m)| m.report.is_some()).map(|(k, _)| *k).collect();
        reports.into_iter().for_each(|key| self.report(key));
        let reports: Vec<u32> =
            self.sessions.iter().filter(|(_, s)| s.report.is_some()).map(|(k, _)| *k).collect();
        reports.into_iter().for_each(|key| self.exec_report(key));
        let reports: Vec<u32> =
            self.streams.iter().filter(|(_, s)| s.report.is_some()).map(|(k, _)| *k).collect();
        reports.into_iter().for_each(|key| self.stream_report(key));
    }

    /// Without a code nobody can tell how.
    pub(super) fn member_ended(&mut self, key: u32, code: Option<i32>) {
        let (code, unknown) = (code.unwrap_or(UNKNOWN_CODE), code.is_none());
        let Some(member) = self.members.get_mut(&key) else { return };
        member.gone = true;
        if !member.own_pids {
            let _ = self.node.kill(&member.cgroup);
        }
        if member.phase == Phase::Creating {
            return self.give_up(key);
        }
        if member.phase == Phase::Created && member.failure.is_none() && member.waiting.is_some() {
            // It was told to start, has said nothing against it and has ended: it ran. The channel may still be held
            // open by its creator.
            self.started(key);
        }
        let Some(member) = self.members.get_mut(&key) else { return };
        // Read now: the counter goes with the group. A victim's own group counts, whoever's limit it was.
        let verdict = self.node.oom_verdict(&member.cgroup, code, member.memory_hits);
        let oom_killed = verdict.is_some();
        let oom_scope = match verdict {
            None => OomScope::Unknown,
            Some(Level::Own) => OomScope::Container,
            Some(Level::Parent) => OomScope::Pod,
            Some(Level::Above) => OomScope::Ancestor,
        }
        .into();
        let (at_ns, start_error) = (now_ns(), String::new());
        member.exit.get_or_insert(Exit {
            code,
            at_ns,
            oom_killed,
            start_error,
            oom_scope,
            unknown,
        });
        (member.stdio.stdin, member.stdio.terminal, member.paused) = (None, None, false);
        match (member.logged, member.counters.complete.load(Ordering::Acquire)) {
            (false, _) => self.publish(key),
            (true, true) => {
                self.publish(key);
                self.pump.forget(key);
            }
            (true, false) => {
                member.publish_by = Some(Instant::now() + PUBLISH);
                self.pump.finish(key);
            }
        }
    }

    /// Makes an exit known to everybody. Idempotent.
    pub(super) fn publish(&mut self, key: u32) {
        let Some(member) = self.members.get_mut(&key) else { return };
        member.publish_by = None;
        if !member.gone || member.phase == Phase::Exited {
            return;
        }
        member.phase = Phase::Exited;
        member.logged = false;
        if let Some(caller) = member.waiting.take() {
            self.links.fail(
                caller,
                Kind::AlreadyExited,
                "start",
                "init ended before it was started",
            );
        }
        let news = News::Exited(Exited { id: member.id.clone(), exit: member.exit.clone() });
        self.links.tell(&news);
        if !member.deleting.is_empty() {
            self.remove(key);
        }
    }

    /// A creation that failed: when nobody of it lives any more, its group goes, and then the caller hears why.
    pub(super) fn give_up(&mut self, key: u32) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.report.is_some() {
            return; // the reason may still come
        }
        if member.is_alive() {
            let _ = member.signal(libc::SIGKILL);
            return; // goes on when it is reaped
        }
        self.remove(key);
    }

    pub(super) fn remove(&mut self, key: u32) {
        if self.delete_by_handler(key) {
            return; // comes back when the external runtime has deleted its part
        }
        let now = Instant::now();
        if !self.removals.iter().any(|r| r.key == key) {
            self.removals.push(Removing { key, since: now, pause: RETRY.0, next: now });
        }
    }

    pub(super) fn removals_tick(&mut self, now: Instant) {
        let due: Vec<u32> = self.removals.iter().filter(|r| r.next <= now).map(|r| r.key).collect();
        for key in due {
            let Some(member) = self.members.get(&key) else { continue };
            let result = match member.cgroup.as_str() {
                "" => Ok(cgroup::Removal::Gone), // the creator died before it made one
                group => self.node.remove(group),
            };
            let why = match result {
                Ok(cgroup::Removal::Gone) => {
                    self.removals.retain(|r| r.key != key);
                    self.removed(key);
                    continue;
                }
                Ok(cgroup::Removal::Busy) => "processes in it do not end".to_owned(),
                Err(e) => e.to_string(),
            };
            let _ = self.node.kill(&member.cgroup);
            let Some(r) = self.removals.iter_mut().find(|r| r.key == key) else { continue };
            r.pause = (r.pause * 2).min(RETRY.1);
            r.next = now + r.pause;
            if now - r.since > REMOVAL {
                self.removals.retain(|r| r.key != key);
                self.removal_failed(key, &why);
            }
        }
    }

    /// The group is gone: tell whoever waits for that, and forget the member.
    fn removed(&mut self, key: u32) {
        let Some(mut member) = self.members.remove(&key) else { return };
        if Some(key) == self.sandbox {
            self.sandbox = None;
        }
        for caller in member.deleting {
            self.links.answer(caller, Reply::Done(Empty {}));
        }
        if let Some(caller) = member.waiting.take() {
            let error = member.failure.unwrap_or_else(|| {
                container::Error::new(
                    "create",
                    "init was killed while it was set up (out of memory?)",
                )
            });
            self.links.fail(caller, Kind::Failed, &error.stage, error.message);
        }
    }

    fn removal_failed(&mut self, key: u32, why: &str) {
        let Some(member) = self.members.get_mut(&key) else { return };
        let text = format!("remove cgroup {}: {why}", member.cgroup);
        let callers = std::mem::take(&mut member.deleting).into_iter().chain(member.waiting.take());
        for caller in callers.chain(self.ending.take()).collect::<Vec<_>>() {
            self.links.fail(caller, Kind::Failed, "delete", text.clone());
        }
    }

    /// SIGKILL to init and everything in its group.
    pub(super) fn kill_member(&mut self, key: u32) {
        self.hear_creators(); // one may have said who it is
        let Some(member) = self.members.get(&key) else { return };
        if member.is_alive() {
            let _ = member.signal(libc::SIGKILL);
        }
        if !member.cgroup.is_empty() && member.phase != Phase::Exited {
            let _ = self.node.kill(&member.cgroup);
        }
    }

    pub(crate) fn delete(&mut self, caller: Caller, id: &str) {
        let Some(key) = self.key_of(id) else {
            return self.links.answer(caller, Reply::Done(Empty {}));
        };
        let Some(member) = self.members.get_mut(&key) else { return };
        match member.phase {
            Phase::Running | Phase::Creating => {
                let why = format!("{id} is running");
                self.links.fail(caller, Kind::InvalidState, "delete", why);
            }
            Phase::Created => {
                member.deleting.push(caller);
                self.kill_member(key);
            }
            Phase::Exited => {
                member.deleting.push(caller);
                self.remove(key);
            }
        }
    }

    pub(crate) fn stop(&mut self, caller: Caller) {
        self.kill_all();
        self.stoppers.push(caller);
    }

    pub(crate) fn shutdown(&mut self, caller: Caller) {
        self.kill_all();
        if let Some(earlier) = self.ending.replace(caller) {
            self.links.fail(
                earlier,
                Kind::InvalidState,
                "shut down",
                "another shutdown has taken over",
            );
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.ending.is_some() || !self.stoppers.is_empty()
    }

    fn kill_all(&mut self) {
        // Containers first: pause dying takes a shared pid namespace with it, and exits should be their own.
        let sandbox = self.sandbox;
        let keys: Vec<u32> =
            self.members.keys().copied().filter(|k| Some(*k) != sandbox).chain(sandbox).collect();
        keys.into_iter().for_each(|key| self.kill_member(key));
    }

    /// Stop is done when all have exited; shutdown when besides nothing is left.
    pub(super) fn endings_tick(&mut self, _now: Instant) {
        if self.stoppers.is_empty() && self.ending.is_none() {
            return;
        }
        if self.members.values().any(|m| m.phase != Phase::Exited) {
            return;
        }
        for caller in std::mem::take(&mut self.stoppers) {
            self.links.answer(caller, Reply::Done(Empty {}));
        }
        if let Some(caller) = self.ending {
            if self.members.is_empty() {
                self.links.answer(caller, Reply::Done(Empty {}));
                self.over = true;
                return;
            }
            let keys: Vec<u32> = self.members.keys().copied().collect();
            let waiting = self.removals.len();
            keys.into_iter().for_each(|key| self.remove(key));
            if self.removals.len() != waiting {
                self.removals_tick(Instant::now());
                self.endings_tick(Instant::now());
            }
        }
    }
}
