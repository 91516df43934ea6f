//! A netlink socket used like a function call: one datagram of requests, all its answers.

use std::io;
use std::time::Duration;

use netlink_sys::{Socket, protocols};
use rustix::net::{RecvFlags, SendFlags, recv, send, sockopt};

use crate::error::Error;

/// The kernel queues its answers before `send` returns; waiting longer means one was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The kernel fills dumps in pieces of at most 32 KiB, and an answer to a batch is smaller.
const RECEIVE_BUFFER: usize = 64 * 1024;
/// Room for the answers of a large transaction, each about 36 bytes but accounted as a page.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// The index of a refusal that is about the frame of a netfilter transaction.
pub(crate) const OF_FRAME: usize = usize::MAX;

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Which part of the kernel to talk to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Family {
    Route,
    Netfilter,
}

/// A request the kernel refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// Position of the request in its batch.
    pub(crate) index: usize,
    pub(crate) errno: i32,
    /// The kernel's explanation, if it gave one.
    detail: Option<String>,
}

impl Refusal {
    /// Without an explanation.
    #[cfg(test)]
    pub(crate) fn of(index: usize, errno: i32) -> Refusal {
        Refusal { index, errno, detail: None }
    }

    /// Whether it is about a netfilter transaction as a whole.
    pub(crate) fn is_of_frame(&self) -> bool {
        self.index == OF_FRAME
    }

    pub(crate) fn into_error(self, stage: &'static str, object: impl Into<String>) -> Error {
        Error::Kernel {
            stage,
            object: object.into(),
            source: io::Error::from_raw_os_error(self.errno),
            detail: self.detail.map(|text| format!(" ({text})")).unwrap_or_default(),
        }
    }
}

/// One socket and the number of its next request.
pub(crate) struct Channel {
    socket: Socket,
    family: Family,
    next: u32,
    buffer: Vec<u8>,
}

/// A channel to netfilter, which a kernel can do without: a daemon must start there, too, for pods
/// that need none of it.
pub(crate) struct Netfilter(Option<Channel>);

impl Channel {
    pub(crate) fn open(family: Family) -> Result<Channel, Error> {
        let opened = open(family);
        let socket = opened.map_err(|errno| Error::kernel("open socket", family.name(), errno))?;
        Ok(Channel { socket, family, next: 1, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// Reserves numbers for `count` requests and gives the first.
    pub(crate) fn sequence(&mut self, count: usize) -> u32 {
        let first = self.next;
        // A batch is bounded by its datagram, far below 2^32 requests.
        self.next = self.next.wrapping_add(count as u32);
        first
    }

    /// Sends a datagram of `count` requests numbered from `first`, each asking for an answer, and
    /// gives those the kernel refused.
    pub(crate) fn exchange(
        &mut self,
        datagram: &[u8],
        first: u32,
        count: usize,
    ) -> Result<Vec<Refusal>, Error> {
        self.collect(datagram, first, count, None)
    }

    /// The same for a netfilter transaction, whose frame is numbered `first - 1`: an answer to the
    /// frame is about the whole, has the index [`OF_FRAME`], and is the last.
    pub(crate) fn transact(
        &mut self,
        datagram: &[u8],
        first: u32,
        count: usize,
    ) -> Result<Vec<Refusal>, Error> {
        self.collect(datagram, first, count, Some(first.wrapping_sub(1)))
    }

    fn collect(
        &mut self,
        datagram: &[u8],
        first: u32,
        count: usize,
        frame: Option<u32>,
    ) -> Result<Vec<Refusal>, Error> {
        self.send(datagram)?;
        let mut refusals = Vec::new();
        let mut answered = 0;
        while answered < count {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                let of_frame = frame == Some(message.sequence);
                let index = message.sequence.wrapping_sub(first) as usize;
                if !of_frame && index >= count {
                    continue;
                }
                answered += if of_frame { count } else { 1 };
                let (errno, detail) = message.verdict();
                if errno != 0 {
                    let index = if of_frame { OF_FRAME } else { index };
                    refusals.push(Refusal { index, errno, detail });
                }
            }
        }
        Ok(refusals)
    }

    /// Sends one question and hands every answer (message type, payload) to `each`.
    pub(crate) fn question(
        &mut self,
        datagram: &[u8],
        sequence: u32,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<Option<Refusal>, Error> {
        self.send(datagram)?;
        loop {
            let length = self.receive()?;
            for message in messages(&self.buffer[..length]) {
                if message.sequence != sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let (errno, detail) = message.verdict();
                        return Ok((errno != 0).then_some(Refusal { index: 0, errno, detail }));
                    }
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), Error> {
        send(&self.socket, datagram, SendFlags::empty())
            .map(drop)
            .map_err(|errno| Error::kernel("send to", self.family.name(), errno))
    }

    fn receive(&mut self) -> Result<usize, Error> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    return Err(Error::kernel("receive from", self.family.name(), errno));
                }
            }
        }
    }
}

impl Netfilter {
    /// Opens it in the network namespace of the calling thread, if it is there.
    pub(crate) fn open() -> Netfilter {
        Netfilter(Channel::open(Family::Netfilter).ok())
    }

    /// The channel; where there was none, it may be there by now.
    pub(crate) fn channel(&mut self) -> Result<&mut Channel, Error> {
        match &mut self.0 {
            Some(channel) => Ok(channel),
            none => {
                let opened = Channel::open(Family::Netfilter);
                let missing = |error: Error| error.without_nf_tables(libc::EPROTONOSUPPORT);
                Ok(none.insert(opened.map_err(missing)?))
            }
        }
    }
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Family::Route => "route netlink",
            Family::Netfilter => "netfilter netlink",
        }
    }
}

fn open(family: Family) -> io::Result<Socket> {
    let mut socket = Socket::new(match family {
        Family::Route => protocols::NETLINK_ROUTE,
        Family::Netfilter => protocols::NETLINK_NETFILTER,
    })?;
    socket.bind_auto()?;
    // Answers without a copy of the request, and with the kernel's own explanation.
    socket.set_cap_ack(true)?;
    socket.set_ext_ack(true)?;
    // Filters in questions (for example: links of one bridge) are honoured or refused, not ignored.
    socket.set_netlink_get_strict_chk(true)?;
    sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER)
        .or_else(|_| sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER))?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
    Ok(socket)
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

impl Message<'_> {
    /// The error number (0 for success) and explanation of an answer.
    fn verdict(&self) -> (i32, Option<String>) {
        let Some((code, rest)) = self.payload.split_first_chunk::<4>() else {
            return (0, None);
        };
        let errno = i32::from_ne_bytes(*code).wrapping_neg();
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return (errno, None);
        }
        // An error carries the header of the request, a finished dump does not.
        let skip = match self.kind {
            NLMSG_ERROR if self.flags & NLM_F_CAPPED != 0 => HEADER,
            NLMSG_ERROR => rest.first_chunk::<4>().map_or(HEADER, |length| {
                (u32::from_ne_bytes(*length) as usize).next_multiple_of(4)
            }),
            _ => 0,
        };
        (errno, rest.get(skip..).and_then(explanation))
    }
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let u16_at = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let length = u32_at(0) as usize;
        let payload = bytes.get(HEADER..length)?;
        let message = Message { kind: u16_at(4), flags: u16_at(6), sequence: u32_at(8), payload };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The text among the attributes behind an error.
fn explanation(attributes: &[u8]) -> Option<String> {
    attributes_of(attributes)
        .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
        .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
}

/// The attributes of a netlink message as (type without flags, value).
pub(crate) fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Nested and byte order flags share the field of the type.
    const TYPE_MASK: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}
