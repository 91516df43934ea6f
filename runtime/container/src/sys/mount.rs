//! `mount_setattr` and the attribute bits.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// MOUNT_ATTR_* of `linux/mount.h`.
pub mod attr {
    pub const RDONLY: u64 = 0x1;
    pub const NOSUID: u64 = 0x2;
    pub const NODEV: u64 = 0x4;
    pub const NOEXEC: u64 = 0x8;
    pub const ATIME: u64 = 0x70;
    pub const NOATIME: u64 = 0x10;
    pub const STRICTATIME: u64 = 0x20;
    pub const NODIRATIME: u64 = 0x80;
    pub const IDMAP: u64 = 0x0010_0000;
    pub const NOSYMFOLLOW: u64 = 0x0020_0000;
}

/// What to change on a mount. `propagation` is one of MS_PRIVATE … or 0.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    pub set: u64,
    pub clear: u64,
    pub propagation: u64,
    pub recursive: bool,
}

pub const MS_UNBINDABLE: u64 = 1 << 17;
pub const MS_PRIVATE: u64 = 1 << 18;
pub const MS_SLAVE: u64 = 1 << 19;
pub const MS_SHARED: u64 = 1 << 20;

/// Changes the mount that `fd` (O_PATH is enough) is the root of; with `userns`, maps its ids by that namespace.
pub fn set(
    fd: BorrowedFd<'_>,
    change: Change,
    userns: Option<BorrowedFd<'_>>,
) -> Result<(), Errno> {
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = MountAttr {
        set: change.set,
        clear: change.clear,
        propagation: change.propagation,
        userns_fd: userns.map_or(0, |f| f.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH
        | if change.recursive {
            0x8000 /* AT_RECURSIVE */
        } else {
            0
        };
    // SAFETY: the path is a valid empty C string, `attr` outlives the call and its size is passed with it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    super::process::checked(result).map(|_| ())
}
