//! SELinux: the labels under which a pod's processes run and which its files show. Each pod has a pair of categories of
//! its own, shared by its containers, so that one pod's processes cannot touch another's files.
//!
//! Where the kernel has no SELinux a label means nothing, and a pod that asks for one runs as on any such node. Where it
//! is on but the node has no policy for containers, a label that was asked for is refused: its protection would be
//! missing.

mod categories;
mod label;
mod relabel;

use std::path::{Path, PathBuf};

pub(crate) use label::Labels;
use label::{Defaults, labels};

use crate::error::Error;
use crate::sandbox::spec::SelinuxOptions;
use crate::store::world::Snapshot;

const SELINUXFS: &str = "/sys/fs/selinux";

/// Where the node's policy is named and kept.
const ETC: &str = "/etc/selinux";

/// What the node has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// The kernel looks at no labels.
    Off,
    /// It does, but nothing says what containers are labelled with.
    WithoutPolicy(PathBuf),
    On(Defaults),
}

impl Node {
    /// Read once: a policy for containers that comes later is found at the next start.
    pub(crate) fn look() -> Self {
        if !Path::new(SELINUXFS).join("enforce").exists() {
            return Self::Off;
        }
        let file = label::contexts_file(Path::new(ETC));
        match std::fs::read_to_string(&file).ok().and_then(|text| Defaults::read(&text)) {
            Some(defaults) => Self::On(defaults),
            None => Self::WithoutPolicy(file),
        }
    }

    /// Whether a pod or container that asks for this can have it.
    pub(crate) fn check(&self, options: Option<&SelinuxOptions>) -> Result<(), Error> {
        match (self, options) {
            (Self::WithoutPolicy(file), Some(options)) => Err(Error::Unsupported {
                field: FIELD.to_owned(),
                hint: format!(
                    "{options:?}: this node's policy knows no containers ({} says nothing of them; \
                     container-selinux brings it)",
                    file.display()
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The level of a new pod: its own, or one that no other pod has.
    pub(crate) fn level(
        &self,
        id: &str,
        options: Option<&SelinuxOptions>,
        world: &Snapshot,
    ) -> Option<String> {
        let Self::On(defaults) = self else { return None };
        if let Some(options) = options.filter(|options| !options.level.is_empty()) {
            return Some(options.level.clone());
        }
        let taken = world.sandboxes.values().filter_map(|pod| pod.selinux_level.as_deref());
        Some(categories::free(defaults.sensitivity(), id, taken))
    }

    /// The labels of a process of a pod with that level; none for a privileged one that asks for nothing.
    pub(crate) fn labels(
        &self,
        options: Option<&SelinuxOptions>,
        level: Option<&str>,
        privileged: bool,
    ) -> Result<Option<Labels>, Error> {
        let Self::On(defaults) = self else { return Ok(None) };
        if privileged && options.is_none() {
            return Ok(None);
        }
        let labels = labels(defaults, options, level.unwrap_or(defaults.sensitivity()));
        [&labels.process, &labels.mount].into_iter().try_for_each(|label| known(label))?;
        Ok(Some(labels))
    }
}

const FIELD: &str = "config.linux.security_context.selinux_options";

/// Whether the node's policy has such a label: said before anything is made.
fn known(label: &str) -> Result<(), Error> {
    let asked = std::fs::OpenOptions::new()
        .write(true)
        .open(Path::new(SELINUXFS).join("context"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, label.as_bytes()));
    match asked {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err(Error::invalid(FIELD, format!("the node's policy has no label {label:?}")))
        }
        other => other.map_err(|source| Error::io("ask for a label", SELINUXFS, source)),
    }
}

/// Gives a file of the node, or a directory with all that is below it, the label that a pod's files have. A file system
/// without labels stays as it is.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    relabel::tree(path, label).map_err(|source| Error::io("relabel", path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_refused_only_where_it_would_be_missed() {
        let options = SelinuxOptions { level: "s0:c1".into(), ..Default::default() };
        let refused = Node::WithoutPolicy("/etc/x".into()).check(Some(&options)).unwrap_err();
        assert!(refused.to_string().contains("s0:c1"), "{refused}");
        assert!(Node::WithoutPolicy("/etc/x".into()).check(None).is_ok());
        assert!(Node::Off.check(Some(&options)).is_ok());
        assert_eq!(Node::Off.labels(Some(&options), None, false).unwrap(), None);
        assert_eq!(Node::Off.level("a", Some(&options), &Snapshot::default()), None);
    }
}
