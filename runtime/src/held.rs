//! What outlives a shim: descriptors of its processes, given to the shim that comes after it.

use std::os::fd::{AsFd, OwnedFd};

use protocol::{Ask, Empty, Reply};

use crate::client::{QUICK, Shim, target};
use crate::error::Error;

/// A running container or sandbox: its pidfd and its stdio, which are never read here. As long as this exists, the
/// death of its shim takes neither its output nor its exit code.
#[derive(Debug)]
pub struct Held {
    what: protocol::Held,
    fds: Vec<OwnedFd>,
}

impl Held {
    pub fn id(&self) -> &str {
        self.what.state.as_ref().map_or("", |state| &state.id)
    }

    pub fn is_sandbox(&self) -> bool {
        self.what.sandbox
    }

    /// Lets go of the write end of stdin, for a container whose stdin is to end with its one client: a copy here
    /// would keep that end from coming.
    pub fn without_stdin(mut self) -> Self {
        if std::mem::take(&mut self.what.stdin) && self.fds.len() > 1 {
            self.fds.remove(1);
        }
        self
    }
}

impl Shim {
    /// Duplicates of what the shim has of a running container or of the sandbox.
    pub async fn hold(&self, id: &str) -> Result<Held, Error> {
        let stage = "hold";
        match self.call(Ask::Hold(target(id)), &[], (stage, id), Some(QUICK)).await? {
            (Reply::Held(what), fds) => Ok(Held { what, fds }),
            _ => Err(self.confused(stage)),
        }
    }

    /// Makes a fresh shim the successor of one that died; the sandbox must come first.
    pub async fn adopt(&self, held: &Held) -> Result<(), Error> {
        let stage = "adopt";
        let fds: Vec<_> = held.fds.iter().map(AsFd::as_fd).collect();
        let ask = Ask::Adopt(held.what.clone());
        match self.call(ask, &fds, (stage, held.id()), Some(QUICK)).await? {
            (Reply::Done(Empty {}), _) => Ok(()),
            _ => Err(self.confused(stage)),
        }
    }
}
