//! What confines a process, as sandboxes and containers say it alike: profiles, labels, user
//! namespaces.

use std::path::PathBuf;

use proto::cri::v1 as cri;

use super::{absolute, kernel_id};
use crate::error::Error;
use crate::sandbox::spec::{AppArmor, IdMap, Seccomp, SelinuxOptions, UserNamespace};

/// The path of a field of a security context, for messages.
pub(super) fn field(name: &str) -> String {
    format!("config.linux.security_context.{name}")
}

/// The deprecated field speaks only where the new one is absent.
pub(super) fn seccomp(
    profile: Option<&cri::SecurityProfile>,
    deprecated: &str,
) -> Result<Seccomp, Error> {
    use cri::security_profile::ProfileType;
    let path = |path: &str, name: &str| absolute(&field(name), path).map(Seccomp::Localhost);
    let Some(profile) = profile else {
        return match deprecated {
            "" | "unconfined" => Ok(Seccomp::Unconfined),
            "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
            text => match text.strip_prefix("localhost/") {
                Some(file) => path(file, "seccomp_profile_path"),
                None => Err(no_profile("seccomp_profile_path", text)),
            },
        };
    };
    match profile.profile_type.try_into() {
        Ok(ProfileType::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Seccomp::Unconfined),
        Ok(ProfileType::Localhost) => path(&profile.localhost_ref, "seccomp.localhost_ref"),
        Err(_) => {
            let problem = format!("{} is no type of profile", profile.profile_type);
            Err(Error::invalid(field("seccomp"), problem))
        }
    }
}

