//! The process that holds a pod's namespaces: it sleeps, reaps what is orphaned to it, and ends on request.

use std::process::ExitCode;

use container::sys::signals;

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run() -> ExitCode {
    let _ = rustix::thread::set_name(c"pause");
    // Blocked signals are queued even for pid 1, where unhandled ones would be dropped.
    signals::block_all_signals();
    loop {
        match signals::wait_signal(&[libc::SIGCHLD, libc::SIGTERM, libc::SIGINT]) {
            libc::SIGTERM | libc::SIGINT => return ExitCode::SUCCESS,
            _ => while signals::reap().is_some() {},
        }
    }
}
