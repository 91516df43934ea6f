//! What creator, init and their parent say to each other over one SEQPACKET socket.
//!
//! Upwards: `Init` (its credentials carry its pid, translated by the kernel), then `Ready` or `Failed`, and at exec the
//! close of the socket, which means success. Downwards: one byte, `TO_START`. A creator that is given orders says its
//! `Word`s over the socket that they come by.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cgroup::oom::Hits;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use crate::error::Error;

/// The byte that lets a waiting init go on to exec.
pub const TO_START: u8 = b'S';

/// Longest report; error texts beyond it are cut.
pub(crate) const REPORT_MAX: usize = 4096;

/// One message upwards.
#[derive(Debug)]
pub enum Report {
    /// The first word of the new process.
    Init {
        pid: i32,
    },
    /// The same of a process that another runtime made, which does not speak for itself.
    External {
        pid: i32,
    },
    /// Everything is set up; with a terminal, its master end. `pid` is who says so.
    Ready {
        terminal: Option<OwnedFd>,
        pid: i32,
    },
    /// The seccomp filter's listener: somebody must answer it from now on.
    Listener(OwnedFd),
    /// Something asked for could not be granted on this node and was clamped.
    Clamped(String),
    Failed(Error),
    /// All ends of the peer are closed: exec succeeded, or the process died.
    Closed,
}

/// What a creator says of the order that it carries out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// What it decided and the parent must know to clean up: said before anything is made. `own_pids`: init is pid 1 of
    /// its own namespace, so the kernel ends the others with it.
    Planned { cgroup: String, own_pids: bool },
    /// Who init is, which then does not say so itself.
    Born { pid: i32, start_ticks: u64 },
    /// Its group is there, and init can do the rest by itself. `hits`: how often the limits above the new group had been
    /// hit by then.
    Made { hits: Hits },
    /// It waits for another order.
    Free,
}

impl Word {
    pub fn say(&self, channel: BorrowedFd<'_>) -> Result<(), Error> {
        let text = match self {
            Self::Planned { cgroup, own_pids } => format!("P{} {cgroup}", u8::from(*own_pids)),
            Self::Born { pid, start_ticks } => format!("B{pid} {start_ticks}"),
            Self::Made { hits } => format!("M{} {}", hits.parent, hits.killed_below_parent),
            Self::Free => "F ".to_owned(),
        };
        say(channel, text.as_bytes(), None)
    }

    /// Takes one. `None`: there will be no more. EAGAIN when `parent` is non-blocking and nothing is there.
    pub fn hear(parent: BorrowedFd<'_>) -> Result<Option<Self>, Errno> {
        let mut text = [0; REPORT_MAX];
        let (got, _) = rustix::net::recv(parent, &mut text[..], RecvFlags::empty())?;
        Ok(Self::decode(&String::from_utf8_lossy(&text[..got])))
    }

    fn decode(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_at_checked(1)?;
        let (first, rest) = rest.split_once(' ')?;
        Some(match kind {
            "P" => Self::Planned { cgroup: rest.to_owned(), own_pids: first == "1" },
            "B" => Self::Born { pid: first.parse().ok()?, start_ticks: rest.parse().ok()? },
            "M" => {
                let (parent, killed_below_parent) = (first.parse().ok()?, rest.parse().ok()?);
                Self::Made { hits: Hits { own: 0, parent, killed_below_parent } }
            }
            "F" => Self::Free,
            _ => return None,
        })
    }
}

/// The parent's end wants to know who speaks.
pub fn expect_credentials(parent: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::sockopt::set_socket_passcred(parent, true)
}

/// `pid` as the receiver sees it.
pub fn say_external(channel: BorrowedFd<'_>, pid: i32) -> Result<(), Error> {
    say(channel, &[b"E", pid.to_string().as_bytes()].concat(), None)
}

pub fn say_init(channel: BorrowedFd<'_>) -> Result<(), Error> {
    say(channel, b"I", None)
}

pub fn say_ready(channel: BorrowedFd<'_>, terminal: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    say(channel, b"R", terminal)
}

pub(crate) fn say_listener(channel: BorrowedFd<'_>, listener: BorrowedFd<'_>) -> Result<(), Error> {
    say(channel, b"L", Some(listener))
}

