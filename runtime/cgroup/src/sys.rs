//! bpf(2), which no safe wrapper offers: load a device program and attach it to a group.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

/// One instruction (`struct bpf_insn`): the registers share a byte, destination low.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

impl Instruction {
    pub(crate) fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        // The kernel's bit field starts at the low end on little endian machines and at the high end on others.
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self { code, registers, offset, immediate }
    }

    #[cfg(test)]
    pub(crate) fn destination(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 15 } else { self.registers >> 4 }
    }

    #[cfg(test)]
    pub(crate) fn source(self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 15 }
    }
}

/// Gives the program to the kernel, which verifies it.
///
/// # Errors
/// EPERM without CAP_BPF or CAP_SYS_ADMIN, EINVAL from a kernel without cgroup BPF, EACCES from the verifier.
pub(crate) fn load_device_program(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    /// The first members of `union bpf_attr` for BPF_PROG_LOAD.
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
    }
    const PROG_LOAD: libc::c_int = 5;
    const TYPE_CGROUP_DEVICE: u32 = 15;
    let load = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"lapstrake_dev\0\0\0",
        interface: 0,
        attach_type: BPF_CGROUP_DEVICE,
    };
    // SAFETY: `load` lives across the call and is as long as said; `program` and the licence, which it points to, too.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const load, size_of::<Load>()) };
    let fd = checked(fd)?;
    // SAFETY: a fresh descriptor that nobody else owns; the kernel marks it close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Attaches a loaded program to the group whose v2 directory is `group`. Those of groups above go on to hold: all
/// must allow.
pub(crate) fn attach_device_program(
    group: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
) -> Result<(), Errno> {
    /// The first members of `union bpf_attr` for BPF_PROG_ATTACH.
    #[repr(C)]
    struct Attach {
        target: i32,
        program: i32,
        kind: u32,
        flags: u32,
    }
    const PROG_ATTACH: libc::c_int = 8;
    /// Groups below may have programs of their own, beside this one.
    const ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target: group.as_raw_fd(),
        program: program.as_raw_fd(),
        kind: BPF_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: `attach` lives across the call and is as long as said.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attach, size_of::<Attach>())
    };
    checked(result).map(|_| ())
}

/// `enum bpf_attach_type`.
const BPF_CGROUP_DEVICE: u32 = 6;

fn checked(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result >= 0 {
        return Ok(result);
    }
    let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(error))
}
