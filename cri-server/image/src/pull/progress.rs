//! How far each pull is: what a terminal shows, what metrics count, what a stuck node is asked.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use super::arrivals::Arrivals;
use crate::digest::Digest;
use crate::store::record::LayerOfImage;

/// One pull under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullProgress {
    pub reference: String,
    pub began: SystemTime,
    pub stage: PullStage,
    pub layers: u64,
    /// Of these, unpacked.
    pub layers_done: u64,
    /// Compressed bytes of all layers, as the manifest says.
    pub bytes: u64,
    /// Of these, here.
    pub bytes_here: u64,
}

/// What a pull is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullStage {
    /// Asking what the name stands for, and whether it may come in.
    Resolving,
    /// Downloading and unpacking.
    Fetching,
    /// Making it durable.
    Syncing,
}

impl PullStage {
    pub fn word(self) -> &'static str {
        match self {
            PullStage::Resolving => "resolving",
            PullStage::Fetching => "fetching",
            PullStage::Syncing => "syncing",
        }
    }
}

/// The pulls under way.
#[derive(Default)]
pub(crate) struct Pulls {
    all: Mutex<Vec<Weak<Tracked>>>,
}

/// One pull's own account of itself.
pub(crate) struct Tracked {
    reference: String,
    began: SystemTime,
    stage: AtomicU8,
    layers: Mutex<Vec<Layer>>,
}

struct Layer {
    blob: Option<Digest>,
    bytes: u64,
    done: bool,
}

impl Pulls {
    /// Counts as under way until the result is dropped.
    pub(crate) fn begin(&self, reference: String) -> Arc<Tracked> {
        let (began, stage) = (SystemTime::now(), AtomicU8::new(0));
        let tracked = Arc::new(Tracked { reference, began, stage, layers: Mutex::default() });
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| one.strong_count() > 0);
        all.push(Arc::downgrade(&tracked));
        tracked
    }

    pub(crate) fn list(&self, arrivals: &Arrivals) -> Vec<PullProgress> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).map(|one| one.progress(arrivals)).collect()
    }
}

impl Tracked {
    pub(crate) fn enter(&self, stage: PullStage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }

    pub(crate) fn expect(&self, layers: &[LayerOfImage]) {
        let layer = |layer: &LayerOfImage| Layer {
            blob: layer.blob.clone(),
            bytes: layer.blob_bytes,
            done: false,
        };
        *self.lock() = layers.iter().map(layer).collect();
        self.enter(PullStage::Fetching);
    }

    pub(crate) fn done(&self, at: usize) {
        if let Some(layer) = self.lock().get_mut(at) {
            layer.done = true;
        }
    }

    fn progress(&self, arrivals: &Arrivals) -> PullProgress {
        let layers = self.lock();
        let here = |layer: &Layer| match (&layer.blob, layer.done) {
            (_, true) => layer.bytes,
            (Some(digest), false) => arrivals.bytes_of(digest).unwrap_or(0).min(layer.bytes),
            (None, false) => 0,
        };
        PullProgress {
            reference: self.reference.clone(),
            began: self.began,
            stage: match self.stage.load(Ordering::Relaxed) {
                0 => PullStage::Resolving,
                1 => PullStage::Fetching,
                _ => PullStage::Syncing,
            },
            layers: layers.len() as u64,
            layers_done: layers.iter().filter(|layer| layer.done).count() as u64,
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            bytes_here: layers.iter().map(here).sum(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Layer>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
