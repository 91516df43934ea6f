//! How much a container may write into its own layer: the kernel keeps it to that where the file
//! system has project quotas; elsewhere it is counted, and the container is ended when it has
//! written more.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::Container;
use super::state::Phase;
use super::stop;
use crate::app::Ctx;
use crate::error::Error;
use crate::id::Id;
use crate::quantity;

/// A quantity such as `10Gi`; 0 is no limit. The same name serves pods and containers.
const ANNOTATION: &str = "lapstrake.io/writable-limit";

/// Between attempts to end a container that does not end.
const AGAIN: Duration = Duration::from_secs(10);

/// The limit in bytes: the configuration's word, over it the pod's, over that the container's own.
pub(crate) fn resolve<'a>(
    configured: Option<u64>,
    annotations: impl IntoIterator<Item = &'a BTreeMap<String, String>>,
) -> Result<Option<u64>, Error> {
    let mut limit = configured;
    for given in annotations.into_iter().filter_map(|it| it.get(ANNOTATION)) {
        limit = parse(given)
            .map_err(|problem| Error::invalid(format!("annotation {ANNOTATION}"), problem))?;
    }
    Ok(limit)
}

/// `None`: no limit.
pub(crate) fn parse(text: &str) -> Result<Option<u64>, String> {
    let bytes = quantity::whole(text)?;
    Ok(u64::try_from(bytes).ok().filter(|bytes| *bytes > 0))
}

/// As long as the daemon lives, ends containers that were counted to have written too much.
pub(crate) async fn watch(ctx: Arc<Ctx>) {
    let mut published = ctx.stats.subscribe();
    let mut ending: HashSet<Id> = HashSet::new();
    while published.changed().await.is_ok() {
        let (world, numbers) = (ctx.world.snapshot(), ctx.stats.numbers());
        ending.retain(|id| world.containers.contains_key(id));
        for container in world.containers.values() {
            let census = numbers.census.get(&container.id);
            let written = census.and_then(|census| census.written).map(|written| written.bytes);
            if exceeds(container, written) && ending.insert(container.id.clone()) {
                tokio::spawn(end(ctx.clone(), container.clone(), written.unwrap_or_default()));
            }
        }
    }
}

/// Whether a container is to be ended; also one that was being ended when the daemon died.
fn exceeds(container: &Container, written: Option<u64>) -> bool {
    let is_alive = matches!(container.phase, Phase::Created { .. } | Phase::Running { .. });
    let is_over = container.writable_limit.zip(written).is_some_and(|(limit, now)| now > limit);
    is_alive && (is_over || container.over_limit.is_some())
}

/// The reason goes on record before the end comes.
async fn end(ctx: Arc<Ctx>, container: Arc<Container>, written: u64) {
    let id = &container.id;
    tracing::warn!(
        container = %id,
        name = container.spec.name,
        written,
        limit = container.writable_limit,
        "it has written more than its limit and is ended"
    );
    loop {
        let noted = ctx.change_container(id, |container| {
            let is_new = container.over_limit.is_none();
            container.over_limit.get_or_insert(written);
            is_new
        });
        let ended = match noted {
            Ok(()) => stop::stop(ctx.clone(), id.to_string(), 0).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => return,
            Err(error) => tracing::warn!(container = %id, %error, "it could not be ended"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What to tell people about a container that was ended for it.
pub(crate) fn message(written: u64, limit: u64) -> String {
    format!(
        "it has written {written} bytes into its own layer, its limit is {limit} (annotation \
         {ANNOTATION} or runtime.writable_limit)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> BTreeMap<String, String> {
        [(ANNOTATION.to_owned(), text.to_owned())].into()
    }

    #[test]
    fn the_nearer_word_wins_and_zero_takes_the_limit_away() {
        let none = BTreeMap::new();
        assert_eq!(resolve(Some(7), [&none, &none]).unwrap(), Some(7));
        assert_eq!(resolve(Some(7), [&map("1Ki"), &none]).unwrap(), Some(1024));
        assert_eq!(resolve(None, [&map("1Ki"), &map("2k")]).unwrap(), Some(2000));
        assert_eq!(resolve(Some(7), [&map("1Ki"), &map("0")]).unwrap(), None);
        let error = resolve(None, [&map("much")]).unwrap_err().to_string();
        assert!(error.contains(ANNOTATION) && error.contains("much"), "{error}");
    }
}
