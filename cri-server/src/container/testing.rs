//! Values for the unit tests of this folder.

use super::spec::{CapabilityChange, ImageRef, Resources, RunAs, Seccomp, Security, Spec};
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::sandbox::spec::{self as pod, AppArmor, Metadata, NamespaceMode};
use crate::sandbox::state::Phase;

pub(crate) fn spec() -> Spec {
    Spec {
        name: "app".into(),
        attempt: 0,
        image: ImageRef {
            image: "busybox".into(),
            user_specified_image: String::new(),
            annotations: [].into(),
            runtime_handler: String::new(),
            image_ref: String::new(),
        },
        command: vec![],
        args: vec![],
        working_dir: String::new(),
        envs: vec![],
        mounts: vec![],
        devices: vec![],
        cdi_devices: vec![],
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
            network: NamespaceMode::Pod,
            ipc: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            user_namespace: None,
            run_as: RunAs::Image,
            run_as_group: None,
            supplemental_groups: vec![],
            strict_groups: false,
            readonly_rootfs: false,
            no_new_privs: false,
            masked_paths: vec![],
            readonly_paths: vec![],
            seccomp: Seccomp::Unconfined,
            apparmor: AppArmor::NotGiven,
            selinux: None,
        },
        stop_signal: None,
    }
}

pub(crate) fn sandbox() -> Sandbox {
    Sandbox {
        selinux_level: None,
        id: Id::parse(&"a".repeat(64)).unwrap(),
        spec: pod::Spec {
            metadata: Metadata {
                name: "web".into(),
                uid: "u1".into(),
                namespace: "default".into(),
                attempt: 0,
            },
            hostname: "web".into(),
            log_directory: None,
            dns: None,
            port_mappings: vec![],
            bandwidth: pod::Bandwidth::default(),
            shm_bytes: pod::SHM_BYTES,
            labels: [].into(),
            annotations: [].into(),
            runtime_handler: String::new(),
            cgroup_parent: String::new(),
            sysctls: [].into(),
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            user_namespace: None,
            privileged: false,
            confinement: pod::Confinement::default(),
            overhead: Resources::default(),
            resources: Resources::default(),
        },
        created_at_ns: 1,
        phase: Phase::Ready,
        cgroup_parent: "/pods/web".into(),
        owns_cgroup_parent: false,
        addresses: vec![],
        pause_pid: 42,
        hostname: "web".into(),
    }
}
