//! Writes the programs that look at connect(2). Pure: instructions out.
//!
//! Both do the same: leave everything alone but connections to the loopback address by processes of
//! one network namespace; look protocol and port up; put the address and port found in their place.

use std::os::fd::{AsRawFd, BorrowedFd};

pub(super) const HOOK_CONNECT4: u32 = 10;
pub(super) const HOOK_CONNECT6: u32 = 11;

/// Where the fields of the context are (`struct bpf_sock_addr`), in bytes.
pub(super) const ADDRESS4: i16 = 4;
pub(super) const ADDRESS6: i16 = 8;
pub(super) const PORT: i16 = 24;
const PROTOCOL: i16 = 36;

const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_NETNS_COOKIE: i32 = 122;

pub(super) const CONTEXT: u8 = 6;
pub(super) const STACK: u8 = 10;
const KEY_ON_STACK: i16 = -8;
/// A whole last word of ::1, and the third of addresses that hold an IPv4 one, in network order.
pub(super) const ONE: u32 = 1_u32.to_be();
pub(super) const MAPPED: u32 = 0xffff_u32.to_be();

/// For IPv4 sockets.
pub(super) fn connect4(cookie: u64, ports: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    code.load(2, CONTEXT, ADDRESS4);
    leaves_other_than_loopback4(&mut code, 2);
    code.look_up(ports);
    code.copy_found(0, ADDRESS4);
    code.copy_found(4, PORT);
    code.finish()
}

/// For IPv6 sockets, which reach IPv4 addresses too.
pub(super) fn connect6(cookie: u64, ports4: BorrowedFd<'_>, ports6: BorrowedFd<'_>) -> Vec<u64> {
    let mut code = Assembler::start(cookie);
    for word in 0..2 {
        code.load(2, CONTEXT, ADDRESS6 + 4 * word);
        code.leave_unless(2, 0);
    }
    code.load(2, CONTEXT, ADDRESS6 + 8);
    let mapped = code.jump_if_equal(2, MAPPED);
    code.leave_unless(2, 0);
    code.load(2, CONTEXT, ADDRESS6 + 12);
    code.leave_unless(2, ONE);
    code.look_up(ports6);
    for word in 0..4 {
        code.copy_found(4 * word, ADDRESS6 + 4 * word);
    }
    code.copy_found(16, PORT);
    code.leave();
    code.land(mapped);
    code.load(2, CONTEXT, ADDRESS6 + 12);
    leaves_other_than_loopback4(&mut code, 2);
    code.look_up(ports4);
    code.copy_found(0, ADDRESS6 + 12);
    code.copy_found(4, PORT);
    code.finish()
}

/// Leaves unless the register holds an IPv4 address (in network order) of 127.0.0.0/8.
pub(super) fn leaves_other_than_loopback4(code: &mut Assembler, register: u8) {
    const FIRST_OCTET: u32 = 0xff00_0000_u32.to_be();
    const LOOPBACK: u32 = 0x7f00_0000_u32.to_be();
    code.push(0x54, (register, 0), 0, FIRST_OCTET.cast_signed());
    code.leave_unless(register, LOOPBACK);
}

/// Instructions so far, and the jumps to the end that wait for it.
pub(super) struct Assembler {
    code: Vec<u64>,
    to_end: Vec<usize>,
}

impl Assembler {
    /// Keeps the context, and leaves unless the process is in the namespace of this cookie.
    pub(super) fn start(cookie: u64) -> Assembler {
        let mut code = Assembler { code: Vec::new(), to_end: Vec::new() };
        code.push(0xbf, (CONTEXT, 1), 0, 0);
        code.call(HELPER_NETNS_COOKIE);
        code.load_constant(1, 0, cookie);
        code.leave_on(0x5d, 0, 1, 0);
        code
    }

    /// Looks protocol and port up; leaves unless they are in the table, else register 0 leads to
    /// what was found.
    pub(super) fn look_up(&mut self, table: BorrowedFd<'_>) {
        for (field, at) in [(PROTOCOL, KEY_ON_STACK), (PORT, KEY_ON_STACK + 4)] {
            self.load(2, CONTEXT, field);
            self.store(STACK, at, 2);
        }
        self.find(table, KEY_ON_STACK);
    }

