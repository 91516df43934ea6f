//! A group's life in every hierarchy at once: make it, join it, remove it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use crate::{Error, Hierarchies, Setting, limits::Missing};

/// What `remove` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Gone from every hierarchy (or never there).
    Gone,
    /// Something still lives in it: kill, reap and ask again.
    Busy,
}

/// How to be in a group without the global lock that moving another process takes (milliseconds).
#[derive(Debug)]
pub struct Joins {
    /// v1 `tasks` files (and `cgroup.procs` of v2 from `written_joins`): a single-threaded process writes `0` to
    /// each, by itself.
    pub tasks: Vec<OwnedFd>,
    /// The v2 directory, for CLONE_INTO_CGROUP.
    pub born: Option<OwnedFd>,
}

impl Joins {
    /// Moves the calling process, which must have one thread, into the groups it was not born in.
    pub fn enter(&self) -> Result<(), rustix::io::Errno> {
        self.tasks.iter().try_for_each(|f| rustix::io::write(f, b"0").map(|_| ()))
    }
}

/// How deep a container may nest groups below its own before removal gives up on the subtree. The kernel's own
/// `cgroup.max.depth` is unlimited by default; nobody nests deeper than a few levels.
const MAX_DEPTH: usize = 32;

impl Hierarchies {
    /// Makes the group (and missing parents) in every hierarchy; a group that is there already is kept.
    pub fn create(&self, group: &str) -> Result<(), Error> {
        self.create_unified(group)?;
        self.create_v1(group)
    }

    /// The part of `create` that must be before a process is born in the group.
    pub fn create_unified(&self, group: &str) -> Result<(), Error> {
        check(group)?;
        let Some(mount) = &self.unified else { return Ok(()) };
        make(mount, group, &|dir, _| {
            // Controllers are handed to the new directory by its parent; on hybrid nodes what is there is tried.
            delegate(dir.parent().unwrap_or(mount), self.is_v2())
        })
    }

    /// The same below a parent that has handed its controllers to a group before, so that this is not looked at again.
    pub fn create_unified_sibling(&self, group: &str) -> Result<(), Error> {
        check(group)?;
        let Some(dir) = self.unified_dir(group) else { return Ok(()) };
        match rustix::fs::mkdir(dir, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(()),
            Err(_) => self.create_unified(group),
        }
    }

    /// The rest of `create`: what a process joins by itself.
    pub fn create_v1(&self, group: &str) -> Result<(), Error> {
        check(group)?;
        for h in &self.v1 {
            let cpuset = h.controllers.iter().any(|c| c == "cpuset");
            make(&h.mount, group, &|dir, found| match cpuset {
                true => fill_cpuset(&h.mount, dir, found),
                false => Ok(()),
            })?;
        }
        Ok(())
    }

