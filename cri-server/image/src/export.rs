//! Images into an archive that every image tool reads: the OCI layout, with docker's index beside
//! it. Nothing is spooled: layers that are not kept compressed are packed twice, once to know their
//! digest and once to be sent.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::digest::{Digest, Hasher, ImageId};
use crate::error::Error;
use crate::layer::pack::pack;
use crate::manifest::Document;
use crate::reference::Reference;
use crate::service::Core;
use crate::store::catalog::Known;
use crate::store::shelf::Hold;

/// One image of an archive that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    pub id: ImageId,
    /// Its id in the archive: another one when its compressed layers are not kept, because then the
    /// archive has new ones.
    pub archive_id: ImageId,
    pub names: Vec<String>,
}

/// The archive in pieces, in order; an error ends it.
pub(crate) type Chunks = mpsc::Sender<Result<Vec<u8>, Error>>;

struct Plan {
    exported: Exported,
    config: Vec<u8>,
    manifest: Vec<u8>,
    layers: Vec<Layer>,
    _hold: Hold,
}

struct Layer {
    digest: Digest,
    bytes: u64,
    media_type: String,
    from: From,
}

enum From {
    Blob(PathBuf),
    /// A layer's directory.
    Pack(PathBuf),
}

/// Sent at once.
const CHUNK: usize = 256 << 10;
const BLOCK: usize = 512;
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// Looks everything up and hashes what has no digest yet; then the archive can be sent. Blocks.
pub(crate) struct Export {
    plans: Vec<Plan>,
}

impl Export {
    pub(crate) fn plan(core: &Core, references: &[String]) -> Result<Export, Error> {
        let mut plans: Vec<Plan> = Vec::new();
        for text in references {
            let known = core.find(text).ok_or_else(|| Error::NoSuchImage(text.clone()))?;
            if plans.iter().all(|plan| plan.exported.id != known.image.id) {
                plans.push(plan(core, &known)?);
            }
        }
        Ok(Export { plans })
    }

    pub(crate) fn images(&self) -> Vec<Exported> {
        self.plans.iter().map(|plan| plan.exported.clone()).collect()
    }

    /// Blocks until the receiver has everything or is gone.
    pub(crate) fn send(self, chunks: &Chunks) {
        let mut archive = Archive { sink: Sink { chunks, chunk: Vec::with_capacity(CHUNK) } };
        let sent = archive.write(&self.plans).and_then(|()| archive.sink.flush());
        if let Err(e) = sent {
            // Nobody is left to tell when the receiver is gone.
            let _ = chunks.blocking_send(Err(Error::io("write", "the archive".as_ref(), e)));
        }
    }
}

fn plan(core: &Core, known: &Known) -> Result<Plan, Error> {
    let (image, record) = (&known.image, &known.record);
    let gone = || Error::NoSuchImage(image.id.to_string());
    let hold = core.shelf.hold(&image.layers).ok_or_else(gone)?;
    let read = |digest: &Digest| {
        let path = core.layout.blob(digest);
        std::fs::read(&path).map_err(|e| Error::io("read", &path, e))
    };
    let config = read(&image.id)?;
    let mut names = image.repo_tags.clone();
    if names.is_empty() {
        names.extend(image.repo_digests.first().cloned());
    }
    let exported = |archive_id: &Digest| Exported {
        id: image.id.clone(),
        archive_id: archive_id.clone(),
        names: names.clone(),
    };
    let kept = |blob: &Option<Digest>| {
        blob.as_ref().map(|digest| core.layout.blob(digest)).filter(|path| path.is_file())
    };
    let all_kept = record.layers.iter().all(|layer| kept(&layer.blob).is_some());
    for digest in record.manifests.iter().filter(|_| all_kept) {
        let manifest = read(digest)?;
        let Ok(Document::Manifest(parsed)) = Document::parse("", &manifest) else { continue };
        if parsed.config.digest != image.id {
            continue;
        }
        let layer = |descriptor: crate::manifest::Descriptor| Layer {
            from: From::Blob(core.layout.blob(&descriptor.digest)),
            digest: descriptor.digest,
            bytes: descriptor.size,
            media_type: descriptor.media_type,
        };
        let layers = parsed.layers.into_iter().map(layer).collect();
        let exported = exported(&image.id);
        return Ok(Plan { exported, config, manifest, layers, _hold: hold });
    }
    let mut layers = Vec::new();
    for chain in &image.layers {
        let path = core.shelf.path(chain);
        let mut counting = Counting { hasher: Hasher::sha256(), bytes: 0 };
        packed(&path, &mut counting).map_err(|e| Error::io("pack", &path, e))?;
        let (digest, bytes) = (counting.hasher.finish(), counting.bytes);
        layers.push(Layer { digest, bytes, media_type: PLAIN.into(), from: From::Pack(path) });
    }
    let mut value: Value = crate::manifest::json(&config)
        .map_err(|e| Error::BadArchive { reason: format!("configuration of {}: {e}", image.id) })?;
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    value["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let config = value.to_string().into_bytes();
    let descriptors: Vec<Value> = layers.iter().map(Layer::descriptor).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": descriptors,
    });
    let exported = exported(&Digest::of(&config));
    let manifest = manifest.to_string().into_bytes();
    Ok(Plan { exported, config, manifest, layers, _hold: hold })
}

