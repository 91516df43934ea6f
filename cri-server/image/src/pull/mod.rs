//! Pulls one image: what does the name stand for, what is it made of, get what is missing, write
//! the record last.

pub(crate) mod download;

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::digest::{Digest, ImageId};
use crate::error::Error;
use crate::fetch::{self, Source, Wanted};
use crate::manifest::{self, Descriptor, Document, ImageConfig, Manifest, ManifestError, Platform};
use crate::reference::Reference;
use crate::registry::{Auth, Session};
use crate::service::Core;
use crate::service::commit::{Content, Fresh};
use crate::store::record::LayerOfImage;

/// Indexes within indexes; nobody nests deeper than two.
const INDEX_DEPTH_MAX: usize = 4;

pub(crate) async fn pull(
    core: Arc<Core>,
    reference: Reference,
    auth: Option<Auth>,
) -> Result<ImageId, Error> {
    let clients = Arc::clone(&core.clients);
    let session = Arc::new(Session::new(clients, &core.config, &reference, auth)?);
    let told = session.resolve(reference.wanted()).await?;
    if let (Some(promised), Some(told)) = (reference.digest(), &told)
        && promised != told
    {
        return Err(Error::Verification {
            reference: reference.to_string(),
            object: "the manifest".into(),
            reason: format!("the registry answers with {told}"),
        });
    }
    // Nothing changed since the last pull: at most a name is added.
    if let Some(told) = &told
        && let Some(id) = core.add_name(&reference, told).await?
    {
        return Ok(id);
    }
    let wanted = told.as_ref().map_or(reference.wanted(), |digest| digest.as_str());
    let (manifest, content) = manifests(&session, wanted).await?;
    let config = &manifest.config;
    let bytes = session.small_blob(&config.digest, config.size).await?;
    let parsed = ImageConfig::parse(&bytes)
        .and_then(|parsed| manifest.check(&parsed).map(|()| parsed))
        .map_err(|e| unusable(&reference, "the image configuration", &e))?;
    let (layers, source) = (layers(&manifest, &parsed), Source::Registry(Arc::clone(&session)));
    let ready = gather(&core, &reference.to_string(), &layers, |_| source.clone()).await?;
    let repo_digest = content.first().map(|top: &Content| reference.repo_digest(&top.digest));
    let id = config.digest.clone();
    let fresh = Fresh {
        id,
        config: parsed,
        config_bytes: bytes,
        manifests: content,
        layers,
        tags: reference.repo_tag().into_iter().collect(),
        digests: repo_digest.into_iter().collect(),
    };
    core.commit(fresh, ready).await
}

/// All layers of an image, lowest first, at most as many at a time as configured.
pub(crate) async fn gather(
    core: &Arc<Core>,
    of: &str,
    layers: &[LayerOfImage],
    source: impl Fn(usize) -> Source,
) -> Result<Vec<Arc<fetch::Ready>>, Error> {
    let mut fetches: Vec<BoxFuture<'static, Result<Arc<fetch::Ready>, Error>>> = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        let wanted = Wanted {
            of: of.to_owned(),
            chain: layer.chain.clone(),
            parent: at.checked_sub(1).map(|below| layers[below].chain.clone()),
            diff_id: layer.diff_id.clone(),
            blob: layer.blob.clone().map(|digest| (digest, layer.blob_bytes)),
        };
        let (core, source) = (Arc::clone(core), source(at));
        fetches.push(Box::pin(async move { fetch::layer(&core, &wanted, &source).await }));
    }
    stream::iter(fetches).buffered(core.config.max_concurrent_downloads.max(1)).try_collect().await
}

/// The layers as records name them.
pub(crate) fn layers(manifest: &Manifest, config: &ImageConfig) -> Vec<LayerOfImage> {
    let mut parent: Option<Digest> = None;
    let mut layers = Vec::new();
    for (diff_id, blob) in config.diff_ids.iter().zip(&manifest.layers) {
        let chain = Digest::chain(parent.as_ref(), diff_id);
        parent = Some(chain.clone());
        layers.push(LayerOfImage {
            chain,
            diff_id: diff_id.clone(),
            blob: Some(blob.digest.clone()),
            blob_bytes: blob.size,
        });
    }
    layers
}

/// From whatever the name stands for down to the manifest for this platform, with everything on
/// the way, top first.
async fn manifests(session: &Session, wanted: &str) -> Result<(Manifest, Vec<Content>), Error> {
    let here = Platform::here();
    let mut wanted = wanted.to_owned();
    let mut content = Vec::new();
    for _ in 0..INDEX_DEPTH_MAX {
        let fetched = session.manifest(&wanted).await?;
        let document = Document::parse(&fetched.media_type, &fetched.bytes);
        let document = document.map_err(|e| unusable(&session.reference, "the manifest", &e))?;
        content.push(Content { digest: fetched.digest, bytes: fetched.bytes });
        match document {
            Document::Manifest(manifest) => return Ok((manifest, content)),
            Document::Index(offers) => {
                let chosen: &Descriptor = manifest::choose(&here, &offers)
                    .map_err(|e| unusable(&session.reference, "the index", &e))?;
                chosen.digest.as_str().clone_into(&mut wanted);
            }
        }
    }
    Err(Error::Unsupported {
        reference: session.reference.to_string(),
        object: "the index".into(),
        reason: format!("indexes are nested more than {INDEX_DEPTH_MAX} deep"),
    })
}

pub(crate) fn unusable(reference: &Reference, object: &str, error: &ManifestError) -> Error {
    Error::Unsupported {
        reference: reference.to_string(),
        object: object.to_owned(),
        reason: error.to_string(),
    }
}
