//! Labels a tree of files that a container may be writing to: never by a path through it, entry by entry.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, RawDir, ResolveFlags, XattrFlags, fstat, openat2};
use rustix::io::Errno;

const ATTRIBUTE: &str = "security.selinux";

/// Deeper trees are refused: each level holds a descriptor.
const DEPTH_MAX: usize = 512;

/// Labelled for one pod, these would be lost to the node.
const OF_THE_NODE: &[&str] = &[
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root",
    "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/var", "/var/lib", "/var/run",
];

/// Room for some hundred names at a time.
const NAMES: usize = 16 * 1024;

/// What is mounted below the tree is left alone; so is a file system without labels.
pub(super) fn tree(path: &Path, label: &str) -> io::Result<()> {
    let real = std::fs::canonicalize(path)?;
    if OF_THE_NODE.iter().any(|dir| real == Path::new(dir)) {
        let why = "this directory is the node's; mount one below it";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(&real, flags, Mode::empty())?;
    match entry(&top, label, 0) {
        Err(Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

fn entry(file: &OwnedFd, label: &str, depth: usize) -> Result<(), Errno> {
    let by_number = format!("/proc/self/fd/{}", file.as_raw_fd());
    let value = [label.as_bytes(), b"\0"].concat();
    let mut known = [0; 256];
    let same = matches!(
        rustix::fs::getxattr(&by_number, ATTRIBUTE, &mut known[..]),
        Ok(length) if known[..length] == value
    );
    if !same {
        rustix::fs::setxattr(&by_number, ATTRIBUTE, &value, XattrFlags::empty())?;
    }
    if FileType::from_raw_mode(fstat(file)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    if depth >= DEPTH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(file, ".", flags, Mode::empty())?;
    for name in names(&dir)? {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let here = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV;
        match openat2(&dir, &name, flags, Mode::empty(), here) {
            // Gone meanwhile, or something that is mounted there.
            Err(Errno::NOENT | Errno::XDEV) => {}
            opened => entry(&opened?, label, depth + 1)?,
        }
    }
    Ok(())
}

fn names(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut buffer = vec![std::mem::MaybeUninit::uninit(); NAMES];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_owned();
        if ![c".", c".."].contains(&name.as_c_str()) {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_own_directories_are_never_labelled_for_a_pod() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        for path in [Path::new("/"), Path::new("/usr/../etc"), &dir.path().join("link")] {
            let error = tree(path, "a:b:c:s0").unwrap_err();
            assert!(error.to_string().contains("the node's"), "{path:?}: {error}");
        }
    }

    #[test]
    fn every_file_of_a_tree_is_labelled_and_what_a_link_leads_to_is_not() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIPPED: needs root to label files");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("volume/a/b")).unwrap();
        std::fs::write(path("volume/a/b/file"), "").unwrap();
        std::fs::write(path("outside"), "").unwrap();
        std::os::unix::fs::symlink(path("outside"), path("volume/link")).unwrap();
        tree(&path("volume"), "u:r:t:s0:c1,c2").unwrap();
        let label = |name: &str| {
            let mut value = [0; 64];
            let length = rustix::fs::lgetxattr(path(name), ATTRIBUTE, &mut value[..]).ok()?;
            Some(String::from_utf8(value[..length].to_vec()).unwrap())
        };
        let Some(of_volume) = label("volume") else {
            println!("SKIPPED: this file system has no security labels");
            return;
        };
        assert_eq!(of_volume, "u:r:t:s0:c1,c2\0");
        for name in ["volume/a", "volume/a/b", "volume/a/b/file", "volume/link"] {
            assert_eq!(label(name), Some(of_volume.clone()), "{name}");
        }
        assert_eq!(label("outside"), None);
    }
}
