//! `ContainerConfig` → `container::Spec`.

use std::path::PathBuf;

use proto::cri::v1 as cri;

use super::{absolute, kernel_id, name, namespace_mode, no_user_namespace, string_map};
use crate::container::signal;
use crate::container::spec::{
    CapabilityChange, Device, ImageRef, Mount, Propagation, Resources, RunAs, Seccomp, Security,
    Spec,
};
use crate::error::Error;

/// Longest message of a bad value that is repeated to the caller.
const SHOWN_MAX: usize = 64;

pub(crate) fn container(config: Option<cri::ContainerConfig>) -> Result<Spec, Error> {
    let config = config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let metadata =
        config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if config.windows.is_some() {
        return Err(unsupported("config.windows", "this node runs Linux containers only"));
    }
    if !config.cdi_devices.is_empty() {
        return Err(unsupported("config.CDI_devices", "CDI is not served yet"));
    }
    let linux = config.linux.unwrap_or_default();
    Ok(Spec {
        name: name("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
        image: image(config.image)?,
        command: strings("config.command", config.command)?,
        args: strings("config.args", config.args)?,
        working_dir: match config.working_dir.as_str() {
            "" => String::new(),
            path if path.starts_with('/') => {
                strings("config.working_dir", vec![path.to_owned()])?.remove(0)
            }
            path => {
                let problem = format!("{path:?} is not an absolute path");
                return Err(Error::invalid("config.working_dir", problem));
            }
        },
        envs: config.envs.into_iter().map(env).collect::<Result<_, _>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_, _>>()?,
        devices: config.devices.into_iter().map(device).collect::<Result<_, _>>()?,
        labels: string_map("config.labels", config.labels)?,
        annotations: string_map("config.annotations", config.annotations)?,
        log_path: log_path(config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources(linux.resources)?,
        security: security(linux.security_context)?,
        stop_signal: signal::from_cri(config.stop_signal)?,
    })
}

fn unsupported(field: &str, hint: &str) -> Error {
    Error::Unsupported { field: field.to_owned(), hint: hint.to_owned() }
}

fn image(image: Option<cri::ImageSpec>) -> Result<ImageRef, Error> {
    let image = image.filter(|image| !image.image.is_empty());
    let image = image.ok_or_else(|| Error::invalid("config.image.image", "is empty"))?;
    Ok(ImageRef {
        image: image.image,
        user_specified_image: image.user_specified_image,
        annotations: image.annotations.into_iter().collect(),
    })
}

/// Arguments end at a NUL in the kernel: one inside would cut them silently.
fn strings(field: &str, values: Vec<String>) -> Result<Vec<String>, Error> {
    match values.iter().position(|value| value.contains('\0')) {
        Some(index) => Err(Error::invalid(format!("{field}[{index}]"), "holds a NUL byte")),
        None => Ok(values),
    }
}

/// The OCI configuration is JSON, so a value has to be UTF-8.
fn env(pair: cri::KeyValue) -> Result<(String, String), Error> {
    let field = format!("config.envs[{}]", shown(&pair.key));
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
        return Err(Error::invalid(field, "is not the name of a variable"));
    }
    match String::from_utf8(pair.value) {
        Ok(value) if value.contains('\0') => Err(Error::invalid(field, "holds a NUL byte")),
        Ok(value) => Ok((pair.key, value)),
        Err(_) => Err(Error::invalid(field, "is not valid UTF-8")),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

fn log_path(path: String) -> Result<String, Error> {
    let plain = std::path::Path::new(&path)
        .components()
        .all(|part| matches!(part, std::path::Component::Normal(_) | std::path::Component::CurDir));
    if !plain || path.contains('\0') {
        let problem = format!("{path:?} does not stay below the sandbox's log_directory");
        return Err(Error::invalid("config.log_path", problem));
    }
    Ok(path)
}

fn mount(mount: cri::Mount) -> Result<Mount, Error> {
    let field = format!("config.mounts[{}]", shown(&mount.container_path));
    let container_path = absolute(&field, &mount.container_path)?;
    if container_path.parent().is_none() {
        return Err(Error::invalid(field, "a volume cannot take the place of the root"));
    }
    if mount.image.is_some() {
        return Err(unsupported(&field, "image volumes are not served yet"));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(unsupported(&field, "idmapped mounts need a user-namespaced pod"));
    }
    let propagation = match cri::MountPropagation::try_from(mount.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(cri::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(cri::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            let problem = format!("{} is no mount propagation", mount.propagation);
            return Err(Error::invalid(field, problem));
        }
    };
    if mount.recursive_read_only && !(mount.readonly && propagation == Propagation::Private) {
        return Err(Error::invalid(
            field,
            "recursive_read_only needs readonly and private propagation",
        ));
    }
    let known = ["noexec", "nodev", "nosuid"];
    if let Some(option) = mount.mount_options.iter().find(|o| !known.contains(&o.as_str())) {
        let problem = format!("mount option {option:?} is none of {}", known.join(", "));
        return Err(Error::invalid(field, problem));
    }
    Ok(Mount {
        container_path: container_path.to_string_lossy().into_owned(),
        host_path: absolute(&field, &mount.host_path)?,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        options: mount.mount_options,
    })
}

fn device(device: cri::Device) -> Result<Device, Error> {
    let field = format!("config.devices[{}]", shown(&device.host_path));
    let host_path = absolute(&field, &device.host_path)?;
    if device.permissions.chars().any(|c| !matches!(c, 'r' | 'w' | 'm')) {
        let problem = format!("permissions {:?} are not of r, w, m", device.permissions);
        return Err(Error::invalid(field, problem));
    }
    let container_path = match device.container_path.as_str() {
        "" => host_path.clone(),
        path => absolute(&field, path)?,
    };
    Ok(Device {
        container_path: container_path.to_string_lossy().into_owned(),
        host_path,
        permissions: match device.permissions.as_str() {
            "" => "rwm".to_owned(),
            given => given.to_owned(),
        },
    })
}

/// Also serves `UpdateContainerResources`.
pub(crate) fn resources(
    resources: Option<cri::LinuxContainerResources>,
) -> Result<Resources, Error> {
    let given = resources.unwrap_or_default();
    let field = |name: &str| format!("config.linux.resources.{name}");
    // −1 means no limit where it has a meaning.
    for (name, value, least) in [
        ("cpu_period", given.cpu_period, 0),
        ("cpu_quota", given.cpu_quota, -1),
        ("cpu_shares", given.cpu_shares, 0),
        ("memory_limit_in_bytes", given.memory_limit_in_bytes, -1),
        ("memory_swap_limit_in_bytes", given.memory_swap_limit_in_bytes, -1),
    ] {
        if value < least {
            return Err(Error::invalid(field(name), format!("{value} is below {least}")));
        }
    }
    let page_size = |size: &str| {
        let digits = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        digits.is_some_and(|d| !d.is_empty() && d.bytes().all(|byte| byte.is_ascii_digit()))
    };
    if let Some(limit) = given.hugepage_limits.iter().find(|limit| !page_size(&limit.page_size)) {
        let problem = format!("{:?} is no page size such as 2MB", limit.page_size);
        return Err(Error::invalid(field("hugepage_limits"), problem));
    }
    if !(-1000..=1000).contains(&given.oom_score_adj) {
        let problem = format!("{} is not between -1000 and 1000", given.oom_score_adj);
        return Err(Error::invalid(field("oom_score_adj"), problem));
    }
    if let Some(key) = given.unified.keys().find(|key| key.contains('/') || !key.contains('.')) {
        return Err(Error::invalid(field("unified"), format!("{key:?} is no cgroup v2 file")));
    }
    Ok(Resources {
        cpu_period_us: given.cpu_period,
        cpu_quota_us: given.cpu_quota,
        cpu_shares: given.cpu_shares,
        memory_limit_bytes: given.memory_limit_in_bytes,
        memory_swap_limit_bytes: given.memory_swap_limit_in_bytes,
        oom_score_adj: given.oom_score_adj,
        cpuset_cpus: given.cpuset_cpus,
        cpuset_mems: given.cpuset_mems,
        hugepage_limits: given
            .hugepage_limits
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect(),
        unified: given.unified.into_iter().collect(),
    })
}

fn security(context: Option<cri::LinuxContainerSecurityContext>) -> Result<Security, Error> {
    let given = context.unwrap_or_default();
    let field = |name: &str| format!("config.linux.security_context.{name}");
    let namespaces = given.namespace_options.clone().unwrap_or_default();
    no_user_namespace(
        &field("namespace_options.userns_options"),
        namespaces.userns_options.as_ref(),
    )?;
    apparmor(given.apparmor.as_ref())?;
    #[expect(deprecated, reason = "older kubelets still send these")]
    for (name, text, superseded) in [
        ("apparmor_profile", &given.apparmor_profile, given.apparmor.is_some()),
        ("seccomp_profile_path", &given.seccomp_profile_path, given.seccomp.is_some()),
    ] {
        deprecated_profile(&field(name), text, superseded)?;
    }
    let run_as = match (&given.run_as_user, given.run_as_username.as_str()) {
        (Some(uid), _) => RunAs::Uid(kernel_id(&field("run_as_user"), uid.value)?),
        (None, "") => RunAs::Image,
        (None, name) => RunAs::Username(name.to_owned()),
    };
    if given.run_as_group.is_some() && run_as == RunAs::Image {
        return Err(Error::invalid(
            field("run_as_group"),
            "needs run_as_user or run_as_username beside it",
        ));
    }
    let group = |value: i64| kernel_id(&field("supplemental_groups"), value);
    Ok(Security {
        seccomp: seccomp(given.seccomp.as_ref())?,
        capabilities: capabilities(given.capabilities)?,
        privileged: given.privileged,
        pid: namespace_mode(
            &field("namespace_options.pid"),
            namespaces.pid,
            &namespaces.target_id,
        )?,
        run_as,
        run_as_group: given
            .run_as_group
            .map(|gid| kernel_id(&field("run_as_group"), gid.value))
            .transpose()?,
        supplemental_groups: given
            .supplemental_groups
            .into_iter()
            .map(group)
            .collect::<Result<_, _>>()?,
        strict_groups: match given.supplemental_groups_policy.try_into() {
            Ok(cri::SupplementalGroupsPolicy::Merge) => false,
            Ok(cri::SupplementalGroupsPolicy::Strict) => true,
            Err(_) => {
                let problem = format!("{} is no policy", given.supplemental_groups_policy);
                return Err(Error::invalid(field("supplemental_groups_policy"), problem));
            }
        },
        readonly_rootfs: given.readonly_rootfs,
        no_new_privs: given.no_new_privs,
        masked_paths: paths(&field("masked_paths"), given.masked_paths)?,
        readonly_paths: paths(&field("readonly_paths"), given.readonly_paths)?,
    })
}

fn paths(field: &str, paths: Vec<String>) -> Result<Vec<String>, Error> {
    paths.into_iter().map(|path| absolute(field, &path).map(|_| path)).collect()
}

/// Without AppArmor in the kernel, what asks for the node's default gets what the node has; a
/// profile asked for by name is refused, as its protection would be missing.
fn apparmor(profile: Option<&cri::SecurityProfile>) -> Result<(), Error> {
    use cri::security_profile::ProfileType;
    match profile.map(|profile| (profile.profile_type(), &profile.localhost_ref)) {
        Some((ProfileType::Localhost, name)) => Err(unsupported(
            "config.linux.security_context.apparmor",
            &format!("profile {name:?} was asked for, but AppArmor is not served yet"),
        )),
        Some((ProfileType::RuntimeDefault | ProfileType::Unconfined, _)) | None => Ok(()),
    }
}

/// The deprecated fields name a profile by text. What would confine the container is refused
/// here, unless the new field speaks for it; the other texts mean what the absent field means.
fn deprecated_profile(field: &str, text: &str, superseded: bool) -> Result<(), Error> {
    match text {
        "" | "unconfined" => Ok(()),
        _ if superseded => Ok(()),
        "runtime/default" | "docker/default" if field.ends_with("apparmor_profile") => Ok(()),
        text => Err(unsupported(field, &format!("{text:?} has to be given by the new field"))),
    }
}

fn seccomp(profile: Option<&cri::SecurityProfile>) -> Result<Seccomp, Error> {
    use cri::security_profile::ProfileType;
    let Some(profile) = profile else { return Ok(Seccomp::Unconfined) };
    let field = "config.linux.security_context.seccomp";
    match profile.profile_type.try_into() {
        Ok(ProfileType::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(Seccomp::Unconfined),
        Ok(ProfileType::Localhost) => {
            let path: PathBuf =
                absolute(&format!("{field}.localhost_ref"), &profile.localhost_ref)?;
            Ok(Seccomp::Localhost(path))
        }
        Err(_) => Err(Error::invalid(field, format!("{} is no type", profile.profile_type))),
    }
}

fn capabilities(change: Option<cri::Capability>) -> Result<CapabilityChange, Error> {
    let change = change.unwrap_or_default();
    let names = |field: &str, names: Vec<String>| {
        names
            .into_iter()
            .map(|name| {
                let upper = name.to_uppercase();
                let plain = upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned();
                if plain == "ALL" || crate::container::capabilities::known(&plain) {
                    Ok(plain)
                } else {
                    let field = format!("config.linux.security_context.capabilities.{field}");
                    Err(Error::invalid(field, format!("{name:?} is no capability of Linux")))
                }
            })
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(CapabilityChange {
        add: names("add_capabilities", change.add_capabilities)?,
        drop: names("drop_capabilities", change.drop_capabilities)?,
        add_ambient: names("add_ambient_capabilities", change.add_ambient_capabilities)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> cri::ContainerConfig {
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    #[track_caller]
    fn refused(change: impl Fn(&mut cri::ContainerConfig), expect: &str) {
        let mut config = config();
        change(&mut config);
        let error = container(Some(config)).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} does not say {expect:?}");
    }

    fn secured(
        change: impl Fn(&mut cri::LinuxContainerSecurityContext),
    ) -> impl Fn(&mut cri::ContainerConfig) {
        move |config| {
            let mut context = cri::LinuxContainerSecurityContext::default();
            change(&mut context);
            config.linux = Some(cri::LinuxContainerConfig {
                security_context: Some(context),
                ..Default::default()
            });
        }
    }

    #[test]
    fn bad_input_is_refused_by_the_name_of_its_field() {
        refused(|c| c.image = None, "config.image.image: is empty");
        refused(|c| c.metadata.as_mut().unwrap().name = "a/b".into(), "config.metadata.name");
        refused(|c| c.log_path = "../../etc/passwd".into(), "config.log_path");
        refused(|c| c.command = vec!["a\0b".into()], "config.command[0]");
        refused(
            |c| c.envs = vec![cri::KeyValue { key: "A=B".into(), value: vec![] }],
            "config.envs[A=B]",
        );
        refused(
            |c| c.envs = vec![cri::KeyValue { key: "A".into(), value: vec![0xff] }],
            "config.envs[A]: is not valid UTF-8",
        );
        refused(
            |c| {
                c.mounts = vec![cri::Mount {
                    container_path: "/data".into(),
                    host_path: "/srv".into(),
                    mount_options: vec!["exec".into()],
                    ..Default::default()
                }];
            },
            "config.mounts[/data]: mount option \"exec\"",
        );
        refused(
            secured(|s| s.run_as_user = Some(cri::Int64Value { value: 1 << 32 })),
            "run_as_user: 4294967296 is not a user or group id",
        );
        refused(
            secured(|s| s.run_as_group = Some(cri::Int64Value { value: 5 })),
            "run_as_group: needs run_as_user",
        );
        refused(
            secured(|s| {
                s.capabilities = Some(cri::Capability {
                    add_capabilities: vec!["CAP_FLY".into()],
                    ..Default::default()
                });
            }),
            "\"CAP_FLY\" is no capability",
        );
    }

    #[test]
    fn a_capability_may_be_written_with_or_without_its_prefix() {
        let mut given = config();
        secured(|s| {
            s.capabilities = Some(cri::Capability {
                add_capabilities: vec!["CAP_NET_ADMIN".into(), "sys_time".into()],
                ..Default::default()
            });
        })(&mut given);
        let spec = container(Some(given)).unwrap();
        assert_eq!(spec.security.capabilities.add, ["NET_ADMIN", "SYS_TIME"]);
    }
}
