//! Packets on the socket: encode, spill what is too long into a memfd, carry descriptors, decode.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use prost::Message;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg,
    sendmsg, socketpair,
};

use crate::message::{Body, Packet, Spilled};

/// Longer packets go by memfd. Well under the default socket buffer (208 KiB), so that several fit in it, and the
/// receive buffer stays small in a process of which a node has hundreds.
pub const INLINE_MAX: usize = 32 * 1024;
/// The longest packet taken from a memfd: exec requests carry an environment (ARG_MAX is 6 MiB at most).
pub const SPILL_MAX: u64 = 16 << 20;
/// Descriptors per packet.
pub const FDS_MAX: usize = 64;
/// Of these, mounts of one container: besides there are a namespace, the spilled body, and what the shim adds for the
/// process that makes it. Peers before version 6 take 4 in all.
pub const TREES_MAX: usize = FDS_MAX - 8;

/// A packet and the descriptors that came with it.
pub type Received = (Packet, Vec<OwnedFd>);

/// Why a packet could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("{0}")]
    Os(#[from] Errno),
    #[error("memfd: {0}")]
    Memfd(#[from] std::io::Error),
    #[error("malformed packet: {0}")]
    Malformed(#[from] prost::DecodeError),
    #[error("packet is longer than the receive buffer or carries too many descriptors")]
    Truncated,
    #[error("spilled packet is {0} bytes, not in one sealed memfd, or longer than {SPILL_MAX}")]
    BadSpill(u64),
}

impl WireError {
    /// The socket has nothing to read or no room to write; try again when it is ready.
    pub fn is_would_block(&self) -> bool {
        matches!(self, Self::Os(Errno::AGAIN))
    }
}

/// A connected pair of sockets of the right kind.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Sends one packet with descriptors. Never raises SIGPIPE; never sends a part.
pub fn send(
    socket: BorrowedFd<'_>,
    packet: &Packet,
    fds: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    let bytes = packet.encode_to_vec();
    if bytes.len() <= INLINE_MAX {
        return Ok(send_bytes(socket, &bytes, fds)?);
    }
    let memfd = sealed(&bytes)?;
    let spilled =
        Packet { seq: packet.seq, body: Some(Body::Spilled(Spilled { len: bytes.len() as u64 })) };
    let mut all = fds.to_vec();
    all.push(memfd.as_fd());
    Ok(send_bytes(socket, &spilled.encode_to_vec(), &all)?)
}

/// Receives one packet into `buffer` (of at least `INLINE_MAX` bytes). `None`: the peer has closed.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<Option<Received>, WireError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    // A packet is never empty (an empty message still carries `body`), so zero bytes mean the end.
    if got.bytes == 0 {
        return Ok(None);
    }
    if got.flags.contains(ReturnFlags::TRUNC) || got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(WireError::Truncated);
    }
    let packet = Packet::decode(&buffer[..got.bytes])?;
    match packet.body {
        Some(Body::Spilled(Spilled { len })) => {
            let memfd = fds.pop().ok_or(WireError::BadSpill(len))?;
            Ok(Some((unspill(memfd, len)?, fds)))
        }
        _ => Ok(Some((packet, fds))),
    }
}

/// A memfd with these bytes that nobody can change any more.
pub fn sealed(bytes: &[u8]) -> Result<OwnedFd, std::io::Error> {
    let memfd = memfd_create("lapstrake-packet", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(memfd);
    file.write_all(bytes)?;
    let memfd = OwnedFd::from(file);
    fcntl_add_seals(
        &memfd,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(memfd)
}

/// The first `len` bytes of a memfd, whatever its offset is.
pub fn read_memfd(memfd: OwnedFd, len: u64) -> Result<Vec<u8>, std::io::Error> {
    rustix::fs::seek(&memfd, rustix::fs::SeekFrom::Start(0))?;
    let mut bytes = Vec::with_capacity(len as usize);
    File::from(memfd).take(len).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unspill(memfd: OwnedFd, len: u64) -> Result<Packet, WireError> {
    let sealed =
        fcntl_get_seals(&memfd).is_ok_and(|s| s.contains(SealFlags::SHRINK | SealFlags::WRITE));
    if !sealed || len > SPILL_MAX {
        return Err(WireError::BadSpill(len));
    }
    let bytes = read_memfd(memfd, len)?;
    let packet = Packet::decode(bytes.as_slice())?;
    if matches!(packet.body, Some(Body::Spilled(_))) {
        return Err(WireError::BadSpill(len));
    }
    Ok(packet)
}

fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::*;

    fn round_trip(packet: &Packet, fds: &[BorrowedFd<'_>]) -> (Packet, Vec<OwnedFd>) {
        let (a, b) = pair().expect("socketpair");
        send(a.as_fd(), packet, fds).expect("send");
        receive(b.as_fd(), &mut vec![0; INLINE_MAX]).expect("receive").expect("open")
    }

    #[test]
    fn a_long_packet_arrives_whole_with_its_descriptors() {
        let ask = ExecSync { id: "c".into(), process_json: vec![7; 1 << 20], ..Default::default() };
        let packet = Packet::call(9, Ask::ExecSync(ask));
        let null = File::open("/dev/null").expect("null");
        let (got, fds) = round_trip(&packet, &[null.as_fd()]);
        assert_eq!((got, fds.len()), (packet, 1));
    }

    #[test]
    fn a_spill_that_is_not_sealed_is_refused() {
        let (a, b) = pair().expect("socketpair");
        let memfd = memfd_create("x", MemfdFlags::CLOEXEC).expect("memfd");
        let packet = Packet { seq: 1, body: Some(Body::Spilled(Spilled { len: 10 })) };
        send(a.as_fd(), &packet, &[memfd.as_fd()]).expect("send");
        let got = receive(b.as_fd(), &mut vec![0; INLINE_MAX]);
        assert!(matches!(got, Err(WireError::BadSpill(10))), "{got:?}");
    }

    #[test]
    fn a_closed_peer_is_told_from_an_error() {
        let (a, b) = pair().expect("socketpair");
        drop(a);
        assert!(matches!(receive(b.as_fd(), &mut [0; 64]), Ok(None)));
    }
}
