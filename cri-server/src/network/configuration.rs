//! The configuration of the cluster's network as of the last look, for each directory of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;

/// What a directory says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// In the order in which a pod is attached; empty as long as there never was a good one.
    pub(crate) networks: Vec<cni::Network>,
    /// Why the directory cannot be used as it is.
    pub(crate) trouble: Option<String>,
}

/// A good look replaces what was found before. A broken file does not: somebody may be writing it,
/// and pods go on with what was there. No file at all is the end of the network.
pub(crate) fn next(before: &Found, look: Result<Vec<cni::Network>, cni::Error>) -> Found {
    match look {
        Ok(networks) => Found { networks, trouble: None },
        Err(error @ cni::Error::NoConfiguration { .. }) => {
            Found { networks: Vec::new(), trouble: Some(error.to_string()) }
        }
        Err(error) => Found { networks: before.networks.clone(), trouble: Some(error.to_string()) },
    }
}

/// All directories, shared with those who wait for a change.
#[derive(Debug)]
pub(crate) struct Configuration {
    /// How many networks of a directory a pod is attached to.
    count: usize,
    found: watch::Sender<BTreeMap<PathBuf, Found>>,
}

impl Configuration {
    /// Looks at the directories for the first time.
    pub(crate) fn open(dirs: impl IntoIterator<Item = PathBuf>, count: usize) -> Self {
        let found = dirs.into_iter().map(|dir| (dir, Found::default())).collect();
        let configuration = Self { count, found: watch::Sender::new(found) };
        configuration.look();
        configuration
    }

    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        self.found.borrow().keys().cloned().collect()
    }

    /// Looks again, and tells those who wait.
    pub(crate) fn look(&self) {
        self.found.send_if_modified(|found| {
            let mut changed = false;
            for (dir, before) in found {
                let after = next(before, cni::load(dir, self.count));
                if *before != after {
                    report(dir, &after);
                    *before = after;
                    changed = true;
                }
            }
            changed
        });
    }

    pub(crate) fn of(&self, dir: &Path) -> Found {
        self.found.borrow().get(dir).cloned().unwrap_or_default()
    }

    /// Returns when something else was found, or after this time.
    pub(crate) async fn changed(&self, limit: Duration) {
        let _ = tokio::time::timeout(limit, self.found.subscribe().changed()).await;
    }

    /// The networks of a directory, waiting a bounded time for some; else why there are none.
    pub(crate) async fn wait(
        &self,
        dir: &Path,
        limit: Duration,
    ) -> Result<Vec<cni::Network>, String> {
        let mut changes = self.found.subscribe();
        let there = |found: &BTreeMap<PathBuf, Found>| {
            found.get(dir).is_some_and(|found| !found.networks.is_empty())
        };
        let _ = tokio::time::timeout(limit, changes.wait_for(there)).await;
        let found = self.of(dir);
        if found.networks.is_empty() {
            let trouble = found.trouble.unwrap_or_default();
            return Err(format!("{trouble}; waited {} s for one", limit.as_secs()));
        }
        Ok(found.networks)
    }
}

fn report(dir: &Path, found: &Found) {
    let dir = dir.display();
    let names: Vec<_> = found.networks.iter().map(cni::Network::name).collect();
    match &found.trouble {
        None => tracing::info!(%dir, networks = ?names, "network configuration read"),
        Some(trouble) if names.is_empty() => {
            tracing::info!(%dir, %trouble, "no network configuration")
        }
        Some(trouble) => {
            tracing::warn!(%dir, %trouble, networks = ?names, "network configuration broken; the last good one stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_file_leaves_the_last_good_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("10-x.conf");
        let look = |found: &Found| next(found, cni::load(dir.path(), 1));
        let none = look(&Found::default());
        assert!(none.trouble.as_ref().unwrap().contains("no network configuration in"));
        std::fs::write(&file, r#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#).unwrap();
        let good = look(&none);
        assert_eq!((good.networks.len(), &good.trouble), (1, &None));
        std::fs::write(&file, "{").unwrap();
        let broken = look(&good);
        assert_eq!(broken.networks, good.networks);
        assert!(broken.trouble.as_ref().unwrap().contains("10-x.conf"), "{broken:?}");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(look(&broken), none);
    }
}
