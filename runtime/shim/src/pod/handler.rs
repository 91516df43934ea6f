//! A container of an external runtime, where its life differs: who starts it and who deletes it.

use std::os::fd::AsFd;

use container::sys::process::fork;
use protocol::{Kind, Phase};
use rustix::io::Errno;

use super::{Pod, report_channel};
use crate::enter;
use crate::handler::Handler;
use crate::link::Caller;
use crate::member::{Deletion, External};
use crate::serve::Token;
use crate::start::note;

impl External {
    pub(super) fn of<'a>(&'a self, id: &'a str) -> Handler<'a> {
        Handler { binary: &self.binary, id, bundle: &self.bundle }
    }
}

impl Pod {
    /// The runtime lets init go; the close of its helper's channel says that it did.
    pub(super) fn start_by_handler(&mut self, caller: Caller, key: u32) {
        match self.call_handler(key, "start", &[]) {
            Ok(()) => {
                if let Some(member) = self.members.get_mut(&key) {
                    member.waiting = Some(caller);
                }
            }
            Err(e) => {
                let why = format!("fork: {}", container::error::words(&e.into()));
                self.links.fail(caller, Kind::Failed, "start", why);
            }
        }
    }

    /// Lets the runtime delete its part first. False when it has none, or none any more.
    pub(super) fn delete_by_handler(&mut self, key: u32) -> bool {
        let Some(member) = self.members.get(&key) else { return false };
        match member.handler.as_ref().map(|h| h.deletion) {
            None | Some(Deletion::Done) => false,
            Some(Deletion::UnderWay) => true,
            Some(Deletion::Due) => {
                let (deletion, started) = match self.call_handler(key, "delete", &["--force"]) {
                    Ok(()) => (Deletion::UnderWay, true),
                    Err(e) => {
                        note(&format!("delete by the external runtime: fork: {e}"));
                        (Deletion::Done, false)
                    }
                };
                self.set_deletion(key, deletion);
                started
            }
        }
    }

    /// The channel of a member's helper was closed: whether that was the end of the runtime's deletion.
    pub(super) fn handler_deleted(&mut self, key: u32) -> bool {
        let Some(member) = self.members.get(&key) else { return false };
        let under_way = member.handler.as_ref().is_some_and(|h| h.deletion == Deletion::UnderWay);
        if under_way {
            self.set_deletion(key, Deletion::Done);
            self.remove(key);
        }
        under_way
    }

    fn set_deletion(&mut self, key: u32, deletion: Deletion) {
        if let Some(h) = self.members.get_mut(&key).and_then(|m| m.handler.as_mut()) {
            h.deletion = deletion;
        }
    }

    fn call_handler(&mut self, key: u32, verb: &str, options: &[&str]) -> Result<(), Errno> {
        let member = self.members.get(&key).ok_or(Errno::SRCH)?;
        let handler = member.handler.as_ref().ok_or(Errno::SRCH)?.of(&member.id);
        let (ours, theirs) = report_channel()?;
        fork(|| enter::call(&handler, verb, options, theirs.as_fd()))?;
        self.watch(ours.as_fd(), Token::Report(key))?;
        let member = self.members.get_mut(&key).ok_or(Errno::SRCH)?;
        debug_assert!(member.phase != Phase::Creating || member.report.is_none());
        member.report = Some(ours);
        Ok(())
    }
}
