//! The process that makes the containers of a pod: apart from the shim, whose memory stays small and whose namespaces stay
//! its own.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use container::sys::arena::Arena;
use container::sys::process::{close_all_except, fork};
use container::{Facts, SharedMemory, channel};
use protocol::{Ask, Body, Call, Packet, WireError};
use rustix::io::Errno;

use crate::maker::Maker;

/// What is the same for everything that is made in a pod.
#[derive(Debug)]
pub(crate) struct Base<'a> {
    /// Our own sealed image, for what is built into it.
    pub(crate) image: BorrowedFd<'a>,
    pub(crate) node: &'a cgroup::Hierarchies,
    pub(crate) facts: &'a Facts,
    /// The sandbox's, for its containers; none before there is one.
    pub(crate) shm: Option<SharedMemory>,
}

/// A process that makes what it is told to, one after another, until nobody can tell it more or something of what it
/// made would stay with it.
#[derive(Debug)]
pub(crate) struct Creator {
    pub(crate) pid: i32,
    /// Down go the orders, up come its words about them.
    pub(crate) channel: OwnedFd,
}

impl Creator {
    pub(crate) fn fork(base: &Base<'_>) -> Result<Self, Errno> {
        let (ours, theirs) = protocol::pair()?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let pid = fork(|| obey(base, theirs.as_fd()))?;
        Ok(Self { pid, channel: ours })
    }

    /// An order is the daemon's call with its descriptors. Before them come init's end of the report channel and, unless
    /// init is to make a terminal, the three of its stdio.
    pub(crate) fn order(&self, call: &Packet, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        protocol::send(self.channel.as_fd(), call, fds)
    }
}

/// Runs in the forked child; its result is the child's exit code.
fn obey(base: &Base<'_>, orders: BorrowedFd<'_>) -> i32 {
    // The copies of the shim's other descriptors go first: nothing of other containers may reach these.
    close_all_except(&[0, 1, 2, orders.as_raw_fd(), base.image.as_raw_fd()]);
    let mut maker = Maker::new(base, orders);
    let mut buffer = vec![0; protocol::wire::INLINE_MAX];
    loop {
        Arena::begin();
        let Ok(Some((packet, fds))) = protocol::receive(orders, &mut buffer) else { return 0 };
        let Some(Body::Call(Call { ask: Some(ask) })) = packet.body else { return 1 };
        let mut fds = fds.into_iter();
        let Some(reports) = fds.next() else { return 1 };
        let made = match ask {
            Ask::CreateSandbox(ask) => maker.sandbox(&ask, fds, reports.as_fd()),
            Ask::CreateContainer(ask) => maker.container(ask, fds, reports.as_fd()),
            _ => return 1,
        };
        match made {
            Ok(true) => {}
            Ok(false) => return 0,
            Err(error) => {
                channel::say_failed(reports.as_fd(), &error);
                return 1;
            }
        }
    }
}