    /// Writes the settings of a group. A setting whose controller is not mounted is an error or nothing,
    /// as it says itself.
    pub fn apply(&self, group: &str, settings: &[Setting]) -> Result<(), Error> {
        // Some are bound to each other (quota and period, memory with and without swap), and which of them may go
        // first depends on what is there and above: one that is refused as invalid is tried again after the others.
        let (mut refused, mut open) = (Vec::new(), None);
        for s in settings {
            match self.write(group, s, &mut open) {
                Err(Error::Limit { source, .. })
                    if source.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) =>
                {
                    refused.push(s);
                }
                other => other?,
            }
        }
        refused.into_iter().try_for_each(|s| self.write(group, s, &mut open))
    }

    /// `open`: the file of the setting before this one. Rules of devices are many for one file.
    fn write(
        &self,
        group: &str,
        s: &Setting,
        open: &mut Option<(PathBuf, fs::File)>,
    ) -> Result<(), Error> {
        let dir = match self.dir(s.controller, group) {
            Some(dir) => Some(dir),
            None => self.unified_dir(group).filter(|d| self.is_v2() || d.join(&s.file).exists()),
        };
        let Some(dir) = dir else {
            return match s.missing {
                Missing::Ignore => Ok(()),
                Missing::Refuse => {
                    Err(Error::NoController { controller: s.controller, file: s.file.clone() })
                }
            };
        };
        let path = dir.join(&s.file);
        let file = match open {
            Some((of, file)) if *of == path => Ok(file),
            _ => {
                let file = fs::OpenOptions::new().write(true).open(&path);
                file.map(|file| &mut open.insert((path.clone(), file)).1)
            }
        };
        match file.and_then(|file| file.write_all(s.value.as_bytes())) {
            Err(e) if e.kind() == ErrorKind::NotFound && s.missing == Missing::Ignore => Ok(()),
            Err(source) => Err(Error::Limit { value: s.value.clone(), path, source }),
            Ok(()) => Ok(()),
        }
    }

    /// What a process needs to be in the group, opened.
    pub fn joins(&self, group: &str) -> Result<Joins, Error> {
        Ok(Joins { tasks: self.tasks(group)?, born: self.born(group)? })
    }

    /// The v1 files to write to.
    pub fn tasks(&self, group: &str) -> Result<Vec<OwnedFd>, Error> {
        let open = |h: &crate::hierarchy::Hierarchy| {
            let path = crate::hierarchy::under(&h.mount, group).join("tasks");
            let file = fs::OpenOptions::new().write(true).open(&path);
            file.map(OwnedFd::from).map_err(|e| Error::file("open", path, e))
        };
        self.v1.iter().map(open).collect()
    }

    /// The v2 directory to be born in.
    pub fn born(&self, group: &str) -> Result<Option<OwnedFd>, Error> {
        let open = |dir: PathBuf| {
            let file = fs::File::open(&dir);
            file.map(OwnedFd::from).map_err(|e| Error::file("open", dir, e))
        };
        self.unified_dir(group).map(open).transpose()
    }

    /// As `joins`, but in groups below that are there already, each in the hierarchies of its controllers: `(cpu, a/b)`,
    /// or in all of them for no controller.
    pub fn joins_below(&self, group: &str, below: &[(String, String)]) -> Result<Joins, Error> {
        let mut joins = self.joins(group)?;
        for (controllers, path) in below {
            let named = path;
            let path = format!("{group}/{}", path.trim_matches('/'));
            check(&path)
                .map_err(|e| Error::BadPath(format!("bad sub cgroup path: {named}: {e}")))?;
            let open = |path: PathBuf, write: bool| {
                let file = fs::OpenOptions::new().read(!write).write(write).open(&path);
                file.map(OwnedFd::from).map_err(|e| Error::file("open", path, e))
            };
            let wanted = |h: &&crate::hierarchy::Hierarchy| {
                controllers.is_empty()
                    || controllers.split(',').any(|name| h.controllers.iter().any(|c| c == name))
            };
            let mut found = false;
            for (at, h) in self.v1.iter().enumerate().filter(|(_, h)| wanted(h)) {
                let dir = crate::hierarchy::under(&h.mount, &path);
                joins.tasks[at] = open(dir.join("tasks"), true)?;
                found = true;
            }
            // Beside v1 hierarchies the unified one need not have what those have.
            let unified = self.unified_dir(&path).filter(|dir| self.is_v2() || dir.is_dir());
            if let Some(dir) = unified.filter(|_| controllers.is_empty()) {
                joins.born = Some(open(dir, false)?);
                found = true;
            }
            if !found {
                let why = format!("unknown controller {controllers}: no hierarchy here has it");
                return Err(Error::BadPath(why));
            }
        }
        Ok(joins)
    }

    /// On v2, the group that process `pid` is in by now: where a container manages its own groups, its first one may be
    /// for groups only, or gone.
    ///
    /// # Errors
    /// There is no v2 tree, or the group is not below what this process sees of it.
    pub fn joins_of(&self, pid: i32) -> Result<Joins, Error> {
        let file = format!("/proc/{pid}/cgroup");
        let text = fs::read_to_string(&file).map_err(|e| Error::file("read", &file, e))?;
        let group = text.lines().find_map(|line| line.strip_prefix("0::"));
        let missing = || Error::BadPath(format!("{file} names no group of a v2 tree"));
        let group = group.ok_or_else(missing)?;
        check(group)?;
        let dir = self.unified_dir(group).ok_or_else(missing)?;
        let fd = fs::File::open(&dir).map_err(|e| Error::file("open", dir, e))?;
        Ok(Joins { tasks: Vec::new(), born: Some(fd.into()) })
    }

    /// As `joins`, for a process that may not be born in a group of the host's, because its maker has the powers of
    /// a user namespace only: the v2 group is joined by writing, too, which an open file allows.
    pub fn written_joins(&self, group: &str) -> Result<Joins, Error> {
        let mut joins = self.joins(group)?;
        if let Some(dir) = self.unified_dir(group).filter(|_| joins.born.take().is_some()) {
            let path = dir.join("cgroup.procs");
            let file = fs::OpenOptions::new().write(true).open(&path);
            joins.tasks.push(file.map_err(|e| Error::file("open", path, e))?.into());
        }
        Ok(joins)
    }

    /// Makes a group inside `group` that only serves to find a subtree of its processes. On v1 it exists in one
    /// hierarchy; the processes stay in `group` in all others.
    pub fn create_tracker(&self, group: &str, name: &str) -> Result<String, Error> {
        let tracker = format!("{}/{name}", group.trim_end_matches('/'));
        check(&tracker)?;
        let dir = self.tracking_dir(&tracker);
        let dir = dir.ok_or_else(|| Error::BadPath("no cgroup hierarchy is mounted".into()))?;
        match rustix::fs::mkdir(&dir, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(tracker),
            Err(e) => Err(Error::file("make", dir, e.into())),
        }
    }

    /// As `joins` for `group`, but in the tracker where that exists.
    pub fn tracked_joins(&self, group: &str, tracker: &str) -> Result<Joins, Error> {
        let mut joins = self.joins(group)?;
        let open = |path: PathBuf, write: bool| {
            let file = fs::OpenOptions::new().read(!write).write(write).open(&path);
            file.map(OwnedFd::from).map_err(|e| Error::file("open", path, e))
        };
        if self.is_v2() {
            joins.born = self.unified_dir(tracker).map(|d| open(d, false)).transpose()?;
        } else if let (Some(of_group), Some(dir)) =
            (self.tracking_dir(group), self.tracking_dir(tracker))
        {
            let at =
                self.v1.iter().position(|h| of_group == crate::hierarchy::under(&h.mount, group));
            if let Some(at) = at {
                joins.tasks[at] = open(dir.join("tasks"), true)?;
            }
        }
        Ok(joins)
    }

    /// As `remove` for a group: for a tracker, which is in one hierarchy only.
    pub fn remove_tracker(&self, tracker: &str) -> Result<Removal, Error> {
        check(tracker)?;
        self.tracking_dir(tracker).map_or(Ok(Removal::Gone), |dir| remove_tree(&dir, 0))
    }

    /// Removes the group with everything nested in it, in every hierarchy. Idempotent.
    pub fn remove(&self, group: &str) -> Result<Removal, Error> {
        check(group)?;
        let mut outcome = Removal::Gone;
        for dir in self.dirs(group) {
            if remove_tree(&dir, 0)? == Removal::Busy {
                outcome = Removal::Busy;
            }
        }
        Ok(outcome)
    }

    /// Removes `group` and then its parents as long as they are empty. For trees that are wholly ours.
    pub fn prune(&self, group: &str) {
        let mut path = PathBuf::from(group);
        while path.as_os_str().len() > 1 {
            for dir in self.dirs(&path.to_string_lossy()) {
                let _ = fs::remove_dir(dir); // not empty or not there: both are fine
            }
            if !path.pop() {
                break;
            }
        }
    }

    /// Whether the group exists in any hierarchy.
    pub fn exists(&self, group: &str) -> bool {
        self.dirs(group).iter().any(|d| d.is_dir())
    }
}

