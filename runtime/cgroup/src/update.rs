//! New limits for a group that lives: all of them or none.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Hierarchies, Setting};

impl Hierarchies {
    /// As `apply`, but when a setting is refused, those that were made before it are taken back.
    ///
    /// Limits depend on each other (memory and memory plus swap, quota and period), and which must come first depends
    /// on what is there already: what is refused in the first round is tried again after the others.
    ///
    /// # Errors
    /// The refusal; the group is as it was.
    pub fn update(&self, group: &str, settings: &[Setting]) -> Result<(), Error> {
        let mut undo = Vec::new();
        let mut again = Vec::new();
        for setting in settings {
            let before = self.value_of(group, setting);
            match self.apply(group, std::slice::from_ref(setting)) {
                Ok(()) => undo.extend(before),
                Err(_) => again.push(setting),
            }
        }
        for setting in again {
            let before = self.value_of(group, setting);
            match self.apply(group, std::slice::from_ref(setting)) {
                Ok(()) => undo.extend(before),
                Err(error) => {
                    take_back(&undo);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The file of a setting and what must be written there to have it as it is now.
    fn value_of(&self, group: &str, setting: &Setting) -> Option<(PathBuf, String)> {
        let dir = self.dir(setting.controller, group).or_else(|| self.unified_dir(group))?;
        let path = dir.join(&setting.file);
        let text = fs::read_to_string(&path).ok()?;
        let value = restoring(&path, &text, &setting.value);
        Some((path, value))
    }
}

/// Twice over, for the same reason that made it two rounds on the way there. What cannot be taken back stays.
fn take_back(undo: &[(PathBuf, String)]) {
    for _ in 0..2 {
        for (path, value) in undo.iter().rev() {
            let file = fs::OpenOptions::new().write(true).open(path);
            let _ = file.and_then(|mut f| f.write_all(value.as_bytes()));
        }
    }
}

/// A file with one line per device is put back for the device that `new` is about.
fn restoring(path: &Path, old: &str, new: &str) -> String {
    let device = new.split(' ').next().filter(|d| {
        let mut halves =
            d.split(':').map(|h| !h.is_empty() && h.bytes().all(|b| b.is_ascii_digit()));
        (halves.next(), halves.next(), halves.next()) == (Some(true), Some(true), None)
    });
    let Some(device) = device else { return old.trim_end().to_owned() };
    let line = old.lines().find(|l| l.split(' ').next() == Some(device));
    let none = match path.file_name().and_then(|n| n.to_str()) {
        Some("io.max") => "rbps=max wbps=max riops=max wiops=max",
        Some("io.weight" | "io.bfq.weight") => "default",
        _ => "0", // v1: no throttle
    };
    line.map_or_else(|| format!("{device} {none}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_written_back_also_for_one_device_of_many() {
        let io = Path::new("/x/io.max");
        let old =
            "8:0 rbps=1 wbps=max riops=max wiops=max\n9:1 rbps=2 wbps=max riops=max wiops=max\n";
        assert_eq!(restoring(io, old, "9:1 rbps=5"), "9:1 rbps=2 wbps=max riops=max wiops=max");
        assert_eq!(restoring(io, old, "7:7 rbps=5"), "7:7 rbps=max wbps=max riops=max wiops=max");
        let throttle = Path::new("/x/blkio.throttle.read_bps_device");
        assert_eq!(restoring(throttle, "", "8:0 1024"), "8:0 0");
        assert_eq!(restoring(Path::new("/x/pids.max"), "max\n", "7"), "max");
    }
}
