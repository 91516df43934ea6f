//! `PodSandboxConfig` → `sandbox::Spec`.

use std::collections::HashMap;
use std::net::IpAddr;

use proto::cri::v1 as cri;

use super::resources::resources;
use super::security::{self, field};
use super::{absolute, name, namespace_mode, string_map};
use runtime::cgroup::unit::slice_path;

use crate::error::Error;
use crate::quantity;
use crate::sandbox::spec::{
    Bandwidth, Confinement, Dns, Metadata, NamespaceMode, PortMapping, Protocol, SHM_BYTES, Spec,
};

/// What a limit may be, in bits per second, as the peers have it: less would stop a pod's network
/// altogether, more is no network.
const BANDWIDTH: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// Longest host name the kernel's UTS namespace holds (`__NEW_UTS_LEN`).
const HOSTNAME_MAX: usize = 64;

pub(crate) fn sandbox(request: cri::RunPodSandboxRequest) -> Result<Spec, Error> {
    let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    if config.windows.is_some() {
        return Err(Error::Unsupported {
            field: "config.windows".into(),
            hint: "this node runs Linux pods only".into(),
        });
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let namespaces = security.namespace_options.clone().unwrap_or_default();
    if !namespaces.target_id.is_empty() {
        return Err(Error::invalid(
            field("namespace_options.target_id"),
            "belongs to a container, not to a sandbox",
        ));
    }
    let spec = Spec {
        metadata: metadata(config.metadata)?,
        hostname: hostname(config.hostname)?,
        log_directory: match config.log_directory.as_str() {
            "" => None,
            path => Some(absolute("config.log_directory", path)?),
        },
        dns: config.dns_config.map(dns).transpose()?,
        port_mappings: config
            .port_mappings
            .iter()
            .filter(|mapping| mapping.host_port != 0)
            .map(port_mapping)
            .collect::<Result<_, _>>()?,
        bandwidth: bandwidth(&config.annotations)?,
        shm_bytes: shm_bytes(&config.annotations)?,
        labels: string_map("config.labels", config.labels)?,
        annotations: string_map("config.annotations", config.annotations)?,
        runtime_handler: request.runtime_handler,
        cgroup_parent: cgroup_parent(&linux.cgroup_parent)?,
        sysctls: linux.sysctls.into_iter().collect(),
        network: sandbox_namespace("network", namespaces.network)?,
        pid: sandbox_namespace("pid", namespaces.pid)?,
        ipc: sandbox_namespace("ipc", namespaces.ipc)?,
        user_namespace: security::user_namespace(namespaces.userns_options.as_ref())?,
        privileged: security.privileged,
        confinement: confinement(security)?,
        overhead: resources("config.linux.overhead", linux.overhead)?,
        resources: resources("config.linux.resources", linux.resources)?,
    };
    sysctls(&spec)?;
    Ok(spec)
}

/// What holds for the sandbox's own process.
fn confinement(given: cri::LinuxSandboxSecurityContext) -> Result<Confinement, Error> {
    if given.run_as_group.is_some() && given.run_as_user.is_none() {
        return Err(Error::invalid(field("run_as_group"), "needs run_as_user beside it"));
    }
    #[expect(deprecated, reason = "older kubelets still send it")]
    let old_seccomp = &given.seccomp_profile_path;
    Ok(Confinement {
        run_as_user: security::id("run_as_user", given.run_as_user.as_ref())?,
        run_as_group: security::id("run_as_group", given.run_as_group.as_ref())?,
        seccomp: security::seccomp(given.seccomp.as_ref(), old_seccomp)?,
        apparmor: security::apparmor(given.apparmor.as_ref(), "")?,
        selinux: security::selinux(given.selinux_options)?,
        supplemental_groups: security::ids("supplemental_groups", given.supplemental_groups)?,
        strict_groups: security::strict_groups(given.supplemental_groups_policy)?,
        readonly_rootfs: given.readonly_rootfs,
    })
}

fn metadata(metadata: Option<cri::PodSandboxMetadata>) -> Result<Metadata, Error> {
    let metadata = metadata.ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    Ok(Metadata {
        name: name("config.metadata.name", &metadata.name)?,
        uid: name("config.metadata.uid", &metadata.uid)?,
        namespace: name("config.metadata.namespace", &metadata.namespace)?,
        attempt: metadata.attempt,
    })
}

fn hostname(hostname: String) -> Result<String, Error> {
    if hostname.len() > HOSTNAME_MAX {
        return Err(Error::invalid(
            "config.hostname",
            format!("has {} bytes; the kernel holds at most {HOSTNAME_MAX}", hostname.len()),
        ));
    }
    if hostname.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid("config.hostname", format!("{hostname:?} has blanks in it")));
    }
    Ok(hostname)
}

fn dns(dns: cri::DnsConfig) -> Result<Dns, Error> {
    let lines = [&dns.servers, &dns.searches, &dns.options];
    if lines.into_iter().flatten().any(|value| value.contains(['\n', '\r', '\0'])) {
        return Err(Error::invalid("config.dns_config", "a value holds a line break"));
    }
    Ok(Dns { servers: dns.servers, searches: dns.searches, options: dns.options })
}

