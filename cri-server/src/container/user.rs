//! Who a container runs as: the pod's wish, else the image's, looked up in the image's own
//! account files. Pure.

use image::Accounts;
use serde::{Deserialize, Serialize};

use super::spec::{RunAs, Security};
use crate::error::Error;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Ascending, without duplicates; includes the primary group, as CRI reports it.
    pub(crate) additional_gids: Vec<u32>,
}

/// `image_user` is `user[:group]` of the image's configuration, either part a name or a number.
pub(crate) fn resolve(
    security: &Security,
    image_user: &str,
    accounts: &Accounts,
) -> Result<User, Error> {
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    let (user, group, field) = match &security.run_as {
        RunAs::Uid(uid) => (uid.to_string(), "", "config.linux.security_context.run_as_user"),
        RunAs::Username(name) => {
            (name.clone(), "", "config.linux.security_context.run_as_username")
        }
        RunAs::Image => (image_name.to_owned(), image_group, "the image's User"),
    };
    let account = lookup_user(&user, accounts, field)?;
    let gid = match (security.run_as_group, group) {
        (Some(gid), _) => gid,
        (None, "") => account.gid,
        (None, group) => lookup_group(group, accounts, field)?,
    };
    let mut groups = security.supplemental_groups.clone();
    groups.push(gid);
    if let (false, Some(name)) = (security.strict_groups, &account.name) {
        let member = |group: &&image::Group| group.members.iter().any(|member| member == name);
        groups.extend(accounts.groups.iter().filter(member).map(|group| group.gid));
    }
    groups.sort_unstable();
    groups.dedup();
    Ok(User { uid: account.uid, gid, additional_gids: groups })
}

struct Account {
    name: Option<String>,
    uid: u32,
    gid: u32,
}

/// Digits are a uid and never a name: else an image could name a user «0» away (CVE-2026-46680).
fn lookup_user(user: &str, accounts: &Accounts, field: &str) -> Result<Account, Error> {
    if user.is_empty() {
        return lookup_user("0", accounts, field);
    }
    if let Some(uid) = number(user, field)? {
        let known = accounts.users.iter().find(|account| account.uid == uid);
        return Ok(Account {
            name: known.map(|account| account.name.clone()),
            uid,
            gid: known.map_or(0, |account| account.gid),
        });
    }
    match accounts.users.iter().find(|account| account.name == user) {
        Some(known) => Ok(Account { name: Some(user.to_owned()), uid: known.uid, gid: known.gid }),
        None => Err(Error::invalid(field, format!("no user {user:?} in the image's /etc/passwd"))),
    }
}

fn lookup_group(group: &str, accounts: &Accounts, field: &str) -> Result<u32, Error> {
    if let Some(gid) = number(group, field)? {
        return Ok(gid);
    }
    let known = accounts.groups.iter().find(|entry| entry.name == group);
    known.map(|entry| entry.gid).ok_or_else(|| {
        Error::invalid(field, format!("no group {group:?} in the image's /etc/group"))
    })
}

/// A text that starts like a number is one, or an error; it is never tried as a name.
fn number(text: &str, field: &str) -> Result<Option<u32>, Error> {
    let numeric = text.trim_start().starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c));
    match text.parse::<u32>() {
        _ if !numeric => Ok(None),
        Ok(id) if id != u32::MAX && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(Some(id)),
        _ => Err(Error::invalid(field, format!("{text:?} is not a user or group id"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;

    fn accounts() -> Accounts {
        let user =
            |name: &str, uid, gid| image::User { name: name.into(), uid, gid, home: "/".into() };
        let group = |name: &str, gid, members: &[&str]| image::Group {
            name: name.into(),
            gid,
            members: members.iter().map(|member| (*member).to_owned()).collect(),
        };
        Accounts {
            users: vec![user("root", 0, 0), user("web", 1000, 1001)],
            groups: vec![
                group("root", 0, &[]),
                group("staff", 50_000, &["web", "other"]),
                group("web", 1001, &[]),
            ],
        }
    }

    #[track_caller]
    fn check(change: impl Fn(&mut Security), image: &str, expect: Option<(u32, u32, &[u32])>) {
        let mut security = testing::spec().security;
        change(&mut security);
        let user = resolve(&security, image, &accounts());
        let expect =
            expect.map(|(uid, gid, groups)| User { uid, gid, additional_gids: groups.to_vec() });
        assert_eq!(user.ok(), expect, "image user {image:?}");
    }

    #[test]
    fn the_image_names_the_user_unless_the_pod_does() {
        check(|_| {}, "", Some((0, 0, &[0])));
        check(|_| {}, "web", Some((1000, 1001, &[1001, 50_000])));
        check(|_| {}, "1000", Some((1000, 1001, &[1001, 50_000])));
        check(|_| {}, "4242", Some((4242, 0, &[0])));
        check(|_| {}, "web:staff", Some((1000, 50_000, &[50_000])));
        check(|_| {}, "1:2", Some((1, 2, &[2])));
        check(|s| s.run_as = RunAs::Uid(7), "web", Some((7, 0, &[0])));
        check(
            |s| s.run_as = RunAs::Username("web".into()),
            "",
            Some((1000, 1001, &[1001, 50_000])),
        );
    }

    #[test]
    fn strict_groups_leave_the_images_memberships_out() {
        let merge = |s: &mut Security| s.supplemental_groups = vec![1234];
        check(merge, "web", Some((1000, 1001, &[1001, 1234, 50_000])));
        let strict = |s: &mut Security| {
            s.supplemental_groups = vec![1234];
            s.strict_groups = true;
        };
        check(strict, "web", Some((1000, 1001, &[1001, 1234])));
    }

    #[test]
    fn what_looks_like_a_number_is_never_a_name() {
        let bad = ["4294967296", "99999999999", "+0", "-1", "0x0", " 0", "0 ", "4294967295"];
        for user in bad.into_iter().chain(["nobody", "web:nogroup", "1:x"]) {
            check(|_| {}, user, None);
        }
    }
}
