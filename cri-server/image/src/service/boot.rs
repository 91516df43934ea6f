//! Whether the machine went down with this service at work: then what was written last may be
//! damaged, whatever the file system promises.

use std::path::PathBuf;

use crate::error::Error;
use crate::store::layout::{self, Layout};

/// The kernel's name for this run of the machine.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const RUNNING: &str = "running";
const STOPPED: &str = "stopped";

/// Notes that the service is at work in this boot. True: it was at work when an earlier one ended.
pub(super) fn begin(layout: &Layout) -> Result<bool, Error> {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let boot = boot.trim();
    let path = path(layout);
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let now = format!("{boot} {RUNNING}\n");
    if before != now {
        // On disk before anything else is: a power loss must not find the note of a clean end.
        layout::write_whole(&path, now.as_bytes())?;
        layout::sync_directory(&layout.root)?;
    }
    let (before, state) = before.trim().split_once(' ').unwrap_or_default();
    Ok(!before.is_empty() && before != boot && state == RUNNING)
}

/// Notes a clean end. It need not reach the disk: without it there is only more to check.
pub(super) fn end(layout: &Layout) -> Result<(), Error> {
    let boot = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let path = path(layout);
    std::fs::write(&path, format!("{} {STOPPED}\n", boot.trim()))
        .map_err(|e| Error::io("write", &path, e))
}

fn path(layout: &Layout) -> PathBuf {
    layout.root.join("boot")
}
