//! `Admin`: what the operator verbs ask and CRI has no word for.

use std::time::Duration;

use proto::admin::v1::admin_server::Admin;
use proto::admin::v1::{self as admin};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::event_stream;
use super::observe::Service;
use super::runtime_service::Items;
use super::{status, to_proto};
use crate::error::Error;
use crate::why;

/// Bytes of an archive on their way from the client to the unpacker.
const PIPE_BYTES: usize = 1 << 20;

/// Between two looks at the pulls under way: fast enough to look alive.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// Messages that may wait for a slow reader.
const WAITING_MAX: usize = 4;

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Admin for Service {
    type WatchEventsStream = Items<admin::Event>;
    type ExportImagesStream = Stream<admin::ExportImagesResponse>;
    type WatchPullsStream = Stream<admin::WatchPullsResponse>;

    async fn export_images(
        &self,
        request: Request<admin::ExportImagesRequest>,
    ) -> Result<Response<Self::ExportImagesStream>, Status> {
        let names = request.into_inner().images;
        self.attended("ExportImages", names.join(" "), async {
            if names.is_empty() {
                return Err(Error::invalid("images", "is empty"));
            }
            let (images, mut chunks) = self.ctx.images.export(&names).await?;
            let exported = |image: image::Exported| admin::ExportedImage {
                id: image.id.to_string(),
                archive_id: image.archive_id.to_string(),
                names: image.names,
            };
            let images = images.into_iter().map(exported).collect();
            let (sender, stream) = mpsc::channel(WAITING_MAX);
            tokio::spawn(async move {
                let first = admin::ExportImagesResponse { chunk: Vec::new(), images };
                let mut next = Some(Ok(first));
                while let Some(message) = next {
                    // A reader that went away ends the export.
                    if sender.send(message).await.is_err() {
                        return;
                    }
                    next = chunks.recv().await.map(|chunk| match chunk {
                        Ok(chunk) => Ok(admin::ExportImagesResponse { chunk, images: Vec::new() }),
                        Err(error) => Err(status::status(&error.into())),
                    });
                }
            });
            Ok(ReceiverStream::new(stream))
        })
        .await
    }

    async fn explain_image(
        &self,
        request: Request<admin::ExplainImageRequest>,
    ) -> Result<Response<admin::ExplainImageResponse>, Status> {
        let admin::ExplainImageRequest { image, username, password } = request.into_inner();
        let auth = (!username.is_empty()).then(|| image::Auth {
            username,
            password,
            ..image::Auth::default()
        });
        self.attended("ExplainImage", image.clone(), async {
            let names = self.ctx.images.explain(&image, auth).await?;
            let names = names.into_iter().map(to_proto::explained).collect();
            Ok(admin::ExplainImageResponse { names })
        })
        .await
    }

    async fn verify_image(
        &self,
        request: Request<admin::VerifyImageRequest>,
    ) -> Result<Response<admin::VerifyImageResponse>, Status> {
        let image = request.into_inner().image;
        self.attended("VerifyImage", image.clone(), async {
            let damaged = self.ctx.images.verify(&image).await?;
            let damaged = damaged.ok_or_else(|| image::Error::NoSuchImage(image.clone()))?;
            let layer = |layer: image::DamagedLayer| admin::DamagedLayer {
                layer: layer.layer.to_string(),
                differences: layer.differences,
            };
            Ok(admin::VerifyImageResponse { damaged: damaged.into_iter().map(layer).collect() })
        })
        .await
    }

    async fn pin_image(
        &self,
        request: Request<admin::PinImageRequest>,
    ) -> Result<Response<admin::PinImageResponse>, Status> {
        let admin::PinImageRequest { image, pinned } = request.into_inner();
        self.attended("PinImage", image.clone(), async {
            let id = self.ctx.images.pin(&image, pinned).await?;
            let id = id.ok_or_else(|| image::Error::NoSuchImage(image.clone()))?;
            Ok(admin::PinImageResponse { id: id.to_string() })
        })
        .await
    }

    async fn watch_pulls(
        &self,
        request: Request<admin::WatchPullsRequest>,
    ) -> Result<Response<Self::WatchPullsStream>, Status> {
        let image = request.into_inner().image;
        let (sender, stream) = mpsc::channel(WAITING_MAX);
        let images = self.ctx.images.clone();
        tokio::spawn(async move {
            let mut told = None;
            while !sender.is_closed() {
                let now = if image.is_empty() { images.pulls() } else { images.pulls_of(&image) };
                if told.as_ref() != Some(&now) {
                    let pulls = now.iter().map(to_proto::progress).collect();
                    if sender.send(Ok(admin::WatchPullsResponse { pulls })).await.is_err() {
                        return;
                    }
                    told = Some(now);
                }
                tokio::time::sleep(WATCH_INTERVAL).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

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

    async fn why(
        &self,
        request: Request<admin::WhyRequest>,
    ) -> Result<Response<admin::WhyResponse>, Status> {
        let object = request.into_inner().object;
        // Not told as the object of a call: the answer is about the other calls.
        self.attended("Why", String::new(), async {
            Ok(to_proto::why::reasons(why::why(&self.ctx, &object).await?))
        })
        .await
    }
}
