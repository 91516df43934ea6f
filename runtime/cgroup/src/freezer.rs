//! Pausing a group: the v1 freezer or v2's `cgroup.freeze`.

use std::fs;
use std::path::PathBuf;

use crate::{Error, Hierarchies};

impl Hierarchies {
    /// Asks the kernel to stop every process in the group; returns before all of them have stopped.
    pub fn freeze(&self, group: &str) -> Result<(), Error> {
        self.set_frozen(group, true)
    }

    /// Lets the group run again.
    pub fn thaw(&self, group: &str) -> Result<(), Error> {
        self.set_frozen(group, false)
    }

    /// Whether every process of the group has stopped.
    pub fn is_frozen(&self, group: &str) -> Result<bool, Error> {
        let Some((path, _)) = self.freeze_file(group) else { return Ok(false) };
        if self.is_v2() {
            let path = path.with_file_name("cgroup.events");
            let text = fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
            return Ok(text.lines().any(|l| l == "frozen 1"));
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::file("read", path, e))?;
        Ok(text.trim() == "FROZEN")
    }

    fn set_frozen(&self, group: &str, frozen: bool) -> Result<(), Error> {
        let Some((path, [run, stop])) = self.freeze_file(group) else { return Ok(()) };
        match fs::write(&path, if frozen { stop } else { run }) {
            Err(_) if !path.exists() => Ok(()),
            other => other.map_err(|e| Error::file("write", path, e)),
        }
    }

    fn freeze_file(&self, group: &str) -> Option<(PathBuf, [&'static str; 2])> {
        if self.is_v2() {
            return self.unified_dir(group).map(|d| (d.join("cgroup.freeze"), ["0", "1"]));
        }
        self.dir("freezer", group).map(|d| (d.join("freezer.state"), ["THAWED", "FROZEN"]))
    }
}
