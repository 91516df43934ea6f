//! `lapstrake images export`: images into one archive.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use tokio::io::AsyncWriteExt;

use super::Error;
use crate::cli::client::{self, Client};
use crate::cli::console::{self, Progress};

pub(super) async fn export(
    daemon: &client::Daemon,
    references: Vec<String>,
    output: &Path,
) -> Result<(), Error> {
    let failed = |source| Error::Write { path: output.to_path_buf(), source };
    let client = Client::connect(daemon).await?;
    if output.as_os_str() == "-" {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
        let stdout = tokio::fs::File::from_std(stdout.into());
        return receive(&client, references, stdout, failed).await;
    }
    // Beside the file, so that a broken export leaves no archive that looks whole.
    let aside = output.with_added_extension("part");
    let file = tokio::fs::File::create(&aside).await.map_err(failed)?;
    let received = receive(&client, references, file, failed).await;
    let moved = match received {
        Ok(()) => tokio::fs::rename(&aside, output).await.map_err(failed),
        Err(error) => Err(error),
    };
    if moved.is_err() {
        // The reason of the failure is the error to tell.
        let _ = tokio::fs::remove_file(&aside).await;
    }
    moved
}

async fn receive(
    client: &Client,
    references: Vec<String>,
    mut sink: tokio::fs::File,
    failed: impl Fn(io::Error) -> Error,
) -> Result<(), Error> {
    let object = references.join(" ");
    let mut stream = client.export_images(&object, references).await?;
    let mut progress = Progress::start(format!("exporting {object}"), None);
    let mut bytes = 0;
    while let Some(message) = client::next("ExportImages", &object, &mut stream).await? {
        for image in message.images.iter().filter(|image| image.id != image.archive_id) {
            console::note(format!(
                "{} is {} in the archive: its compressed layers are not kept (keep_blobs)",
                image.names.first().unwrap_or(&image.id),
                image.archive_id
            ));
        }
        bytes += message.chunk.len() as u64;
        sink.write_all(&message.chunk).await.map_err(&failed)?;
        progress.update(bytes);
    }
    sink.flush().await.map_err(&failed)
}