fn port_mapping(mapping: &cri::PortMapping) -> Result<PortMapping, Error> {
    let port = |field: &str, value: i32| match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Error::invalid(field, format!("{value} is not a port"))),
    };
    Ok(PortMapping {
        protocol: match cri::Protocol::try_from(mapping.protocol) {
            Ok(cri::Protocol::Tcp) => Protocol::Tcp,
            Ok(cri::Protocol::Udp) => Protocol::Udp,
            Ok(cri::Protocol::Sctp) => Protocol::Sctp,
            Err(_) => {
                let problem = format!("{} is no protocol", mapping.protocol);
                return Err(Error::invalid("config.port_mappings.protocol", problem));
            }
        },
        container_port: port("config.port_mappings.container_port", mapping.container_port)?,
        host_port: port("config.port_mappings.host_port", mapping.host_port)?,
        host_ip: match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|_| {
                Error::invalid("config.port_mappings.host_ip", format!("{text:?} is no IP address"))
            })?)
            .filter(|address| !address.is_unspecified()),
        },
    })
}

fn bandwidth(annotations: &HashMap<String, String>) -> Result<Bandwidth, Error> {
    let limit = |direction: &str| {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        let Some(text) = annotations.get(&key) else { return Ok(None) };
        let wrong = |problem| Error::invalid(format!("config.annotations[{key}]"), problem);
        let bits = quantity::whole(text).map_err(wrong)?;
        match u64::try_from(bits).ok().filter(|bits| BANDWIDTH.contains(bits)) {
            Some(bits) => Ok(Some(bits)),
            None => Err(wrong(format!("{text:?} is not between 1k and 1P bits per second"))),
        }
    };
    Ok(Bandwidth { ingress: limit("ingress")?, egress: limit("egress")? })
}

/// The contract has no field for it; the second name is CRI-O's.
const SHM_SIZE: [&str; 2] = ["lapstrake.io/shm-size", "io.kubernetes.cri-o.ShmSize"];

