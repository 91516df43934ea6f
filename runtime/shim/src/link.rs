//! The connections of daemons: usually one; after a daemon was replaced, for a moment two.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use protocol::{Failed, Inventory, Kind, News, Packet, Reply};

/// Who asked, and under which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) link: u32,
    pub(crate) seq: u64,
}

/// More than a daemon, a streaming process, their successors and a debugging tool is a mistake.
pub(crate) const LINKS_MAX: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Links {
    open: BTreeMap<u32, OwnedFd>,
    next: u32,
    /// Closed since the last look: what was begun over them ends with them.
    closed: Vec<u32>,
}

impl Links {
    /// Takes a connection in; `None` when there are too many.
    pub(crate) fn add(&mut self, socket: OwnedFd) -> Option<u32> {
        if self.open.len() >= LINKS_MAX {
            return None;
        }
        self.next = self.next.wrapping_add(1);
        self.open.insert(self.next, socket);
        Some(self.next)
    }

    pub(crate) fn get(&self, link: u32) -> Option<BorrowedFd<'_>> {
        self.open.get(&link).map(AsFd::as_fd)
    }

    /// Closing it also takes it out of the epoll set.
    pub(crate) fn drop(&mut self, link: u32) {
        if self.open.remove(&link).is_some() {
            self.closed.push(link);
        }
    }

    /// The links that were closed since the last call.
    pub(crate) fn take_closed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.closed)
    }

    pub(crate) fn answer(&mut self, to: Caller, reply: Reply) {
        self.answer_with(to, reply, &[]);
    }

    pub(crate) fn fail(&mut self, to: Caller, kind: Kind, stage: &str, message: impl Into<String>) {
        self.answer(to, Reply::Failed(Failed::new(kind, stage, message)));
    }

    /// A peer that does not take its answers is cut off: it can come back and ask for the inventory.
    pub(crate) fn answer_with(&mut self, to: Caller, reply: Reply, fds: &[BorrowedFd<'_>]) {
        let Some(socket) = self.open.get(&to.link) else { return };
        if protocol::send(socket.as_fd(), &Packet::answer(to.seq, reply), fds).is_err() {
            self.drop(to.link);
        }
    }

    /// Tells every daemon.
    pub(crate) fn tell(&mut self, news: &News) {
        for link in self.open.keys().copied().collect::<Vec<_>>() {
            self.tell_one(link, news.clone());
        }
    }

    /// Tells one daemon, if it is still there.
    pub(crate) fn tell_one(&mut self, link: u32, news: News) {
        let Some(socket) = self.open.get(&link) else { return };
        if protocol::send(socket.as_fd(), &Packet::notice(news), &[]).is_err() {
            self.drop(link);
        }
    }
}

/// The answer to `inventory`, kept here beside the other answers.
pub(crate) fn inventory(
    sandbox: Option<protocol::State>,
    containers: Vec<protocol::State>,
) -> Reply {
    Reply::Inventory(Inventory { sandbox, containers })
}
