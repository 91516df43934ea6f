//! `Admin`: what the operator verbs ask and CRI has no word for.

use proto::admin::v1::admin_server::Admin;
use proto::admin::v1::{self as admin};
use tokio::io::AsyncWriteExt;
use tonic::{Request, Response, Status, Streaming};

use super::event_stream;
use super::observe::Service;
use super::runtime_service::Items;
use crate::error::Error;

/// Bytes of an archive on their way from the client to the unpacker.
const PIPE_BYTES: usize = 1 << 20;

#[tonic::async_trait]
impl Admin for Service {
    type WatchEventsStream = Items<admin::Event>;

    async fn import_images(
        &self,
        request: Request<Streaming<admin::ImportImagesRequest>>,
    ) -> Result<Response<admin::ImportImagesResponse>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.unwrap_or_default();
        let name = Some(first.name.clone()).filter(|name| !name.is_empty());
        let (archive, mut sink) = tokio::io::simplex(PIPE_BYTES);
        let feed = async move {
            let mut next = Some(first);
            while let Some(message) = next {
                // The unpacker stops reading when it has found a fault: it will say which.
                if sink.write_all(&message.chunk).await.is_err() {
                    break;
                }
                next = chunks.message().await?;
            }
            let _ = sink.shutdown().await;
            Ok::<_, Status>(())
        };
        let work = async {
            let (fed, imported) =
                tokio::join!(feed, self.ctx.images.import(archive, name.as_deref()));
            fed.map_err(|status| Error::invalid("archive", status.message().to_owned()))?;
            let images = imported?
                .into_iter()
                .map(|image| admin::ImportedImage { id: image.id.to_string(), names: image.names })
                .collect();
            Ok(admin::ImportImagesResponse { images })
        };
        self.attended("ImportImages", name.clone().unwrap_or_default(), work).await
    }

    async fn watch_events(
        &self,
        _: Request<admin::WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        self.streamed("WatchEvents", async {
            let dropped = self.ctx.metrics.families.events_dropped.clone();
            Response::new(event_stream::watch(&self.ctx.world, dropped))
        })
        .await
    }

    async fn set_log_level(
        &self,
        request: Request<admin::SetLogLevelRequest>,
    ) -> Result<Response<admin::SetLogLevelResponse>, Status> {
        let filter = request.into_inner().filter;
        self.attended("SetLogLevel", filter.clone(), async {
            let set = self.ctx.levels.set(&filter);
            set.map_err(|error| Error::invalid("filter", error.to_string()))?;
            tracing::info!(%filter, "the log level was changed");
            Ok(admin::SetLogLevelResponse {})
        })
        .await
    }
}
