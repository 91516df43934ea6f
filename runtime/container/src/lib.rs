//! The OCI runtime layer: a bundle's specification becomes a plan (pure), and the plan becomes a process.
//!
//! The order of things: a short-lived *creator* process reads the bundle, plans, makes the control group and opens
//! every mount source in the host's mount namespace; then it clones *init* as a sibling (CLONE_PARENT), which builds
//! the root file system fd to fd, pivots into it, says `ready`, waits for `start`, and becomes the workload.
//! Creator and init report over one socket (`channel`); the parent is the shim or `lapstrake-oci`.

pub mod capabilities;
pub mod channel;
pub mod create;
pub mod error;
pub mod exec;
pub mod external;
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

mod aside;
mod dev;
mod gate;
mod init;
mod mask;
mod mounts;
mod net_devices;
mod overlay;
mod process;
mod root;
mod sources;

pub use channel::{Report, TO_START};
pub use create::{
    Creation, Extras, Layers, Program, Rootfs, Seccomp, SharedMemory, Start, Stdio, Upper, create,
};
pub use error::Error;
pub use exec::{Entry, enter};
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
    let held = |n: &u32| {
        let bit = rustix::thread::CapabilitySet::from_bits_retain(1 << n);
        rustix::thread::capability_is_in_bounding_set(bit).unwrap_or(false)
    };
    capabilities::NUMBERS.filter(held).fold(0, |bits, n| bits | 1 << n) & permitted
}
