//! Labels of SELinux: under which a process goes on after its exec, and with which its file systems are shown.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::XattrFlags;

use crate::error::{At, Error};

/// Where a file system's own attribute for it is.
const ATTRIBUTE: &str = "security.selinux";

/// Whether the kernel looks at labels on this node.
pub fn is_enabled() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

/// The keys that this process makes are the labelled program's. Its exec takes this back.
pub(crate) fn own_keys(label: &str) -> Result<(), Error> {
    write("keycreate", label)
}

/// What this process executes next runs under the label. To be said after the last program that is to run without it.
pub(crate) fn on_exec(label: &str) -> Result<(), Error> {
    write("exec", label)
}

/// By the host's /proc, in which this process has a number whatever its own namespace is.
fn write(what: &str, label: &str) -> Result<(), Error> {
    let file = format!("/proc/thread-self/attr/{what}");
    std::fs::write(&file, label).at("process.selinuxLabel", format!("write {label:?} to {file}"))
}

/// Labels the root of a mount whose file system takes no `context` option.
pub(crate) fn root_of(tree: &OwnedFd, label: &str, stage: &str) -> Result<(), Error> {
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    let value = [label.as_bytes(), b"\0"].concat();
    rustix::fs::setxattr(path, ATTRIBUTE, &value, XattrFlags::empty())
        .at(stage, format!("label it {label}"))
}

/// A label that can be written to files and into mount options as it is.
pub(crate) fn checked(
    field: &str,
    label: Option<&String>,
    enabled: bool,
) -> Result<Option<String>, Error> {
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(None) };
    if !enabled {
        return Err(Error::new(
            field,
            "this node runs without SELinux, so nothing would confine by it",
        ));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-:,".contains(c);
    if !label.chars().all(fits) || label.split(':').count() < 3 {
        return Err(Error::new(
            field,
            format!("{label:?} is no label of the form user:role:type:level"),
        ));
    }
    Ok(Some(label.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_refused_where_it_means_nothing_and_when_it_is_none() {
        let check = |label: &str, enabled| checked("f", Some(&label.to_owned()), enabled);
        let label = "system_u:system_r:container_t:s0:c1,c2";
        assert_eq!(check(label, true), Ok(Some(label.to_owned())));
        assert_eq!((check("", false), checked("f", None, false)), (Ok(None), Ok(None)));
        assert!(check(label, false).expect_err("off").message.contains("without SELinux"));
        for bad in ["container_t", "a:b:c\nd", "a:b:c\" x", "a:b:c d"] {
            assert_eq!(check(bad, true).expect_err(bad).stage, "f");
        }
    }
}
