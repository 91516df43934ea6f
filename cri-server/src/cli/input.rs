//! Opens what a verb reads: a file, or standard input for the name `-`.

use std::{fs, io, os::fd::AsFd, path::Path};

use tokio::fs::File;

pub(crate) async fn open(path: &Path) -> io::Result<File> {
    if !is_stdin(path) {
        return File::open(path).await;
    }
    let descriptor = io::stdin().as_fd().try_clone_to_owned()?;
    Ok(File::from_std(fs::File::from(descriptor)))
}

pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}
