//! Images out of an archive: what `docker save` writes, the OCI layout, or both in one.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::digest::{Digest, ImageId, nonce};
use crate::error::Error;
use crate::fetch::Source;
use crate::layer::archive::{Archive, ArchiveError, Kind};
use crate::manifest::{self, Descriptor, Document, ImageConfig, Platform, json};
use crate::pull::admit;
use crate::pull::progress::PullStage;
use crate::pull::{gather, layers};
use crate::reference::Reference;
use crate::service::commit::{Content, Fresh};
use crate::service::{Core, blocking};
use crate::store::layout::{self, NEW};
use crate::store::record::LayerOfImage;

/// One image of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    pub id: ImageId,
    /// The names it has now.
    pub names: Vec<String>,
}

/// Members of an archive; an image has some hundred at most.
const MEMBERS_MAX: usize = 100_000;
/// Links from one member to another in a row; `docker save` makes one.
const LINKS_MAX: usize = 8;
/// Manifests, indexes and configurations.
const DOCUMENT_MAX: u64 = 4 << 20;
/// From the caller to the disk at once.
const BUFFER: usize = 256 << 10;
/// Buffers between the caller and the disk.
const CHUNKS_AHEAD: usize = 4;
/// The annotation that carries a whole name.
const NAME_WHOLE: &str = "io.containerd.image.name";
/// The annotation that carries a whole name or only a tag.
const NAME_ANY: &str = "org.opencontainers.image.ref.name";
/// Archives of images for many platforms list each; indexes nest once.
const INDEX_DEPTH_MAX: usize = 4;

pub(crate) async fn import(
    core: &Arc<Core>,
    archive: impl AsyncRead + Send,
    name: Option<Reference>,
) -> Result<Vec<Imported>, Error> {
    let spool = Spool::new(core.layout.ingest().join(format!("{NEW}{}", nonce())))?;
    let members = spool.fill(archive).await?;
    let (plan, spool) =
        blocking("reading an archive", move || Ok((plan(&members, name.as_ref())?, spool))).await?;
    let mut imported = Vec::new();
    for image in plan {
        admit::admit_import(&core.config, &image.fresh)?;
        let source = |at: usize| Source::File(image.files[at].clone());
        let of = image.fresh.tags.first().map_or_else(|| image.fresh.id.to_string(), String::clone);
        let tracked = core.progress.begin(of.clone());
        tracked.expect(&image.fresh.layers);
        let ready = gather(core, &of, (&image.fresh.layers, &tracked), source).await?;
        tracked.enter(PullStage::Syncing);
        let mut names = image.fresh.tags.clone();
        names.extend(image.fresh.digests.iter().cloned());
        let id = core.commit(image.fresh, ready).await?;
        imported.push(Imported { id, names });
    }
    drop(spool);
    Ok(imported)
}

/// The members of the archive as plain files, until the images are made of them.
struct Spool {
    path: PathBuf,
}

impl Drop for Spool {
    fn drop(&mut self) {
        let path = std::mem::take(&mut self.path);
        // What this misses is swept at the next start.
        let _ = std::thread::Builder::new()
            .name("archive-remove".into())
            .spawn(move || layout::remove_tree(&path));
    }
}

/// What is in the archive, by member name.
#[derive(Default)]
struct Members {
    files: HashMap<String, PathBuf>,
    links: HashMap<String, String>,
}

impl Spool {
    fn new(path: PathBuf) -> Result<Spool, Error> {
        std::fs::create_dir(&path).map_err(|e| Error::io("make the directory", &path, e))?;
        Ok(Spool { path })
    }

