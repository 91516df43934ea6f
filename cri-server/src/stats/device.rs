//! Names of block devices and file systems, as people and cAdvisor call them.

use std::collections::HashMap;

/// Names that were looked up once; a node has few devices, and their numbers do not change hands
/// while they are in use.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<(u32, u32), String>,
}

/// More would mean that numbers are used up by devices that come and go; then it starts anew.
const KNOWN_MAX: usize = 4096;

impl Names {
    /// `/dev/sda`; the source of a file system that has no device; or the numbers.
    pub(super) fn of(&mut self, major: u32, minor: u32) -> String {
        if let Some(name) = self.known.get(&(major, minor)) {
            return name.clone();
        }
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        let name = block_device(major, minor).or_else(|| mounted(major, minor));
        let name = name.unwrap_or_else(|| format!("{major}:{minor}"));
        self.known.insert((major, minor), name.clone());
        name
    }
}

fn block_device(major: u32, minor: u32) -> Option<String> {
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    Some(format!("/dev/{}", link.file_name()?.to_string_lossy()))
}

fn mounted(major: u32, minor: u32) -> Option<String> {
    source(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, major, minor)
}

fn source(mountinfo: &str, major: u32, minor: u32) -> Option<String> {
    let device = format!("{major}:{minor}");
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(&*device))?;
    let (_, right) = line.split_once(" - ")?;
    right.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_without_a_device_is_called_by_its_source() {
        let mountinfo =
            "31 23 0:28 / /run rw - tmpfs tmpfs-run rw\n32 23 8:1 / / rw - ext4 /dev/sda1 rw\n";
        assert_eq!(source(mountinfo, 0, 28), Some("tmpfs-run".to_owned()));
        assert_eq!(source(mountinfo, 8, 1), Some("/dev/sda1".to_owned()));
        assert_eq!(Names::default().of(4095, 77), "4095:77");
    }
}
