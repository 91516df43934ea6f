//! Ground for another runtime: what this one would mount by itself is put where the specification says, in a mount
//! namespace that only the container inherits.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};

use crate::create::{Layers, SharedMemory};
use crate::error::{At, Error};
use crate::plan::Namespace;
use crate::{mounts, overlay, sources, sys};

const STAGE: &str = "mount the root file system";

/// Moves the calling process, which must have one thread, into a mount namespace of its own, with the layers at
/// `<bundle>/rootfs` and the pod's shared memory at its path. Nothing is seen of it outside, and all of it goes with
/// the last process in it.
pub fn prepare(
    bundle: &Path,
    layers: &Layers,
    shm: Option<&SharedMemory>,
    label: Option<&str>,
) -> Result<(), Error> {
    sys::process::unshare(Namespace::Mount as u64).at(STAGE, "make a mount namespace")?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .at("detach from the host's mounts", "make / a slave")?;
    attach(&overlay::overlay(layers, None, label)?, &bundle.join("rootfs"), STAGE)?;
    if let Some(shm) = shm {
        let stage = "mount /dev/shm";
        attach(&sources::open_shm(shm, stage)?, &shm.path, stage)?;
    }
    Ok(())
}

/// Both places are directories of the daemon's own state, which no container can reach.
fn attach(tree: &OwnedFd, at: &Path, stage: &str) -> Result<(), Error> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place =
        rustix::fs::open(at, flags, Mode::empty()).at(stage, format!("open {}", at.display()))?;
    mounts::move_onto(tree, &place).at(stage, format!("attach to {}", at.display()))
}