    async fn fill(&self, archive: impl AsyncRead + Send) -> Result<Members, Error> {
        let (chunks, incoming) = mpsc::channel(CHUNKS_AHEAD);
        let directory = self.path.clone();
        let reading = blocking("reading an archive", move || split(incoming, &directory));
        let sending = async move {
            let mut archive = pin!(archive);
            loop {
                let mut chunk = Vec::with_capacity(BUFFER);
                let read = (&mut archive).take(BUFFER as u64).read_to_end(&mut chunk).await;
                let chunk = match read {
                    Ok(0) => Some(Ok(Vec::new())), // the end, said aloud: silence means cancelled
                    Ok(_) => Some(Ok(chunk)),
                    Err(e) => Some(Err(e)),
                };
                let last = !matches!(&chunk, Some(Ok(bytes)) if !bytes.is_empty());
                let Some(chunk) = chunk else { break };
                // A reader that is gone has an error of its own to tell.
                if chunks.send(chunk).await.is_err() || last {
                    break;
                }
            }
        };
        tokio::join!(reading, sending).0
    }
}

/// The archive's bytes on the blocking side.
struct Incoming {
    chunks: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: io::Cursor<Vec<u8>>,
    ended: bool,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = Read::read(&mut self.current, buffer)?;
            if read > 0 || self.ended || buffer.is_empty() {
                return Ok(read);
            }
            match self.chunks.blocking_recv() {
                Some(Ok(chunk)) if chunk.is_empty() => self.ended = true,
                Some(Ok(chunk)) => self.current = io::Cursor::new(chunk),
                Some(Err(e)) => return Err(e),
                None => return Err(io::Error::other("the sender went away")),
            }
        }
    }
}

/// Writes every file of the archive into a numbered file.
fn split(chunks: mpsc::Receiver<io::Result<Vec<u8>>>, directory: &Path) -> Result<Members, Error> {
    let incoming = Incoming { chunks, current: io::Cursor::default(), ended: false };
    let mut incoming = BufReader::with_capacity(BUFFER, incoming);
    let plain = crate::layer::plain(&mut incoming).map_err(|e| bad(e.to_string()))?;
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, plain));
    let mut members = Members::default();
    let mut numbers = 0..MEMBERS_MAX; // members of one name are all written, the last counts
    while let Some(entry) = archive.next_entry().map_err(|e| archive_error(directory, e))? {
        let Some(name) = member_name("", &entry.name) else { continue };
        let number = numbers.next();
        let number =
            number.ok_or_else(|| bad(format!("it has more than {MEMBERS_MAX} members")))?;
        match entry.kind {
            Kind::File if entry.sparse.is_none() => {
                let path = directory.join(number.to_string());
                let fault = |e| Error::io("write", &path, e);
                let mut file = std::fs::File::create_new(&path).map_err(fault)?;
                let mut left = entry.size;
                while left > 0 {
                    let bytes = archive.data(left).map_err(|e| archive_error(directory, e))?;
                    file.write_all(bytes).map_err(fault)?;
                    let length = bytes.len();
                    left -= length as u64;
                    archive.consume(length);
                }
                members.files.insert(name, path);
            }
            Kind::Symlink | Kind::HardLink => {
                let base = match entry.kind {
                    Kind::Symlink => name.rsplit_once('/').map_or("", |(parent, _)| parent),
                    _ => "",
                };
                members.links.extend(member_name(base, &entry.link).map(|to| (name.clone(), to)));
            }
            Kind::File | Kind::Directory | Kind::Char | Kind::Block | Kind::Fifo => {}
        }
    }
    Ok(members)
}

/// A member's name made plain; `None` for one that is not text or leads outside.
fn member_name(base: &str, name: &[u8]) -> Option<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in std::str::from_utf8(name).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Members {
    fn file(&self, name: &str) -> Option<&PathBuf> {
        let mut name = name;
        for _ in 0..LINKS_MAX {
            match self.links.get(name) {
                Some(target) => name = target,
                None => return self.files.get(name),
            }
        }
        None
    }

    fn need(&self, name: &str) -> Result<&PathBuf, Error> {
        self.file(name).ok_or_else(|| bad(format!("{name:?} is missing from it")))
    }

    /// A member small enough to hold in memory.
    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.need(name)?;
        let fault = |e| Error::io("read", path, e);
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(fault)?;
        Read::take(file, DOCUMENT_MAX + 1).read_to_end(&mut bytes).map_err(fault)?;
        if bytes.len() as u64 > DOCUMENT_MAX {
            return Err(bad(format!("{name:?} is larger than {DOCUMENT_MAX} bytes")));
        }
        Ok(bytes)
    }

    /// A document of the OCI layout, verified.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let name = blob_name(digest);
        let bytes = self.document(&name)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let found = hasher.finish();
        if found == *digest {
            Ok(bytes)
        } else {
            Err(bad(format!("{name:?} has the digest {found}")))
        }
    }
}