pub(crate) fn say_clamped(channel: BorrowedFd<'_>, text: &str) -> Result<(), Error> {
    say(channel, &[b"C", text.as_bytes()].concat(), None)
}

/// Best effort: when even this fails, the parent sees the close.
pub fn say_failed(channel: BorrowedFd<'_>, error: &Error) {
    let _ = say(channel, &encode_failed(error), None);
}

/// Blocks until somebody wants to start this container.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<OwnedFd, Error> {
    loop {
        match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            Err(Errno::INTR) => {}
            other => return other.map_err(|e| Error::new("wait for start", e.to_string())),
        }
    }
}

/// Blocks until the parent says start. `Ok(false)` means that the parent is gone.
pub(crate) fn wait_start(channel: BorrowedFd<'_>) -> Result<bool, Error> {
    let mut byte = [0u8; 1];
    loop {
        match rustix::net::recv(channel, &mut byte[..], RecvFlags::empty()) {
            Ok((0, _)) => return Ok(false),
            Ok(_) => return Ok(byte[0] == TO_START),
            Err(Errno::INTR) => {}
            Err(e) => return Err(Error::new("wait for start", e.to_string())),
        }
    }
}

/// Lets the init at the other end go on to exec.
pub fn say_start(parent: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::net::send(parent, &[TO_START], SendFlags::NOSIGNAL).map(|_| ())
}

/// Takes one report. EAGAIN when `parent` is non-blocking and nothing is there.
pub fn listen(parent: BorrowedFd<'_>) -> Result<Report, Errno> {
    let mut text = [0u8; REPORT_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got =
        rustix::net::recvmsg(parent, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags)?;
    let (mut fd, mut pid) = (None, 0);
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(rights) => fd = rights.last(),
            RecvAncillaryMessage::ScmCredentials(c) => pid = c.pid.as_raw_nonzero().get(),
            _ => {}
        }
    }
    Ok(match text[..got.bytes].split_first() {
        None => Report::Closed,
        Some((b'I', _)) => Report::Init { pid },
        Some((b'E', text)) => {
            Report::External { pid: String::from_utf8_lossy(text).parse().unwrap_or_default() }
        }
        Some((b'R', _)) => Report::Ready { terminal: fd, pid },
        Some((b'L', _)) => match fd {
            Some(fd) => Report::Listener(fd),
            None => Report::Failed(Error::new("seccomp", "the listener got lost on its way")),
        },
        Some((b'C', text)) => Report::Clamped(String::from_utf8_lossy(text).into_owned()),
        Some((_, text)) => Report::Failed(decode_failed(text)),
    })
}

/// Those that came with a message.
pub(crate) fn descriptors(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().collect()
}

pub(crate) fn encode_failed(error: &Error) -> Vec<u8> {
    let mut out = [b"F", error.stage.as_bytes(), b"\0", error.message.as_bytes()].concat();
    out.truncate(REPORT_MAX);
    out
}

/// Of what follows the first byte.
pub(crate) fn decode_failed(bytes: &[u8]) -> Error {
    let text = String::from_utf8_lossy(bytes);
    let (stage, message) = text.split_once('\0').unwrap_or(("", &text));
    Error::new(stage, message)
}

fn say(channel: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(
        channel.as_fd(),
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .map(|_| ())
    .map_err(|e| Error::new("report", e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_survives_being_said() {
        let hits = Hits { own: 0, parent: u64::MAX, killed_below_parent: 3 };
        for word in [
            Word::Planned { cgroup: "/a b/c".to_owned(), own_pids: true },
            Word::Born { pid: i32::MAX, start_ticks: u64::MAX },
            Word::Made { hits },
            Word::Free,
        ] {
            let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("pair");
            word.say(theirs.as_fd()).expect("said");
            assert_eq!(Word::hear(ours.as_fd()), Ok(Some(word)));
        }
        assert_eq!(["", "M1", "X1 2"].map(Word::decode), [None, None, None]);
    }

    #[test]
    fn a_failure_keeps_its_stage_and_text_and_is_cut_when_endless() {
        let error = Error::new("mount /data", "open /srv/x: No such file or directory");
        assert_eq!(decode_failed(&encode_failed(&error)[1..]), error);
        let endless = Error::new("s", "x".repeat(3 * REPORT_MAX));
        assert_eq!(encode_failed(&endless).len(), REPORT_MAX);
    }
}
