//! Pulls one image: what does the name stand for, what is it made of, get what is missing, write
//! the record last.

pub(crate) mod admit;
pub(crate) mod arrivals;
pub(crate) mod download;
pub(crate) mod progress;

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::digest::{Digest, ImageId};
use crate::error::{Error, ErrorKind};
use crate::fetch::{self, Source, Wanted};
use crate::manifest::{self, Descriptor, Document, ImageConfig, Manifest, ManifestError, Platform};
use crate::reference::Reference;
use crate::registry::{Auth, Session};
use crate::service::Core;
use crate::service::commit::{Content, Fresh};
use crate::store::record::LayerOfImage;
use progress::{PullStage, Tracked};

/// Indexes within indexes; nobody nests deeper than two.
const INDEX_DEPTH_MAX: usize = 4;

/// Pulls the first of `candidates` (whole names, what a short one may mean) that is there.
pub(crate) async fn pull(
    core: Arc<Core>,
    candidates: Vec<Reference>,
    auth: Option<Auth>,
) -> Result<ImageId, Error> {
    let mut failure = None;
    for reference in &candidates {
        match one(&core, reference, auth.clone()).await {
            // The next registry may have it, whatever is the matter with this one.
            Err(e) if may_be_elsewhere(e.kind()) => {
                // That it is nowhere says less than why one of them could not tell.
                if failure.as_ref().is_none_or(|f: &Error| f.kind() == ErrorKind::NotFound) {
                    failure = Some(e);
                }
            }
            pulled => return pulled,
        }
    }
    Err(failure.unwrap_or_else(|| Error::Lost("pull of no name".into())))
}

fn may_be_elsewhere(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::Unauthorized | ErrorKind::RegistryUnavailable)
}

async fn one(
    core: &Arc<Core>,
    reference: &Reference,
    auth: Option<Auth>,
) -> Result<ImageId, Error> {
    let tracked = core.progress.begin(reference.to_string());
    let clients = Arc::clone(&core.clients);
    let registries = core.registries();
    let session = Session::new(clients, (&core.config, &registries), reference, auth)?;
    let session = Arc::new(session);
    let mut stages = core.config.observe.begin("resolve");
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
        && let Some(digests) = core.digests_of(reference, told)
    {
        admit::admit((&core.config, &core.admitted), &session, &digests).await?;
        if let Some(id) = core.add_name(reference, told).await? {
            return Ok(id);
        }
    }
    stages.enter("manifest");
    let wanted = told.as_ref().map_or(reference.wanted(), |digest| digest.as_str());
    let (manifest, content) = manifests(&session, wanted).await?;
    let digests: Vec<Digest> = content.iter().map(|one| one.digest.clone()).collect();
    admit::admit((&core.config, &core.admitted), &session, &digests).await?;
    let (id, bytes, parsed) = match content.last() {
        // An artifact has nothing to run; its manifest is all there is to know about it.
        Some(last) if manifest.is_artifact() => {
            (last.digest.clone(), last.bytes.clone(), ImageConfig::of_artifact())
        }
        Some(_) | None => {
            let config = &manifest.config;
            let bytes = session.small_blob(&config.digest, config.size).await?;
            let parsed = ImageConfig::parse(&bytes)
                .and_then(|parsed| manifest.check(&parsed).map(|()| parsed))
                .map_err(|e| unusable(reference, "the image configuration", &e))?;
            (config.digest.clone(), bytes, parsed)
        }
    };
    stages.enter("layers");
    let blobs = manifest.layers.clone();
    let source = |at: usize| Source::Registry(Arc::clone(&session), blobs[at].urls.clone());
    let layers = layers(&manifest, &parsed);
    core.step("resolved");
    tracked.expect(&layers);
    let of = reference.to_string();
    let ready = gather(core, &of, (&layers, &tracked), source).await?;
    stages.enter("commit");
    tracked.enter(PullStage::Syncing);
    let repo_digest = content.first().map(|top: &Content| reference.repo_digest(&top.digest));
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
    (layers, tracked): (&[LayerOfImage], &Arc<Tracked>),
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
            title: layer.title.clone(),
        };
        let (core, source, tracked) = (Arc::clone(core), source(at), Arc::clone(tracked));
        fetches.push(Box::pin(async move {
            let ready = fetch::layer(&core, &wanted, &source).await?;
            tracked.done(at);
            Ok(ready)
        }));
    }
    stream::iter(fetches).buffered(core.config.max_concurrent_downloads.max(1)).try_collect().await
}

/// The layers as records name them.
pub(crate) fn layers(manifest: &Manifest, config: &ImageConfig) -> Vec<LayerOfImage> {
    let mut parent: Option<Digest> = None;
    let mut layers = Vec::new();
    let titles: Vec<Option<String>> =
        manifest.layers.iter().map(|blob| manifest.is_artifact().then(|| blob.title())).collect();
    // What is made of a blob is decided by its title too.
    let diff_ids: Vec<Digest> = match manifest.is_artifact() {
        true => {
            let name = |blob: &Descriptor| format!("artifact {} {}", blob.digest, blob.title());
            manifest.layers.iter().map(|blob| Digest::of(name(blob).as_bytes())).collect()
        }
        false => config.diff_ids.clone(),
    };
    for ((diff_id, blob), title) in diff_ids.iter().zip(&manifest.layers).zip(titles) {
        let chain = Digest::chain(parent.as_ref(), diff_id);
        parent = Some(chain.clone());
        layers.push(LayerOfImage {
            chain,
            diff_id: diff_id.clone(),
            blob: Some(blob.digest.clone()),
            blob_bytes: blob.size,
            title,
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
