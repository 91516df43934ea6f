//! An overlay on kernels before 6.7, which take its lower directories only as one list: `fsconfig` ends at 256 bytes,
//! so it is mounted with `mount(2)`, in a mount namespace that nobody else sees, and taken from there.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, OpenTreeFlags, mount, open_tree};

use crate::create::Layers;
use crate::elsewhere;
use crate::error::{At, Error};
use crate::overlay::{STAGE, Upper};

/// A directory that exists, for the moment between mounting and taking. Its content is looked at before the overlay
/// covers it.
const PLACE: &str = "/proc";

/// As `overlay::overlay`.
pub(crate) fn overlay(layers: &Layers, label: Option<&str>) -> Result<OwnedFd, Error> {
    elsewhere::alone(STAGE, || mount_and_take(layers, label))
}

fn mount_and_take(layers: &Layers, label: Option<&str>) -> Result<OwnedFd, Error> {
    // Descriptors of this namespace's own mounts: newer 6.1s refuse those of another's. Their names are short, for
    // all options together end at a page, and have no colon or comma.
    let mut open = Vec::new();
    let mut name = |path: &PathBuf| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .at(STAGE, format!("open {}", path.display()))?;
        let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
        open.push(fd);
        Ok(name)
    };
    let lowers = layers.lowers.iter().map(&mut name).collect::<Result<Vec<_>, _>>()?;
    let mut options = format!("lowerdir={}", lowers.join(":"));
    if let Some(Upper { upper, work }) = &layers.upper {
        options += &format!(",upperdir={},workdir={}", name(upper)?, name(work)?);
        if layers.volatile {
            options += ",volatile";
        }
    }
    if let Some(label) = label {
        options += &format!(",context=\"{label}\""); // quoted for its commas
    }
    let options = CString::new(options).map_err(|_| Errno::INVAL).at(STAGE, "name the layers")?;
    mount("overlay", PLACE, "overlay", MountFlags::empty(), &*options)
        .at(STAGE, format!("mount the overlay of {} layers", lowers.len()))?;
    open_tree(CWD, PLACE, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .at(STAGE, "take the overlay")
}
