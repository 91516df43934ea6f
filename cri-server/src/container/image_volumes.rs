//! Volumes that are the files of an image: found when the container is planned, mounted when it is
//! made.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use super::Container;
use super::spec::Mount;
use crate::app::Ctx;
use crate::error::Error;
use crate::sandbox::Sandbox;

/// The image of each volume, by the volume's path. The kubelet has pulled it before.
pub(crate) fn resolve(ctx: &Ctx, mounts: &[Mount]) -> Result<BTreeMap<String, String>, Error> {
    let volumes = mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
    if let Some((mount, _)) = volumes.clone().nth(runtime::TREES_MAX) {
        return Err(Error::ImageVolume {
            path: mount.container_path.clone(),
            problem: format!("a container can have at most {} image volumes", runtime::TREES_MAX),
        });
    }
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

/// Read-only trees, attached nowhere yet, by the path of the volume. The container's own
/// directories must be there: they keep the layers.
pub(crate) async fn mounts(
    ctx: &Ctx,
    sandbox: &Sandbox,
    container: &Container,
) -> Result<Vec<(PathBuf, OwnedFd)>, Error> {
    let mut trees = Vec::new();
    for mount in &container.spec.mounts {
        let Some(volume) = &mount.image else { continue };
        let failed =
            |problem: String| Error::ImageVolume { path: mount.container_path.clone(), problem };
        let id = container.image_volumes.get(&mount.container_path);
        let image = id.and_then(|id| ctx.images.find(id));
        let image = image.ok_or_else(|| failed("its image was removed".to_owned()))?;
        let users = match sandbox.spec.user_namespace {
            None => None,
            Some(_) => {
                let path = format!("/proc/{}/ns/user", sandbox.pause_pid);
                let opened = File::open(&path);
                let opened =
                    opened.map_err(|source| Error::io("open the user namespace", path, source))?;
                Some(OwnedFd::from(opened))
            }
        };
        let tree = ctx
            .images
            .volume(container.id.as_str(), &image.id, &volume.sub_path, users)
            .await
            .map_err(|error| failed(error.to_string()))?;
        trees.push((PathBuf::from(&mount.container_path), tree));
    }
    Ok(trees)
}