/// An image to make, and the files its layers are in, lowest first.
struct Planned {
    fresh: Fresh,
    files: Vec<PathBuf>,
}

/// One line of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// Which images the archive holds. The OCI layout is preferred, because it has digests; an archive
/// that has both forms may tell the names in the other one only.
fn plan(members: &Members, name: Option<&Reference>) -> Result<Vec<Planned>, Error> {
    let saved: Vec<Saved> = match members.file("manifest.json") {
        None => Vec::new(),
        Some(_) => json(&members.document("manifest.json")?)
            .map_err(|e| bad(format!("manifest.json: {e}")))?,
    };
    let mut plan = if members.file("index.json").is_some() {
        layout_images(members, &saved)?
    } else {
        saved.iter().map(|one| saved_image(members, one)).collect::<Result<_, _>>()?
    };
    if plan.is_empty() {
        return Err(bad("it holds neither index.json nor manifest.json with an image".into()));
    }
    let mut nameless = plan.iter_mut().filter(|image| image.fresh.tags.is_empty());
    if let (Some(name), Some(image)) = (name, nameless.next()) {
        if nameless.next().is_some() {
            return Err(bad(format!("it holds several images without a name, {name} fits one")));
        }
        image.fresh.tags.extend(name.repo_tag());
        let digest = image.fresh.manifests.first().map(|m| name.repo_digest(&m.digest));
        image.fresh.digests.extend(digest);
    }
    Ok(plan)
}

fn saved_image(members: &Members, saved: &Saved) -> Result<Planned, Error> {
    let path = |name: &str| member_name("", name.as_bytes()).unwrap_or_default();
    let config_bytes = members.document(&path(&saved.config))?;
    let config = ImageConfig::parse(&config_bytes)
        .map_err(|e| bad(format!("configuration {:?}: {e}", saved.config)))?;
    if config.diff_ids.len() != saved.layers.len() {
        let (layers, diff_ids) = (saved.layers.len(), config.diff_ids.len());
        return Err(bad(format!("{layers} layers, but the configuration tells of {diff_ids}")));
    }
    let files: Vec<PathBuf> = saved
        .layers
        .iter()
        .map(|layer| members.need(&path(layer)).cloned())
        .collect::<Result<_, _>>()?;
    let mut layers: Vec<LayerOfImage> = Vec::new();
    for diff_id in &config.diff_ids {
        let chain = Digest::chain(layers.last().map(|layer| &layer.chain), diff_id);
        let diff_id = diff_id.clone();
        layers.push(LayerOfImage { chain, diff_id, blob: None, blob_bytes: 0, title: None });
    }
    let id = Digest::of(&config_bytes);
    let (tags, digests) = (tags(saved)?, Vec::new());
    let fresh = Fresh { id, config, config_bytes, manifests: Vec::new(), layers, tags, digests };
    Ok(Planned { fresh, files })
}

fn tags(saved: &Saved) -> Result<Vec<String>, Error> {
    let mut tags = Vec::new();
    for tag in saved.repo_tags.iter().flatten() {
        tags.extend(crate::service::parse(tag)?.repo_tag());
    }
    Ok(tags)
}

