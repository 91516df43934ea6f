//! Who id-maps the container's own trees where it has a user namespace: that takes power over their file systems, which
//! only the host has, and the trees are there only when init has given that up.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::channel::descriptors;
use crate::error::{At, Error};
use crate::options::Idmap;
use crate::plan::{From, Namespace, Plan};
use crate::sys::mount::{Change, attr, set};
use crate::sys::process::{close_copy, fork};

const STAGE: &str = "map ids";

/// A child of the creator that stays the host's. It does what it is asked by the other end, which only init has, and
/// ends with it.
#[derive(Debug)]
pub(crate) struct Mapper {
    mapper: OwnedFd,
    init: OwnedFd,
    pid: i32,
}

impl Mapper {
    /// None when it is not needed.
    pub(crate) fn new(plan: &Plan) -> Result<Option<Self>, Error> {
        let asks = |m: &crate::plan::Mount| {
            matches!(m.from, From::Inside(_)) && m.options.idmap != Idmap::No
        };
        if !plan.namespaces.has(Namespace::User) || !plan.mounts.iter().any(asks) {
            return Ok(None);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (mapper, init) =
            socketpair(family, kind, SocketFlags::CLOEXEC, None).at(STAGE, "make a socket pair")?;
        let pid = fork(|| {
            close_copy(init.as_fd());
            serve(mapper.as_fd());
            0
        });
        Ok(Some(Self { mapper, init, pid: pid.at(STAGE, "fork")? }))
    }

    /// Init's side: maps the ids of a detached tree by a user namespace.
    pub(crate) fn map(
        &self,
        tree: BorrowedFd<'_>,
        users: BorrowedFd<'_>,
        recursive: bool,
    ) -> Result<(), Errno> {
        let fds = [tree, users];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let word = [u8::from(recursive)];
        sendmsg(&self.init, &[IoSlice::new(&word)], &mut ancillary, SendFlags::NOSIGNAL)?;
        let mut answer = [0; 4];
        match retry_on_intr(|| rustix::io::read(&self.init, &mut answer))? {
            4 => match i32::from_ne_bytes(answer) {
                0 => Ok(()),
                number => Err(Errno::from_raw_os_error(number)),
            },
            _ => Err(Errno::PIPE),
        }
    }

    /// Init's side, when it needs no more.
    pub(crate) fn leave(&self) {
        close_copy(self.init.as_fd());
        close_copy(self.mapper.as_fd());
    }

    /// The creator's side, when there is an init: returns when that has left.
    pub(crate) fn end(self) {
        drop((self.mapper, self.init));
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty())); // it says nothing by its end
        }
    }
}

fn serve(socket: BorrowedFd<'_>) {
    while let Ok(Some((tree, users, recursive))) = receive(socket) {
        let change = Change { set: attr::IDMAP, recursive, ..Default::default() };
        let done = set(tree.as_fd(), change, Some(users.as_fd()));
        let number = done.err().map_or(0, Errno::raw_os_error);
        if rustix::io::write(socket, &number.to_ne_bytes()).is_err() {
            return;
        }
    }
}

/// None at the end.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(OwnedFd, OwnedFd, bool)>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0];
    let got = retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut word)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = descriptors(&mut ancillary).into_iter();
    match (got.bytes, fds.next(), fds.next()) {
        (1, Some(tree), Some(users)) => Ok(Some((tree, users, word[0] == 1))),
        _ => Ok(None),
    }
}
