//! Classes of cache and memory bandwidth: directories of a mounted resctrl, which a process is in by its number in their
//! `tasks`. What it starts is in them, too.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{At, Error};
use crate::plan::Rdt;

const STAGE: &str = "linux.intelRdt";

/// Where resctrl is mounted.
pub fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let place = fields.nth(1)?;
        (fields.next()? == "resctrl").then(|| PathBuf::from(place))
    })
}

/// Makes what the container needs and moves this process there.
pub(crate) fn enter(root: Option<&Path>, rdt: &Rdt) -> Result<(), Error> {
    let Some(root) = root else {
        let why =
            "resctrl is not mounted: the processor, the kernel or the node's setup has no RDT";
        return Err(Error::new(STAGE, why));
    };
    let class = root.join(&rdt.class);
    // A class without a schema of its own is one that somebody has set up.
    if !rdt.own && rdt.schemata.is_empty() && !class.is_dir() {
        let why = format!("there is no class {:?} in {}", rdt.class, root.display());
        return Err(Error::new("linux.intelRdt.closID", why));
    }
    make(&class)?;
    write_schemata(&class, &rdt.schemata)?;
    let group = match &rdt.monitor {
        None => class,
        Some(name) => {
            let group = class.join("mon_groups").join(name);
            make(&group)?;
            group
        }
    };
    join(&group)
}

/// What is this container's alone, innermost first.
pub fn made(root: &Path, rdt: &Rdt) -> Vec<PathBuf> {
    let class = root.join(&rdt.class);
    let monitor = rdt.monitor.as_ref().map(|name| class.join("mon_groups").join(name));
    monitor.into_iter().chain(rdt.own.then_some(class)).collect()
}

/// Removes what `made` named. «Already gone» is done.
pub fn remove(made: &[PathBuf]) -> Result<(), Error> {
    made.iter().try_for_each(|dir| match fs::remove_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other.at(STAGE, format!("remove {}", dir.display())),
    })
}

/// Moves this process where the container's init is.
pub(crate) fn enter_that_of(init: i32) -> Result<(), Error> {
    // Without RDT in the kernel there is no such file.
    let Ok(groups) = fs::read_to_string(format!("/proc/{init}/cpu_resctrl_groups")) else {
        return Ok(());
    };
    match (group_in(&groups), root()) {
        (Some(group), Some(root)) => join(&root.join(group)),
        _ => Ok(()),
    }
}

/// The directory below the root that a process is in, unless it is the root itself.
fn group_in(text: &str) -> Option<PathBuf> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let class = field("res:")?.trim_matches('/');
    let monitor = field("mon:").unwrap_or_default().trim_matches('/');
    match (class, monitor) {
        ("", "") => None,
        (class, "") => Some(class.into()),
        (class, monitor) => Some(Path::new(class).join("mon_groups").join(monitor)),
    }
}

fn make(dir: &Path) -> Result<(), Error> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        // The kernel has classes for few, and says so in a file of its own.
        other => other.at(STAGE, format!("make {}", dir.display())),
    }
}

fn write_schemata(class: &Path, lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let file = class.join("schemata");
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    let opened = fs::OpenOptions::new().write(true).open(&file);
    opened
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .at(STAGE, format!("write {:?} to {}", text.trim(), file.display()))
}

fn join(group: &Path) -> Result<(), Error> {
    let tasks = group.join("tasks");
    let opened = fs::OpenOptions::new().write(true).open(&tasks);
    opened
        .and_then(|mut file| file.write_all(std::process::id().to_string().as_bytes()))
        .at(STAGE, format!("join {}", tasks.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory as resctrl makes it, with what the kernel would put there.
    fn class(root: &Path, name: &str) -> PathBuf {
        let dir = root.join(name);
        fs::create_dir_all(&dir).expect("make");
        for file in ["tasks", "schemata"] {
            fs::write(dir.join(file), "").expect("write");
        }
        dir
    }

    fn rdt(class: &str) -> Rdt {
        Rdt { class: class.into(), own: false, schemata: vec![], monitor: None }
    }

    #[test]
    fn a_process_is_moved_into_a_class_that_is_there_and_none_is_made_up() {
        let dir = tempfile::tempdir().expect("tempdir");
        let fast = class(dir.path(), "fast");
        enter(Some(dir.path()), &rdt("fast")).expect("joined");
        let me = std::process::id().to_string();
        assert_eq!(fs::read_to_string(fast.join("tasks")).expect("tasks"), me);
        let error = enter(Some(dir.path()), &rdt("slow")).expect_err("no such class");
        assert!(error.message.contains("no class \"slow\""), "{error:?}");
        assert!(enter(None, &rdt("fast")).expect_err("no RDT").message.contains("not mounted"));
    }

    #[test]
    fn a_schema_is_written_and_a_group_of_ones_own_goes_with_the_container() {
        let dir = tempfile::tempdir().expect("tempdir");
        let own = class(dir.path(), "c1");
        let group = class(&own.join("mon_groups"), "c1");
        let rdt = Rdt {
            own: true,
            schemata: vec!["L3:0=f".into(), "MB:0=50".into()],
            monitor: Some("c1".into()),
            ..rdt("c1")
        };
        enter(Some(dir.path()), &rdt).expect("joined");
        let read = |path: PathBuf| fs::read_to_string(path).expect("read");
        assert_eq!(read(own.join("schemata")), "L3:0=f\nMB:0=50\n");
        assert_eq!(read(group.join("tasks")), std::process::id().to_string());
        assert_eq!(read(own.join("tasks")), "");
        assert_eq!(made(dir.path(), &rdt), [group, own]);
        remove(&[dir.path().join("gone")]).expect("already gone");
    }

    #[test]
    fn where_a_process_is_is_read_as_the_kernel_writes_it() {
        for (text, want) in [
            ("res:/\nmon:\n", None),
            ("res:/fast\nmon:\n", Some("fast")),
            ("res:/fast\nmon:m1\n", Some("fast/mon_groups/m1")),
            ("res:/\nmon:m1\n", Some("mon_groups/m1")),
            ("", None),
        ] {
            assert_eq!(group_in(text), want.map(PathBuf::from), "{text:?}");
        }
    }
}
