//! `Mount` and `Device` → what a container sees of the host and of images.

use std::path::{Component, Path, PathBuf};

use proto::cri::v1 as cri;

use super::container::image;
use super::{absolute, security, shown};
use crate::container::spec::{Device, ImageVolume, Mount, Propagation};
use crate::error::Error;
use crate::sandbox::spec::IdMap;

/// More mounts than any pod has, and few enough for the kernel's own limit of 100000 in a
/// namespace (`fs.mount-max`).
const MOUNTS_MAX: usize = 4096;

/// The words of `mount_options`.
const OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];

pub(super) fn mounts(mounts: Vec<cri::Mount>) -> Result<Vec<Mount>, Error> {
    if mounts.len() > MOUNTS_MAX {
        let problem = format!("{} are given; at most {MOUNTS_MAX} are made", mounts.len());
        return Err(Error::invalid("config.mounts", problem));
    }
    mounts.into_iter().map(mount).collect()
}

fn mount(mount: cri::Mount) -> Result<Mount, Error> {
    let field = format!("config.mounts[{}]", shown(&mount.container_path));
    let container_path = absolute(&field, &mount.container_path)?;
    if container_path.parent().is_none() {
        return Err(Error::invalid(field, "a volume cannot take the place of the root"));
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
    if let Some(option) = mount.mount_options.iter().find(|o| !OPTIONS.contains(&o.as_str())) {
        let problem = format!("mount option {option:?} is none of {}", OPTIONS.join(", "));
        return Err(Error::invalid(field, problem));
    }
    let (host_path, image) = source(&field, &mount)?;
    Ok(Mount {
        container_path: container_path.to_string_lossy().into_owned(),
        host_path,
        image,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        propagation,
        selinux_relabel: mount.selinux_relabel,
        options: mount.mount_options,
        uid_mappings: id_maps(&format!("{field}.uidMappings"), &mount.uid_mappings)?,
        gid_mappings: id_maps(&format!("{field}.gidMappings"), &mount.gid_mappings)?,
    })
}

/// A path of the node, or a directory of an image; never both.
fn source(field: &str, mount: &cri::Mount) -> Result<(PathBuf, Option<ImageVolume>), Error> {
    let Some(given) = &mount.image else {
        if !mount.image_sub_path.is_empty() {
            return Err(Error::invalid(field, "image_sub_path needs image"));
        }
        return Ok((absolute(field, &mount.host_path)?, None));
    };
    let image_volume = |problem: &str| Error::ImageVolume {
        path: mount.container_path.clone(),
        problem: problem.to_owned(),
    };
    if !mount.host_path.is_empty() {
        return Err(image_volume("host_path has to be empty for an image volume"));
    }
    if !mount.readonly {
        return Err(image_volume("an image volume has to be read-only"));
    }
    let sub_path = Path::new(&mount.image_sub_path);
    if !sub_path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(image_volume("image_sub_path has to stay within the image"));
    }
    let volume =
        ImageVolume { image: image(field, Some(given.clone()))?, sub_path: sub_path.into() };
    Ok((PathBuf::new(), Some(volume)))
}

fn id_maps(field: &str, maps: &[cri::IdMapping]) -> Result<Vec<IdMap>, Error> {
    maps.iter().map(|map| security::id_map(field, map)).collect()
}

pub(super) fn device(device: cri::Device) -> Result<Device, Error> {
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
