//! What happens to pods and containers, told to whoever listens. Events are the difference of two
//! states of the world, so no path of the code can forget to send one, and none is sent before
//! List and Status show its effect.

mod derive;
mod pulling;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::clock;
use crate::container::Container;
use crate::container::state::{Phase, Reason};
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::store::world::Snapshot;

pub(crate) use pulling::Pulling;

/// Events that a subscriber may be behind; one who is slower is told so and has to look at the
/// whole again. A pod of ten containers makes about fifty events in its life.
const BEHIND_MAX: usize = 1024;

/// Events kept for people who look later.
const RECENT: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Created,
    Started,
    Stopped,
    Deleted,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Created, Self::Started, Self::Stopped, Self::Deleted];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Event {
    /// Nanoseconds since 1970; later events have later times.
    pub(crate) at_ns: i64,
    /// Without gaps from the start of the daemon on.
    pub(crate) number: u64,
    pub(crate) kind: Kind,
    /// The container it is about; `None` when it is the sandbox.
    pub(crate) container: Option<Arc<Container>>,
    pub(crate) sandbox: Arc<Sandbox>,
    /// All shown containers of the pod, as they are after the event.
    pub(crate) containers: Vec<Arc<Container>>,
}

impl Event {
    pub(crate) fn subject(&self) -> &Id {
        self.container.as_ref().map_or(&self.sandbox.id, |container| &container.id)
    }
}

/// An event as it is remembered for people: no more than is shown.
#[derive(Debug, Clone)]
pub(crate) struct Note {
    /// Without gaps from the start of the daemon on.
    pub(crate) number: u64,
    pub(crate) at_ns: i64,
    /// The word of a [`Kind`], or of what happens to the node itself.
    pub(crate) kind: &'static str,
    /// Of the node: its "network", an "image"; empty when it is about a pod.
    pub(crate) subject: &'static str,
    pub(crate) pod: String,
    /// `None` when it is about the sandbox.
    pub(crate) container: Option<String>,
    /// What was repaired, or which image and what of it.
    pub(crate) text: String,
}

/// What a subscriber is told.
#[derive(Debug)]
pub(crate) enum Told {
    OfPod(Event),
    /// About no pod, and so not for CRI.
    OfNode(Note),
}

pub(crate) type Subscription = broadcast::Receiver<Arc<Told>>;

#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<Told>>,
    log: Mutex<Log>,
}

/// How many there were, from the start of the daemon on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    pub(crate) kinds: std::collections::HashMap<&'static str, u64>,
    /// Ends of containers.
    pub(crate) exits: std::collections::HashMap<Reason, u64>,
}

#[derive(Debug, Default)]
struct Log {
    totals: Totals,
    number: u64,
    last_ns: i64,
    recent: VecDeque<Note>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND_MAX), log: Mutex::default() }
    }
}

impl Events {
    /// The number of the last event, and what happens from then on.
    pub(crate) fn follow(&self) -> (u64, Subscription) {
        let log = self.log(); // nothing is sent meanwhile
        (log.number, self.sender.subscribe())
    }

    pub(crate) fn subscribers(&self) -> usize {
        self.sender.receiver_count()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.log().totals.clone()
    }

    /// The last events, oldest first.
    pub(crate) fn recent(&self) -> Vec<Note> {
        self.log().recent.iter().cloned().collect()
    }

    /// A time that is not before that of any event sent so far.
    pub(crate) fn now_ns(&self) -> i64 {
        clock::now_ns().max(self.log().last_ns)
    }

    /// Tells how `after` differs from `before`. Callers take turns, and readers see `after` already.
    pub(crate) fn send(&self, before: &Snapshot, after: &Snapshot) {
        let changes = derive::changes(before, after);
        if changes.is_empty() {
            return;
        }
        let mut log = self.log();
        for derive::Change { kind, container, sandbox } in changes {
            *log.totals.kinds.entry(kind.word()).or_default() += 1;
            if let (Kind::Stopped, Some(Phase::Exited(exit))) =
                (kind, container.as_ref().map(|container| &container.phase))
            {
                *log.totals.exits.entry(exit.reason).or_default() += 1;
            }
            let (number, at_ns) = log.next();
            let note = Note {
                number,
                at_ns,
                kind: kind.word(),
                subject: "",
                pod: sandbox.spec.metadata.pod(),
                container: container.as_ref().map(|container| container.spec.name.clone()),
                text: String::new(),
            };
            let shown = after.containers_of(&sandbox.id).filter(|it| it.phase.is_shown());
            let containers = shown.cloned().collect();
            let event = Event { at_ns, number, kind, containers, container, sandbox };
            log.remember(note);
            let _ = self.sender.send(Arc::new(Told::OfPod(event))); // nobody listening is fine
        }
    }

    /// Tells that what others took away from the node's network was put back, and what.
    pub(crate) fn repaired(&self, what: String) {
        self.tell("network", "repaired", what);
    }

    /// Tells that the node is about to pull an image, has it, or could not get it.
    pub(crate) fn image(&self, kind: &'static str, text: String) {
        self.tell("image", kind, text);
    }

    fn tell(&self, subject: &'static str, kind: &'static str, text: String) {
        let mut log = self.log();
        let (number, at_ns) = log.next();
        let (pod, container) = (String::new(), None);
        let note = Note { number, at_ns, kind, subject, pod, container, text };
        log.remember(note.clone());
        let _ = self.sender.send(Arc::new(Told::OfNode(note))); // nobody listening is fine
    }

    fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        // Every step under the lock is complete in itself.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// The number and the time of another event. Two never have one time, and a clock that is set
    /// back does not reorder them: the kubelet keeps what is newest.
    fn next(&mut self) -> (u64, i64) {
        self.number += 1;
        self.last_ns = clock::now_ns().max(self.last_ns + 1);
        (self.number, self.last_ns)
    }

    fn remember(&mut self, note: Note) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(note);
    }
}
