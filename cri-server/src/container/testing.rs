//! Values for the unit tests of this folder.

use super::spec::{CapabilityChange, ImageRef, Resources, RunAs, Seccomp, Security, Spec};
use crate::sandbox::spec::NamespaceMode;

pub(crate) fn spec() -> Spec {
    Spec {
        name: "app".into(),
        attempt: 0,
        image: ImageRef {
            image: "busybox".into(),
            user_specified_image: String::new(),
            annotations: [].into(),
        },
        command: vec![],
        args: vec![],
        working_dir: String::new(),
        envs: vec![],
        mounts: vec![],
        devices: vec![],
        labels: [].into(),
        annotations: [].into(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        resources: Resources::default(),
        security: Security {
            capabilities: CapabilityChange::default(),
            privileged: false,
            pid: NamespaceMode::Container,
            run_as: RunAs::Image,
            run_as_group: None,
            supplemental_groups: vec![],
            strict_groups: false,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: vec![],
            readonly_paths: vec![],
            seccomp: Seccomp::Unconfined,
        },
        stop_signal: None,
    }
}
