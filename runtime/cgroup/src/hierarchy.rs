//! Which cgroup hierarchies this node has mounted, read once from mountinfo.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, mkdirat, symlinkat};
use rustix::io::Errno;

use crate::Error;

/// The three layouts a node can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Controllers on v1 hierarchies only.
    V1,
    /// v1 controllers plus a v2 tree beside them.
    Hybrid,
    /// One v2 tree.
    V2,
}

/// One mounted v1 hierarchy: `["cpu", "cpuacct"]` when co-mounted, `["name=systemd"]` when named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub controllers: Vec<String>,
    pub mount: PathBuf,
}

impl Hierarchy {
    /// The directory name under `/sys/fs/cgroup` (`cpu`, `systemd`): what a container sees it as.
    pub fn label(&self) -> String {
        self.mount
            .file_name()
            .map_or_else(|| self.controllers.join(","), |n| n.to_string_lossy().into_owned())
    }
}

/// Every hierarchy of this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hierarchies {
    pub v1: Vec<Hierarchy>,
    pub unified: Option<PathBuf>,
}

/// Which layout this node has, from `/proc/self/mountinfo`.
pub fn driver() -> Result<Driver, Error> {
    Hierarchies::detect().map(|h| h.driver())
}

impl Hierarchies {
    /// Makes what the v1 hierarchies are seen as: a directory for each, by its label, and for controllers that are
    /// mounted together a link by the single name of each.
    pub fn make_places(&self, dir: impl AsFd) -> Result<(), Errno> {
        for name in self.v1.iter().map(Hierarchy::label) {
            mkdirat(&dir, &name, Mode::from_raw_mode(0o755))?;
            for single in name.split(',').filter(|_| name.contains(',')) {
                symlinkat(&name, &dir, single)?;
            }
        }
        Ok(())
    }

    /// Reads `/proc/self/mountinfo` up to the last hierarchy that `/proc/self/cgroup` names. They are mounted at boot:
    /// the mounts of the node's pods, which may be thousands, come behind them.
    pub fn detect() -> Result<Self, Error> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        const NAMES: &str = "/proc/self/cgroup";
        /// What is read at once takes the lock of all mounts once.
        const PIECE: usize = 8 << 10;
        let names = std::fs::read_to_string(NAMES).map_err(|e| Error::file("read", NAMES, e))?;
        let mounts = File::open(MOUNTS).map(|file| BufReader::with_capacity(PIECE, file));
        let found = mounts.and_then(|mounts| Self::find(mounts, &names));
        found.map_err(|e| Error::file("read", MOUNTS, e))
    }

    /// Picks the cgroup mounts out of a mountinfo text; the first mount of a hierarchy wins, because later
    /// ones are usually the partial views that containers get.
    fn find(mountinfo: impl BufRead, names: &str) -> io::Result<Self> {
        let unified = names.lines().any(|line| line.starts_with("0:"));
        let v1 = names.lines().count() - usize::from(unified);
        let mut found = Self::default();
        for line in mountinfo.split(b'\n') {
            found.add(&String::from_utf8_lossy(&line?));
            if found.v1.len() >= v1 && found.unified.is_some() >= unified {
                break;
            }
        }
        Ok(found)
    }

    /// What a line of mountinfo shows, if that is a hierarchy.
    fn add(&mut self, line: &str) {
        let Some((left, right)) = line.split_once(" - ") else { return };
        let mut right = right.split(' ');
        let (kind, options) = (right.next().unwrap_or(""), right.nth(1).unwrap_or(""));
        let Some(mount) = left.split(' ').nth(4).map(unescaped) else { return };
        match kind {
            "cgroup2" if self.unified.is_none() => self.unified = Some(mount),
            "cgroup" => self.add_v1(controllers(options), mount),
            _ => {}
        }
    }

    fn add_v1(&mut self, controllers: Vec<String>, mount: PathBuf) {
        if !controllers.is_empty() && !self.v1.iter().any(|h| h.controllers == controllers) {
            self.v1.push(Hierarchy { controllers, mount });
        }
    }

    pub fn driver(&self) -> Driver {
        match (self.v1.is_empty(), &self.unified) {
            (true, _) => Driver::V2,
            (false, None) => Driver::V1,
            (false, Some(_)) => Driver::Hybrid,
        }
    }

    pub fn is_v2(&self) -> bool {
        self.driver() == Driver::V2
    }

    /// Whether groups can be limited by `controller` here.
    pub fn has(&self, controller: &str) -> bool {
        if !self.is_v2() {
            return self.dir(controller, "/").is_some();
        }
        let file = self.unified_dir("/").map(|root| root.join("cgroup.controllers"));
        let all = file.and_then(|file| std::fs::read_to_string(file).ok());
        all.is_some_and(|all| all.split_whitespace().any(|name| name == controller))
    }

    /// The directory of `group` in the hierarchy that carries `controller`.
    pub fn dir(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let v1 = self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller));
        v1.map(|h| under(&h.mount, group))
    }

    /// The directory of `group` in the v2 tree.
    pub fn unified_dir(&self, group: &str) -> Option<PathBuf> {
        self.unified.as_deref().map(|m| under(m, group))
    }

    /// The directory of `group` in every hierarchy, v1 first.
    pub fn dirs(&self, group: &str) -> Vec<PathBuf> {
        self.v1
            .iter()
            .map(|h| &h.mount)
            .chain(self.unified.iter())
            .map(|m| under(m, group))
            .collect()
    }
}

