//! The daemon's records as its shims keep them, in case the daemon loses its own.

use std::os::fd::AsFd;

use protocol::wire::{read_memfd, sealed};
use protocol::{Ask, Empty, Reply};

use crate::client::{QUICK, Shim, target};
use crate::error::{Error, ErrorKind};

/// The version of the protocol since which shims remember.
const VERSION: u32 = 4;

/// Longest record that is taken back.
const RECORD_MAX: u64 = 64 << 20;

impl Shim {
    /// Has the shim keep the record of a container or the sandbox. It costs the shim a descriptor and no memory of its
    /// own. One that is too old refuses.
    pub async fn remember(&self, id: &str, record: &[u8]) -> Result<(), Error> {
        let stage = "remember";
        self.speaks(VERSION, id, stage)?;
        let file = sealed(record).map_err(|e| Error::new(ErrorKind::Failed, id, stage, e))?;
        let ask = Ask::Remember(target(id));
        match self.call(ask, &[file.as_fd()], (stage, id), Some(QUICK)).await? {
            (Reply::Done(Empty {}), _) => Ok(()),
            _ => Err(self.confused(stage)),
        }
    }

    /// What it was last given to remember. Kind `NotFound` when that was nothing.
    pub async fn recall(&self, id: &str) -> Result<Vec<u8>, Error> {
        let stage = "recall";
        self.speaks(VERSION, id, stage)?;
        let answer = self.call(Ask::Recall(target(id)), &[], (stage, id), Some(QUICK)).await?;
        let (Reply::Done(Empty {}), mut fds) = answer else { return Err(self.confused(stage)) };
        let file = fds.pop().ok_or_else(|| self.confused(stage))?;
        let failed = |e: std::io::Error| Error::new(ErrorKind::Failed, id, stage, e);
        let length = rustix::fs::fstat(&file).map_err(|e| failed(e.into()))?.st_size;
        let length = u64::try_from(length).unwrap_or(0).min(RECORD_MAX);
        read_memfd(file, length).map_err(failed)
    }
}
