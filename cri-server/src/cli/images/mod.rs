//! `lapstrake images`: what the daemon's image store holds, and how it gets there.

mod export;
mod login;
mod pull;
mod uses;
mod verify;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::builder::NonEmptyStringValueParser;
use proto::{
    admin::v1::{ImportImagesRequest, ImportedImage},
    cri::v1 as cri,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

pub(crate) use login::{Error as LoginError, Login};
pub(crate) use pull::pull_with_notes;

use super::{
    client::{self, Client},
    console::{self, Progress},
    input,
};

/// One message of an import: far below gRPC's usual limit of 4 MiB, large enough to be cheap.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that may wait for the daemon: reading goes on while it writes.
const CHUNKS_WAITING_MAX: usize = 4;

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
        /// The archive, gzipped or not, or a directory in the OCI layout; - reads standard input
        #[arg(value_name = "FILE")]
        file: PathBuf,

        /// A reference for an archive that names none
        #[arg(long, value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        name: Option<String>,
    },
    /// Pull an image from its registry
    Pull {
        #[arg(value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        reference: String,

        #[command(flatten)]
        login: Login,
    },
    /// Write images into an archive that any image tool reads
    Export {
        #[arg(required = true, value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        references: Vec<String>,

        /// The archive; - writes to standard output
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Keep images from the kubelet's garbage collection
    Pin {
        #[arg(required = true, value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        references: Vec<String>,

        /// No longer
        #[arg(long)]
        undo: bool,
    },
    /// Compare images on disk, byte by byte, with what was written when they were made
    Verify {
        /// All images when none is given
        #[arg(value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        references: Vec<String>,
    },
    /// List images, and who uses them since when
    Ls {
        /// As JSON, with whole ids and sizes in bytes
        #[arg(long)]
        json: bool,
    },
    /// Remove images, with all their names
    Rm {
        #[arg(required = true, value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
        references: Vec<String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("read {}: {source}", input::name(path))]
    Read { path: PathBuf, source: io::Error },
    #[error("run tar to read the directory {}: {source}; is tar installed?", path.display())]
    Tar { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Login(#[from] login::Error),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{0} of the images are damaged; pull them again to make the layers anew")]
    Damaged(usize),
    #[error("there is no image {0:?}; `lapstrake images ls` shows what there is")]
    Absent(String),
    #[error("write to standard output: {0}")]
    Output(io::Error),
}

impl Error {
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Client(error) => error.is_usage(),
            Self::Login(error) => error.is_usage(),
            Self::Read { .. }
            | Self::Tar { .. }
            | Self::Write { .. }
            | Self::Absent(_)
            | Self::Damaged(_)
            | Self::Output(_) => false,
        }
    }
}

pub(crate) async fn images(args: Args) -> Result<ExitCode, Error> {
    match args.verb {
        Verb::Import { file, name } => import(&args.daemon, &file, name).await,
        Verb::Pull { reference, login } => pull::pull(&args.daemon, &reference, &login).await,
        Verb::Export { references, output } => {
            export::export(&args.daemon, references, &output).await
        }
        Verb::Pin { references, undo } => pin(&args.daemon, &references, !undo).await,
        Verb::Verify { references } => verify::verify(&args.daemon, references).await,
        Verb::Ls { json } => {
            let client = Client::connect(&args.daemon).await?;
            let images = client.list_images().await?;
            let uses = uses::Uses::of(&client).await?;
            let text = if json { render_json(&images, &uses) } else { render(&images, &uses) };
            console::out(text).map_err(Error::Output)
        }
        Verb::Rm { references } => remove(&args.daemon, &references).await,
    }
    .map(|()| ExitCode::SUCCESS)
}

async fn import(daemon: &client::Daemon, file: &Path, name: Option<String>) -> Result<(), Error> {
    let failed = |source| Error::Read { path: file.to_path_buf(), source };
    if file.is_dir() {
        return import_directory(daemon, file, name).await;
    }
    let archive = input::open(file).await.map_err(failed)?;
    // A pipe has no length to tell.
    let about = archive.metadata().await.map_err(failed)?;
    let total = about.is_file().then_some(about.len());
    let client = Client::connect(daemon).await?;
    let source = Source {
        object: &format!("archive {}", input::name(file)),
        name: name.unwrap_or_default(),
        progress: Progress::start(format!("importing {}", input::name(file)), total),
    };
    let imported = stream(&client, archive, source).await.map_err(|error| match error {
        StreamError::Read(source) => failed(source),
        StreamError::Client(error) => error.into(),
    })?;
    tell(imported)
}

/// A directory in the OCI layout, as the archive of it.
async fn import_directory(
    daemon: &client::Daemon,
    directory: &Path,
    name: Option<String>,
) -> Result<(), Error> {
    let failed = |source| Error::Read { path: directory.to_path_buf(), source };
    let mut tar = tokio::process::Command::new("tar")
        .arg("-C")
        .arg(directory)
        .args(["-cf", "-", "."])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| Error::Tar { path: directory.to_path_buf(), source })?;
    let archive = tar.stdout.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
    let client = Client::connect(daemon).await?;
    let source = Source {
        object: &format!("directory {}", directory.display()),
        name: name.unwrap_or_default(),
        progress: Progress::start(format!("importing {}", directory.display()), None),
    };
    let imported = stream(&client, archive, source).await.map_err(|error| match error {
        StreamError::Read(source) => failed(source),
        StreamError::Client(error) => error.into(),
    })?;
    tell(imported)
}

