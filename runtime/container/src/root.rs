//! Paths inside the container's root: the only way this crate walks anything that an image or a volume controls.
//! Every step is openat2 with RESOLVE_IN_ROOT and without magic links, so no symlink leads out.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2, readlinkat};
use rustix::io::Errno;

/// As many symlinks as the kernel follows in one path.
const LINKS_MAX: usize = 40;
/// openat2 answers EAGAIN when a rename races with `..`; the kernel's advice is to try again.
const RACES_MAX: usize = 128;

/// The container's root directory by descriptor.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
}

impl Root {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens a path below the root, following symlinks inside it. `path` may be absolute: `/` is the root.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let relative = relative(path);
        for _ in 0..RACES_MAX {
            match openat2(&self.fd, &relative, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Whether no part of the path is a symlink.
    pub(crate) fn is_plain(&self, path: &Path) -> bool {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        openat2(&self.fd, relative(path), flags, Mode::empty(), resolve).is_ok()
    }

    /// The place itself (O_PATH), whatever it is.
    pub(crate) fn place(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.open(path, OFlags::PATH)
    }

    /// The directory at `path`, made with its parents (mode 0755, owned by us) where it is missing.
    pub(crate) fn make_dirs(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.make_dirs_bounded(path, LINKS_MAX)
    }

    fn make_dirs_bounded(&self, path: &Path, links_left: usize) -> Result<OwnedFd, Errno> {
        match self.open(path, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let mut parts = path.components();
        // The root is there; what cannot be split is the root.
        let Some(part) = parts.next_back() else { return Err(Errno::NOENT) };
        let above = parts.as_path();
        let parent = self.make_dirs_bounded(above, links_left)?;
        match mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // A symlink to a directory that does not exist yet: make what it means.
            Err(Errno::EXIST) if links_left > 0 => {
                match readlinkat(&parent, part.as_os_str(), Vec::new()) {
                    Ok(target) => {
                        let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                        drop(self.make_dirs_bounded(&above.join(target), links_left - 1)?);
                    }
                    Err(Errno::INVAL) => {} // made by somebody else just now
                    Err(e) => return Err(e),
                }
            }
            Err(e) => return Err(e),
        }
        self.open(path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The directory that holds `path` (made where missing) and the last name.
    pub(crate) fn parent_of<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((self.make_dirs(path.parent().unwrap_or(Path::new("/")))?, name))
    }

    /// A place to mount a file on: what is there, or a new empty file. A symlink to nothing (as `/etc/resolv.conf` is
    /// in many images) is followed, inside the root, and what it means is made.
    pub(crate) fn make_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.make_file_bounded(path, LINKS_MAX)
    }

    fn make_file_bounded(&self, path: &Path, links_left: usize) -> Result<OwnedFd, Errno> {
        match self.place(path) {
            Err(Errno::NOENT) => {}
            other => return other,
        }
        let (parent, name) = self.parent_of(path)?;
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => self.place(path),
            Err(Errno::EXIST) if links_left > 0 => match readlinkat(&parent, name, Vec::new()) {
                Ok(target) => {
                    let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                    // From the directory that holds the link; an absolute target replaces it.
                    let meant = path.parent().unwrap_or(Path::new("/")).join(target);
                    self.make_file_bounded(&meant, links_left - 1)
                }
                Err(Errno::INVAL) => self.place(path), // made by somebody else just now
                Err(e) => Err(e),
            },
            Err(Errno::EXIST) => Err(Errno::LOOP),
            Err(e) => Err(e),
        }
    }
}

/// `/a/b` seen from the root directory; the root itself is `.`.
fn relative(path: &Path) -> PathBuf {
    let stripped: PathBuf =
        path.components().filter(|c| !matches!(c, Component::RootDir)).collect();
    if stripped.as_os_str().is_empty() { PathBuf::from(".") } else { stripped }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().expect("tempdir");
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .expect("open");
        (dir, Root::new(fd))
    }

    #[test]
    fn an_absolute_symlink_stays_inside_the_root() {
        let (dir, root) = root();
        symlink("/etc", dir.path().join("link")).expect("symlink");
        root.make_dirs(Path::new("/link/deep")).expect("made");
        assert!(dir.path().join("etc/deep").is_dir());
        assert!(!Path::new("/etc/deep").exists());
    }

    #[test]
    fn a_dangling_relative_symlink_is_made_real() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("var")).expect("mkdir");
        symlink("../run", dir.path().join("var/run")).expect("symlink");
        root.make_file(Path::new("/var/run/x.pid")).expect("made");
        assert!(dir.path().join("run/x.pid").is_file());
    }

    #[test]
    fn a_file_is_made_where_a_dangling_symlink_leads_inside_the_root() {
        let (dir, root) = root();
        fs::create_dir(dir.path().join("etc")).expect("mkdir");
        symlink("../run/resolve/conf", dir.path().join("etc/relative")).expect("symlink");
        symlink("/etc/relative2", dir.path().join("etc/absolute")).expect("symlink");
        symlink("loop", dir.path().join("etc/loop")).expect("symlink");
        root.make_file(Path::new("/etc/relative")).expect("made");
        root.make_file(Path::new("/etc/absolute")).expect("made");
        assert!(dir.path().join("run/resolve/conf").is_file());
        assert!(dir.path().join("etc/relative2").is_file());
        assert!(!Path::new("/etc/relative2").exists());
        assert!(root.make_file(Path::new("/etc/loop")).is_err());
    }

    #[test]
    fn a_symlink_to_itself_ends_with_an_error() {
        let (dir, root) = root();
        symlink("loop", dir.path().join("loop")).expect("symlink");
        assert!(root.make_dirs(Path::new("/loop/x")).is_err());
    }

    #[test]
    fn a_magic_link_is_refused() {
        let (_dir, root) = root();
        // Not a procfs here, so only the shape: a path through a missing directory is an error, not the host's.
        assert_eq!(root.place(Path::new("/proc/self/exe")).expect_err("not there"), Errno::NOENT);
    }
}