fn packed(path: &std::path::Path, sink: impl Write) -> io::Result<()> {
    let layer = crate::layer::open_directory_path(path)?;
    // Builders write in small pieces.
    let mut sink = io::BufWriter::with_capacity(CHUNK, sink);
    pack(layer.as_fd(), &mut sink)?;
    sink.flush()
}

impl Layer {
    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes})
    }
}

struct Archive<'a> {
    sink: Sink<'a>,
}

impl Archive<'_> {
    fn write(&mut self, plans: &[Plan]) -> io::Result<()> {
        self.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let mut written = HashSet::new();
        let (mut index, mut saved) = (Vec::new(), Vec::new());
        for plan in plans {
            for layer in plan.layers.iter().filter(|layer| written.insert(layer.digest.clone())) {
                self.layer(layer)?;
            }
            let (config, manifest) = (Digest::of(&plan.config), Digest::of(&plan.manifest));
            for (digest, bytes) in [(&config, &plan.config), (&manifest, &plan.manifest)] {
                if written.insert(digest.clone()) {
                    self.document(&blob_name(digest), bytes)?;
                }
            }
            let bare =
                json!({"mediaType": MANIFEST, "digest": manifest, "size": plan.manifest.len()});
            let names = &plan.exported.names;
            for name in names {
                let mut entry = bare.clone();
                entry["annotations"] = json!({
                    "io.containerd.image.name": name,
                    "org.opencontainers.image.ref.name": tag(name),
                });
                index.push(entry);
            }
            if names.is_empty() {
                index.push(bare);
            }
            let layers: Vec<String> = plan.layers.iter().map(|l| blob_name(&l.digest)).collect();
            let tags: Vec<&String> = names.iter().filter(|name| !name.contains('@')).collect();
            saved.push(json!({"Config": blob_name(&config), "RepoTags": tags, "Layers": layers}));
        }
        let index = json!({"schemaVersion": 2, "manifests": index});
        self.document("index.json", index.to_string().as_bytes())?;
        self.document("manifest.json", Value::from(saved).to_string().as_bytes())?;
        self.sink.write_all(&[0; 2 * BLOCK])
    }

    fn layer(&mut self, layer: &Layer) -> io::Result<()> {
        self.header(&blob_name(&layer.digest), layer.bytes)?;
        match &layer.from {
            From::Blob(path) => drop(io::copy(&mut std::fs::File::open(path)?, &mut self.sink)?),
            From::Pack(path) => packed(path, &mut self.sink)?,
        }
        self.pad(layer.bytes)
    }

    fn document(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.sink.write_all(bytes)?;
        self.pad(bytes.len() as u64)
    }

    fn header(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name)?;
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_cksum();
        self.sink.write_all(header.as_bytes())
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        let rest = usize::try_from(bytes.next_multiple_of(BLOCK as u64) - bytes).unwrap_or(0);
        self.sink.write_all(&[0; BLOCK][..rest])
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

fn tag(name: &str) -> String {
    let parsed = Reference::parse(name).ok();
    parsed.and_then(|name| name.tag().map(str::to_owned)).unwrap_or_default()
}

/// Bytes on their way to whoever asked.
struct Sink<'a> {
    chunks: &'a Chunks,
    chunk: Vec<u8>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(CHUNK - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..length]);
        if self.chunk.len() == CHUNK {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK));
        let sent = self.chunks.blocking_send(Ok(chunk));
        sent.map_err(|_| io::Error::other("nobody wants the rest of the archive"))
    }
}

/// Measures what is written to it.
struct Counting {
    hasher: Hasher,
    bytes: u64,
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts sending; the receiver gets the archive piece by piece.
pub(crate) fn start(export: Export) -> mpsc::Receiver<Result<Vec<u8>, Error>> {
    /// Pieces ahead of a slow receiver.
    const AHEAD: usize = 4;
    let (chunks, receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || export.send(&chunks));
    receiver
}
