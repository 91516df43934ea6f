//! The init of a container that asked for one: starts the program as its child, hands signals on to it, reaps what is
//! orphaned, and ends as the program ends.

use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;

use container::sys::{process, signals};
use rustix::termios::tcsetpgrp;

/// As shells have it: there is a file, and it cannot be run.
const NOT_RUNNABLE: u8 = 126;

/// Arguments: the path of the program, then its own from its name on.
pub(crate) fn run() -> ExitCode {
    let _ = rustix::thread::set_name(c"init");
    let words: Option<Vec<_>> =
        std::env::args_os().skip(1).map(|word| CString::new(word.into_vec()).ok()).collect();
    let Some([path, args @ ..]) = words.as_deref() else { return ExitCode::from(NOT_RUNNABLE) };
    // Where it is not pid 1, orphans come to it all the same.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    // Blocked signals wait for us; unhandled ones would be dropped, as for every pid 1.
    signals::block_all_signals();
    let Ok(child) = process::fork(|| become_program(path, args)) else {
        return ExitCode::from(NOT_RUNNABLE);
    };
    // Everything else that is open is the program's.
    process::close_all_except(&[]);
    watch(child)
}

fn become_program(path: &CString, args: &[CString]) -> i32 {
    own_foreground();
    signals::unblock_all_signals();
    let env: Vec<_> =
        std::env::vars_os().map(|(name, value)| [name.into_vec(), value.into_vec()]).collect();
    let env: Vec<_> = env
        .into_iter()
        .filter_map(|[name, value]| CString::new([name, value].join(&b'=')).ok())
        .collect();
    let errno = process::execve(path, args, &env);
    eprintln!("{}: {errno}", path.to_string_lossy());
    NOT_RUNNABLE.into()
}

/// A group of its own, and the terminal's, so that Ctrl-C reaches it and what it starts.
fn own_foreground() {
    if rustix::process::setpgid(None, None).is_ok() {
        // SIGTTOU is blocked still. Without a terminal there is nothing to do.
        let _ = tcsetpgrp(std::io::stdin(), rustix::process::getpgrp());
    }
}

fn watch(child: i32) -> ExitCode {
    loop {
        match signals::wait_any_signal() {
            libc::SIGCHLD => {
                while let Some(ended) = signals::reap() {
                    if ended.pid == child {
                        return ExitCode::from(u8::try_from(ended.code).unwrap_or(u8::MAX));
                    }
                }
            }
            signal if signal > 0 => {
                // It may have ended just now; then that is what we hear next.
                let _ = process::signal(child, signal);
            }
            _ => {}
        }
    }
}
