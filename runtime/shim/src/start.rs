//! From a program just exec'd by the daemon to a process that does not depend on it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use cgroup::Hierarchies;
use container::sys::process::{CloneArgs, clone, close_all_except, set_stdio, unignore_signals};
use container::sys::signals;
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use crate::{serve, sys};

/// Connections waiting to be accepted: one daemon, and a new one that replaces it.
const BACKLOG: i32 = 8;
/// Must not be killed before its containers; clamped silently where CAP_SYS_RESOURCE is missing.
const OOM_SCORE_ADJ: &str = "-998";

/// Started as `lapstrake-shim POD CGROUP` in the pod's directory, with the daemon's connection as stdin.
/// The first process leaves at once, so that the real shim is nobody's child but init's.
pub(crate) fn run(args: Vec<String>) -> ExitCode {
    let [_pod, group] = args.as_slice() else { return usage() }; // the pod's id is for who lists processes
    match detach(group, serve_pod) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            note(&why);
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    let text = b"lapstrake-shim is started by `lapstrake serve`, one for each pod; it has no use on its own\n";
    let _ = std::io::stderr().write_all(text);
    ExitCode::from(64)
}

fn detach(group: &str, shim: impl FnOnce(Hierarchies) -> i32) -> Result<(), String> {
    close_all_except(&[0, 1, 2]);
    rustix::process::setsid().map_err(|e| format!("setsid: {e}"))?;
    let node = Hierarchies::detect().map_err(|e| e.to_string())?;
    node.create(group).map_err(|e| e.to_string())?;
    let joins = node.joins(group).map_err(|e| e.to_string())?;
    joins.enter().map_err(|e| format!("join {group}: {e}"))?;
    let born = joins.born.as_ref().map(std::os::fd::AsRawFd::as_raw_fd);
    clone(CloneArgs { namespaces: 0, sibling: false, cgroup: born }, || {
        drop(joins);
        shim(node)
    })
    .map_err(|e| format!("clone: {e}"))?;
    Ok(())
}

fn serve_pod(node: Hierarchies) -> i32 {
    match prepare()
        .and_then(|(connection, listener, lock)| serve::run(node, connection, listener, lock))
    {
        Ok(()) => 0,
        Err(why) => {
            note(&why);
            1
        }
    }
}

fn prepare() -> Result<(OwnedFd, OwnedFd, OwnedFd), String> {
    sys::frugal_heap();
    unignore_signals();
    signals::block_all_signals();
    let _ = rustix::thread::set_name(c"lapstrake-shim");
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|e| format!("subreaper: {e}"))?;
    let connection = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| format!("stdin: {e}"))?;
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(|e| format!("/dev/null: {e}"))?;
    set_stdio([null.as_fd(); 3]).map_err(|e| format!("stdio: {e}"))?;
    let lock = File::create("shim.lock").map_err(|e| format!("shim.lock: {e}"))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|e| format!("another shim has this pod: {e}"))?;
    let pid = rustix::process::getpid().as_raw_nonzero();
    std::fs::write("shim.pid", format!("{pid}\n")).map_err(|e| format!("shim.pid: {e}"))?;
    Ok((connection, listener()?, OwnedFd::from(lock)))
}

fn listener() -> Result<OwnedFd, String> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| format!("socket: {e}"))?;
    let _ = std::fs::remove_file("shim.sock"); // of a dead predecessor: we hold the lock
    // Relative to the pod's directory, our working directory: an absolute path may not fit into a socket address.
    let address = SocketAddrUnix::new("shim.sock").map_err(|e| format!("shim.sock: {e}"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    bind(&socket, &address).map_err(|e| format!("bind shim.sock: {e}"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    listen(&socket, BACKLOG).map_err(|e| format!("listen: {e}"))?;
    Ok(socket)
}

/// Room for messages that have nowhere else to go, in the pod's directory (tmpfs).
const NOTES_MAX: u64 = 64 * 1024;

/// Appends a line to `shim.log`, while there is room.
pub(crate) fn note(text: &str) {
    let Ok(mut file) = File::options().append(true).create(true).open("shim.log") else { return };
    if file.metadata().is_ok_and(|m| m.len() < NOTES_MAX) {
        let _ = file.write_all(format!("{text}\n").as_bytes());
    }
}
