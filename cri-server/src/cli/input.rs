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

/// How a message calls it.
pub(crate) fn name(path: &Path) -> String {
    if is_stdin(path) { "standard input".to_owned() } else { path.display().to_string() }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}