fn shm_bytes(annotations: &HashMap<String, String>) -> Result<u64, Error> {
    let given = SHM_SIZE.iter().find_map(|key| Some((key, annotations.get(*key)?)));
    let Some((key, text)) = given else { return Ok(SHM_BYTES) };
    let wrong = |problem| Error::invalid(format!("config.annotations[{key}]"), problem);
    match u64::try_from(quantity::whole(text).map_err(wrong)?) {
        // For the kernel a size of 0 is no limit at all.
        Ok(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(wrong(format!("{text:?} must be more than nothing, such as 256Mi"))),
    }
}

fn cgroup_parent(parent: &str) -> Result<String, Error> {
    let field = "config.linux.cgroup_parent";
    let last = parent.rsplit('/').next().unwrap_or(parent);
    if last.ends_with(".slice") {
        let path = slice_path(last).map_err(|error| Error::invalid(field, error.to_string()))?;
        // Slices are nested by their names: a path says nothing that the name does not say.
        return match parent == last || parent.trim_start_matches('/') == path.trim_matches('/') {
            true if !path.is_empty() => Ok(path),
            true => Err(Error::invalid(field, "-.slice is the node's, a pod needs one of its own")),
            false => Err(Error::invalid(
                field,
                format!("the slice {last} is at {path}, not at {parent:?}"),
            )),
        };
    }
    if parent.is_empty() {
        return Ok(String::new());
    }
    let path = std::path::Path::new(parent);
    let plain = path.components().all(|part| {
        matches!(part, std::path::Component::RootDir | std::path::Component::Normal(_))
    });
    if !plain {
        return Err(Error::invalid(field, format!("{parent:?} is not a plain cgroup path")));
    }
    Ok(format!("/{}", parent.trim_matches('/')))
}

fn sandbox_namespace(kind: &str, value: i32) -> Result<NamespaceMode, Error> {
    let field = format!("config.linux.security_context.namespace_options.{kind}");
    match (kind, namespace_mode(&field, value, "")) {
        ("pid", Ok(NamespaceMode::Container)) => Ok(NamespaceMode::Container),
        (_, Ok(mode @ (NamespaceMode::Pod | NamespaceMode::Node))) => Ok(mode),
        (_, Err(error)) => Err(error),
        (_, Ok(_)) => Err(Error::invalid(field, "a sandbox has POD or NODE here")),
    }
}

/// Only sysctls that live in a namespace of this pod: anything else would change the node.
fn sysctls(spec: &Spec) -> Result<(), Error> {
    for key in spec.sysctls.keys() {
        let path = key.replace('/', ".");
        let owner = if path.starts_with("net.") {
            &spec.network
        } else if path.starts_with("kernel.shm")
            || path.starts_with("kernel.msg")
            || path == "kernel.sem"
            || path.starts_with("fs.mqueue.")
        {
            &spec.ipc
        } else {
            return Err(Error::invalid(
                "config.linux.sysctls",
                format!("{key:?} belongs to no namespace of a pod; it would change the node"),
            ));
        };
        if *owner == NamespaceMode::Node {
            return Err(Error::invalid(
                "config.linux.sysctls",
                format!("{key:?} would change the node, whose namespace this pod uses"),
            ));
        }
        if spec.sysctls[key].contains(['\n', '\0']) {
            let problem = format!("the value of {key:?} holds a line break");
            return Err(Error::invalid("config.linux.sysctls", problem));
        }
        if key.contains("..") || key.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::invalid("config.linux.sysctls", format!("{key:?} is no sysctl")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> cri::RunPodSandboxRequest {
        let metadata = cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 0,
        };
        cri::RunPodSandboxRequest {
            config: Some(cri::PodSandboxConfig { metadata: Some(metadata), ..Default::default() }),
            ..Default::default()
        }
    }

    #[track_caller]
    fn refused(change: impl Fn(&mut cri::PodSandboxConfig), expect: &str) {
        let mut request = request();
        change(request.config.as_mut().unwrap());
        let error = sandbox(request).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }

    #[test]
    fn the_smallest_sandbox_shares_everything_with_its_containers() {
        let spec = sandbox(request()).unwrap();
        assert_eq!((spec.network, spec.pid), (NamespaceMode::Pod, NamespaceMode::Pod));
        assert_eq!(spec.log_directory, None);
    }

    #[test]
    fn bad_input_is_refused_by_the_name_of_its_field() {
        refused(|c| c.metadata = None, "config.metadata: is missing");
        refused(|c| c.metadata.as_mut().unwrap().name.clear(), "config.metadata.name: is empty");
        refused(|c| c.metadata.as_mut().unwrap().name = "x".repeat(254), "has 254 bytes");
        refused(|c| c.hostname = "h".repeat(65), "config.hostname: has 65 bytes");
        refused(|c| c.log_directory = "logs".into(), "config.log_directory");
        refused(|c| c.log_directory = "/var/../etc".into(), "config.log_directory");
        refused(
            |c| {
                c.linux = Some(cri::LinuxPodSandboxConfig {
                    cgroup_parent: "/other/kubepods-a.slice".into(),
                    ..Default::default()
                });
            },
            "is at /kubepods.slice/kubepods-a.slice",
        );
        refused(
            |c| {
                c.linux = Some(cri::LinuxPodSandboxConfig {
                    sysctls: [("vm.swappiness".to_owned(), "1".to_owned())].into(),
                    ..Default::default()
                });
            },
            "vm.swappiness",
        );
        for limit in ["fast", "10", "1e20"] {
            let key = "kubernetes.io/egress-bandwidth";
            refused(|c| drop(c.annotations.insert(key.into(), limit.into())), key);
        }
        for (key, size) in [(SHM_SIZE[0], "0"), (SHM_SIZE[1], "much")] {
            refused(|c| drop(c.annotations.insert(key.into(), size.into())), key);
        }
        refused(
            |c| {
                c.port_mappings.push(cri::PortMapping { host_port: 99_999, ..Default::default() });
            },
            "is not a port",
        );
    }

    #[test]
    fn a_slice_is_known_by_its_name_and_by_its_path() {
        let path = "/kubepods.slice/kubepods-pod1.slice";
        for parent in ["kubepods-pod1.slice", path, &path[1..]] {
            assert_eq!(cgroup_parent(parent).unwrap(), path);
        }
        assert_eq!(cgroup_parent("a/b/").unwrap(), "/a/b");
        for bad in ["-.slice", "a--b.slice", "/b.slice/a.slice", "/a/../b"] {
            assert!(cgroup_parent(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bandwidth_comes_from_the_annotations_of_kubernetes() {
        let mut request = request();
        let annotations = &mut request.config.as_mut().unwrap().annotations;
        annotations.insert("kubernetes.io/ingress-bandwidth".into(), "10M".into());
        let spec = sandbox(request).unwrap();
        assert_eq!(spec.bandwidth, Bandwidth { ingress: Some(10_000_000), egress: None });
    }

    #[test]
    fn shared_memory_has_the_size_of_an_annotation_or_the_usual_one() {
        assert_eq!(sandbox(request()).unwrap().shm_bytes, SHM_BYTES);
        let mut request = request();
        let annotations = &mut request.config.as_mut().unwrap().annotations;
        annotations.insert("io.kubernetes.cri-o.ShmSize".into(), "1Gi".into());
        assert_eq!(sandbox(request.clone()).unwrap().shm_bytes, 1 << 30);
        let annotations = &mut request.config.as_mut().unwrap().annotations;
        annotations.insert("lapstrake.io/shm-size".into(), "8Mi".into());
        assert_eq!(sandbox(request).unwrap().shm_bytes, 8 << 20);
    }

    #[test]
    fn a_port_without_a_host_port_is_no_mapping() {
        let mut request = request();
        let ports = &mut request.config.as_mut().unwrap().port_mappings;
        ports.push(cri::PortMapping { container_port: 80, ..Default::default() });
        assert_eq!(sandbox(request).unwrap().port_mappings, []);
    }
}
