//! Project quotas by the kernel's own interface: ids on files by ioctl, usage and limits by
//! `quotactl_fd`, which needs no block device.
#![allow(unsafe_code)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `struct fsxattr` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Attributes {
    pub(super) flags: u32,
    pub(super) extent_size: u32,
    pub(super) extents: u32,
    pub(super) project: u32,
    pub(super) cow_extent_size: u32,
    pub(super) unused: [u8; 8],
}

/// `struct fs_quota_stat` of `linux/dqblk_xfs.h`: only the flags are read.
#[repr(C)]
struct QuotaState {
    version: i8,
    flags: u16,
    rest: [u8; 76],
}

/// `FS_XFLAG_PROJINHERIT`: what is made in a directory gets its project.
pub(super) const INHERIT: u32 = 0x200;
/// `FS_QUOTA_PDQ_ACCT`.
const COUNTED: u16 = 1 << 4;
/// `FS_QUOTA_PDQ_ENFD`.
const ENFORCED: u16 = 1 << 5;

const PROJECT_QUOTA: i32 = 2;
/// `Q_XGETQSTAT`; ext4 answers it too.
const GET_STATE: i32 = (b'X' as i32) << 8 | 5;

/// `_IOR('X', 31, struct fsxattr)` and `_IOW('X', 32, struct fsxattr)`; the size is in the number.
const GET_ATTRIBUTES: u64 = 2 << 30 | (size_of::<Attributes>() as u64) << 16 | 0x58_1f;
const SET_ATTRIBUTES: u64 = 1 << 30 | (size_of::<Attributes>() as u64) << 16 | 0x58_20;

pub(super) fn attributes(file: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the kernel writes at most the size that is in the request's number, which is that of
    // the structure the pointer leads to.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), GET_ATTRIBUTES as _, &raw mut attributes) };
    if done == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_attributes(file: BorrowedFd<'_>, attributes: &Attributes) -> io::Result<()> {
    // SAFETY: the kernel only reads, and no more than the structure is large.
    let done = unsafe {
        libc::ioctl(file.as_raw_fd(), SET_ATTRIBUTES as _, std::ptr::from_ref(attributes))
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether the file system counts by project, and whether it also enforces limits.
pub(super) fn state(file: BorrowedFd<'_>) -> io::Result<(bool, bool)> {
    let mut state = MaybeUninit::<QuotaState>::zeroed();
    // SAFETY: the kernel writes a `struct fs_quota_stat`, which is 80 bytes as ours is.
    unsafe { quotactl(file, GET_STATE, 0, state.as_mut_ptr().cast()) }?;
    // SAFETY: every bit pattern is a value of it, and it was zeroed.
    let flags = unsafe { state.assume_init() }.flags;
    Ok((flags & COUNTED != 0, flags & ENFORCED != 0))
}

pub(super) fn quota(file: BorrowedFd<'_>, project: u32) -> io::Result<libc::dqblk> {
    let mut quota = MaybeUninit::<libc::dqblk>::zeroed();
    // SAFETY: the kernel writes a `struct if_dqblk`, which glibc's structure is.
    unsafe { quotactl(file, libc::Q_GETQUOTA, project, quota.as_mut_ptr().cast()) }?;
    // SAFETY: plain numbers, zeroed before.
    Ok(unsafe { quota.assume_init() })
}

/// Limits of bytes, in KiB; 0 is none.
pub(super) fn set_limit(file: BorrowedFd<'_>, project: u32, kib: u64) -> io::Result<()> {
    // SAFETY: plain numbers.
    let mut quota = unsafe { MaybeUninit::<libc::dqblk>::zeroed().assume_init() };
    quota.dqb_bhardlimit = kib;
    quota.dqb_valid = libc::QIF_BLIMITS;
    // SAFETY: the kernel reads a `struct if_dqblk`, which glibc's structure is.
    unsafe { quotactl(file, libc::Q_SETQUOTA, project, (&raw mut quota).cast()) }
}

/// # Safety
///
/// `data` leads to what the command reads or writes.
unsafe fn quotactl(
    file: BorrowedFd<'_>,
    command: i32,
    project: u32,
    data: *mut libc::c_void,
) -> io::Result<()> {
    let command = command << 8 | PROJECT_QUOTA;
    // SAFETY: as the caller promises; the descriptor is open.
    let done =
        unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, project, data) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_and_numbers_are_the_kernels() {
        assert_eq!(size_of::<Attributes>(), 28);
        assert_eq!(size_of::<QuotaState>(), 80);
        assert_eq!((GET_ATTRIBUTES, SET_ATTRIBUTES), (0x801c_581f, 0x401c_5820));
    }
}
