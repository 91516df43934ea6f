//! Classes of service that pods ask for by annotation: of block I/O and of RDT (cache and memory
//! bandwidth). The annotations are the ones that containerd and CRI-O read.

use std::path::Path;

use crate::error::Error;
use crate::sandbox::spec::StringMap;

/// One kind of class, by the names of its annotations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    /// In the container's annotations.
    container: &'static str,
    /// In the pod's annotations; `/pod` or `/container.NAME` follows.
    pod: &'static str,
}

pub(crate) const BLOCK_IO: Kind = Kind {
    container: "io.kubernetes.cri.blockio-class",
    pod: "blockio.resources.beta.kubernetes.io",
};

pub(crate) const RDT: Kind =
    Kind { container: "io.kubernetes.cri.rdt-class", pod: "rdt.resources.beta.kubernetes.io" };

/// The kernel's interface to RDT.
const RESCTRL: &str = "/sys/fs/resctrl";

/// The annotation that decides, and the class that it names: the container's own, else what the
/// pod says for this container, else for all.
pub(crate) fn of<'a>(
    kind: Kind,
    container: &str,
    own: &'a StringMap,
    pod: &'a StringMap,
) -> Option<(String, &'a str)> {
    let names = [
        (kind.container.to_owned(), own),
        (format!("{}/container.{container}", kind.pod), pod),
        (format!("{}/pod", kind.pod), pod),
    ];
    let given = |(name, map): (String, &'a StringMap)| {
        map.get(&name).filter(|class| !class.is_empty()).map(|class| (name, class.as_str()))
    };
    names.into_iter().find_map(given)
}

/// Whether a process can be put into the RDT class; said before anything is made.
pub(crate) fn check_rdt(annotation: &str, class: &str) -> Result<(), Error> {
    rdt_group(Path::new(RESCTRL), annotation, class)
}

fn rdt_group(resctrl: &Path, annotation: &str, class: &str) -> Result<(), Error> {
    let refused = |hint: String| Error::Unsupported { field: annotation.to_owned(), hint };
    if class.contains('/') || class.starts_with('.') {
        return Err(Error::invalid(annotation, format!("{class:?} is no name of a class")));
    }
    if !resctrl.join("tasks").exists() {
        return Err(refused(format!(
            "class {class:?} was asked for, but {} is not mounted: the processor, the kernel or \
             the node's setup has no RDT",
            resctrl.display()
        )));
    }
    if !resctrl.join(class).join("tasks").exists() {
        return Err(refused(format!("there is no group {class:?} in {}", resctrl.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> StringMap {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_nearest_annotation_decides() {
        let own = map(&[("io.kubernetes.cri.blockio-class", "own")]);
        let pod = map(&[
            ("blockio.resources.beta.kubernetes.io/pod", "pod"),
            ("blockio.resources.beta.kubernetes.io/container.app", "app"),
        ]);
        let class = |own: &StringMap, name: &str| {
            of(BLOCK_IO, name, own, &pod).map(|(_, class)| class.to_owned())
        };
        assert_eq!(class(&own, "app").as_deref(), Some("own"));
        assert_eq!(class(&map(&[]), "app").as_deref(), Some("app"));
        assert_eq!(class(&map(&[]), "other").as_deref(), Some("pod"));
        assert_eq!(of(RDT, "app", &own, &pod), None);
    }

    #[test]
    fn a_class_that_cannot_be_joined_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let text = |class| rdt_group(dir.path(), "rdt/pod", class).unwrap_err().to_string();
        assert!(text("fast").contains("is not mounted"));
        std::fs::write(dir.path().join("tasks"), "").unwrap();
        assert!(text("fast").contains("no group \"fast\""));
        assert!(text("../x").contains("no name of a class"));
        std::fs::create_dir(dir.path().join("fast")).unwrap();
        std::fs::write(dir.path().join("fast/tasks"), "").unwrap();
        rdt_group(dir.path(), "rdt/pod", "fast").unwrap();
    }
}
