//! The node's socket as typed clients: `k8s-cri` for all it can say, `proto` for what is newer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use proto::admin::v1::{ImportImagesRequest, ImportedImage, admin_client::AdminClient};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::wait::scaled;

/// No call of a test may take longer; a stuck daemon must end the test, not the patience of CI.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// CRI caps each stream of an exec at 16 MiB.
const MESSAGE_BYTES_MAX: usize = 40 << 20;

/// Piece of an archive per message; below gRPC's default of 4 MiB.
const CHUNK_BYTES: usize = 1 << 20;

/// Cheap to clone. One connection, made at the first call and again after a restart of the daemon.
#[derive(Debug, Clone)]
pub struct Cri {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
    /// For what `k8s-cri` does not know.
    pub newer_runtime: proto::cri::v1::runtime_service_client::RuntimeServiceClient<Channel>,
    pub newer_images: proto::cri::v1::image_service_client::ImageServiceClient<Channel>,
    pub admin: AdminClient<Channel>,
}

impl Cri {
    pub fn new(socket: &Path) -> Self {
        let channel = channel(socket);
        Self {
            runtime: RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(channel.clone()),
            newer_runtime: proto::cri::v1::runtime_service_client::RuntimeServiceClient::new(
                channel.clone(),
            ),
            newer_images: proto::cri::v1::image_service_client::ImageServiceClient::new(
                channel.clone(),
            ),
            admin: AdminClient::new(channel),
        }
    }

    /// Hands an archive to the daemon, as `lapstrake images import` does.
    pub async fn import(&self, archive: Vec<u8>, name: &str) -> Result<Vec<ImportedImage>, Status> {
        let chunks: Vec<_> = archive
            .chunks(CHUNK_BYTES)
            .enumerate()
            .map(|(place, chunk)| ImportImagesRequest {
                chunk: chunk.to_vec(),
                name: if place == 0 { name.to_owned() } else { String::new() },
            })
            .collect();
        let answer = self.admin.clone().import_images(tokio_stream::iter(chunks)).await?;
        Ok(answer.into_inner().images)
    }
}

/// The connection alone, for requests that no typed client can make.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let endpoint = Endpoint::from_static("http://localhost").timeout(scaled(CALL_LIMIT));
    endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| connect(socket.clone())))
}

async fn connect(socket: PathBuf) -> std::io::Result<TokioIo<UnixStream>> {
    Ok(TokioIo::new(UnixStream::connect(socket).await?))
}
