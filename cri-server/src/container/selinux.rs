//! Labels of SELinux: without it in the kernel they mean nothing, and a pod that carries some runs
//! as on any such node. Where it is on, this runtime leaves its containers unconfined, so a label
//! that was asked for is refused: its protection would be missing.

use super::oci_spec::NodeFacts;
use crate::error::Error;
use crate::sandbox::spec::SelinuxOptions;

/// A container that is not confined needs no volume to be relabelled for it.
pub(crate) fn check(options: Option<&SelinuxOptions>, node: NodeFacts) -> Result<(), Error> {
    match options {
        Some(options) if node.selinux => Err(Error::Unsupported {
            field: "config.linux.security_context.selinux_options".to_owned(),
            hint: format!("{options:?}: containers are not labelled by this version"),
        }),
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_refused_only_where_it_would_be_missed() {
        let node = |selinux| NodeFacts {
            cgroup_v2: true,
            swap_accounting: true,
            user_namespaces: true,
            selinux,
        };
        let options = SelinuxOptions { level: "s0:c1".into(), ..Default::default() };
        assert!(check(Some(&options), node(true)).unwrap_err().to_string().contains("s0:c1"));
        assert!(check(Some(&options), node(false)).is_ok());
        assert!(check(None, node(true)).is_ok());
    }
}
