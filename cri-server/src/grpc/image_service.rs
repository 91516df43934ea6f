//! `ImageService`: one short method per RPC.

use image::ErrorKind;
use proto::cri::v1::image_service_server::ImageService;
use proto::cri::v1::{self as cri};
use tonic::{Request, Response, Status};

use super::observe::Service;
use super::runtime_service::Items;
use super::stream::chunked;
use super::to_proto;
use crate::clock;
use crate::error::Error;
use crate::events::Pulling;

#[tonic::async_trait]
impl ImageService for Service {
    type StreamImagesStream = Items<cri::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        let wanted = filter.map(|spec| spec.image).unwrap_or_default();
        self.attended("ListImages", wanted.clone(), async {
            let images = match wanted.as_str() {
                "" => self.ctx.images.list().iter().map(|image| to_proto::image(image)).collect(),
                wanted => self.ctx.images.find(wanted).iter().map(|i| to_proto::image(i)).collect(),
            };
            Ok(cri::ListImagesResponse { images })
        })
        .await
    }

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let filter = request.into_inner().filter.and_then(|filter| filter.image);
        let wanted = filter.map(|spec| spec.image).unwrap_or_default();
        self.streamed("StreamImages", async {
            let images: Vec<_> = match wanted.as_str() {
                "" => self.ctx.images.list().to_vec(),
                wanted => self.ctx.images.find(wanted).into_iter().collect(),
            };
            chunked(
                images,
                |image| to_proto::image(image),
                |images| cri::StreamImagesResponse { images },
            )
        })
        .await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let wanted = request.into_inner().image.unwrap_or_default().image;
        self.attended("ImageStatus", wanted.clone(), async {
            if wanted.is_empty() {
                return Err(Error::invalid("image.image", "is empty"));
            }
            let image = self.ctx.images.find(&wanted).map(|image| to_proto::image(&image));
            Ok(cri::ImageStatusResponse { image, info: [].into() })
        })
        .await
    }

    /// Ends with its caller: a pull that nobody waits for is not worth its traffic.
    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let reference = request.image.unwrap_or_default().image;
        let auth = request.auth.map(auth);
        self.attended("PullImage", reference.clone(), async {
            if reference.is_empty() {
                return Err(Error::invalid("image.image", "is empty"));
            }
            let pulling = Pulling::begin(self.ctx.world.events(), &reference);
            let pulled = self.ctx.images.pull(&reference, auth).await;
            pulling.end(&pulled);
            let id = pulled.map_err(|source| match source.kind() {
                ErrorKind::DiskFull | ErrorKind::Internal => {
                    Error::Pull { reference: reference.clone(), source }
                }
                _ => source.into(),
            })?;
            Ok(cri::PullImageResponse { image_ref: id.to_string() })
        })
        .await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let wanted = request.into_inner().image.unwrap_or_default().image;
        self.detached("RemoveImage", wanted.clone(), |ctx| async move {
            if wanted.is_empty() {
                return Err(Error::invalid("image.image", "is empty"));
            }
            ctx.images.remove(&wanted).await?;
            Ok(cri::RemoveImageResponse {})
        })
        .await
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        self.attended("ImageFsInfo", String::new(), async {
            let info = self.ctx.images.fs_info();
            let usage = cri::FilesystemUsage {
                timestamp: clock::now_ns(),
                fs_id: Some(cri::FilesystemIdentifier {
                    mountpoint: info.mountpoint.to_string_lossy().into_owned(),
                }),
                used_bytes: Some(cri::UInt64Value { value: info.used_bytes }),
                inodes_used: Some(cri::UInt64Value { value: info.inodes_used }),
            };
            // Writable layers live on the same file system as the images.
            Ok(cri::ImageFsInfoResponse {
                image_filesystems: vec![usage.clone()],
                container_filesystems: vec![usage],
            })
        })
        .await
    }
}

fn auth(auth: cri::AuthConfig) -> image::Auth {
    image::Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    }
}
