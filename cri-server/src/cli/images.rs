//! `lapstrake images`: what the daemon's image store holds, and how it gets there.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use proto::{admin::v1::ImportImagesRequest, cri::v1 as cri};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    client::{self, Client},
    console::{self, Progress},
    input,
};

/// One message of an import: far below gRPC's usual limit of 4 MiB, large enough to be cheap.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait for the daemon: reading goes on while it writes.
const CHUNKS_WAITING_MAX: usize = 4;

/// User name and password are short; a larger file is the wrong one.
const CREDENTIALS_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,

    #[command(flatten)]
    daemon: client::Daemon,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Import a `docker save` or OCI archive
    Import {
        /// The archive, gzipped or not; - reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// A reference for an archive that names none
        #[arg(long, value_name = "REF")]
        name: Option<String>,
    },
    /// Pull an image from its registry
    Pull {
        #[arg(value_name = "REF")]
        reference: String,

        /// A file that holds USER:PASSWORD; - reads standard input
        #[arg(long, value_name = "FILE")]
        creds: Option<PathBuf>,
    },
    /// List images
    Ls {
        /// As JSON, with whole ids and sizes in bytes
        #[arg(long)]
        json: bool,
    },
    /// Remove images, with all their names
    Rm {
        #[arg(required = true, value_name = "REF")]
        references: Vec<String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("read {}: {source}", input::name(path))]
    Read { path: PathBuf, source: io::Error },
    #[error("credentials in {}: {problem}", input::name(path))]
    Credentials { path: PathBuf, problem: &'static str },
    #[error("there is no image {0:?}; `lapstrake images ls` shows what there is")]
    Absent(String),
    #[error("write to standard output: {0}")]
    Output(io::Error),
}

impl Error {
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Client(error) => error.is_usage(),
            Self::Credentials { .. } => true,
            Self::Read { .. } | Self::Absent(_) | Self::Output(_) => false,
        }
    }
}