/// A group path comes from a specification: absolute, normal components only, never the root itself.
fn check(group: &str) -> Result<(), Error> {
    let path = Path::new(group);
    let normal = path.components().skip(1).all(|c| matches!(c, Component::Normal(_)));
    if path.is_absolute() && normal && path.components().count() > 1 {
        return Ok(());
    }
    Err(Error::BadPath(format!(
        "cgroup path {group:?} must be absolute, without `..`, and not the root"
    )))
}

/// How a directory was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// Made just now.
    Missing,
    /// Made by somebody who may not have prepared it yet; preparing twice does no harm.
    There,
}

/// Makes one directory and prepares it; missing parents first. Mostly the parents are there.
fn make(
    mount: &Path,
    group: &str,
    prepare: &dyn Fn(&Path, Found) -> Result<(), Error>,
) -> Result<(), Error> {
    let group = group.trim_matches('/');
    let dir = mount.join(group);
    let mut left = ATTEMPTS;
    loop {
        let made = match rustix::fs::mkdir(&dir, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) => prepare(&dir, Found::Missing),
            Err(rustix::io::Errno::EXIST) => prepare(&dir, Found::There),
            Err(e) => Err(Error::file("make", &dir, e.into())),
        };
        match made {
            Err(e) if is_gone(&e) && left > 0 => left -= 1,
            made => return made,
        }
        if let Some((parent, _)) = group.rsplit_once('/') {
            make(mount, parent, prepare)?;
        }
    }
}