fn layout_images(members: &Members, saved: &[Saved]) -> Result<Vec<Planned>, Error> {
    let bytes = members.document("index.json")?;
    let media_type = "application/vnd.oci.image.index.v1+json";
    let offers = match Document::parse(media_type, &bytes) {
        Ok(Document::Index(offers)) => offers,
        Ok(Document::Manifest(_)) => return Err(bad("index.json is a manifest".into())),
        Err(e) => return Err(bad(format!("index.json: {e}"))),
    };
    let here = Platform::here();
    let foreign = |offer: &Descriptor| {
        offer.platform.is_some() && manifest::choose(&here, std::slice::from_ref(offer)).is_err()
    };
    if offers.iter().all(foreign) {
        let refusal = manifest::choose(&here, &offers).map(|_| ());
        return refusal.map(|()| Vec::new()).map_err(|e| bad(format!("index.json: {e}")));
    }
    let mut plan: Vec<Planned> = Vec::new();
    for offer in offers.iter().filter(|offer| !foreign(offer)) {
        let image = layout_image(members, offer, saved)?;
        // The same image under another name.
        match plan.iter_mut().find(|other| other.fresh.id == image.fresh.id) {
            Some(same) => {
                same.fresh.tags.extend(image.fresh.tags);
                same.fresh.digests.extend(image.fresh.digests);
            }
            None => plan.push(image),
        }
    }
    Ok(plan)
}

fn layout_image(members: &Members, offer: &Descriptor, saved: &[Saved]) -> Result<Planned, Error> {
    let at = |e| bad(format!("manifest {}: {e}", offer.digest));
    let mut manifests = Vec::new();
    let mut next = offer.clone();
    let manifest = loop {
        if manifests.len() == INDEX_DEPTH_MAX {
            return Err(bad("its indexes are nested too deep".into()));
        }
        let bytes = members.blob(&next.digest)?;
        let document = Document::parse(&next.media_type, &bytes).map_err(at)?;
        manifests.push(Content { digest: next.digest.clone(), bytes });
        match document {
            Document::Manifest(manifest) => break manifest,
            Document::Index(offers) => {
                next = manifest::choose(&Platform::here(), &offers).map_err(at)?.clone();
            }
        }
    };
    let (id, config_bytes, config) = match manifests.last() {
        // As when it is pulled: an artifact has nothing to run.
        Some(last) if manifest.is_artifact() => {
            (last.digest.clone(), last.bytes.clone(), ImageConfig::of_artifact())
        }
        Some(_) | None => {
            let id = manifest.config.digest.clone();
            let bytes = members.blob(&id)?;
            let config = ImageConfig::parse(&bytes)
                .and_then(|config| manifest.check(&config).map(|()| config))
                .map_err(at)?;
            (id, bytes, config)
        }
    };
    let files = manifest
        .layers
        .iter()
        .map(|layer| members.need(&blob_name(&layer.digest)).cloned())
        .collect::<Result<_, _>>()?;
    let layers = layers(&manifest, &config);
    let mut names = annotated(offer)?;
    let same = saved.iter().filter(|one| one.config.contains(id.hex()));
    for one in same {
        names.extend(tags(one)?.iter().filter_map(|tag| Reference::parse(tag).ok()));
    }
    let mut tags: Vec<String> = names.iter().filter_map(Reference::repo_tag).collect();
    let mut digests: Vec<String> = names.iter().map(|n| n.repo_digest(&offer.digest)).collect();
    tags.dedup();
    digests.dedup();
    Ok(Planned {
        fresh: Fresh { id, config, config_bytes, manifests, layers, tags, digests },
        files,
    })
}

/// The name that annotations give; a bare tag names nothing.
fn annotated(offer: &Descriptor) -> Result<Vec<Reference>, Error> {
    let whole = offer.annotations.get(NAME_WHOLE);
    let any = offer.annotations.get(NAME_ANY).filter(|name| name.contains(['/', ':']));
    whole
        .or(any)
        .map(|name| crate::service::parse(name))
        .transpose()
        .map(|n| n.into_iter().collect())
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn bad(reason: String) -> Error {
    Error::BadArchive { reason }
}

fn archive_error(directory: &Path, error: ArchiveError) -> Error {
    match error {
        ArchiveError::Read(e) if crate::error::is_full(&e) => Error::io("spool", directory, e),
        error => bad(error.to_string()),
    }
}
