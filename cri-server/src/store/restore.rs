//! Records that were lost or damaged under living pods: their shims have kept a copy, and it is put back.

use std::path::Path;
use std::sync::Arc;

use futures::future::join_all;
use runtime::{ErrorKind, Phase as Known, Shim};

use super::disk;
use super::recover::{QUARANTINED, ids_below};
use crate::app::Ctx;
use crate::container::Container;
use crate::container::state::Phase;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::shims::CONNECT_TIMEOUT;

impl Ctx {
    /// Has the shim keep the record of the sandbox (when both ids are the same) or of a container, as it is on disk now;
    /// nobody waits for that.
    pub(crate) fn entrust(self: &Arc<Self>, shim: &Shim, sandbox: &Id, object: &Id) {
        let dir = self.sandbox_dir(sandbox);
        let dir =
            if object == sandbox { dir } else { dir.join("containers").join(object.as_str()) };
        let (shim, object) = (shim.clone(), object.clone());
        tokio::spawn(async move {
            let kept = match disk::raw_record(&dir.join("record")) {
                Ok(record) => shim.remember(object.as_str(), &record).await.map_err(Error::from),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = kept {
                // It has ended meanwhile, or its shim is too old: then there is one copy, as there was before.
                tracing::debug!(%object, %error, "its record is not kept by the shim");
            }
        });
    }
}

/// Before anything else is done about what was found on disk, and before the first call: whoever asks is to see every
/// pod that lives.
pub(crate) async fn restore(ctx: &Arc<Ctx>) {
    let snapshot = ctx.world.snapshot();
    let pods = ids_below(&ctx.config.state.join("pods"));
    let poor = pods
        .into_iter()
        .filter(|id| !snapshot.sandboxes.contains_key(id) || !without_record(ctx, id).is_empty());
    join_all(poor.map(|id| async move {
        match of_pod(ctx, &id).await {
            Err(Error::Runtime(error)) if error.kind == ErrorKind::Gone => {}
            Err(error) => tracing::error!(sandbox = %id, %error, "could not restore its records"),
            Ok(()) => {}
        }
    }))
    .await;
}

/// Containers of the pod that have a directory and no record.
fn without_record(ctx: &Ctx, sandbox: &Id) -> Vec<Id> {
    let bundles = ctx.sandbox_dir(sandbox).join("containers");
    let mut ids = ids_below(&bundles);
    ids.retain(|id| !bundles.join(id.as_str()).join("record").exists());
    ids
}

async fn of_pod(ctx: &Arc<Ctx>, id: &Id) -> Result<(), Error> {
    let dir = ctx.sandbox_dir(id);
    let shim = ctx.shims.connect(id.as_str(), &dir, CONNECT_TIMEOUT).await?;
    if !ctx.world.snapshot().sandboxes.contains_key(id) {
        let sandbox: Sandbox = recalled(&shim, id, &dir, "sandbox").await?;
        ctx.world.change(|world| world.sandboxes.insert(id.clone(), Arc::new(sandbox)));
    }
    let inventory = shim.inventory().await?;
    for known in without_record(ctx, id) {
        let Some(state) = inventory.containers.iter().find(|it| it.id == known.as_str()) else {
            continue;
        };
        let bundle = dir.join("containers").join(known.as_str());
        let mut container: Container = recalled(&shim, &known, &bundle, "container").await?;
        // The copy is of the time before its start.
        if !matches!(state.phase, Known::Created) {
            let (pid, started_at_ns) = (state.pid, state.started_at_ns);
            container.phase = Phase::Running { pid, started_at_ns };
        }
        ctx.world.change(|world| world.containers.insert(known.clone(), Arc::new(container)));
    }
    // The bundles of containers whose record was there are read with it.
    for container in super::recover::containers(&dir) {
        ctx.world.change(|world| {
            world.containers.entry(container.id.clone()).or_insert_with(|| Arc::new(container));
        });
    }
    Ok(())
}

async fn recalled<T: serde::de::DeserializeOwned>(
    shim: &Shim,
    id: &Id,
    dir: &Path,
    kind: &str,
) -> Result<T, Error> {
    let bytes = shim.recall(id.as_str()).await?;
    let value = disk::restore_record(&dir.join("record"), kind, &bytes)?;
    tracing::warn!(%id, kind, "its record was lost or damaged; the shim's copy is back in its place");
    let _ = std::fs::remove_file(dir.join(QUARANTINED)); // mostly there is none
    Ok(value)
}
