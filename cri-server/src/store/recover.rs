//! What a start finds on disk: records become the world again, half-done operations are finished
//! or taken back. A bad record costs its own object only.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::world::Snapshot;
use super::{disk, restore};
use crate::app::Ctx;
use crate::container::{self, Container};
use crate::id::Id;
use crate::sandbox::state::Phase;
use crate::sandbox::{Sandbox, teardown};

/// The name of a record that could not be read.
pub(super) const QUARANTINED: &str = "record.quarantined";

/// Reads every record below `pods`. Fast: nothing here asks a shim or the kernel.
pub(crate) fn load(pods: &Path) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let made_in_vain = subdirectories(pods)
        .into_iter()
        .flat_map(|pod| without_record(&pod.join("containers")))
        .chain(without_record(pods));
    for dir in made_in_vain.collect::<Vec<_>>() {
        if let Err(error) = disk::remove_dir(&dir) {
            tracing::warn!(%error, "could not remove what a crash left");
        }
    }
    for dir in subdirectories(pods) {
        let Some(sandbox) = record::<Sandbox>(&dir, "sandbox") else { continue };
        for container in containers(&dir) {
            snapshot.containers.insert(container.id.clone(), Arc::new(container));
        }
        snapshot.sandboxes.insert(sandbox.id.clone(), Arc::new(sandbox));
    }
    snapshot
}

/// The containers on record of the pod with this directory.
pub(super) fn containers(pod: &Path) -> Vec<Container> {
    let bundles = subdirectories(&pod.join("containers"));
    bundles.iter().filter_map(|bundle| record::<Container>(bundle, "container")).collect()
}

/// The ids that directories below `dir` are named by.
pub(crate) fn ids_below(dir: &Path) -> Vec<Id> {
    subdirectories(dir).iter().filter_map(|dir| Id::parse(&name(dir))).collect()
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    let named = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).and_then(Id::parse).is_some()
    };
    paths.filter(named).collect()
}

/// Directories that were made for an object and never got its record: a crash came in between,
/// so nothing else of it exists. What comes after the record, only an object has that was.
fn without_record(dir: &Path) -> Vec<PathBuf> {
    let later = ["record", QUARANTINED, "shim.sock", "config.json"];
    let empty = |dir: &PathBuf| !later.iter().any(|name| dir.join(name).exists());
    subdirectories(dir).into_iter().filter(empty).collect()
}

/// A record that cannot be read is put aside for people to look at; its processes stay.
fn record<T: serde::de::DeserializeOwned>(dir: &Path, kind: &str) -> Option<T> {
    let path = dir.join("record");
    match disk::read_record(&path, kind) {
        Ok(value) => Some(value),
        // Not readable now is not damaged: it stays where it is for the next start.
        Err(error @ disk::DiskError::Io { .. }) => {
            if path.exists() {
                tracing::error!(%error, "could not read a record");
            }
            None
        }
        Err(error @ disk::DiskError::Damaged { .. }) => {
            tracing::error!(%error, "quarantined a record; its processes keep running");
            let aside = dir.join(QUARANTINED);
            if let Err(error) = fs::rename(&path, &aside) {
                tracing::warn!(%error, path = %path.display(), "could not put the record aside");
            }
            None
        }
    }
}

/// Goes on where the last daemon stopped. What may take long is done in the background.
pub(crate) async fn resume(ctx: &Arc<Ctx>) {
    restore::restore(ctx).await;
    let snapshot = ctx.world.snapshot();
    for sandbox in snapshot.sandboxes.values() {
        match sandbox.phase {
            Phase::NotReady => {}
            Phase::Ready | Phase::Failed | Phase::Stopping | Phase::Starting | Phase::Removing => {
                ctx.find_shim(&sandbox.id);
            }
        }
        tokio::spawn(finish(ctx.clone(), sandbox.clone()));
    }
    for container in snapshot.containers.values() {
        if matches!(
            container.phase,
            container::state::Phase::Creating | container::state::Phase::Removing
        ) {
            let (ctx, id) = (ctx.clone(), container.id.clone());
            tokio::spawn(async move { report(container::remove::down(&ctx, &id).await, &id) });
        }
    }
    let families = &ctx.metrics.families;
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    families.recovered.with_label_values(&["sandbox"]).set(count(snapshot.sandboxes.len()));
    families.recovered.with_label_values(&["container"]).set(count(snapshot.containers.len()));
    families.quarantined.set(count(quarantined(&ctx.config.state.join("pods"))));
    collect(ctx).await;
    tokio::spawn(finish_later(ctx.clone()));
}

