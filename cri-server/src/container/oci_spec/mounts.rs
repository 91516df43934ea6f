//! The mounts of a container: the usual ones, its pod's files, its volumes. Pure.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::Input;
use crate::container::spec::{Mount, Propagation};
use crate::sandbox::spec::{IdMap, NamespaceMode};

pub(super) fn mounts(input: &Input<'_>) -> Vec<Value> {
    let (security, pod) = (&input.spec.security, &input.sandbox.spec);
    let access = if security.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        (
            destination.to_owned(),
            json!({
                "destination": destination,
                "type": kind,
                "source": source,
                "options": options,
            }),
        )
    };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        match (pod.user_namespace, &pod.network) {
            // The node's network is not the pod's to show: only the node's own view can be had.
            (Some(_), NamespaceMode::Node) => mount(
                "/sys",
                "bind",
                "/sys",
                &["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"],
            ),
            _ => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        },
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
    ];
    let shm = match pod.ipc {
        NamespaceMode::Node => Path::new("/dev/shm").to_owned(),
        _ => input.sandbox_dir.join("shm"),
    };
    let plain = ["rbind", "rprivate", "rw", "nosuid", "nodev", "noexec"];
    list.push(mount("/dev/shm", "bind", &shm.to_string_lossy(), &plain));
    let access = if security.readonly_rootfs { "ro" } else { "rw" };
    for file in ["hosts", "hostname", "resolv.conf"] {
        let source = input.sandbox_dir.join(file);
        // In a user namespace they are to belong to its root.
        let mapped = pod.user_namespace.map(|_| "idmap");
        let options: Vec<_> = ["rbind", "rprivate", access].into_iter().chain(mapped).collect();
        list.push(mount(&format!("/etc/{file}"), "bind", &source.to_string_lossy(), &options));
    }
    // A volume of the pod takes the place of a default at its path, and of those below it.
    let volumes = &input.spec.mounts;
    list.retain(|(destination, _)| {
        !volumes.iter().any(|volume| Path::new(destination).starts_with(&volume.container_path))
    });
    list.extend(volumes.iter().map(|volume| (volume.container_path.clone(), self::volume(volume))));
    list.extend(input.image_defined.iter().filter_map(|path| own_volume(path, volumes)));
    // Parents first, in the order given otherwise.
    list.sort_by_key(|(destination, _)| Path::new(destination).components().count());
    list.into_iter().map(|(_, mount)| mount).collect()
}

/// What an image declares to be a volume stays writable when the root is not, with what the image
/// has there. A volume of the pod at or above the place takes over.
fn own_volume(path: &str, volumes: &[Mount]) -> Option<(String, Value)> {
    let parts = Path::new(path).components().map(|part| match part {
        Component::Normal(name) => name.to_str().map(|name| format!("/{name}")),
        Component::RootDir | Component::CurDir => Some(String::new()),
        Component::ParentDir | Component::Prefix(_) => None,
    });
    let path = parts.collect::<Option<String>>().filter(|path| !path.is_empty())?;
    if volumes.iter().any(|volume| Path::new(&path).starts_with(&volume.container_path)) {
        return None;
    }
    let mount = json!({ "destination": path, "type": "volume", "source": "volume" });
    Some((path, mount))
}

fn volume(volume: &Mount) -> Value {
    let mut options = vec![
        "rbind",
        match volume.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        },
        match (volume.readonly, volume.recursive_read_only) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        },
    ];
    options.extend(volume.options.iter().map(String::as_str));
    // The tree of an image comes by descriptor; its name is there for people.
    let source = match &volume.image {
        Some(volume) => Path::new(&volume.image.image),
        None => &volume.host_path,
    };
    let mut mount = json!({
        "destination": volume.container_path,
        "type": "bind",
        "source": source,
        "options": options,
    });
    for (key, maps) in
        [("uidMappings", &volume.uid_mappings), ("gidMappings", &volume.gid_mappings)]
    {
        // An image's files have the pod's ids from the start.
        if !maps.is_empty() && volume.image.is_none() {
            mount[key] = id_maps(maps);
        }
    }
    mount
}

pub(crate) fn id_maps(maps: &[IdMap]) -> Value {
    let map = |map: &IdMap| json!({ "containerID": map.inside, "hostID": map.outside, "size": map.count });
    Value::Array(maps.iter().map(map).collect())
}

/// Propagation through a volume needs a root that does not cut it off.
pub(super) fn rootfs_propagation(mounts: &[Mount]) -> &'static str {
    let asks = |propagation| mounts.iter().any(|mount| mount.propagation == propagation);
    match (asks(Propagation::Bidirectional), asks(Propagation::HostToContainer)) {
        (true, _) => "rshared",
        (false, true) => "rslave",
        (false, false) => "rprivate",
    }
}
