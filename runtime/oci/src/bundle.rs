//! A bundle: its directory and its specification.

use std::path::{Path, PathBuf};

use container::Spec;

use crate::error::Error;

/// The specification and the canonical directory.
pub(crate) fn open(path: &Path) -> Result<(Spec, PathBuf), Error> {
    let bundle = path.canonicalize().map_err(Error::file("open bundle", path))?;
    let config = bundle.join("config.json");
    let text = std::fs::read(&config).map_err(Error::file("open", &config))?;
    let spec =
        serde_json::from_slice(&text).map_err(|source| Error::Json { path: config, source })?;
    Ok((spec, bundle))
}

/// The root file system's directory.
pub(crate) fn rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, Error> {
    let root = spec.root.as_ref().ok_or_else(|| Error::Usage("config.json has no root".into()))?;
    let path = bundle.join(&root.path);
    path.canonicalize().map_err(Error::file("open root file system", path))
}
