//! The pod's creators. One goes on from container to container, since the kubelet asks for those of a pod one after
//! another: a new fork and its first page faults take as long as a tenth of a container's whole life. In a pod at rest
//! there is none, nor one that waits for a container that nobody starts.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use container::error::words;
use container::sys::process::signal;
use container::sys::signals::Ended;
use container::{SharedMemory, Word};
use protocol::Packet;
use rustix::io::Errno;

use super::{Pod, report_channel};
use crate::creator::{Base, Creator};
use crate::serve::Token;

/// How long one without an order is kept.
const KEPT: Duration = Duration::from_secs(1);

/// A creator and what it is doing.
#[derive(Debug)]
pub(crate) struct Working {
    creator: Creator,
    /// The member that it makes.
    order: Option<u32>,
    stage: Stage,
    /// When to see whether it has nothing to do, and to end it then.
    until: Instant,
}

/// How far it is with its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It has not said yet who init is.
    Expected,
    Born,
    /// It has nothing to do but to wait until init no longer needs its memory.
    Made,
}

impl Pod {
    /// Has a member made, by a creator that has nothing to do or by a new one. Our end of the report channel.
    pub(super) fn order(
        &mut self,
        key: u32,
        call: &Packet,
        fds: &[BorrowedFd<'_>],
    ) -> Result<OwnedFd, String> {
        let failed = |e: Errno| words(&e.into());
        let (ours, theirs) = report_channel().map_err(failed)?;
        self.watch(ours.as_fd(), Token::Report(key)).map_err(failed)?;
        let fds: Vec<_> = [theirs.as_fd()].into_iter().chain(fds.iter().copied()).collect();
        self.hear_creators();
        let until = Instant::now() + KEPT;
        let mut idle = self.creators.iter_mut().filter(|it| it.order.is_none());
        if let Some(it) = idle.find(|it| it.creator.order(call, &fds).is_ok()) {
            (it.order, it.stage, it.until) = (Some(key), Stage::Expected, until);
            return Ok(ours);
        }
        let creator = self.fork_creator().map_err(|e| format!("fork: {}", failed(e)))?;
        creator
            .order(call, &fds)
            .map_err(|e| format!("its creator was killed (out of memory?): {e}"))?;
        let stage = Stage::Expected;
        self.creators.push(Working { creator, order: Some(key), stage, until });
        Ok(ours)
    }

    fn fork_creator(&self) -> Result<Creator, Errno> {
        let pause_pid = self.sandbox.and_then(|key| self.members.get(&key)).map(|m| m.pid);
        let shm = self.shm_path.clone().zip(pause_pid);
        Creator::fork(&Base {
            image: self.image.as_fd(),
            node: &self.node,
            facts: &self.facts,
            shm: shm.map(|(path, pause_pid)| SharedMemory { path, pause_pid }),
        })
    }

    /// Takes what they have said. Nobody is woken by it: it is heard when it is needed, and a death is told by its signal.
    pub(super) fn hear_creators(&mut self) {
        let Self { creators, members, .. } = self;
        let mut born = Vec::new();
        for it in creators {
            while let Ok(Some(word)) = Word::hear(it.creator.channel.as_fd()) {
                let member = it.order.and_then(|key| members.get_mut(&key));
                match word {
                    Word::Planned { cgroup, own_pids } => {
                        if let Some(member) = member {
                            (member.cgroup, member.own_pids) = (cgroup, own_pids);
                        }
                    }
                    Word::Born { pid, start_ticks } => {
                        it.stage = Stage::Born;
                        born.extend(it.order.map(|key| (key, pid, start_ticks)));
                    }
                    Word::Made { hits } => {
                        if let Some(member) = member {
                            member.memory_hits = hits;
                        }
                        (it.stage, it.until) = (Stage::Made, Instant::now() + KEPT);
                    }
                    Word::Free => (it.order, it.until) = (None, Instant::now() + KEPT),
                }
            }
        }
        born.into_iter().for_each(|(key, pid, start_ticks)| self.born(key, pid, start_ticks));
        if !self.creators.iter().any(|it| it.is_expected()) {
            self.unborn.clear();
        }
    }

    /// Who a member's init is. It may have ended by now.
    pub(super) fn born(&mut self, key: u32, pid: i32, start_ticks: u64) {
        let Some(member) = self.members.get_mut(&key) else { return };
        (member.pid, member.start_ticks) = (pid, start_ticks);
        if let Some(Ended { code, .. }) = self.unborn.iter().find(|it| it.pid == pid) {
            self.member_ended(key, Some(*code));
        }
    }

    /// A child that nobody knows has ended: an orphan of the pod, or an init that was quicker to fail than its creator is
    /// to tell of it. That one's pid cannot come again in this moment: the kernel gives out all others first.
    pub(super) fn unknown_ended(&mut self, ended: Ended) {
        if self.creators.iter().any(|it| it.is_expected()) {
            self.unborn.push(ended);
        }
    }

    /// False when it was none, or one that was known to end.
    pub(super) fn creator_ended(&mut self, pid: i32) -> bool {
        self.hear_creators();
        let before = self.creators.len();
        self.creators.retain(|it| it.creator.pid != pid);
        self.creators.len() != before
    }

    pub(super) fn next_look_at_creators(&self) -> Option<Instant> {
        self.creators.iter().map(|it| it.until).min()
    }

    /// Ends those that have nothing to do for long enough: by closing their channel or, where one stands still for an init
    /// that nobody starts, by a signal. That init keeps the memory.
    pub(super) fn creators_tick(&mut self, now: Instant) {
        let stopping = self.is_stopping();
        if !stopping && self.creators.iter().all(|it| it.until > now) {
            return;
        }
        self.hear_creators();
        self.creators.retain_mut(|it| match (it.order, it.stage) {
            (None, _) => !stopping && it.until > now,
            (Some(_), Stage::Made) if it.until <= now => {
                // It is a child of ours that was not reaped.
                let _ = signal(it.creator.pid, libc::SIGKILL);
                false
            }
            (Some(_), _) => {
                it.until = it.until.max(now + KEPT);
                true
            }
        });
    }
}

impl Working {
    fn is_expected(&self) -> bool {
        self.order.is_some() && self.stage == Stage::Expected
    }
}
