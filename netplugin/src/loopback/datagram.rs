//! Writes the programs that look at datagrams of sockets that are not connected. Pure: instructions
//! out.
//!
//! A datagram to a host port of the loopback address is sent to the pod instead, and it is remembered
//! what the pod is to the socket; one that the socket receives from there is shown as coming from where
//! the socket had sent. A socket that is bound to the loopback address itself is out of reach: its
//! packets must not leave the host.

use std::os::fd::BorrowedFd;

use super::program::{
    ADDRESS4, ADDRESS6, Assembler, CONTEXT, MAPPED, ONE, PORT, STACK, leaves_other_than_loopback4,
};

pub(super) const HOOK_SEND4: u32 = 14;
pub(super) const HOOK_SEND6: u32 = 15;
pub(super) const HOOK_RECEIVE4: u32 = 19;
pub(super) const HOOK_RECEIVE6: u32 = 20;

/// The cookie of a socket, then address and port of the pod.
pub(super) const PEER_KEY_IPV4: usize = 16;
pub(super) const PEER_KEY_IPV6: usize = 28;

const HELPER_MAP_UPDATE: i32 = 2;
const HELPER_SOCKET_COOKIE: i32 = 46;

/// Where the key and the value are on the stack.
const KEY: i16 = -64;
const VALUE: i16 = -32;
/// Of the cookie.
const WIDTH: i16 = 8;
/// Survives calls.
const FOUND: u8 = 7;

/// Words of an address.
const IPV4: i16 = 1;
const IPV6: i16 = 4;

/// For IPv4 datagrams, also those of IPv6 sockets.
pub(super) fn send4(cookie: u64, ports: BorrowedFd<'_>, peers: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    code.load(2, CONTEXT, ADDRESS4);
    leaves_other_than_loopback4(&mut code, 2);
    code.look_up(ports);
    redirect(&mut code, peers, (ADDRESS4, IPV4));
    code.finish()
}

/// For IPv6 datagrams.
pub(super) fn send6(cookie: u64, ports: BorrowedFd<'_>, peers: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    for (word, wanted) in [(0, 0), (1, 0), (2, 0), (3, ONE)] {
        code.load(2, CONTEXT, ADDRESS6 + 4 * word);
        code.leave_unless(2, wanted);
    }
    code.look_up(ports);
    redirect(&mut code, peers, (ADDRESS6, IPV6));
    code.finish()
}

/// For IPv4 sockets.
pub(super) fn receive4(cookie: u64, peers: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    restore(&mut code, peers, (ADDRESS4, IPV4));
    code.finish()
}

/// For IPv6 sockets, which receive from IPv4 addresses too.
pub(super) fn receive6(cookie: u64, peers4: BorrowedFd<'_>, peers6: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    code.load(2, CONTEXT, ADDRESS6 + 8);
    let mapped = code.jump_if_equal(2, MAPPED);
    restore(&mut code, peers6, (ADDRESS6, IPV6));
    code.leave();
    code.land(mapped);
    restore(&mut code, peers4, (ADDRESS6 + 12, IPV4));
    code.finish()
}

/// Register 0 leads to address and port of a pod: remembers it for the socket, and sends there.
fn redirect(code: &mut Assembler, peers: BorrowedFd<'_>, (address, words): (i16, i16)) {
    code.copy_register(FOUND, 0);
    socket_cookie(code);
    let port = 4 * words;
    for word in 0..=words {
        code.load(1, FOUND, 4 * word);
        code.store(STACK, KEY + WIDTH + 4 * word, 1);
    }
    for word in 0..words {
        code.load(1, CONTEXT, address + 4 * word);
        code.store(STACK, VALUE + 4 * word, 1);
    }
    code.load(1, CONTEXT, PORT);
    code.store(STACK, VALUE + port, 1);
    code.load_table(1, peers);
    code.point_to_stack(2, KEY);
    code.point_to_stack(3, VALUE);
    code.set(4, 0);
    code.call(HELPER_MAP_UPDATE);
    for word in 0..words {
        code.load(1, FOUND, 4 * word);
        code.store(CONTEXT, address + 4 * word, 1);
    }
    code.load(1, FOUND, port);
    code.store(CONTEXT, PORT, 1);
}

/// What comes from a pod that the socket has sent to under another address shows that address.
fn restore(code: &mut Assembler, peers: BorrowedFd<'_>, (address, words): (i16, i16)) {
    socket_cookie(code);
    for word in 0..words {
        code.load(1, CONTEXT, address + 4 * word);
        code.store(STACK, KEY + WIDTH + 4 * word, 1);
    }
    code.load(1, CONTEXT, PORT);
    code.store(STACK, KEY + WIDTH + 4 * words, 1);
    code.find(peers, KEY);
    for word in 0..words {
        code.copy_found(4 * word, address + 4 * word);
    }
    code.copy_found(4 * words, PORT);
}

/// Puts the number that names the socket at the head of the key.
fn socket_cookie(code: &mut Assembler) {
    code.copy_register(1, CONTEXT);
    code.call(HELPER_SOCKET_COOKIE);
    code.store_whole(STACK, KEY, 0);
}
