//! The gRPC front: wire types stop here.

mod admin_service;
mod from_proto;
mod image_service;
mod observe;
mod runtime_service;
mod status;
mod to_proto;

use std::sync::Arc;

use proto::admin::v1::admin_server::AdminServer;
use proto::cri::v1::image_service_server::ImageServiceServer;
use proto::cri::v1::runtime_service_server::RuntimeServiceServer;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::app::Ctx;

/// Largest message either way: what the kubelet allows.
const MESSAGE_MAX: usize = 16 << 20;

/// Serves until `stop` turns true, then until the calls under way have ended.
pub(crate) async fn serve(
    ctx: Arc<Ctx>,
    listener: UnixListener,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let service = observe::Service::new(ctx);
    Server::builder()
        .add_service(
            RuntimeServiceServer::new(service.clone())
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
        )
        .add_service(
            ImageServiceServer::new(service.clone())
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
        )
        .add_service(AdminServer::new(service).max_decoding_message_size(MESSAGE_MAX))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}
