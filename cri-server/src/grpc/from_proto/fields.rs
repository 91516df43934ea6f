//! Walks every field of the requests that shape a pod, by the descriptors of the contract: each
//! one changes what is made, or is refused by its name, or is on a short list with the reason. A
//! field that a later Kubernetes adds fails here until somebody decides about it.

use std::collections::BTreeMap;

use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value,
};
use proto::cri::v1 as cri;

/// What became of a field, the best of all ways to set it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Ignored,
    Refused,
    Used,
}

/// Fields that cannot be given, and why.
const REFUSED: [(&str, &str); 4] = [
    ("CreateContainerRequest.config.windows", "this node runs Linux containers"),
    (
        "RunPodSandboxRequest.config.linux.security_context.namespace_options.target_id",
        "only a container can join another container's namespace",
    ),
    ("RunPodSandboxRequest.config.windows", "this node runs Linux pods"),
    ("UpdateContainerResourcesRequest.windows", "this node runs Linux containers"),
];

/// Fields without an effect, and why that is right.
const IGNORED: [(&str, &str); 2] = [
    (
        "CreateContainerRequest.sandbox_config",
        "a repetition of RunPodSandbox's: what is on record counts",
    ),
    ("UpdateContainerResourcesRequest.annotations", "addressed to NRI plugins, not to the runtime"),
];

#[test]
fn every_field_is_used_refused_or_ignored_for_a_reason() {
    let mut fates: BTreeMap<String, Fate> = BTreeMap::new();
    walk("RunPodSandboxRequest", &sandboxes(), &mut fates, |bytes| {
        let spec = super::sandbox::sandbox(cri::RunPodSandboxRequest::decode(bytes).unwrap());
        spec.map(|spec| format!("{spec:?}")).map_err(|error| error.to_string())
    });
    walk("CreateContainerRequest", &containers(), &mut fates, |bytes| {
        let request = cri::CreateContainerRequest::decode(bytes).unwrap();
        let spec = super::container::container(request.config);
        let spec = spec.map_err(|error| error.to_string())?;
        Ok(format!("{} {spec:?}", request.pod_sandbox_id))
    });
    walk("UpdateContainerResourcesRequest", &updates(), &mut fates, |bytes| {
        let request = cri::UpdateContainerResourcesRequest::decode(bytes).unwrap();
        let id = request.container_id.clone();
        let change = super::resources::update(request).map_err(|error| error.to_string())?;
        Ok(format!("{id} {change:?}"))
    });
    walk("UpdatePodSandboxResourcesRequest", &sandbox_updates(), &mut fates, |bytes| {
        let request = cri::UpdatePodSandboxResourcesRequest::decode(bytes).unwrap();
        let id = request.pod_sandbox_id.clone();
        let change =
            super::resources::update_sandbox(request).map_err(|error| error.to_string())?;
        Ok(format!("{id} {change:?}"))
    });
    // A message that one base has and another has not is told of by its fields.
    let whole: Vec<_> = fates.keys().map(|path| format!("{path}.")).collect();
    let has_fields = |path: &str| fates.keys().any(|known| known.starts_with(path));
    let whole: Vec<_> = whole.into_iter().filter(|path| has_fields(path)).collect();
    fates.retain(|path, _| !whole.contains(&format!("{path}.")));
    let named = |fate: Fate| -> Vec<&str> {
        fates.iter().filter(|(_, it)| **it == fate).map(|(path, _)| path.as_str()).collect()
    };
    assert_eq!(named(Fate::Refused), REFUSED.map(|(path, _)| path), "refused");
    assert_eq!(named(Fate::Ignored), IGNORED.map(|(path, _)| path), "ignored");
    assert!(fates.len() > 150, "only {} fields were found", fates.len());
}