    /// Looks a key on the stack up; leaves unless it is in the table, else register 0 leads to what
    /// was found.
    pub(super) fn find(&mut self, table: BorrowedFd<'_>, key: i16) {
        self.load_table(1, table);
        self.point_to_stack(2, key);
        self.call(HELPER_MAP_LOOKUP);
        self.leave_on(0x15, 0, 0, 0);
    }

    pub(super) fn load_table(&mut self, to: u8, table: BorrowedFd<'_>) {
        /// Tells the loader that the constant is a descriptor of a table.
        const DESCRIPTOR: u8 = 1;
        self.load_constant(to, DESCRIPTOR, u64::from(table.as_raw_fd().cast_unsigned()));
    }

    pub(super) fn point_to_stack(&mut self, to: u8, offset: i16) {
        self.copy_register(to, STACK);
        self.push(0x07, (to, 0), 0, offset.into());
    }

    pub(super) fn copy_register(&mut self, to: u8, from: u8) {
        self.push(0xbf, (to, from), 0, 0);
    }

    pub(super) fn set(&mut self, register: u8, value: i32) {
        self.push(0xb7, (register, 0), 0, value);
    }

    pub(super) fn call(&mut self, helper: i32) {
        self.push(0x85, (0, 0), 0, helper);
    }

    /// All eight bytes.
    pub(super) fn store_whole(&mut self, to: u8, offset: i16, from: u8) {
        self.push(0x7b, (to, from), offset, 0);
    }

    /// Copies a word of what was found into a field of the context.
    pub(super) fn copy_found(&mut self, from: i16, to: i16) {
        self.load(1, 0, from);
        self.store(CONTEXT, to, 1);
    }

    pub(super) fn leave_unless(&mut self, register: u8, value: u32) {
        self.leave_on(0x56, register, 0, value.cast_signed());
    }

    pub(super) fn leave(&mut self) {
        self.leave_on(0x05, 0, 0, 0);
    }

    /// Jumps if the register equals the value; where to is told to [`Assembler::land`].
    pub(super) fn jump_if_equal(&mut self, register: u8, value: u32) -> usize {
        self.push(0x16, (register, 0), 0, value.cast_signed());
        self.code.len() - 1
    }

    /// Lets a jump arrive here.
    pub(super) fn land(&mut self, jump: usize) {
        // The programs have a few dozen instructions.
        let distance = (self.code.len() - jump - 1) as u64;
        self.code[jump] |= distance << 16;
    }

    pub(super) fn load(&mut self, to: u8, from: u8, offset: i16) {
        self.push(0x61, (to, from), offset, 0);
    }

    pub(super) fn store(&mut self, to: u8, offset: i16, from: u8) {
        self.push(0x63, (to, from), offset, 0);
    }

    fn load_constant(&mut self, to: u8, kind: u8, value: u64) {
        self.push(0x18, (to, kind), 0, (value as u32).cast_signed());
        self.push(0, (0, 0), 0, ((value >> 32) as u32).cast_signed());
    }

    fn leave_on(&mut self, operation: u8, to: u8, from: u8, value: i32) {
        self.to_end.push(self.code.len());
        self.push(operation, (to, from), 0, value);
    }

    /// Ends by letting the connection go on, to wherever it leads now.
    pub(super) fn finish(mut self) -> Vec<u64> {
        for jump in std::mem::take(&mut self.to_end) {
            self.land(jump);
        }
        self.push(0xb7, (0, 0), 0, 1);
        self.push(0x95, (0, 0), 0, 0);
        self.code
    }

    fn push(&mut self, operation: u8, (to, from): (u8, u8), offset: i16, value: i32) {
        // Operation, two registers of four bits, offset, value; as little-endian machines have them.
        let mut bytes = [operation, to | (from << 4), 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        self.code.push(u64::from_le_bytes(bytes));
    }
}