fn tell(imported: Vec<ImportedImage>) -> Result<(), Error> {
    for image in imported {
        let names =
            if image.names.is_empty() { "<none>".to_owned() } else { image.names.join(" ") };
        console::out(format!("{} {names}", image.id)).map_err(Error::Output)?;
    }
    Ok(())
}

/// What there is to say about an archive beside its bytes.
struct Source<'a> {
    object: &'a str,
    name: String,
    progress: Progress,
}

#[derive(Debug)]
enum StreamError {
    Read(io::Error),
    Client(client::Error),
}

/// Sends an archive to the daemon and answers what was in it.
async fn stream(
    client: &Client,
    archive: impl AsyncRead + Unpin,
    source: Source<'_>,
) -> Result<Vec<ImportedImage>, StreamError> {
    let (chunks, to_send) = mpsc::channel(CHUNKS_WAITING_MAX);
    let call = client.import_images(source.object, ReceiverStream::new(to_send));
    tokio::pin!(call);
    let imported = tokio::select! {
        imported = &mut call => imported,
        sent = send(archive, &chunks, source.name, source.progress) => {
            // A failed read cancels the call. The daemon may take that for the end of the archive
            // (hyper hides the difference), but not for a whole one: digests tell.
            sent.map_err(StreamError::Read)?;
            drop(chunks);
            call.await
        }
    };
    imported.map_err(StreamError::Client)
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

async fn pin(daemon: &client::Daemon, references: &[String], pinned: bool) -> Result<(), Error> {
    let client = Client::connect(daemon).await?;
    for reference in references {
        let id = client.pin_image(reference, pinned).await?;
        console::out(id).map_err(Error::Output)?;
    }
    Ok(())
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

fn render(images: &[cri::Image], uses: &uses::Uses) -> String {
    let mut rows = Vec::new();
    for image in images {
        let id = console::short_id(&image.id).to_owned();
        let size = console::size(image.size);
        let pinned = if image.pinned { "yes" } else { "" };
        for (name, tag) in names(image) {
            let used = uses.words(&image.id);
            rows.push([name, tag, id.clone(), size.clone(), pinned.to_owned(), used]);
        }
    }
    rows.sort();
    console::table(["IMAGE", "TAG", "ID", "SIZE", "PINNED", "USED BY"], &rows)
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

fn render_json(images: &[cri::Image], uses: &uses::Uses) -> String {
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
                "usedBy": uses.json(&image.id),
            }),
        );
    }
    let images: Vec<serde_json::Value> = by_id.into_values().collect();
    format!("{:#}", serde_json::json!({ "images": images }))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use proto::admin::v1::{
        self as admin, ImportImagesResponse,
        admin_server::{Admin, AdminServer},
    };
    use tokio_stream::wrappers::UnixListenerStream;

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
            render(&images, &uses::Uses::default()),
            "\
IMAGE                TAG     ID            SIZE    PINNED  USED BY
<none>               <none>  0123456789ab  4.3 MB
docker.io/library/a  latest  0123456789ab  4.3 MB
localhost:5000/b     2       0123456789ab  4.3 MB
quay.io/c            <none>  0123456789ab  4.3 MB"
        );
    }

    #[test]
    fn json_has_whole_ids_and_sizes() {
        let text = render_json(&[image(&["a:1"], &[])], &uses::Uses::default());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["images"][0]["id"], "sha256:0123456789abcdef");
        assert_eq!(value["images"][0]["size"], 4_260_000);
    }

    #[tokio::test]
    async fn an_archive_is_sent_in_bounded_chunks_and_named_once() {
        let bytes = vec![7_u8; CHUNK_BYTES * 2 + 1];
        let (chunks, received) = mpsc::channel(CHUNKS_WAITING_MAX);
        let progress = Progress::start("test".to_owned(), None);
        send(bytes.as_slice(), &chunks, "a:1".to_owned(), progress).await.unwrap();
        drop(chunks);
        let messages = ReceiverStream::new(received).map(|sent| (sent.chunk.len(), sent.name));
        let none = String::new();
        assert_eq!(
            messages.collect::<Vec<_>>().await,
            [(CHUNK_BYTES, "a:1".to_owned()), (CHUNK_BYTES, none.clone()), (1, none)]
        );
    }

    /// An admin service that answers with the length of what it got.
    struct Lengths;

    #[tonic::async_trait]
    impl Admin for Lengths {
        type WatchEventsStream =
            tokio_stream::Empty<Result<proto::admin::v1::Event, tonic::Status>>;

        async fn watch_events(
            &self,
            _: tonic::Request<proto::admin::v1::WatchEventsRequest>,
        ) -> Result<tonic::Response<Self::WatchEventsStream>, tonic::Status> {
            Err(tonic::Status::unimplemented("not asked for here"))
        }

        async fn set_log_level(
            &self,
            _: tonic::Request<proto::admin::v1::SetLogLevelRequest>,
        ) -> Result<tonic::Response<proto::admin::v1::SetLogLevelResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented("not asked for here"))
        }

        type ExportImagesStream =
            ReceiverStream<Result<admin::ExportImagesResponse, tonic::Status>>;
        type WatchPullsStream = ReceiverStream<Result<admin::WatchPullsResponse, tonic::Status>>;

        async fn export_images(
            &self,
            _: tonic::Request<admin::ExportImagesRequest>,
        ) -> Result<tonic::Response<Self::ExportImagesStream>, tonic::Status> {
            Err(tonic::Status::unimplemented("ExportImages"))
        }

        async fn watch_pulls(
            &self,
            _: tonic::Request<admin::WatchPullsRequest>,
        ) -> Result<tonic::Response<Self::WatchPullsStream>, tonic::Status> {
            Err(tonic::Status::unimplemented("WatchPulls"))
        }

        async fn why(
            &self,
            _: tonic::Request<admin::WhyRequest>,
        ) -> Result<tonic::Response<admin::WhyResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented("Why"))
        }

        async fn explain_image(
            &self,
            _: tonic::Request<admin::ExplainImageRequest>,
        ) -> Result<tonic::Response<admin::ExplainImageResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented("ExplainImage"))
        }

        async fn verify_image(
            &self,
            _: tonic::Request<admin::VerifyImageRequest>,
        ) -> Result<tonic::Response<admin::VerifyImageResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented("VerifyImage"))
        }

        async fn pin_image(
            &self,
            _: tonic::Request<admin::PinImageRequest>,
        ) -> Result<tonic::Response<admin::PinImageResponse>, tonic::Status> {
            Err(tonic::Status::unimplemented("PinImage"))
        }

        async fn import_images(
            &self,
            request: tonic::Request<tonic::Streaming<ImportImagesRequest>>,
        ) -> Result<tonic::Response<ImportImagesResponse>, tonic::Status> {
            let mut stream = request.into_inner();
            let (mut length, mut names) = (0, Vec::new());
            while let Some(message) = stream.message().await? {
                length += message.chunk.len();
                names.extend(Some(message.name).filter(|name| !name.is_empty()));
                if length > LENGTH_REFUSED {
                    return Err(tonic::Status::resource_exhausted("no room"));
                }
            }
            let image = ImportedImage { id: length.to_string(), names };
            Ok(tonic::Response::new(ImportImagesResponse { images: vec![image] }))
        }
    }

    /// An archive of more bytes is refused before it has been sent.
    const LENGTH_REFUSED: usize = CHUNK_BYTES * 40;

    /// Streams to a daemon on a socket of the test's own.
    async fn streamed(
        test: &str,
        archive: impl AsyncRead + Unpin,
    ) -> Result<Vec<ImportedImage>, StreamError> {
        let path = std::env::temp_dir().join(format!("images-{test}-{}", std::process::id()));
        let socket = UnixListenerStream::new(tokio::net::UnixListener::bind(&path).unwrap());
        let server = tonic::transport::Server::builder().add_service(AdminServer::new(Lengths));
        let server = tokio::spawn(server.serve_with_incoming(socket));
        let daemon = client::Daemon::at(&format!("unix://{}", path.display()));
        let client = Client::connect(&daemon).await.unwrap();
        let progress = Progress::start(test.to_owned(), None);
        let source = Source { object: "archive", name: "a:1".to_owned(), progress };
        let answer = stream(&client, archive, source).await;
        server.abort();
        std::fs::remove_file(&path).unwrap();
        answer
    }

    #[tokio::test]
    async fn an_archive_arrives_whole() {
        let bytes = vec![7_u8; CHUNK_BYTES * 20 + 5];
        let images = streamed("whole", bytes.as_slice()).await.unwrap();
        assert_eq!((images[0].id.as_str(), images[0].names[0].as_str()), ("5242885", "a:1"));
    }

    #[tokio::test]
    async fn an_archive_that_cannot_be_read_is_not_imported() {
        let broken = vec![7_u8; CHUNK_BYTES * (CHUNKS_WAITING_MAX + 4)];
        let error = streamed("broken", broken.chain(Unreadable)).await.unwrap_err();
        assert!(matches!(&error, StreamError::Read(cause) if cause.to_string() == "bad sector"));
    }

    #[tokio::test]
    async fn the_daemons_reason_is_told_when_it_stops_reading() {
        let endless = tokio::io::repeat(7);
        let error = streamed("refused", endless).await.unwrap_err();
        let StreamError::Client(error) = error else { panic!("{error:?}") };
        assert_eq!(error.to_string(), "ImportImages of archive: no room (ResourceExhausted)");
    }

    struct Unreadable;

    impl AsyncRead for Unreadable {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
            _: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::task::Poll::Ready(Err(io::Error::other("bad sector")))
        }
    }
}