/// Sets each field of each base in turn and looks at what comes out.
fn walk(
    name: &str,
    bases: &[Vec<u8>],
    fates: &mut BTreeMap<String, Fate>,
    parse: impl Fn(&[u8]) -> Result<String, String>,
) {
    let pool = DescriptorPool::decode(proto::cri::DESCRIPTORS).unwrap();
    let message = pool.get_message_by_name(&format!("runtime.v1.{name}")).unwrap();
    for base in bases {
        let plain = parse(base).unwrap_or_else(|error| panic!("{name} as such: {error}"));
        let base = DynamicMessage::decode(message.clone(), base.as_slice()).unwrap();
        let mut variants = Vec::new();
        vary(name, &base, &mut |path, variant| variants.push((path, variant)));
        for (path, variant) in variants {
            let mut names = path.rsplit('.');
            let (field, parent) = (names.next().unwrap(), names.next().unwrap());
            let fate = match parse(&variant.encode_to_vec()) {
                Ok(parsed) if parsed == plain => Fate::Ignored,
                Ok(_) => Fate::Used,
                Err(error) if error.contains(field) => Fate::Refused,
                // Looked at, and found not to fit with what is beside it.
                Err(error) if error.contains(parent) => Fate::Used,
                Err(error) => panic!("{path} is refused, but not by its name: {error}"),
            };
            let known = fates.entry(path).or_insert(Fate::Ignored);
            *known = fate.max(*known);
        }
    }
}

/// Every message that differs from `base` in one field, with the field's path.
fn vary(path: &str, base: &DynamicMessage, found: &mut dyn FnMut(String, DynamicMessage)) {
    for field in base.descriptor().fields() {
        let path = format!("{path}.{}", field.name());
        let with = |value: Value| {
            let mut variant = base.clone();
            variant.set_field(&field, value);
            variant
        };
        match base.get_field(&field).as_ref() {
            Value::Message(inner) if base.has_field(&field) => {
                vary(&path, inner, &mut |path, it| found(path, with(Value::Message(it))));
            }
            Value::List(list) if field.kind().as_message().is_some() && !list.is_empty() => {
                for (index, item) in list.iter().enumerate() {
                    let Value::Message(item) = item else { continue };
                    vary(&path, item, &mut |path, it| {
                        let mut list = list.clone();
                        list[index] = Value::Message(it);
                        found(path, with(Value::List(list)));
                    });
                }
            }
            now => {
                let value = other(&field, now);
                found(path, with(value));
            }
        }
    }
}

/// A valid value that differs from the present one.
fn other(field: &FieldDescriptor, now: &Value) -> Value {
    if field.is_map() {
        let (key, value) = match field.name() {
            "sysctls" => ("net.ipv4.ip_forward", "1"),
            "unified" => ("memory.high", "1"),
            _ => ("key", "value"),
        };
        let pair = (MapKey::String(key.to_owned()), Value::String(value.to_owned()));
        return Value::Map([pair].into());
    }
    if let Value::List(list) = now {
        let mut list = list.clone();
        list.push(single(field));
        return Value::List(list);
    }
    match now {
        Value::Bool(now) => Value::Bool(!now),
        Value::I32(now) => Value::I32(now + 1),
        Value::I64(now) => Value::I64(now + 1),
        Value::U32(now) => Value::U32(now + 1),
        Value::U64(now) => Value::U64(now + 1),
        // The node's namespace is the one that sandboxes and containers may have instead.
        Value::EnumNumber(0) if ["network", "ipc"].contains(&field.name()) => Value::EnumNumber(2),
        Value::EnumNumber(now) => Value::EnumNumber(if *now == 0 { 1 } else { 0 }),
        _ => single(field),
    }
}

fn single(field: &FieldDescriptor) -> Value {
    let text = match field.name() {
        "log_directory" | "working_dir" | "container_path" | "host_path" | "masked_paths"
        | "readonly_paths" | "cgroup_parent" | "localhost_ref" => "/other",
        "host_ip" => "10.9.8.7",
        "permissions" => "m",
        "page_size" => "1GB",
        "cpuset_cpus" | "cpuset_mems" => "7",
        "mount_options" => "nodev",
        "add_capabilities" | "drop_capabilities" | "add_ambient_capabilities" => "SYS_TIME",
        "seccomp_profile_path" | "apparmor_profile" => "localhost//other",
        _ => "other",
    };
    match field.kind() {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bytes => Value::Bytes(text.as_bytes().to_vec().into()),
        Kind::Int64 => Value::I64(7),
        Kind::Int32 => Value::I32(7),
        Kind::Message(message) => Value::Message(DynamicMessage::new(message)),
        other => panic!("no sample for {} of kind {other:?}", field.full_name()),
    }
}