pub(crate) fn under(mount: &Path, group: &str) -> PathBuf {
    mount.join(group.trim_start_matches('/'))
}

/// The controllers of a v1 mount are among its super-block options, mixed with flags such as `rw` and `xattr`.
fn controllers(options: &str) -> Vec<String> {
    const FLAGS: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
    let wanted = |o: &&str| !FLAGS.contains(o) && !o.starts_with("release_agent=");
    options.split(',').filter(wanted).map(str::to_owned).collect()
}

/// A field of mountinfo as the path that it is: blanks and backslashes are written there as three octal digits.
pub fn unescaped(field: &str) -> PathBuf {
    let (mut out, mut rest) = (Vec::new(), field.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|_| *first == b'\\');
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 31 0:29 / /mnt/with\\040space rw,relatime - cgroup cgroup rw,cpu,cpuacct
";

    #[test]
    fn a_hybrid_node_shows_its_v1_hierarchies_once_and_its_v2_tree() {
        let h = find(HYBRID, "2:cpu,cpuacct:/\n1:name=systemd:/a\n0::/a\n");
        assert_eq!(h.driver(), Driver::Hybrid);
        assert_eq!(h.v1.len(), 2);
        assert_eq!(h.dir("cpuacct", "/a/b"), Some(PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/a/b")));
        assert_eq!(h.v1[1].controllers, ["name=systemd"]);
        assert_eq!(h.unified_dir("/a"), Some(PathBuf::from("/sys/fs/cgroup/unified/a")));
    }

    #[test]
    fn a_pure_v2_node_is_told_from_a_hybrid_one() {
        let h = find("30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", "0::/\n");
        assert_eq!((h.driver(), h.is_v2()), (Driver::V2, true));
    }

    #[test]
    fn what_is_behind_the_last_hierarchy_is_not_read() {
        let then_breaks = |names: &str| {
            let text = io::Read::chain(HYBRID.as_bytes(), BufReader::new(Broken));
            Hierarchies::find(text, names)
        };
        let found = then_breaks("2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n");
        assert_eq!(found.expect("all there").driver(), Driver::Hybrid);
        let found = then_breaks("2:cpu,cpuacct:/\n1:name=systemd:/\n");
        assert_eq!(found.expect("all there").driver(), Driver::V1, "not as far as the v2 tree");
        then_breaks("3:pids:/\n2:cpu,cpuacct:/\n1:name=systemd:/\n0::/\n")
            .expect_err("one is missing still");
    }

    fn find(mountinfo: &str, names: &str) -> Hierarchies {
        Hierarchies::find(mountinfo.as_bytes(), names).expect("text")
    }

    #[test]
    fn each_v1_hierarchy_gets_a_place_and_single_names_for_those_together() {
        let dir = tempfile::tempdir().expect("tempdir");
        let h = find(HYBRID, "2:cpu,cpuacct:/\n1:name=systemd:/a\n0::/a\n");
        h.make_places(File::open(dir.path()).expect("open")).expect("made");
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .expect("list")
            .flatten()
            .map(|e| (e.file_name(), e.file_type().expect("type").is_dir()))
            .collect();
        names.sort();
        let expected =
            [("cpu", false), ("cpu,cpuacct", true), ("cpuacct", false), ("systemd", true)];
        assert_eq!(names, expected.map(|(name, dir)| (name.into(), dir)));
        assert!(dir.path().join("cpuacct").is_dir(), "the link leads there");
    }

    struct Broken;

    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("read too far"))
        }
    }

    #[test]
    fn escaped_mount_points_are_read_as_they_are() {
        assert_eq!(unescaped("/mnt/with\\040space"), Path::new("/mnt/with space"));
        assert_eq!(unescaped("/a\\134040"), Path::new("/a\\040"), "each once");
    }
}
