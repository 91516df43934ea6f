//! The names of everything under the daemon's root directory, and the file operations on them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::digest::{Digest, nonce};
use crate::error::Error;

/// The root directory, absolute.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
}

/// In front of the name of everything that is not finished; swept when the service opens.
pub(crate) const NEW: &str = ".new-";
/// In front of the name of everything that is being removed; swept when the service opens.
pub(crate) const DEAD: &str = ".dead-";
/// No chain id has this name.
pub(crate) const EMPTY: &str = "empty";
/// In front of the name of a record that could not be read.
pub(crate) const BAD: &str = ".bad-";

impl Layout {
    /// Makes the directories that are missing. Nobody but root may look inside: layers hold set-id
    /// files of strangers.
    pub(crate) fn make(root: &Path) -> Result<Layout, Error> {
        let layout = Layout { root: root.to_owned() };
        let directories = [
            layout.root.clone(),
            layout.images(),
            layout.layers(),
            layout.containers(),
            layout.content("sha256"),
            layout.content("sha512"),
            layout.ingest(),
        ];
        for directory in directories {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(|e| Error::io("make the directory", &directory, e))?;
        }
        // It can be what a container sees as its root.
        let empty = layout.empty();
        let open = fs::Permissions::from_mode(0o755);
        fs::create_dir(&empty)
            .or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })
            .and_then(|()| fs::set_permissions(&empty, open))
            .map_err(|e| Error::io("make the directory", &empty, e))?;
        Ok(layout)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    pub(crate) fn image(&self, id: &Digest) -> PathBuf {
        self.images().join(id.hex())
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// What an image without any layer is mounted from: a directory among the layers that is none.
    pub(crate) fn empty(&self) -> PathBuf {
        self.layers().join(EMPTY)
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn content(&self, algorithm: &str) -> PathBuf {
        self.root.join("content").join(algorithm)
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.content(digest.algorithm()).join(digest.hex())
    }

    /// Blobs on their way in; a partial one is continued by the next pull.
    pub(crate) fn ingest(&self) -> PathBuf {
        self.root.join("content").join("ingest")
    }
}

/// Writes a file so that after a power loss either all of it is there or nothing:
/// write aside, sync, rename. The caller syncs the directory.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    let aside = directory.join(format!("{NEW}{}", nonce()));
    let written = fs::File::create_new(&aside)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&aside, path));
    written.map_err(|e| {
        let _ = fs::remove_file(&aside); // the first error is the one to tell
        Error::io("write", path, e)
    })
}

/// Makes renames and removals in a directory survive a power loss.
pub(crate) fn sync_directory(path: &Path) -> Result<(), Error> {
    fs::File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|e| Error::io("sync the directory", path, e))
}

/// Removes a file; one that is already gone is removed.
pub(crate) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes a directory tree of any depth; one that is already gone is removed.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    use std::os::fd::AsFd as _;
    use std::os::unix::ffi::OsStrExt as _;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    crate::layer::open_directory_path(parent)
        .and_then(|parent| crate::layer::tree::remove(parent.as_fd(), name.as_bytes()))
        .or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
        .map_err(|e| Error::io("remove", path, e))
}

/// File names in a directory.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let fault = |e| Error::io("list", directory, e);
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(fault)? {
        // A name that is not UTF-8 is not ours.
        names.extend(entry.map_err(fault)?.file_name().into_string().ok());
    }
    Ok(names)
}
