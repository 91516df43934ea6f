//! Volumes that are the files of an image: found when the container is planned, mounted when it is
//! made.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Container;
use super::spec::Mount;
use crate::app::Ctx;
use crate::error::Error;

/// The image of each volume, by the volume's path. The kubelet has pulled it before.
pub(crate) fn resolve(ctx: &Ctx, mounts: &[Mount]) -> Result<BTreeMap<String, String>, Error> {
    let volumes = mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
    volumes
        .map(|(mount, volume)| {
            let names = [&volume.image.image_ref, &volume.image.image];
            let found = names.iter().filter(|name| !name.is_empty());
            let found = found.filter_map(|name| ctx.images.find(name)).next();
            let found = found.ok_or_else(|| Error::ImageVolume {
                path: mount.container_path.clone(),
                problem: format!("image {:?} is not on this node", volume.image.image),
            })?;
            Ok((mount.container_path.clone(), found.id.to_string()))
        })
        .collect()
}

/// Read-only trees, attached nowhere yet, by the path of the volume.
pub(crate) fn mounts(container: &Container) -> Result<Vec<(PathBuf, OwnedFd)>, Error> {
    match container.image_volumes.keys().next() {
        None => Ok(Vec::new()),
        Some(path) => Err(Error::ImageVolume {
            path: path.clone(),
            problem: "image volumes are not served yet".to_owned(),
        }),
    }
}
