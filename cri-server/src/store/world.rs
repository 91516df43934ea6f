//! The world in memory: one immutable snapshot, swapped whole at every change, so that no reader
//! waits for a writer, for a disk or for a container.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::container::Container;
use crate::events::{Events, Subscription};
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::sandbox::spec::Metadata;

#[derive(Debug, Default, Clone)]
pub(crate) struct Snapshot {
    pub(crate) sandboxes: BTreeMap<Id, Arc<Sandbox>>,
    pub(crate) containers: BTreeMap<Id, Arc<Container>>,
}

impl Snapshot {
    /// Finds by id or, as people type them, by the start of one that fits a single sandbox.
    pub(crate) fn sandbox(&self, id: &str) -> Option<&Arc<Sandbox>> {
        unique(&self.sandboxes, id)
    }

    pub(crate) fn container(&self, id: &str) -> Option<&Arc<Container>> {
        unique(&self.containers, id)
    }

    /// Whether shown or not: a name is taken from the first record to the last.
    pub(crate) fn sandbox_named(&self, metadata: &Metadata) -> Option<Arc<Sandbox>> {
        self.sandboxes.values().find(|sandbox| sandbox.spec.metadata == *metadata).cloned()
    }

    /// Looked at once: to look for the containers of each sandbox would be a walk for each.
    pub(crate) fn members(&self) -> Members {
        let mut members = Members::default();
        for container in self.containers.values() {
            members.0.entry(container.sandbox_id.clone()).or_default().push(container.clone());
        }
        members
    }

    pub(crate) fn containers_of<'a>(
        &'a self,
        sandbox: &'a Id,
    ) -> impl Iterator<Item = &'a Arc<Container>> {
        self.containers.values().filter(move |container| container.sandbox_id == *sandbox)
    }
}

/// The containers of each sandbox, for answers about all of them.
#[derive(Debug, Default)]
pub(crate) struct Members(HashMap<Id, Vec<Arc<Container>>>);

impl Members {
    pub(crate) fn of(&self, sandbox: &Id) -> &[Arc<Container>] {
        self.0.get(sandbox).map(Vec::as_slice).unwrap_or_default()
    }
}

fn unique<'a, T>(map: &'a BTreeMap<Id, Arc<T>>, id: &str) -> Option<&'a Arc<T>> {
    if id.is_empty() {
        return None;
    }
    if let Some(found) = Id::parse(id) {
        return map.get(&found);
    }
    let mut fitting = map.iter().filter(|(known, _)| known.as_str().starts_with(id));
    match (fitting.next(), fitting.next()) {
        (Some((_, found)), None) => Some(found),
        _ => None,
    }
}

#[derive(Debug)]
pub(crate) struct World {
    snapshot: ArcSwap<Snapshot>,
    /// Writers take turns; held only for the change itself.
    turn: Mutex<()>,
    changes: watch::Sender<u64>,
    events: Events,
}

impl World {
    pub(crate) fn new(snapshot: Snapshot) -> Self {
        let changes = watch::Sender::new(0);
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            turn: Mutex::default(),
            changes,
            events: Events::default(),
        }
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut Snapshot) -> R) -> R {
        // A panic inside a change leaves the old snapshot in place, so the lock is still good.
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.snapshot.load_full();
        let mut next = Snapshot::clone(&before);
        let result = change(&mut next);
        let next = Arc::new(next);
        self.snapshot.store(next.clone());
        // Within the turn, so that events are in the order of the changes.
        self.events.send(&before, &next);
        drop(turn);
        self.changes.send_modify(|version| *version += 1);
        result
    }

    /// What is there and what happens from then on, with no change lost between the two.
    pub(crate) fn follow(&self) -> (Arc<Snapshot>, (u64, Subscription)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        (self.snapshot(), self.events.follow())
    }

    pub(crate) fn events(&self) -> &Events {
        &self.events
    }

    /// Wakes at every change from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
