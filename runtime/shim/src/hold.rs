//! A process that sleeps until the one that started it has ended or wants no more of it.

use std::io::Read;
use std::process::ExitCode;

/// The name under which it is started.
pub(crate) const NAME: &str = "/hold";

pub(crate) fn run() -> ExitCode {
    let _ = rustix::thread::set_name(c"hold");
    match std::io::stdin().read_to_end(&mut Vec::new()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
