//! The shim: parent of everything in one pod, from before its first process until after its last.
//! The same image is also the pod's pause process and the init of containers that ask for one, told by the name it is
//! started under.

mod clamp;
mod console;
mod creator;
mod exec;
mod handler;
mod init;
mod link;
mod log;
mod member;
mod pause;
mod pod;
mod serve;
mod start;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args();
    match args.next().as_deref() {
        Some("/pause") => pause::run(),
        Some(container::INIT_NAME) => init::run(),
        _ => start::run(args.collect()),
    }
}