fn map() -> cri::UserNamespace {
    let map = cri::IdMapping { host_id: 1000, container_id: 0, length: 10 };
    cri::UserNamespace { mode: 0, uids: vec![map], gids: vec![map] }
}

fn resources() -> Option<cri::LinuxContainerResources> {
    let page = cri::HugepageLimit { page_size: "2MB".into(), limit: 1 };
    Some(cri::LinuxContainerResources { hugepage_limits: vec![page], ..Default::default() })
}

fn localhost() -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: 2, localhost_ref: "/profile".into() })
}

fn id(value: i64) -> Option<cri::Int64Value> {
    Some(cri::Int64Value { value })
}

fn sandboxes() -> Vec<Vec<u8>> {
    let context = cri::LinuxSandboxSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            userns_options: Some(map()),
            ..Default::default()
        }),
        selinux_options: Some(cri::SeLinuxOption::default()),
        run_as_user: id(1),
        run_as_group: id(2),
        seccomp: localhost(),
        apparmor: localhost(),
        ..Default::default()
    };
    let mut request = cri::RunPodSandboxRequest {
        config: Some(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "pod".into(),
                uid: "uid".into(),
                namespace: "default".into(),
                attempt: 1,
            }),
            dns_config: Some(cri::DnsConfig::default()),
            port_mappings: vec![cri::PortMapping {
                container_port: 80,
                host_port: 8080,
                ..Default::default()
            }],
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(context),
                overhead: resources(),
                resources: resources(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let newer = request.encode_to_vec();
    let linux = request.config.as_mut().unwrap().linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().seccomp = None;
    vec![newer, request.encode_to_vec()]
}

fn containers() -> Vec<Vec<u8>> {
    let image = cri::ImageSpec { image: "app".into(), ..Default::default() };
    let ids = cri::IdMapping { host_id: 1000, container_id: 0, length: 10 };
    let volume = cri::Mount {
        container_path: "/data".into(),
        host_path: "/srv".into(),
        readonly: true,
        uid_mappings: vec![ids],
        gid_mappings: vec![ids],
        ..Default::default()
    };
    let of_image = cri::Mount {
        container_path: "/model".into(),
        readonly: true,
        image: Some(image.clone()),
        image_sub_path: "part".into(),
        uid_mappings: vec![ids],
        gid_mappings: vec![ids],
        ..Default::default()
    };
    let context = cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability::default()),
        namespace_options: Some(cri::NamespaceOption {
            userns_options: Some(map()),
            ..Default::default()
        }),
        selinux_options: Some(cri::SeLinuxOption::default()),
        run_as_user: id(1),
        run_as_group: id(2),
        seccomp: localhost(),
        apparmor: localhost(),
        ..Default::default()
    };
    let mut request = cri::CreateContainerRequest {
        config: Some(cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 1 }),
            image: Some(image),
            envs: vec![cri::KeyValue { key: "A".into(), value: b"b".to_vec() }],
            mounts: vec![volume, of_image],
            devices: vec![cri::Device { host_path: "/dev/null".into(), ..Default::default() }],
            cdi_devices: vec![cri::CdiDevice { name: "a.b/c=0".into() }],
            linux: Some(cri::LinuxContainerConfig {
                resources: resources(),
                security_context: Some(context),
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let newer = request.encode_to_vec();
    // As older kubelets say it, and with what the fields above leave no room for.
    let linux = request.config.as_mut().unwrap().linux.as_mut().unwrap();
    let context = linux.security_context.as_mut().unwrap();
    (context.seccomp, context.apparmor) = (None, None);
    (context.run_as_user, context.run_as_username) = (None, "web".into());
    let namespaces = context.namespace_options.as_mut().unwrap();
    (namespaces.pid, namespaces.target_id) = (3, "c".into());
    vec![newer, request.encode_to_vec()]
}

fn updates() -> Vec<Vec<u8>> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: "c".into(),
        linux: resources(),
        ..Default::default()
    };
    vec![request.encode_to_vec()]
}

fn sandbox_updates() -> Vec<Vec<u8>> {
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: "p".into(),
        overhead: resources(),
        resources: resources(),
    };
    vec![request.encode_to_vec()]
}