/// Whoever tidies up may remove what is empty, and its parent, between any two steps of one who makes a group.
const ATTEMPTS: usize = 1000;

/// Not there, or there for those only who have it open.
fn is_gone(e: &Error) -> bool {
    let (Error::File { source, .. } | Error::Limit { source, .. }) = e else { return false };
    source.kind() == ErrorKind::NotFound
        || source.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}

/// A new v1 cpuset starts empty and refuses tasks (ENOSPC) until it has CPUs and memory nodes: those of its parent,
/// which another creator may have made just now and not filled yet.
fn fill_cpuset(mount: &Path, dir: &Path, found: Found) -> Result<(), Error> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        match found {
            Found::Missing => inherit(mount, dir, file)?,
            Found::There => fill(mount, dir, file)?,
        };
    }
    Ok(())
}

fn fill(mount: &Path, dir: &Path, file: &str) -> Result<String, Error> {
    let path = dir.join(file);
    let value = fs::read_to_string(&path).map_err(|e| Error::file("read", &path, e))?;
    match value.trim() {
        "" => inherit(mount, dir, file),
        value => Ok(value.to_owned()),
    }
}

/// The value of the parent, filled first where that is empty, too.
fn inherit(mount: &Path, dir: &Path, file: &str) -> Result<String, Error> {
    let Some(parent) = dir.parent().filter(|_| dir != mount) else { return Ok(String::new()) };
    let (value, path) = (fill(mount, parent, file)?, dir.join(file));
    match fs::write(&path, &value) {
        Ok(()) => Ok(value),
        Err(source) => Err(Error::Limit { value, path, source }),
    }
}

/// Enables in `parent` every controller it has, so that its children can be limited.
fn delegate(parent: &Path, strict: bool) -> Result<(), Error> {
    let path = parent.join("cgroup.controllers");
    let available = crate::line(&path).map_err(|e| Error::file("read", path, e))?;
    let path = parent.join("cgroup.subtree_control");
    // Writing what is enabled already changes nothing but takes the global locks.
    let enabled = crate::line(&path).map_err(|e| Error::file("read", &path, e))?;
    let enabled: Vec<&str> = enabled.split_whitespace().collect();
    for controller in available.split_whitespace().filter(|c| !enabled.contains(c)) {
        let value = format!("+{controller}");
        match fs::write(&path, &value) {
            Err(source)
                if strict
                    && source.kind() != ErrorKind::NotFound
                    && source.raw_os_error() != Some(16) =>
            {
                return Err(Error::Limit { value, path, source });
            }
            _ => {} // EBUSY: the parent holds processes; its children then live without that controller
        }
    }
    Ok(())
}

fn remove_tree(dir: &Path, depth: usize) -> Result<Removal, Error> {
    match fs::remove_dir(dir) {
        Ok(()) => return Ok(Removal::Gone),
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Removal::Gone),
        Err(e) if e.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) => {}
        Err(e) => return Err(Error::file("remove", dir, e)),
    }
    if depth < MAX_DEPTH {
        for child in children(dir)? {
            remove_tree(&child, depth + 1)?;
        }
    }
    match fs::remove_dir(dir) {
        Ok(()) => Ok(Removal::Gone),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Removal::Gone),
        Err(_) => Ok(Removal::Busy),
    }
}

/// The directories directly inside a group.
pub(crate) fn children(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::file("list", dir, e))?,
    };
    Ok(entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_and_escaping_paths_are_refused() {
        for bad in ["/", "", "relative", "/a/../b"] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check("/a/b").is_ok());
    }

    #[test]
    fn removing_a_group_that_never_was_is_fine() {
        let h = Hierarchies { v1: vec![], unified: Some("/nonexistent".into()) };
        assert_eq!(h.remove("/a/b").expect("idempotent"), Removal::Gone);
    }
}
