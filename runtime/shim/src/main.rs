//! The shim: parent of everything in one pod, from before its first process until after its last.
//! The same image is also the pod's pause process, told by the name it is started under.

mod clamp;
mod console;
mod creator;
mod exec;
mod handler;
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
        _ => start::run(args.collect()),
    }
}
