//! Where init waits until the hooks that run on the host are through.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};

use crate::create::Creation;
use crate::error::{At, Error};
use crate::hooks::Moment;
use crate::plan::Plan;
use crate::sys::process::{close_copy, fork};
use crate::{channel, net_devices};

const STAGE: &str = "createRuntime hook";

/// The hooks have a keeper: a child of the creator that stays in the host's namespaces while the creator leaves them.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Both ends; the keeper has copies.
    keeper: OwnedFd,
    init: OwnedFd,
    keeper_pid: i32,
}

impl Gate {
    /// Whether there is anything to do on the host while init waits.
    pub(crate) fn is_needed(plan: &Plan) -> bool {
        !plan.hooks.create_runtime.is_empty() || !plan.net_devices.is_empty()
    }

    /// None when it is not needed.
    pub(crate) fn new(c: &Creation<'_>) -> Result<Option<Self>, Error> {
        if !Self::is_needed(c.plan) {
            return Ok(None);
        }
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (keeper, init) =
            socketpair(family, kind, SocketFlags::CLOEXEC, None).at(STAGE, "make a socket pair")?;
        let keeper_pid = fork(|| {
            close_copy(init.as_fd());
            keep(c, keeper.as_fd())
        });
        Ok(Some(Self { keeper, init, keeper_pid: keeper_pid.at(STAGE, "fork")? }))
    }

    /// The creator's side, when there is an init: the keeper is told which, and its success awaited.
    pub(crate) fn open(self, pid: i32) -> Result<(), Error> {
        rustix::io::write(&self.init, &pid.to_ne_bytes()).at(STAGE, "tell the keeper")?;
        // Init's copy alone holds the gate from now on: when init dies, the keeper sees it.
        drop((self.keeper, self.init));
        wait(self.keeper_pid, STAGE)
    }

    /// Init's side.
    pub(crate) fn pass(&self) -> Result<(), Error> {
        close_copy(self.keeper.as_fd());
        rustix::io::write(&self.init, b"?").at(STAGE, "tell the keeper")?;
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.init, &mut byte)) {
            Ok(1) => Ok(()),
            _ => Err(Error::new(STAGE, "its keeper gave up")),
        }
    }
}

/// Hooks may look at the devices, so these come first; another process goes into the container's network for it.
fn act(c: &Creation<'_>, pid: i32) -> Result<(), Error> {
    if !c.plan.net_devices.is_empty() {
        let mover = fork(|| match net_devices::give(&c.plan.net_devices, pid) {
            Ok(()) => 0,
            Err(error) => {
                channel::say_failed(c.channel, &error);
                1
            }
        });
        wait(mover.at("network devices", "fork")?, "network devices")?;
    }
    c.plan.hooks.run(Moment::CreateRuntime, pid, c.bundle)
}

/// A child that has said by the channel why it failed, if it did.
fn wait(pid: i32, stage: &str) -> Result<(), Error> {
    let status = Pid::from_raw(pid)
        .map(|pid| rustix::io::retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty())));
    match status {
        Some(Ok(Some((_, status)))) if status.exit_status() == Some(0) => Ok(()),
        _ => Err(Error::new(stage, "it failed")),
    }
}

/// The keeper: learns init's pid from the creator and its arrival from init (in any order), runs the hooks, lets
/// init pass.
fn keep(c: &Creation<'_>, socket: BorrowedFd<'_>) -> i32 {
    let (mut pid, mut arrived) = (None, false);
    while pid.is_none() || !arrived {
        let mut message = [0; 4];
        match rustix::io::retry_on_intr(|| rustix::io::read(socket, &mut message)) {
            Ok(4) => pid = Some(i32::from_ne_bytes(message)),
            Ok(1) => arrived = true,
            // Init has failed on the way and has said so, or there is none.
            _ => return 0,
        }
    }
    let pid = pid.unwrap_or_default();
    match act(c, pid) {
        Ok(()) => i32::from(rustix::io::write(socket, b"!").is_err()),
        // Before the gate closes, so that this is the reason that is heard first.
        Err(error) => {
            channel::say_failed(c.channel, &error);
            1
        }
    }
}
