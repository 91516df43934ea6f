//! This program as containers may see it: by `/proc/self/exe` of a process that enters one, what runs there could
//! open the host's binary for writing later (CVE-2019-5736). So those verbs run from a read-only mount of it that is
//! attached nowhere, where nobody can make it writable.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use container::sys::mount::{Change, attr, set};
use container::sys::process::fexecve;
use rustix::fs::{CWD, StatVfsMountFlags, statvfs};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::Error;

const EXE: &str = "/proc/self/exe";
/// Says that sealing was tried, so that a kernel on which it has no effect does not have us go round for ever.
const TRIED: &str = "LAPSTRAKE_OCI_SEALED";

/// Returns when this process runs from a read-only mount; until then it starts itself again.
///
/// # Errors
/// The kernel cannot seal it: entering a container would be unsafe.
pub(crate) fn ensure() -> Result<(), Error> {
    let mount = statvfs(EXE).map_err(|e| Error::file("look at", EXE)(e.into()))?;
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    if std::env::var_os(TRIED).is_some() {
        return Err(Error::Unsupported(
            "this kernel does not make a mount of /proc/self/exe read-only",
        ));
    }
    again().map(|never| match never {})
}

fn again() -> Result<Infallible, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let exe: OwnedFd =
        open_tree(CWD, EXE, flags).map_err(Error::system("clone the mount of /proc/self/exe"))?;
    let readonly = Change { set: attr::RDONLY, ..Default::default() };
    set(exe.as_fd(), readonly, None).map_err(Error::system("make /proc/self/exe read-only"))?;
    // Strings of this process' own start have no zero byte inside.
    let args: Vec<CString> =
        std::env::args_os().filter_map(|a| CString::new(a.into_vec()).ok()).collect();
    let mut env: Vec<CString> = std::env::vars_os()
        .filter_map(|(k, v)| CString::new([k.as_bytes(), b"=", v.as_bytes()].concat()).ok())
        .collect();
    env.extend(CString::new(format!("{TRIED}=1")));
    Err(Error::system("start again from a read-only mount")(fexecve(exe.as_fd(), &args, &env)))
}