/// As for seccomp, but nothing said is told apart: the node's default is meant then.
pub(super) fn apparmor(
    profile: Option<&cri::SecurityProfile>,
    deprecated: &str,
) -> Result<AppArmor, Error> {
    use cri::security_profile::ProfileType;
    let named = |name: &str, part: &str| match name {
        "" => Err(Error::invalid(field(part), "names no profile")),
        bad if bad.contains(|c: char| c.is_control()) => Err(no_profile(part, bad)),
        name => Ok(AppArmor::Localhost(name.to_owned())),
    };
    let Some(profile) = profile else {
        return match deprecated {
            "" => Ok(AppArmor::NotGiven),
            "unconfined" => Ok(AppArmor::Unconfined),
            "runtime/default" => Ok(AppArmor::RuntimeDefault),
            text => match text.strip_prefix("localhost/") {
                Some(name) => named(name, "apparmor_profile"),
                None => Err(no_profile("apparmor_profile", text)),
            },
        };
    };
    match profile.profile_type.try_into() {
        Ok(ProfileType::RuntimeDefault) => Ok(AppArmor::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(AppArmor::Unconfined),
        Ok(ProfileType::Localhost) => named(&profile.localhost_ref, "apparmor.localhost_ref"),
        Err(_) => {
            let problem = format!("{} is no type of profile", profile.profile_type);
            Err(Error::invalid(field("apparmor"), problem))
        }
    }
}

fn no_profile(name: &str, text: &str) -> Error {
    Error::invalid(field(name), format!("{text:?} is no profile"))
}

/// The parts of a label; `None` when none is given.
pub(super) fn selinux(
    options: Option<cri::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>, Error> {
    let Some(given) = options.filter(|given| *given != cri::SeLinuxOption::default()) else {
        return Ok(None);
    };
    let word = |name: &str, text: String, more: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c) || more.contains(c);
        match text.chars().all(known) {
            true => Ok(text),
            false => {
                let field = field(&format!("selinux_options.{name}"));
                Err(Error::invalid(field, format!("{text:?} is no part of a label")))
            }
        }
    };
    Ok(Some(SelinuxOptions {
        user: word("user", given.user, "")?,
        role: word("role", given.role, "")?,
        kind: word("type", given.r#type, "")?,
        level: word("level", given.level, ":,")?,
    }))
}

/// POD with one run of ids each, which begins at 0 inside; or the node's.
pub(super) fn user_namespace(
    options: Option<&cri::UserNamespace>,
) -> Result<Option<UserNamespace>, Error> {
    let Some(options) = options else { return Ok(None) };
    let field = field("namespace_options.userns_options");
    match cri::NamespaceMode::try_from(options.mode) {
        Ok(cri::NamespaceMode::Node) if options.uids.is_empty() && options.gids.is_empty() => {
            Ok(None)
        }
        Ok(cri::NamespaceMode::Node) => {
            Err(Error::invalid(field, "mappings mean nothing in the node's user namespace"))
        }
        Ok(cri::NamespaceMode::Pod) => Ok(Some(UserNamespace {
            uids: one_map(&format!("{field}.uids"), &options.uids)?,
            gids: one_map(&format!("{field}.gids"), &options.gids)?,
        })),
        _ => Err(Error::invalid(field, "a user namespace is POD or NODE")),
    }
}

fn one_map(field: &str, maps: &[cri::IdMapping]) -> Result<IdMap, Error> {
    let [map] = maps else {
        return Err(Error::invalid(field, format!("has {} mappings, needs one", maps.len())));
    };
    if map.container_id != 0 {
        return Err(Error::invalid(field, "does not map id 0 of the container"));
    }
    id_map(field, map)
}

/// A run of ids, whole within the kernel's 32 bits on both sides.
pub(super) fn id_map(field: &str, map: &cri::IdMapping) -> Result<IdMap, Error> {
    let fits = |first: u32| first.checked_add(map.length).is_some();
    if map.length == 0 || !fits(map.host_id) || !fits(map.container_id) {
        let problem = format!(
            "{} ids from {} (node {}) are not within the kernel's ids",
            map.length, map.container_id, map.host_id
        );
        return Err(Error::invalid(field, problem));
    }
    Ok(IdMap { inside: map.container_id, outside: map.host_id, count: map.length })
}

/// The user ids of a context, each with the name of its field.
pub(super) fn ids(name: &str, values: Vec<i64>) -> Result<Vec<u32>, Error> {
    values.into_iter().map(|value| kernel_id(&field(name), value)).collect()
}

pub(super) fn id(name: &str, value: Option<&cri::Int64Value>) -> Result<Option<u32>, Error> {
    value.map(|value| kernel_id(&field(name), value.value)).transpose()
}

pub(super) fn strict_groups(policy: i32) -> Result<bool, Error> {
    match cri::SupplementalGroupsPolicy::try_from(policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => Ok(false),
        Ok(cri::SupplementalGroupsPolicy::Strict) => Ok(true),
        Err(_) => {
            let problem = format!("{policy} is no policy");
            Err(Error::invalid(field("supplemental_groups_policy"), problem))
        }
    }
}

pub(super) fn paths(name: &str, paths: Vec<String>) -> Result<Vec<String>, Error> {
    paths.into_iter().map(|path| absolute(&field(name), &path).map(|_: PathBuf| path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(profile_type: i32, localhost_ref: &str) -> cri::SecurityProfile {
        cri::SecurityProfile { profile_type, localhost_ref: localhost_ref.into() }
    }

    #[test]
    fn the_new_field_wins_over_the_deprecated_one() {
        let unconfined = profile(1, "");
        assert_eq!(seccomp(Some(&unconfined), "runtime/default").unwrap(), Seccomp::Unconfined);
        assert_eq!(seccomp(None, "docker/default").unwrap(), Seccomp::RuntimeDefault);
        assert_eq!(
            seccomp(None, "localhost//p.json").unwrap(),
            Seccomp::Localhost("/p.json".into())
        );
        assert!(seccomp(None, "something").is_err());
        let strict = profile(2, "strict");
        let strict = apparmor(Some(&strict), "localhost/other").unwrap();
        assert_eq!(strict, AppArmor::Localhost("strict".into()));
        assert_eq!(apparmor(None, "runtime/default").unwrap(), AppArmor::RuntimeDefault);
        assert_eq!(apparmor(None, "").unwrap(), AppArmor::NotGiven);
        assert!(apparmor(None, "localhost/").is_err());
    }

    #[track_caller]
    fn userns(mode: i32, uids: &[(u32, u32, u32)], expect: Result<bool, &str>) {
        let map = |(container_id, host_id, length): &(u32, u32, u32)| cri::IdMapping {
            container_id: *container_id,
            host_id: *host_id,
            length: *length,
        };
        let maps: Vec<_> = uids.iter().map(map).collect();
        let options = cri::UserNamespace { mode, uids: maps.clone(), gids: maps };
        let made = user_namespace(Some(&options)).map(|made| made.is_some());
        match (made.map_err(|error| error.to_string()), expect) {
            (Ok(made), Ok(expect)) => assert_eq!(made, expect),
            (Err(error), Err(expect)) => assert!(error.contains(expect), "{error}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_user_namespace_has_one_run_of_ids_that_holds_root() {
        userns(0, &[(0, 1000, 100_000)], Ok(true));
        userns(2, &[], Ok(false));
        userns(0, &[], Err("has 0 mappings"));
        userns(0, &[(0, 1000, 10), (10, 2000, 10)], Err("has 2 mappings"));
        userns(0, &[(1, 1000, 10)], Err("id 0"));
        userns(0, &[(0, 1000, 0)], Err("kernel's ids"));
        userns(0, &[(0, u32::MAX - 5, 10)], Err("kernel's ids"));
        userns(1, &[(0, 1000, 10)], Err("POD or NODE"));
        userns(3, &[(0, 1000, 10)], Err("POD or NODE"));
        userns(2, &[(0, 1000, 10)], Err("mean nothing"));
    }

    #[test]
    fn the_parts_of_a_label_are_words() {
        let given = |level: &str| cri::SeLinuxOption { level: level.into(), ..Default::default() };
        assert_eq!(selinux(Some(given(""))).unwrap(), None);
        assert_eq!(selinux(Some(given("s0:c1,c2"))).unwrap().unwrap().level, "s0:c1,c2");
        assert!(selinux(Some(given("s0 c1"))).is_err());
    }
}
