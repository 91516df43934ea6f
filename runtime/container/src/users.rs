//! User namespaces: made and kept by descriptor, joined, and asked for their ids.

use std::fmt::Write;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{Gid, Uid};

use crate::create::Creation;
use crate::error::{At, Error};
use crate::plan::{Mappings, Namespace};
use crate::spec::IdMapping;
use crate::sys::process::Held;

const STAGE: &str = "user namespace";

/// The user namespace of a container, before anybody is in it.
#[derive(Debug)]
pub(crate) struct Users {
    pub(crate) fd: OwnedFd,
    pub(crate) mappings: Mappings,
}

impl Users {
    /// None when the container shares the host's.
    pub(crate) fn of(c: &Creation<'_>) -> Result<Option<Self>, Error> {
        let namespaces = &c.plan.namespaces;
        if !namespaces.has(Namespace::User) {
            return Ok(None);
        }
        let path = namespaces.join.iter().find(|(kind, _)| *kind == Namespace::User);
        let fd = match (c.userns, path) {
            (Some(fd), _) => fd.try_clone_to_owned().at(STAGE, "duplicate its descriptor")?,
            (None, Some((_, path))) => {
                rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .at(STAGE, format!("open {}", path.display()))?
            }
            (None, None) => pin(&c.plan.mappings)?,
        };
        let mut mappings = c.plan.mappings.clone();
        if mappings.is_empty() {
            mappings = ask(&fd)?;
        }
        Ok(Some(Self { fd, mappings }))
    }

    /// The host's uid and gid of its root. Without one, becoming it fails later.
    pub(crate) fn root(&self) -> [u32; 2] {
        [self.mappings.host_uid(0), self.mappings.host_gid(0)].map(Option::unwrap_or_default)
    }
}

/// Makes a user namespace with these ids. It lives as long as the descriptor or anything that is made in it.
///
/// # Errors
/// EPERM where user namespaces are forbidden (`user.max_user_namespaces`), EINVAL for ranges that overlap.
pub fn pin(mappings: &Mappings) -> Result<OwnedFd, Error> {
    let holder = Held::clone(Namespace::User as u64).at(STAGE, "make one")?;
    let file = |name: &str| PathBuf::from(format!("/proc/{}/{name}", holder.pid()));
    for (name, list) in [("uid_map", &mappings.uid), ("gid_map", &mappings.gid)] {
        let lines = lines(list);
        fs::write(file(name), &lines)
            .at(STAGE, format!("write {:?} as its {name}", lines.trim()))?;
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(file("ns/user"), flags, Mode::empty()).at(STAGE, "open it")
}

fn lines(list: &[IdMapping]) -> String {
    list.iter().fold(String::new(), |mut text, m| {
        let _ = writeln!(text, "{} {} {}", m.container_id, m.host_id, m.size); // a String takes all
        text
    })
}

/// The ids of a namespace that somebody else has made.
fn ask(userns: &OwnedFd) -> Result<Mappings, Error> {
    let inside = Held::joined(userns.as_fd()).at(STAGE, "join it to read its ids")?;
    mappings_of(inside.pid())
}

/// What `uid` in the user namespace of a process is outside of it.
pub(crate) fn host_uid(pid: i32, uid: u32) -> Result<Option<u32>, Error> {
    mappings_of(pid).map(|m| m.host_uid(uid))
}

fn mappings_of(pid: i32) -> Result<Mappings, Error> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        let text = fs::read_to_string(&path).at(STAGE, format!("read {path}"))?;
        Ok(text.lines().filter_map(line).collect::<Vec<_>>())
    };
    Ok(Mappings { uid: read("uid_map")?, gid: read("gid_map")? })
}

fn line(text: &str) -> Option<IdMapping> {
    let mut numbers = text.split_whitespace().map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some(IdMapping { container_id: next()?, host_id: next()?, size: next()? })
}

/// Root of the user namespace that this process has joined: who it was outside has no meaning there.
pub(crate) fn become_root() -> Result<(), Error> {
    rustix::thread::set_thread_groups(&[]).at(STAGE, "leave the host's groups")?;
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(STAGE, "become its gid 0")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(STAGE, "become its uid 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_written_and_read_as_the_kernel_does() {
        let m = IdMapping { container_id: 0, host_id: 100_000, size: 65_536 };
        assert_eq!(lines(&[m, m]), "0 100000 65536\n0 100000 65536\n");
        assert_eq!(line("         0     100000      65536"), Some(m));
        assert_eq!(line("0 1"), None);
    }
}
