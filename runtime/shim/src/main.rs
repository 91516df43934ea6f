//! The shim: parent of everything in one pod, from before its first process until after its last.
//! The same image is also the pod's pause process, the init of containers that ask for one, and what keeps a scope of
//! systemd until its container is in it, told by the name it is started under.

mod bundle;
mod clamp;
mod console;
mod creator;
mod enter;
mod exec;
mod handler;
mod hold;
mod init;
mod link;
mod log;
mod maker;
mod member;
mod pause;
mod pod;
mod serve;
mod start;
mod sys;

use std::process::ExitCode;

use container::sys::arena::Arena;

#[global_allocator]
static ALLOCATOR: Arena = Arena;

fn main() -> ExitCode {
    let mut args = std::env::args();
    match args.next().as_deref() {
        Some("/pause") => pause::run(),
        Some(container::INIT_NAME) => init::run(),
        Some(hold::NAME) => hold::run(),
        _ => start::run(args.collect()),
    }
}