pub(crate) async fn images(args: Args) -> Result<ExitCode, Error> {
    match args.verb {
        Verb::Import { file, name } => import(&args.daemon, &file, name).await,
        Verb::Pull { reference, creds } => pull(&args.daemon, &reference, creds.as_deref()).await,
        Verb::Ls { json } => {
            let images = Client::connect(&args.daemon).await?.list_images().await?;
            console::out(if json { render_json(&images) } else { render(&images) })
                .map_err(Error::Output)
        }
        Verb::Rm { references } => remove(&args.daemon, &references).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn import(daemon: &client::Daemon, file: &Path, name: Option<String>) -> Result<(), Error> {
    let failed = |source| Error::Read { path: file.to_path_buf(), source };
    let archive = input::open(file).await.map_err(failed)?;
    // A pipe has no length to tell.
    let about = archive.metadata().await.map_err(failed)?;
    let total = about.is_file().then_some(about.len());
    let client = Client::connect(daemon).await?;
    let progress = Progress::start(format!("importing {}", input::name(file)), total);
    let (chunks, to_send) = mpsc::channel(CHUNKS_WAITING_MAX);
    let object = format!("archive {}", input::name(file));
    let call = client.import_images(&object, ReceiverStream::new(to_send));
    tokio::pin!(call);
    let imported = tokio::select! {
        imported = &mut call => imported,
        sent = send(archive, &chunks, name.unwrap_or_default(), progress) => {
            // A failed read must not look like the end of the archive: the call is dropped while
            // the stream is still open.
            sent.map_err(failed)?;
            drop(chunks);
            call.await
        }
    };
    for image in imported? {
        let names =
            if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        console::out(format!("{} {names}", image.id)).map_err(Error::Output)?;
    }
    Ok(())
}

/// Sends the archive chunk by chunk.
async fn send(
    mut archive: impl AsyncRead + Unpin,
    chunks: &mpsc::Sender<ImportImagesRequest>,
    name: String,
    mut progress: Progress,
) -> io::Result<()> {
    let mut name = Some(name);
    let mut sent_bytes = 0;
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let count = (&mut archive).take(CHUNK_BYTES as u64).read_to_end(&mut chunk).await?;
        let message = ImportImagesRequest { chunk, name: name.take().unwrap_or_default() };
        // A closed channel: the daemon ended the call, and its answer says why.
        if count == 0 || chunks.send(message).await.is_err() {
            return Ok(());
        }
        sent_bytes += count as u64;
        progress.update(sent_bytes);
    }
}

async fn pull(daemon: &client::Daemon, reference: &str, creds: Option<&Path>) -> Result<(), Error> {
    let auth = match creds {
        Some(path) => Some(credentials(path).await?),
        None => None,
    };
    let client = Client::connect(daemon).await?;
    let image = pull_with_notes(&client, reference, auth).await?;
    console::out(image).map_err(Error::Output)
}

/// Pulls and says so; answers the image's reference.
pub(crate) async fn pull_with_notes(
    client: &Client,
    reference: &str,
    auth: Option<cri::AuthConfig>,
) -> Result<String, client::Error> {
    console::note(format!("pulling {reference}"));
    let began = Instant::now();
    let image = client.pull_image(reference, auth).await?;
    console::note(format!("pulled {reference} in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(image)
}

async fn credentials(path: &Path) -> Result<cri::AuthConfig, Error> {
    let failed = |source| Error::Read { path: path.to_path_buf(), source };
    let mut text = String::new();
    let file = input::open(path).await.map_err(failed)?;
    file.take(CREDENTIALS_BYTES_MAX).read_to_string(&mut text).await.map_err(failed)?;
    parse_credentials(&text)
        .map_err(|problem| Error::Credentials { path: path.to_path_buf(), problem })
}

/// A password may contain anything but the end of the line.
fn parse_credentials(text: &str) -> Result<cri::AuthConfig, &'static str> {
    let line = text.trim_end_matches(['\r', '\n']);
    if line.contains('\n') {
        return Err("must be one line");
    }
    match line.split_once(':') {
        Some((username, password)) if !username.is_empty() => Ok(cri::AuthConfig {
            username: username.to_owned(),
            password: password.to_owned(),
            ..Default::default()
        }),
        _ => Err("must be USER:PASSWORD"),
    }
}

async fn remove(daemon: &client::Daemon, references: &[String]) -> Result<(), Error> {
    let client = Client::connect(daemon).await?;
    for reference in references {
        // Removing what is not there succeeds in the CRI; a user who mistyped wants to know.
        let image = client.image_status(reference).await?;
        let image = image.ok_or_else(|| Error::Absent(reference.clone()))?;
        client.remove_image(reference).await?;
        console::out(image.id).map_err(Error::Output)?;
    }
    Ok(())
}

fn render(images: &[cri::Image]) -> String {
    let mut rows = Vec::new();
    for image in images {
        let id = console::short_id(&image.id).to_owned();
        let size = console::size(image.size);
        for (name, tag) in names(image) {
            rows.push([name, tag, id.clone(), size.clone()]);
        }
    }
    rows.sort();
    console::table(["IMAGE", "TAG", "ID", "SIZE"], &rows)
}

/// Repository and tag of every name; an image known by digest alone has no tag.
fn names(image: &cri::Image) -> Vec<(String, String)> {
    const NONE: &str = "<none>";
    let tagged = image.repo_tags.iter().map(|name| match name.rsplit_once(':') {
        // A colon before the last slash belongs to a port.
        Some((name, tag)) if !tag.contains('/') => (name.to_owned(), tag.to_owned()),
        _ => (name.clone(), NONE.to_owned()),
    });
    let mut names: Vec<(String, String)> = tagged.collect();
    if names.is_empty() {
        let untagged = image.repo_digests.iter().filter_map(|name| name.split_once('@'));
        names.extend(untagged.map(|(name, _)| (name.to_owned(), NONE.to_owned())));
    }
    if names.is_empty() {
        names.push((NONE.to_owned(), NONE.to_owned()));
    }
    names
}

fn render_json(images: &[cri::Image]) -> String {
    let mut by_id = BTreeMap::new();
    for image in images {
        by_id.insert(
            image.id.as_str(),
            serde_json::json!({
                "id": image.id,
                "repoTags": image.repo_tags,
                "repoDigests": image.repo_digests,
                "size": image.size,
                "pinned": image.pinned,
            }),
        );
    }
    let images: Vec<serde_json::Value> = by_id.into_values().collect();
    format!("{:#}", serde_json::json!({ "images": images }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(tags: &[&str], digests: &[&str]) -> cri::Image {
        cri::Image {
            id: "sha256:0123456789abcdef".to_owned(),
            repo_tags: tags.iter().map(ToString::to_string).collect(),
            repo_digests: digests.iter().map(ToString::to_string).collect(),
            size: 4_260_000,
            ..Default::default()
        }
    }

    #[test]
    fn an_image_has_a_row_for_each_of_its_names() {
        let images = [
            image(&["localhost:5000/b:2", "docker.io/library/a:latest"], &["x/y@sha256:00"]),
            image(&[], &["quay.io/c@sha256:00"]),
            image(&[], &[]),
        ];
        assert_eq!(
            render(&images),
            "\
IMAGE                TAG     ID            SIZE
<none>               <none>  0123456789ab  4.3 MB
docker.io/library/a  latest  0123456789ab  4.3 MB
localhost:5000/b     2       0123456789ab  4.3 MB
quay.io/c            <none>  0123456789ab  4.3 MB"
        );
    }

    #[test]
    fn json_has_whole_ids_and_sizes() {
        let text = render_json(&[image(&["a:1"], &[])]);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["images"][0]["id"], "sha256:0123456789abcdef");
        assert_eq!(value["images"][0]["size"], 4_260_000);
    }

    #[test]
    fn a_password_may_contain_colons() {
        let auth = parse_credentials("me:se:cr et\n").unwrap();
        assert_eq!((auth.username.as_str(), auth.password.as_str()), ("me", "se:cr et"));
        for text in ["", "me", ":secret", "me:a\nyou:b"] {
            assert!(parse_credentials(text).is_err(), "{text:?} was accepted");
        }
    }

    #[tokio::test]
    async fn an_archive_is_sent_in_bounded_chunks_and_named_once() {
        let bytes = vec![7_u8; CHUNK_BYTES * 2 + 1];
        let (chunks, mut received) = mpsc::channel(CHUNKS_WAITING_MAX);
        let progress = Progress::start("test".to_owned(), None);
        send(bytes.as_slice(), &chunks, "a:1".to_owned(), progress).await.unwrap();
        drop(chunks);
        let mut seen = Vec::new();
        while let Some(message) = received.recv().await {
            seen.push((message.chunk.len(), message.name));
        }
        let none = String::new();
        assert_eq!(seen, [(CHUNK_BYTES, "a:1".to_owned()), (CHUNK_BYTES, none.clone()), (1, none)]);
    }
}
