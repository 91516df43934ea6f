//! The start of the service: read every record, sweep what is unfinished, find who holds what.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, SystemTime};

use tokio::sync::Semaphore;

use super::{Core, Pins};
use super::{boot, commit};
use crate::config::Config;
use crate::digest::{Digest, nonce};
use crate::error::Error;
use crate::flight::Flights;
use crate::manifest::ImageConfig;
use crate::quota::Quota;
use crate::registry::Registries;
use crate::snapshot::{PIN, PIN_VOLUME};
use crate::store::catalog::Catalog;
use crate::store::layout::{self, BAD, Layout};
use crate::store::record::{self, ImageRecord};
use crate::store::shelf::{self, Shelf};

pub(super) fn open(config: Config) -> Result<Core, Error> {
    // An error means that a provider is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let layout = Layout::make(&config.root)?;
    let suspicious = boot::begin(&layout)?;
    let (shelf, mut lost) = Shelf::open(layout.layers(), suspicious)?;
    let catalog = Catalog::default();
    images(&config, &layout, (&shelf, &catalog), &mut lost)?;
    let pins = pins(&layout, &shelf)?;
    let directory = layout.containers();
    let quota = Quota::find(&directory).map_err(|e| Error::io("open", &directory, e))?;
    content(&layout, &catalog)?;
    partial(&layout, config.partial_age_max)?;
    shelf::remove_all(&shelf.sweep())?;
    Ok(Core {
        permits: Semaphore::new(config.max_concurrent_downloads.max(1)),
        arrivals: crate::pull::arrivals::Arrivals::default(),
        progress: crate::pull::progress::Pulls::default(),
        layout,
        shelf,
        catalog,
        clients: Arc::default(),
        layers: Flights::new(),
        records: tokio::sync::Mutex::new(()),
        pins: Mutex::new(pins),
        quota,
        admitted: crate::pull::admit::Seen::default(),
        // A file that cannot be read is told by the first pull.
        registries: RwLock::new(Arc::new(
            Registries::load(&config.registries_conf).unwrap_or_default(),
        )),
        pulls: Flights::new(),
        announced: crate::fetch::Announced::default(),
        accounts: Mutex::default(),
        lost,
        config,
    })
}

fn images(
    config: &Config,
    layout: &Layout,
    (shelf, catalog): (&Arc<Shelf>, &Catalog),
    lost: &mut Vec<String>,
) -> Result<(), Error> {
    let directory = layout.images();
    for name in layout::names(&directory)? {
        let path = directory.join(&name);
        if name.starts_with(layout::NEW) {
            layout::remove_file(&path)?;
            continue;
        }
        if name.starts_with(BAD) {
            continue;
        }
        match image(config, layout, (shelf, catalog), &path) {
            Ok(()) => {}
            Err(reason) => {
                lost.push(format!("image record {}: {reason}", path.display()));
                let aside = directory.join(format!("{BAD}{name}-{}", nonce()));
                fs::rename(&path, &aside).map_err(|e| Error::io("rename to", &aside, e))?;
            }
        }
    }
    Ok(())
}

/// One image into the catalog, or the reason why it cannot be used.
fn image(
    config: &Config,
    layout: &Layout,
    (shelf, catalog): (&Arc<Shelf>, &Catalog),
    path: &Path,
) -> Result<(), String> {
    let record: ImageRecord = record::read("image", path).map_err(|e| e.to_string())?;
    if path.file_name().and_then(|n| n.to_str()) != Some(record.id.hex()) {
        return Err("it is of another image than its name says".into());
    }
    let file = layout.blob(&record.id);
    let bytes = fs::read(&file).map_err(|e| format!("configuration {}: {e}", file.display()))?;
    let mut hasher = record.id.hasher();
    hasher.update(&bytes);
    if hasher.finish() != record.id {
        return Err(format!("configuration {} is damaged", file.display()));
    }
    let parsed = ImageConfig::parse(&bytes).map_err(|e| e.to_string())?;
    let chains: Vec<Digest> = record.layers.iter().map(|layer| layer.chain.clone()).collect();
    let hold = shelf.hold(&chains).ok_or("a layer of it is missing")?;
    let documents = commit::content_bytes(layout, &record);
    let image = commit::image(config, shelf, (&record, parsed), documents);
    catalog.insert(image, record, hold);
    Ok(())
}

/// Containers keep layers by links to the topmost one: of their own image, of each volume's.
fn pins(layout: &Layout, shelf: &Arc<Shelf>) -> Result<Pins, Error> {
    let mut pins = Pins::new();
    for id in layout::names(&layout.containers())? {
        let directory = layout.containers().join(&id);
        if !directory.is_dir() {
            continue;
        }
        let links = layout::names(&directory)?.into_iter();
        for name in links.filter(|name| name == PIN || name.starts_with(PIN_VOLUME)) {
            let top = fs::read_link(directory.join(&name)).ok();
            let hex = top.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
            let chain = hex.and_then(|hex| shelf.chain_of(hex));
            let hold = match chain {
                Some(top) => shelf.hold_stack(&top),
                None => None,
            };
            let own = pins.entry(id.clone()).or_default();
            own.extend(hold.map(|hold| (name, hold.keep())));
        }
    }
    Ok(pins)
}

/// Removes content that no image refers to.
fn content(layout: &Layout, catalog: &Catalog) -> Result<(), Error> {
    let snapshot = catalog.snapshot();
    let wanted: HashSet<&Digest> =
        snapshot.known().flat_map(|known| commit::content_of(&known.record)).collect();
    let wanted: HashSet<&str> = wanted.into_iter().map(Digest::hex).collect();
    for algorithm in ["sha256", "sha512"] {
        let directory = layout.content(algorithm);
        for name in layout::names(&directory)? {
            if !wanted.contains(name.as_str()) {
                layout::remove_file(&directory.join(name))?;
            }
        }
    }
    Ok(())
}

/// Keeps partial downloads young enough to be continued, and nothing else.
fn partial(layout: &Layout, age_max: Duration) -> Result<(), Error> {
    for name in layout::names(&layout.ingest())? {
        let path = layout.ingest().join(&name);
        if name.starts_with(layout::NEW) || !path.is_file() || is_stale(&path, age_max) {
            layout::remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes partial downloads that grew too old while the service runs. Archives being imported
/// and downloads under way are somebody's.
pub(super) fn collect_partial(core: &Core) -> Result<(), Error> {
    for name in layout::names(&core.layout.ingest())? {
        let path = core.layout.ingest().join(&name);
        let in_use = name.starts_with(layout::NEW) || core.arrivals.has(&name);
        if !in_use && is_stale(&path, core.config.partial_age_max) {
            layout::remove_file(&path)?;
        }
    }
    Ok(())
}

fn is_stale(path: &Path, age_max: Duration) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    let age = modified.ok().and_then(|time| SystemTime::now().duration_since(time).ok());
    age.is_some_and(|age| age > age_max)
}
