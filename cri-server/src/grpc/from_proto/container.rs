//! `ContainerConfig` → `container::Spec`.

use proto::cri::v1 as cri;

use super::resources::resources;
use super::security::{self, field};
use super::{kernel_id, mounts, name, namespace_mode, shown, string_map};
use crate::container::spec::{CapabilityChange, ImageRef, RunAs, Security, Spec};
use crate::container::{cdi, signal};
use crate::error::Error;
use crate::sandbox::spec::NamespaceMode;

pub(crate) fn container(config: Option<cri::ContainerConfig>) -> Result<Spec, Error> {
    let config = config.ok_or_else(|| Error::invalid("config", "is missing"))?;
    let metadata =
        config.metadata.ok_or_else(|| Error::invalid("config.metadata", "is missing"))?;
    if config.windows.is_some() {
        return Err(unsupported("config.windows", "this node runs Linux containers only"));
    }
    let linux = config.linux.unwrap_or_default();
    Ok(Spec {
        name: name("config.metadata.name", &metadata.name)?,
        attempt: metadata.attempt,
        image: image("config", config.image)?,
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
        mounts: mounts::mounts(config.mounts)?,
        devices: config.devices.into_iter().map(mounts::device).collect::<Result<_, _>>()?,
        cdi_devices: config
            .cdi_devices
            .into_iter()
            .map(|device| name_of_device("config.CDI_devices", device.name))
            .collect::<Result<_, _>>()?,
        labels: string_map("config.labels", config.labels)?,
        annotations: string_map("config.annotations", config.annotations)?,
        log_path: log_path(config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: resources("config.linux.resources", linux.resources)?,
        security: security(linux.security_context)?,
        stop_signal: signal::from_cri(config.stop_signal)?,
    })
}

fn unsupported(field: &str, hint: &str) -> Error {
    Error::Unsupported { field: field.to_owned(), hint: hint.to_owned() }
}

/// `owner` is the field that holds it.
pub(super) fn image(owner: &str, image: Option<cri::ImageSpec>) -> Result<ImageRef, Error> {
    let image = image.filter(|image| !image.image.is_empty());
    let image = image.ok_or_else(|| Error::invalid(format!("{owner}.image.image"), "is empty"))?;
    Ok(ImageRef {
        image: image.image,
        user_specified_image: image.user_specified_image,
        annotations: string_map(&format!("{owner}.image.annotations"), image.annotations)?,
        runtime_handler: image.runtime_handler,
        image_ref: image.image_ref,
    })
}

fn name_of_device(field: &str, name: String) -> Result<String, Error> {
    match cdi::name::parse(&name) {
        Some(_) => Ok(name),
        None => {
            let problem = format!("{:?} is not of the form vendor/class=device", shown(&name));
            Err(Error::invalid(field, problem))
        }
    }
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

fn security(context: Option<cri::LinuxContainerSecurityContext>) -> Result<Security, Error> {
    let given = context.unwrap_or_default();
    let namespaces = given.namespace_options.clone().unwrap_or_default();
    #[expect(deprecated, reason = "older kubelets still send these")]
    let (old_seccomp, old_apparmor) = (&given.seccomp_profile_path, &given.apparmor_profile);
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
    let shared = |kind: &str, value: i32| match namespace_mode(
        &field(&format!("namespace_options.{kind}")),
        value,
        "",
    )? {
        mode @ (NamespaceMode::Pod | NamespaceMode::Node) => Ok(mode),
        _ => Err(Error::invalid(
            field(&format!("namespace_options.{kind}")),
            "the containers of a pod share it: POD or NODE",
        )),
    };
    Ok(Security {
        seccomp: security::seccomp(given.seccomp.as_ref(), old_seccomp)?,
        apparmor: security::apparmor(given.apparmor.as_ref(), old_apparmor)?,
        selinux: security::selinux(given.selinux_options)?,
        capabilities: capabilities(given.capabilities)?,
        privileged: given.privileged,
        network: shared("network", namespaces.network)?,
        ipc: shared("ipc", namespaces.ipc)?,
        pid: namespace_mode(
            &field("namespace_options.pid"),
            namespaces.pid,
            &namespaces.target_id,
        )?,
        user_namespace: security::user_namespace(namespaces.userns_options.as_ref())?,
        run_as,
        run_as_group: security::id("run_as_group", given.run_as_group.as_ref())?,
        supplemental_groups: security::ids("supplemental_groups", given.supplemental_groups)?,
        strict_groups: security::strict_groups(given.supplemental_groups_policy)?,
        readonly_rootfs: given.readonly_rootfs,
        no_new_privs: given.no_new_privs,
        masked_paths: security::paths("masked_paths", given.masked_paths)?,
        readonly_paths: security::paths("readonly_paths", given.readonly_paths)?,
    })
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
