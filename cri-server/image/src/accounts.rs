//! Users and groups of an image: `/etc/passwd` and `/etc/group` as a container would see them, read
//! without mounting the image and without trusting a byte of it.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use crate::digest::{ChainId, ImageId};
use crate::error::Error;
use crate::layer::merged::{Found, Merged};
use crate::layer::open_directory_path;
use crate::store::shelf::Shelf;

/// The accounts an image brings. Missing files are no accounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Accounts {
    pub users: Vec<User>,
    pub groups: Vec<Group>,
}

/// A line of `/etc/passwd`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

/// A line of `/etc/group`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: String,
    pub gid: u32,
    pub members: Vec<String>,
}

/// A real file is a few kB; a larger one is an attack or a mistake.
const FILE_MAX: u64 = 1 << 20;
/// A directory service exported to a file has some ten thousand.
const LINES_MAX: usize = 16_384;

impl Accounts {
    /// The first user of that name.
    pub fn user_named(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The first user with that id.
    pub fn user_with_uid(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }

    /// The first group of that name.
    pub fn group_named(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Ids of the groups that list `user` as a member.
    pub fn groups_of<'a>(&'a self, user: &'a str) -> impl Iterator<Item = u32> + 'a {
        let lists = move |group: &&Group| group.members.iter().any(|member| member == user);
        self.groups.iter().filter(lists).map(|group| group.gid)
    }
}

/// Reads both files through the layers `chains`, lowest first.
pub(crate) fn read(shelf: &Shelf, image: &ImageId, chains: &[ChainId]) -> Result<Accounts, Error> {
    let open = |chain| {
        let path = shelf.path(chain);
        open_directory_path(&path).map_err(|e| Error::io("open", &path, e))
    };
    let layers = chains.iter().rev().map(open).collect::<Result<Vec<_>, _>>()?;
    let merged = Merged::new(layers);
    let text = |path: &str| {
        file(&merged, path).map_err(|reason| Error::Accounts {
            image: image.clone(),
            path: Path::new(path).to_owned(),
            reason,
        })
    };
    Ok(Accounts {
        users: lines(&text("/etc/passwd")?).filter_map(user).collect(),
        groups: lines(&text("/etc/group")?).filter_map(group).collect(),
    })
}

/// A regular file of bounded size; empty when there is none.
fn file(merged: &Merged, path: &str) -> Result<Vec<u8>, String> {
    let (parent, name, stat) = match merged.resolve(path.as_bytes()).map_err(|e| e.to_string())? {
        Found::Absent => return Ok(Vec::new()),
        Found::Directory(_) => return Err("it is a directory".into()),
        Found::Other { parent, name, stat } => (parent, name, stat),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("it is not a regular file".into());
    }
    // Nobody changes a layer; these flags hold even if somebody did.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&parent, name.as_slice(), flags, Mode::empty())
        .map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    let read = File::from(file).take(FILE_MAX + 1).read_to_end(&mut bytes);
    if read.map_err(|e| e.to_string())? as u64 > FILE_MAX {
        return Err(format!("it is larger than {FILE_MAX} bytes"));
    }
    Ok(bytes)
}

fn lines(text: &[u8]) -> impl Iterator<Item = Vec<String>> + '_ {
    text.split(|b| *b == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .take(LINES_MAX)
        .map(|line| String::from_utf8_lossy(line).split(':').map(str::to_owned).collect())
}

/// A line with an id that is no 32-bit number names nobody.
fn user(fields: Vec<String>) -> Option<User> {
    let mut fields = fields.into_iter();
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = id(&fields.nth(1)?)?;
    let gid = id(&fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default();
    Some(User { name, uid, gid, home })
}

fn group(fields: Vec<String>) -> Option<Group> {
    let mut fields = fields.into_iter();
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = id(&fields.nth(1)?)?;
    let members = fields.next().unwrap_or_default();
    let members = members.split(',').map(str::trim).filter(|member| !member.is_empty());
    Some(Group { name, gid, members: members.map(str::to_owned).collect() })
}

/// Digits only: no sign, no space, no other base, and within 32 bits.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_user(line: &str, expect: Option<(&str, u32, u32, &str)>) {
        let found = lines(line.as_bytes()).next().and_then(user);
        let found = found.as_ref().map(|u| (u.name.as_str(), u.uid, u.gid, u.home.as_str()));
        assert_eq!(found, expect, "{line:?}");
    }

    #[test]
    fn passwd_lines_with_unusable_ids_name_nobody() {
        check_user("root:x:0:0:root:/root:/bin/sh", Some(("root", 0, 0, "/root")));
        check_user("a:x:1:2", Some(("a", 1, 2, "")));
        for bad in ["4294967296", "99999999999", "+0", "-1", "0x0", " 0", "0 ", ""] {
            check_user(&format!("a:x:{bad}:0::/:"), None);
        }
        check_user(":x:0:0::/:", None);
        check_user("a:x", None);
    }

    #[test]
    fn group_members_are_split_and_trimmed() {
        let found = lines(b"#c\n\nwheel:x:10:root, bob,,\n").next().and_then(group).unwrap();
        assert_eq!(found.members, ["root", "bob"]);
        let accounts = Accounts { users: Vec::new(), groups: vec![found] };
        assert_eq!(accounts.groups_of("bob").collect::<Vec<_>>(), [10]);
        assert_eq!(accounts.groups_of("eve").count(), 0);
    }
}
