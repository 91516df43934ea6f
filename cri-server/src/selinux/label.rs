//! What a label is made of. Pure.

use std::path::{Path, PathBuf};

use crate::sandbox::spec::SelinuxOptions;

/// `user:role:type:level`; the level may hold further colons.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl Label {
    fn read(text: &str) -> Option<Self> {
        let mut parts = text.trim().trim_matches('"').splitn(4, ':').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        Some(Self { user: next()?, role: next()?, kind: next()?, level: next()? })
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.kind, self.level)
    }
}

/// What the node's policy has for containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Defaults {
    process: Label,
    file: Label,
}

impl Defaults {
    /// Reads `lxc_contexts`: lines of `name = "label"`.
    pub(super) fn read(text: &str) -> Option<Self> {
        let named = |name: &str| {
            let fits = |(key, _): &(&str, &str)| key.trim() == name;
            let (_, label) = text.lines().filter_map(|line| line.split_once('=')).find(fits)?;
            Label::read(label)
        };
        Some(Self { process: named("process")?, file: named("file")? })
    }

    /// The level without categories.
    pub(super) fn sensitivity(&self) -> &str {
        self.process.level.split(':').next().unwrap_or_default()
    }
}

/// Where the policy that the node uses says what containers are labelled with.
pub(super) fn contexts_file(etc: &Path) -> PathBuf {
    const USUAL: &str = "targeted";
    let config = std::fs::read_to_string(etc.join("config")).unwrap_or_default();
    let policy = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE="));
    etc.join(policy.unwrap_or(USUAL).trim()).join("contexts/lxc_contexts")
}

/// Both labels of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) process: String,
    /// Of the files of the container, and of volumes that are relabelled for it.
    pub(crate) mount: String,
}

/// What was asked for, over the node's defaults; `level` is the pod's.
pub(super) fn labels(defaults: &Defaults, options: Option<&SelinuxOptions>, level: &str) -> Labels {
    let nothing = SelinuxOptions::default();
    let asked = options.unwrap_or(&nothing);
    let or = |asked: &String, default: &str| match asked.as_str() {
        "" => default.to_owned(),
        asked => asked.to_owned(),
    };
    let of = |default: &Label, role: &String, kind: &String| Label {
        user: or(&asked.user, &default.user),
        role: or(role, &default.role),
        kind: or(kind, &default.kind),
        level: or(&asked.level, level),
    };
    let (process, file) = (&defaults.process, &defaults.file);
    Labels {
        process: of(process, &asked.role, &asked.kind).to_string(),
        // Role and type are those of processes; a file has its own.
        mount: of(file, &file.role, &file.kind).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXTS: &str = "process = \"system_u:system_r:container_t:s0\"\n\
                            content = \"system_u:object_r:virt_var_lib_t:s0\"\n\
                            file = \"system_u:object_r:container_file_t:s0\"\n";

    #[test]
    fn what_is_not_asked_for_is_the_nodes_and_the_level_is_the_pods() {
        let defaults = Defaults::read(CONTEXTS).unwrap();
        assert_eq!(defaults.sensitivity(), "s0");
        let both = |options: Option<&SelinuxOptions>| {
            let labels = labels(&defaults, options, "s0:c1,c2");
            [labels.process, labels.mount]
        };
        assert_eq!(
            both(None),
            [
                "system_u:system_r:container_t:s0:c1,c2",
                "system_u:object_r:container_file_t:s0:c1,c2"
            ]
        );
        let asked = SelinuxOptions {
            user: "u".into(),
            role: "r".into(),
            kind: "t".into(),
            level: "s0:c5".into(),
        };
        assert_eq!(both(Some(&asked)), ["u:r:t:s0:c5", "u:object_r:container_file_t:s0:c5"]);
    }

    #[test]
    fn a_policy_without_containers_is_none() {
        assert_eq!(Defaults::read("process = \"a:b:c:s0\"\n"), None);
        assert_eq!(Defaults::read("process = \"a:b\"\nfile = \"a:b:c:s0\"\n"), None);
        let dir = tempfile::tempdir().unwrap();
        let file = |dir: &Path| contexts_file(dir).strip_prefix(dir).unwrap().to_owned();
        assert_eq!(file(dir.path()), Path::new("targeted/contexts/lxc_contexts"));
        std::fs::write(dir.path().join("config"), "# x\nSELINUXTYPE=default\n").unwrap();
        assert_eq!(file(dir.path()), Path::new("default/contexts/lxc_contexts"));
    }
}
