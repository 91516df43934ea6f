//! The few commands of bpf(2) that host ports on the loopback address need.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const PROGRAM_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_LRU_HASH: u32 = 9;
/// Memory for pairs that are there, not for all that could be.
const MAP_F_NO_PREALLOC: u32 = 1;
const PROGRAM_TYPE_CGROUP_SOCK_ADDR: u32 = 18;

/// The kernel zero-extends a shorter structure and refuses a longer one with unknown fields set.
type Attributes = [u32; 32];

/// A hash table in the kernel.
#[derive(Debug)]
pub(crate) struct Map {
    fd: OwnedFd,
    key_size: usize,
    value_size: usize,
}

impl Map {
    /// Creates a table for at most `entries` pairs of these sizes in bytes.
    pub(crate) fn create(key_size: usize, value_size: usize, entries: u32) -> io::Result<Map> {
        Map::of(MAP_TYPE_HASH, MAP_F_NO_PREALLOC, (key_size, value_size), entries)
    }

    /// The same, for programs to fill: beyond so many, what was not used for longest goes.
    pub(crate) fn of_recent(key_size: usize, value_size: usize, entries: u32) -> io::Result<Map> {
        Map::of(MAP_TYPE_LRU_HASH, 0, (key_size, value_size), entries)
    }

    fn of(
        kind: u32,
        flags: u32,
        (key_size, value_size): (usize, usize),
        entries: u32,
    ) -> io::Result<Map> {
        let mut attributes: Attributes = [0; 32];
        attributes[0] = kind;
        attributes[1] = key_size as u32;
        attributes[2] = value_size as u32;
        attributes[3] = entries;
        attributes[4] = flags;
        // SAFETY: this command has no pointers among its attributes.
        let fd = unsafe { descriptor(MAP_CREATE, &attributes)? };
        Ok(Map { fd, key_size, value_size })
    }

    /// Adds a pair or replaces the value of its key.
    pub(crate) fn insert(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert_eq!((key.len(), value.len()), (self.key_size, self.value_size));
        let mut attributes = self.element(key);
        set_pointer(&mut attributes, 4, value.as_ptr());
        // SAFETY: the kernel reads as many bytes behind the two pointers as the map was created
        // with, which the slices have (asserted above), and both outlive the call.
        unsafe { command(MAP_UPDATE, &attributes) }.map(drop)
    }

    /// Removes a pair; none is success.
    pub(crate) fn remove(&self, key: &[u8]) -> io::Result<()> {
        assert_eq!(key.len(), self.key_size);
        // SAFETY: the kernel reads as many bytes behind the pointer as the map was created with,
        // which the slice has (asserted above), and it outlives the call.
        match unsafe { command(MAP_DELETE, &self.element(key)) } {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.map(drop),
        }
    }

    fn element(&self, key: &[u8]) -> Attributes {
        let mut attributes: Attributes = [0; 32];
        attributes[0] = self.fd.as_raw_fd().cast_unsigned();
        set_pointer(&mut attributes, 2, key.as_ptr());
        attributes
    }
}

impl AsFd for Map {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads a program for one of the hooks of a cgroup that rewrite addresses.
pub(crate) fn load(instructions: &[u64], hook: u32) -> io::Result<OwnedFd> {
    /// The field `expected_attach_type`, in words.
    const HOOK: usize = 17;
    let license = c"Apache-2.0";
    let mut attributes: Attributes = [0; 32];
    attributes[0] = PROGRAM_TYPE_CGROUP_SOCK_ADDR;
    attributes[1] = instructions.len() as u32;
    set_pointer(&mut attributes, 2, instructions.as_ptr().cast());
    set_pointer(&mut attributes, 4, license.as_ptr().cast());
    attributes[HOOK] = hook;
    // SAFETY: the kernel reads `instructions.len()` instructions of eight bytes and a string that
    // ends with a zero byte; both outlive the call. It checks the program itself.
    unsafe { descriptor(PROGRAM_LOAD, &attributes) }
}

/// Attaches a program to a cgroup for as long as the descriptor given back is open.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    hook: u32,
) -> io::Result<OwnedFd> {
    let mut attributes: Attributes = [0; 32];
    attributes[0] = program.as_raw_fd().cast_unsigned();
    attributes[1] = cgroup.as_raw_fd().cast_unsigned();
    attributes[2] = hook;
    // SAFETY: this command has no pointers among its attributes.
    unsafe { descriptor(LINK_CREATE, &attributes) }
}

/// The number that names the network namespace of a socket as long as the machine runs.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, which has them.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Pointers are 64-bit fields, on every architecture.
fn set_pointer(attributes: &mut Attributes, word: usize, pointer: *const u8) {
    let bytes = (pointer as u64).to_ne_bytes();
    let (first, second) = bytes.split_at(4);
    for (at, half) in [(word, first), (word + 1, second)] {
        attributes[at] = u32::from_ne_bytes([half[0], half[1], half[2], half[3]]);
    }
}

/// # Safety
/// Every pointer that this command takes must lead to as much memory as the kernel reads there.
unsafe fn command(number: libc::c_int, attributes: &Attributes) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads the attributes, whose size it is told; for the memory behind pointers
    // the caller answers.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, number, attributes.as_ptr(), size_of::<Attributes>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As for [`command`], and the command must give back a new descriptor.
unsafe fn descriptor(number: libc::c_int, attributes: &Attributes) -> io::Result<OwnedFd> {
    // SAFETY: as the caller promises.
    let result = unsafe { command(number, attributes)? };
    // SAFETY: a successful command of this kind gives a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
