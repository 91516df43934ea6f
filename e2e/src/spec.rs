//! What a test asks for: pods and containers, said in a line.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, Int64Value, KeyValue,
    LinuxContainerConfig, LinuxContainerResources, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PortMapping,
};

/// A pod to be run; `config` is open to whatever has no word here.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub config: PodSandboxConfig,
    pub handler: String,
}

/// A container to be made; `config` is open to whatever has no word here.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    pub config: ContainerConfig,
}

/// Namespace `default`, a fresh uid, network of its own.
pub fn pod(name: &str) -> PodSpec {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let uid = format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    PodSpec {
        config: PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid,
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        },
        handler: String::new(),
    }
}

/// Runs the image's own command, logs to `NAME.log`.
pub fn container(name: &str, image: &str) -> ContainerSpec {
    ContainerSpec {
        config: ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned(), ..Default::default() }),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources::default()),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: NamespaceMode::Container as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
            }),
            ..Default::default()
        },
    }
}

impl PodSpec {
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn annotation(mut self, key: &str, value: impl Into<String>) -> Self {
        self.config.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub fn hostname(mut self, name: &str) -> Self {
        name.clone_into(&mut self.config.hostname);
        self
    }

    pub fn handler(mut self, name: &str) -> Self {
        name.clone_into(&mut self.handler);
        self
    }

    /// The host's network, and with it the host's name, as the kubelet asks for it.
    pub fn host_network(mut self) -> Self {
        self.namespaces().network = NamespaceMode::Node as i32;
        self.hostname("")
    }

    /// One pid namespace for the whole pod.
    pub fn shared_pids(mut self) -> Self {
        self.namespaces().pid = NamespaceMode::Pod as i32;
        self
    }

    pub fn dns(mut self, servers: &[&str], searches: &[&str], options: &[&str]) -> Self {
        let owned = |it: &[&str]| it.iter().map(|it| (*it).to_owned()).collect();
        self.config.dns_config = Some(DnsConfig {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        });
        self
    }

    pub fn sysctl(mut self, key: &str, value: &str) -> Self {
        let sysctls: &mut HashMap<_, _> = &mut self.linux().sysctls;
        sysctls.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn port(mut self, container_port: i32, host_port: i32) -> Self {
        self.config.port_mappings.push(PortMapping {
            container_port,
            host_port,
            ..Default::default()
        });
        self
    }

    pub fn metadata(&mut self) -> &mut PodSandboxMetadata {
        self.config.metadata.get_or_insert_default()
    }

    pub fn linux(&mut self) -> &mut LinuxPodSandboxConfig {
        self.config.linux.get_or_insert_default()
    }

    pub fn namespaces(&mut self) -> &mut NamespaceOption {
        let security = self.linux().security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default()
    }
}

impl ContainerSpec {
    pub fn command(mut self, words: &[&str]) -> Self {
        self.config.command = words.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    pub fn args(mut self, words: &[&str]) -> Self {
        self.config.args = words.iter().map(|it| (*it).to_owned()).collect();
        self
    }

    /// `sh -c SCRIPT`
    pub fn shell(self, script: &str) -> Self {
        self.command(&["sh", "-c", script])
    }

    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.config.envs.push(KeyValue { key: key.to_owned(), value: value.to_owned() });
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.config.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    pub fn annotation(mut self, key: &str, value: impl Into<String>) -> Self {
        self.config.annotations.insert(key.to_owned(), value.into());
        self
    }

    pub fn attempt(mut self, attempt: u32) -> Self {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    pub fn working_dir(mut self, path: &str) -> Self {
        path.clone_into(&mut self.config.working_dir);
        self
    }

    pub fn mount(mut self, host: &str, inside: &str, readonly: bool) -> Self {
        self.config.mounts.push(Mount {
            host_path: host.to_owned(),
            container_path: inside.to_owned(),
            readonly,
            ..Default::default()
        });
        self
    }

    pub fn user(mut self, uid: i64, gid: Option<i64>) -> Self {
        self.security().run_as_user = Some(Int64Value { value: uid });
        self.security().run_as_group = gid.map(|value| Int64Value { value });
        self
    }

    pub fn username(mut self, name: &str) -> Self {
        name.clone_into(&mut self.security().run_as_username);
        self
    }

    /// One pid namespace for the whole pod; the sandbox must be asked for it too.
    pub fn shared_pids(mut self) -> Self {
        self.security().namespace_options.get_or_insert_default().pid = NamespaceMode::Pod as i32;
        self
    }

    pub fn host_network(mut self) -> Self {
        self.security().namespace_options.get_or_insert_default().network =
            NamespaceMode::Node as i32;
        self
    }

    pub fn resources(&mut self) -> &mut LinuxContainerResources {
        self.config.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    pub fn security(&mut self) -> &mut LinuxContainerSecurityContext {
        self.config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
}
