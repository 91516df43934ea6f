//! Which events lead from one state of the world to the next. Pure.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Kind;
use crate::container::Container;
use crate::container::state::{Phase, Reason};
use crate::id::Id;
use crate::sandbox::Sandbox;
use crate::sandbox::state::Phase as SandboxPhase;
use crate::store::world::Snapshot;

#[derive(Debug)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) container: Option<Arc<Container>>,
    pub(super) sandbox: Arc<Sandbox>,
}

pub(super) fn changes(before: &Snapshot, after: &Snapshot) -> Vec<Change> {
    let mut changes = Vec::new();
    each_difference(&before.sandboxes, &after.sandboxes, |old, new| {
        let kinds = sandbox(old.map(|it| it.phase), new.map(|it| it.phase));
        if let Some(sandbox) = new.or(old) {
            let change = |kind| Change { kind, container: None, sandbox: sandbox.clone() };
            changes.extend(kinds.iter().copied().map(change));
        }
    });
    each_difference(&before.containers, &after.containers, |old, new| {
        let kinds = container(old.map(|it| &it.phase), new.map(|it| &it.phase));
        // What a deleted one was, only its last state tells.
        let known = new.filter(|it| it.phase.is_shown()).or(old);
        let Some(known) = known.filter(|_| !kinds.is_empty()) else { return };
        let sandbox = &known.sandbox_id;
        let sandbox = after.sandboxes.get(sandbox).or_else(|| before.sandboxes.get(sandbox));
        if let Some(sandbox) = sandbox {
            let change =
                |kind| Change { kind, container: Some(known.clone()), sandbox: sandbox.clone() };
            changes.extend(kinds.into_iter().map(change));
        }
    });
    changes
}

/// Walks both maps side by side; what is the same object in both did not change.
fn each_difference<'a, T>(
    before: &'a BTreeMap<Id, Arc<T>>,
    after: &'a BTreeMap<Id, Arc<T>>,
    mut each: impl FnMut(Option<&'a Arc<T>>, Option<&'a Arc<T>>),
) {
    let (mut before, mut after) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (before.peek(), after.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = before.next_if(|_| order.is_le()).map(|(_, old)| old);
        let new = after.next_if(|_| order.is_ge()).map(|(_, new)| new);
        match (old, new) {
            (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
            (old, new) => each(old, new),
        }
    }
}

/// An object is deleted when it is no longer shown: that is what others can see.
fn sandbox(before: Option<SandboxPhase>, after: Option<SandboxPhase>) -> Vec<Kind> {
    let shown = |phase: Option<SandboxPhase>| phase.is_some_and(SandboxPhase::is_shown);
    let is_ready = |phase| phase == Some(SandboxPhase::Ready);
    let mut kinds = Vec::new();
    if !shown(before) && shown(after) {
        kinds.push(Kind::Created);
    }
    match (is_ready(before), is_ready(after)) {
        (false, true) => kinds.push(Kind::Started),
        (true, false) => kinds.push(Kind::Stopped),
        _ => {}
    }
    if shown(before) && !shown(after) {
        kinds.push(Kind::Deleted);
    }
    kinds
}

fn container(before: Option<&Phase>, after: Option<&Phase>) -> Vec<Kind> {
    let shown = |phase: Option<&Phase>| phase.is_some_and(Phase::is_shown);
    let is_running = |phase: Option<&Phase>| matches!(phase, Some(Phase::Running { .. }));
    let has_exited = |phase: Option<&Phase>| matches!(phase, Some(Phase::Exited(_)));
    // One that ended before its start was reported did run, unless its program never came to it.
    let ran = match after {
        Some(Phase::Exited(exit)) => exit.reason != Reason::StartError,
        _ => false,
    };
    let mut kinds = Vec::new();
    if !shown(before) && shown(after) {
        kinds.push(Kind::Created);
    }
    if !is_running(before) && !has_exited(before) && (is_running(after) || ran) {
        kinds.push(Kind::Started);
    }
    let ends = has_exited(after) && !has_exited(before);
    if ends || is_running(before) && !is_running(after) {
        kinds.push(Kind::Stopped);
    }
    if shown(before) && !shown(after) {
        kinds.push(Kind::Deleted);
    }
    kinds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::state::Exit;
    use Kind::{Created, Deleted, Started, Stopped};

    fn exited(reason: Reason) -> Phase {
        let message = String::new();
        Phase::Exited(Exit { code: 0, started_at_ns: 1, finished_at_ns: 2, reason, message })
    }

    #[track_caller]
    fn check(before: Option<Phase>, after: Option<Phase>, expect: &[Kind]) {
        assert_eq!(container(before.as_ref(), after.as_ref()), expect, "{before:?} to {after:?}");
    }

    #[test]
    fn every_step_of_a_container_is_told_once() {
        let (created, running) =
            (Phase::Created { pid: 1 }, Phase::Running { pid: 1, started_at_ns: 1 });
        let done = || Some(exited(Reason::Completed));
        check(None, Some(Phase::Creating), &[]);
        check(Some(Phase::Creating), Some(created.clone()), &[Created]);
        check(Some(created.clone()), Some(running.clone()), &[Started]);
        check(Some(running.clone()), done(), &[Stopped]);
        check(done(), done(), &[]);
        check(done(), Some(Phase::Removing), &[Deleted]);
        check(Some(Phase::Removing), None, &[]);
    }

    #[test]
    fn steps_that_were_passed_at_once_are_told_in_order() {
        let (created, running) =
            (Phase::Created { pid: 1 }, Phase::Running { pid: 1, started_at_ns: 1 });
        check(Some(created.clone()), Some(exited(Reason::Error)), &[Started, Stopped]);
        check(Some(created.clone()), Some(exited(Reason::StartError)), &[Stopped]);
        check(Some(running), Some(Phase::Removing), &[Stopped, Deleted]);
        check(Some(created), Some(Phase::Removing), &[Deleted]);
        check(Some(Phase::Creating), Some(Phase::Removing), &[]);
    }

    #[test]
    fn every_step_of_a_sandbox_is_told_once() {
        use SandboxPhase::{Failed, NotReady, Ready, Removing, Starting, Stopping};
        let check = |before, after, expect: &[Kind]| {
            assert_eq!(sandbox(before, after), expect, "{before:?} to {after:?}");
        };
        check(None, Some(Starting), &[]);
        check(Some(Starting), Some(Ready), &[Created, Started]);
        check(Some(Starting), Some(Removing), &[]);
        check(Some(Ready), Some(Failed), &[Stopped]);
        check(Some(Ready), Some(Stopping), &[Stopped]);
        check(Some(Failed), Some(Stopping), &[]);
        check(Some(Stopping), Some(NotReady), &[]);
        check(Some(NotReady), Some(Removing), &[Deleted]);
        check(Some(Removing), None, &[]);
    }
}