/// Records that were put aside.
fn quarantined(pods: &Path) -> usize {
    let pods = subdirectories(pods);
    let bundles = pods.iter().flat_map(|pod| subdirectories(&pod.join("containers")));
    let all = pods.iter().cloned().chain(bundles.collect::<Vec<_>>());
    all.filter(|dir| dir.join(QUARANTINED).exists()).count()
}

/// How often what could not be taken down is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(10);

/// Nobody else comes back to what is hidden already: a removal that failed on its way, or the
/// roll-back of a creation.
async fn finish_later(ctx: Arc<Ctx>) {
    loop {
        tokio::time::sleep(RETRY_EVERY).await;
        // Records are put aside at the start only, and somebody may have looked at them since.
        if ctx.metrics.families.quarantined.get() > 0 {
            let left = quarantined(&ctx.config.state.join("pods"));
            ctx.metrics.families.quarantined.set(i64::try_from(left).unwrap_or(i64::MAX));
        }
        let snapshot = ctx.world.snapshot();
        for container in snapshot.containers.values() {
            if container.phase == container::state::Phase::Removing {
                report(container::remove::down(&ctx, &container.id).await, &container.id);
            }
        }
        for sandbox in snapshot.sandboxes.values() {
            if sandbox.phase == Phase::Removing {
                report(teardown::remove(&ctx, &sandbox.id).await, &sandbox.id);
            }
        }
    }
}

/// Gives back what no directory stands for any more: after a reboot the state directory is empty,
/// and with it goes what pods had below the root directory. A quarantined record keeps its
/// directory, and so its pod keeps its network and its files. Looks around before the first call
/// is served: a pod that is just being made must not look leaked.
async fn collect(ctx: &Arc<Ctx>) {
    let pods = subdirectories(&ctx.config.state.join("pods"));
    match ctx.network.collect(pods.iter().map(|pod| name(pod)).collect()).await {
        Ok(0) => {}
        Ok(count) => {
            ctx.metrics.families.leaked.with_label_values(&["address"]).inc_by(count as u64);
            tracing::info!(count, "found networks of pods that are gone");
        }
        Err(error) => tracing::error!(%error, "could not collect leaked network objects"),
    }
    let bundles: Vec<_> =
        pods.iter().flat_map(|pod| subdirectories(&pod.join("containers"))).collect();
    let known: Vec<_> = bundles.iter().map(|bundle| name(bundle)).collect();
    let leaked: Vec<_> =
        ctx.images.prepared().into_iter().filter(|id| !known.contains(id)).collect();
    ctx.metrics.families.leaked.with_label_values(&["layer"]).inc_by(leaked.len() as u64);
    let images = ctx.images.clone();
    tokio::spawn(async move {
        for id in leaked {
            if let Err(error) = images.discard(&id).await {
                tracing::error!(container = %id, %error, "could not remove a leaked writable layer");
            }
        }
    });
}

fn name(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

async fn finish(ctx: Arc<Ctx>, sandbox: Arc<Sandbox>) {
    let result = match sandbox.phase {
        // Nobody was told of these: they go.
        Phase::Starting | Phase::Removing => teardown::remove(&ctx, &sandbox.id).await,
        Phase::Stopping => teardown::stop(&ctx, &sandbox.id).await,
        Phase::Ready | Phase::Failed | Phase::NotReady => Ok(()),
    };
    report(result, &sandbox.id);
}

fn report(result: Result<(), crate::error::Error>, id: &Id) {
    if let Err(error) = result {
        tracing::error!(%id, %error, "could not finish what the last daemon began");
    }
}
