//! The daemon's own records, kept for it: files that nobody can take away, of which the shim knows nothing.

use std::os::fd::{AsFd, OwnedFd};

use protocol::{Empty, Kind, Reply};

use super::Pod;
use crate::link::Caller;

impl Pod {
    pub(crate) fn remember(&mut self, caller: Caller, id: &str, record: Option<OwnedFd>) {
        const STAGE: &str = "remember";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let (Some(record), Some(member)) = (record, self.members.get_mut(&key)) else {
            let why = "the record did not arrive";
            return self.links.fail(caller, Kind::InvalidArgument, STAGE, why);
        };
        member.record = Some(record);
        self.links.answer(caller, Reply::Done(Empty {}));
    }

    pub(crate) fn recall(&mut self, caller: Caller, id: &str) {
        const STAGE: &str = "recall";
        let Some(key) = self.find(caller, id, STAGE) else { return };
        let Some(record) = self.members.get(&key).and_then(|member| member.record.as_ref()) else {
            let why = format!("there is no record of {id} here");
            return self.links.fail(caller, Kind::NotFound, STAGE, why);
        };
        self.links.answer_with(caller, Reply::Done(Empty {}), &[record.as_fd()]);
    }
}
