//! Network devices over rtnetlink, as far as handing one to a container needs: its addresses, the move, and back up.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NEWLINK: u16 = 16;
const NEWADDR: u16 = 20;
const GETADDR: u16 = 22;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const DUMP: u16 = 0x300;
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFF_UP: u32 = 1;
const IFA_F_PERMANENT: u8 = 0x80;
const IFA_CACHEINFO: u16 = 6;

/// A socket in the network namespace in which it was made.
pub(crate) struct Links {
    socket: OwnedFd,
}

/// One address of a device: the fixed part and the attributes as the kernel has told them.
pub(crate) struct Address {
    fixed: [u8; 4],
    attributes: Vec<u8>,
}

impl Links {
    pub(crate) fn open() -> Result<Self, Errno> {
        let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
        // No protocol is number 0, NETLINK_ROUTE.
        let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// The addresses that somebody has given to the device for good, as far as the world is concerned (scope global).
    pub(crate) fn addresses(&self, index: u32) -> Result<Vec<Address>, Errno> {
        self.send(GETADDR, DUMP, &[0; 8])?;
        let mut all = Vec::new();
        loop {
            let buffer = self.receive()?;
            for (kind, body) in messages(&buffer) {
                match kind {
                    DONE => return Ok(all),
                    ERROR => verdict(body)?,
                    NEWADDR if body.len() >= 8 => {
                        let (fixed, attributes) = body.split_at(8);
                        let its = u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
                        if its == index && fixed[2] & IFA_F_PERMANENT != 0 && fixed[3] == 0 {
                            let fixed = [fixed[0], fixed[1], fixed[2], fixed[3]];
                            all.push(Address { fixed, attributes: attributes.to_vec() });
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    /// Moves the device into another network namespace, under another name there.
    pub(crate) fn give(&self, index: u32, to: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
        let mut body = link(index, 0, 0);
        let fd = to.as_raw_fd().to_ne_bytes();
        attribute(&mut body, IFLA_NET_NS_FD, &fd);
        attribute(&mut body, IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
        self.ask(NEWLINK, 0, &body)
    }

    pub(crate) fn set_up(&self, index: u32) -> Result<(), Errno> {
        self.ask(NEWLINK, 0, &link(index, IFF_UP, IFF_UP))
    }

    pub(crate) fn add(&self, index: u32, address: &Address) -> Result<(), Errno> {
        let mut body = [address.fixed, index.to_ne_bytes()].concat();
        for (kind, value) in attributes(&address.attributes) {
            if kind != IFA_CACHEINFO {
                attribute(&mut body, kind, value);
            }
        }
        self.ask(NEWADDR, CREATE, &body)
    }

    fn ask(&self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        self.send(kind, flags | ACK, body)?;
        let buffer = self.receive()?;
        let answer = messages(&buffer).find(|(kind, _)| *kind == ERROR);
        answer.map_or(Err(Errno::PROTO), |(_, body)| verdict(body))
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> Result<(), Errno> {
        let length = (16 + body.len()) as u32;
        let mut message = length.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend([0; 8]); // sequence and port: one question at a time
        message.extend(body);
        rustix::net::send(&self.socket, &message, SendFlags::empty()).map(|_| ())
    }

    fn receive(&self) -> Result<Vec<u8>, Errno> {
        /// As long as the kernel makes a part of a dump.
        const PART: usize = 32 << 10;
        let mut buffer = vec![0; PART];
        let receive = || rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty());
        let (_, length) = rustix::io::retry_on_intr(receive)?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// `struct ifinfomsg`.
fn link(index: u32, flags: u32, change: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(index.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend(((4 + value.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Kind and body of each message in a buffer.
fn messages(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(rest.get(4..6)?.try_into().ok()?);
        let body = rest.get(16..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

fn attributes(buffer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// `struct nlmsgerr` begins with the negative errno; 0 is the acknowledgement.
fn verdict(body: &[u8]) -> Result<(), Errno> {
    let first = body.get(..4).and_then(|b| b.try_into().ok());
    match first.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(negative @ -4095..=-1) => Err(Errno::from_raw_os_error(-negative)),
        _ => Err(Errno::PROTO),
    }
}
