//! Which capabilities a container gets. Pure: the change asked for and the node's bounding set
//! come in.

use rustix::thread::CapabilitySet;

use super::spec::CapabilityChange;

/// What an ordinary container gets: the fourteen that images of the Docker era expect.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Whether Linux has a capability of this name (no prefix, upper case).
pub(crate) fn known(name: &str) -> bool {
    CapabilitySet::from_name(name).is_some()
}

/// Every capability of Linux in the kernel's order.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    CapabilitySet::all().iter_names().map(|(name, _)| name)
}

/// The sets of a container. Inheritable stays empty: a set one there lets every program with
/// inheritable file capabilities gain them (CVE-2022-24769).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sets {
    /// Bounding, effective and permitted are the same.
    pub(crate) effective: Vec<&'static str>,
    /// A subset of the above; the kernel wants these inheritable as well.
    pub(crate) ambient: Vec<&'static str>,
}

/// `ALL` in `drop` empties the defaults before `add` is looked at, `ALL` in `add` starts from
/// everything; a name in both lists ends up dropped unless it was added by name over `drop ALL`.
pub(crate) fn resolve(change: &CapabilityChange, privileged: bool) -> Sets {
    if privileged {
        return Sets { effective: all().collect(), ambient: Vec::new() };
    }
    let has = |list: &[String], name: &str| list.iter().any(|entry| entry == name);
    let drop_all = has(&change.drop, "ALL");
    let effective: Vec<_> = all()
        .filter(|name| {
            let added = has(&change.add, name) || has(&change.add_ambient, name);
            let granted = if has(&change.add, "ALL") {
                true
            } else if drop_all {
                added
            } else {
                added || DEFAULT.contains(name)
            };
            granted && !has(&change.drop, name)
        })
        .collect();
    let ambient = effective
        .iter()
        .copied()
        .filter(|name| has(&change.add_ambient, name) || has(&change.add_ambient, "ALL"))
        .collect();
    Sets { effective, ambient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str]) {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let change = CapabilityChange { add: list(add), drop: list(drop), add_ambient: Vec::new() };
        let sets = resolve(&change, false);
        assert!(has.iter().all(|name| sets.effective.contains(name)), "{sets:?}");
        assert!(!lacks.iter().any(|name| sets.effective.contains(name)), "{sets:?}");
        assert_eq!(sets.ambient, [""; 0]);
    }

    #[test]
    fn additions_and_drops_combine_as_people_expect() {
        check(&[], &[], &["CHOWN", "KILL"], &["SYS_ADMIN"]);
        check(&["NET_ADMIN"], &["CHOWN"], &["NET_ADMIN", "KILL"], &["CHOWN"]);
        check(&["NET_ADMIN"], &["ALL"], &["NET_ADMIN"], &["CHOWN", "KILL"]);
        check(&["ALL"], &["SYS_TIME"], &["SYS_ADMIN", "CHOWN"], &["SYS_TIME"]);
        check(&["ALL"], &[], &all().collect::<Vec<_>>(), &[]);
    }

    #[test]
    fn an_ambient_capability_is_effective_too() {
        let change = CapabilityChange {
            add: vec![],
            drop: vec!["ALL".into()],
            add_ambient: vec!["NET_BIND_SERVICE".into()],
        };
        let sets = resolve(&change, false);
        assert_eq!(sets.effective, ["NET_BIND_SERVICE"]);
        assert_eq!(sets.ambient, ["NET_BIND_SERVICE"]);
    }
}
