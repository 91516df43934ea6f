//! The console socket of an external runtime: where it sends the master of the terminal that it has made.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use container::Error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept_with, bind, listen, recvmsg, socket_with,
};

const STAGE: &str = "receive a terminal from the external runtime";
/// It sends the terminal before its own call ends, so this is a runtime that never does.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// A listening socket in the bundle, which is the runtime's working directory; gone with this value.
#[derive(Debug)]
pub(crate) struct Console {
    listener: OwnedFd,
    directory: OwnedFd,
    name: String,
}

impl Console {
    pub(crate) fn listen(bundle: &Path, name: &str) -> Result<Self, Error> {
        let make = || -> Result<Self, Errno> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = open(bundle, flags, Mode::empty())?;
            let listener =
                socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
            // The bundle's own path may be too long for an address.
            let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
            bind(&listener, &SocketAddrUnix::new(path.as_str())?)?;
            listen(&listener, 1)?;
            Ok(Self { listener, directory, name: name.to_owned() })
        };
        make().map_err(failed)
    }

    /// As the runtime finds it from the bundle.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn receive(&self) -> Result<OwnedFd, Error> {
        let take = || -> Result<Option<OwnedFd>, Errno> {
            if poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&PATIENCE))? == 0 {
                return Err(Errno::TIMEDOUT);
            }
            let peer = accept_with(&self.listener, SocketFlags::CLOEXEC)?;
            if poll(&mut [PollFd::new(&peer, PollFlags::IN)], Some(&PATIENCE))? == 0 {
                return Err(Errno::TIMEDOUT);
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let mut text = [0u8; 4096]; // its name, which nobody needs
            let flags = RecvFlags::CMSG_CLOEXEC;
            recvmsg(&peer, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags)?;
            Ok(ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
                _ => None,
            }))
        };
        match take() {
            Ok(Some(master)) => Ok(master),
            Ok(None) => Err(Error::new(STAGE, "it sent no descriptor")),
            Err(e) => Err(failed(e)),
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let none = rustix::fs::AtFlags::empty();
        let _ = rustix::fs::unlinkat(&self.directory, self.name.as_str(), none);
    }
}

fn failed(e: Errno) -> Error {
    Error::new(STAGE, container::error::words(&e.into()))
}
