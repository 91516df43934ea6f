//! The OCI runtime layer: a bundle's specification becomes a plan (pure), and the plan becomes a process.
//!
//! The order of things: a short-lived *creator* process reads the bundle, plans, and opens every mount source in the
//! host's mount namespace; then it clones *init* as a sibling (CLONE_PARENT), which builds the root file system fd to
//! fd and pivots into it, among few mounts instead of a copy of all the host's where it can. Meanwhile the creator makes
//! the control group and hands it to init, which goes into it, says `ready`, waits for `start`, and becomes the workload.
//! Creator and init report over one socket (`channel`); the parent is the shim or `lapstrake-oci`. Init has a copy of the
//! creator's memory or, from a creator of the shim, that memory itself until it becomes the workload (`sys::lend`); so do
//! processes that are exec'd.

pub mod capabilities;
pub mod channel;
pub mod create;
pub mod error;
pub mod exec;
pub mod external;
mod home;
pub mod hooks;
pub mod identity;
pub mod label;
pub mod options;
pub mod plan;
pub mod rdt;
pub mod spec;
pub mod stamp;
pub mod sys;
pub mod users;
mod whole;

mod aside;
mod bpf;
mod dev;
mod elsewhere;
mod gate;
mod groups;
mod init;
mod jail;
mod mapper;
mod mask;
mod mounts;
mod net_devices;
mod overlay;
mod process;
mod root;
mod sources;
mod template;

pub use channel::{Report, TO_START, Word};
pub use create::{
    Creation, Extras, Layers, Program, Rootfs, Seccomp, SharedMemory, Start, Stdio, Upper, create,
};
pub use error::Error;
pub use exec::{Entry, enter};
pub use home::Home;
pub use plan::{Facts, Plan, plan};
pub use process::INIT_NAME;
pub use spec::Spec;

/// What a plan of this process depends on, before it is known for whom.
pub fn own_facts() -> Facts {
    let (capabilities, selinux) = (own_capabilities(), label::is_enabled());
    Facts { capabilities, selinux, ..Default::default() }
}

/// What this process may hand out: its bounding set within its permitted one.
pub fn own_capabilities() -> u64 {
    let permitted = rustix::thread::capabilities(None).map_or(0, |c| c.permitted.bits());
    // The kernel refuses the first number that it does not have; there are none behind it.
    let known = capabilities::NUMBERS.map_while(|n| {
        let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << n);
        rustix::thread::capability_is_in_bounding_set(bit).ok().map(|held| u64::from(held) << n)
    });
    known.fold(0, |bits, bit| bits | bit) & permitted
}
