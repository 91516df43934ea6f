//! What happens, to one subscriber: GetContainerEvents, and our own stream with a beginning.

use futures::StreamExt;
use prometheus::IntCounter;
use proto::admin::v1 as admin;
use proto::cri::v1 as cri;
use tokio::sync::broadcast::error::RecvError;
use tonic::Status;

use super::runtime_service::Items;
use super::to_proto;
use crate::events::{Event, Kind, Note, Subscription, Told};
use crate::store::world::{Snapshot, World};

/// Those events that `wire` makes something of. One who cannot follow is told so, and counted in
/// `dropped`: a silent gap would leave the kubelet with a wrong picture for ever.
pub(super) fn event_stream<T: Send + 'static>(
    events: Subscription,
    dropped: IntCounter,
    wire: fn(&Told) -> Option<T>,
) -> Items<T> {
    Box::pin(futures::stream::unfold(Some(events), move |events| {
        let dropped = dropped.clone();
        async move {
            let mut events = events?;
            loop {
                match events.recv().await {
                    Ok(told) => {
                        if let Some(event) = wire(&told) {
                            return Some((Ok(event), Some(events)));
                        }
                    }
                    Err(RecvError::Closed) => return None,
                    Err(RecvError::Lagged(missed)) => {
                        dropped.inc_by(missed);
                        let text = format!(
                            "this subscriber was too slow and has missed {missed} events; list \
                             again and subscribe anew"
                        );
                        return Some((Err(Status::data_loss(text)), None));
                    }
                }
            }
        }
    }))
}

pub(super) fn wire(told: &Told) -> Option<cri::ContainerEventResponse> {
    let Told::OfPod(event) = told else { return None };
    let kind = match event.kind {
        Kind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        Kind::Started => cri::ContainerEventType::ContainerStartedEvent,
        Kind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        Kind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    let containers = event.containers.iter();
    Some(cri::ContainerEventResponse {
        container_id: event.subject().to_string(),
        container_event_type: kind.into(),
        created_at: event.at_ns,
        pod_sandbox_status: Some(to_proto::sandbox_status(&event.sandbox)),
        containers_statuses: containers.map(|it| to_proto::container_status(it)).collect(),
    })
}

/// What is there first, then events; the CRI stream must not have such a beginning, for the kubelet
/// would take it for what happens.
pub(super) fn watch(world: &World, dropped: IntCounter) -> Items<admin::Event> {
    let (snapshot, (number, events)) = world.follow();
    let present: Vec<_> = present(&snapshot, number).into_iter().map(Ok).collect();
    let later = event_stream(events, dropped, |told| {
        Some(match told {
            Told::OfPod(event) => of_pod(event),
            Told::OfNode(note) => of_node(note),
        })
    });
    Box::pin(futures::stream::iter(present).chain(later))
}

fn of_pod(event: &Event) -> admin::Event {
    admin::Event {
        number: event.number,
        at_ns: event.at_ns,
        kind: event.kind.word().to_owned(),
        present: false,
        pod: event.sandbox.spec.metadata.pod(),
        container: event.container.as_ref().map(|it| it.spec.name.clone()).unwrap_or_default(),
        id: event.subject().to_string(),
        reason: match (event.kind, &event.container) {
            (Kind::Stopped, Some(container)) => to_proto::reason_of(container).to_owned(),
            _ => String::new(),
        },
        subject: String::new(),
    }
}

fn of_node(note: &Note) -> admin::Event {
    admin::Event {
        number: note.number,
        at_ns: note.at_ns,
        kind: note.kind.to_owned(),
        subject: note.subject.to_owned(),
        reason: note.text.clone(),
        ..Default::default()
    }
}

fn present(snapshot: &Snapshot, number: u64) -> Vec<admin::Event> {
    let mut all = Vec::new();
    for sandbox in snapshot.sandboxes.values().filter(|sandbox| sandbox.phase.is_shown()) {
        let pod = sandbox.spec.metadata.pod();
        all.push(admin::Event {
            number,
            at_ns: sandbox.created_at_ns,
            kind: sandbox.phase.word().to_owned(),
            present: true,
            pod: pod.clone(),
            container: String::new(),
            id: sandbox.id.to_string(),
            ..Default::default()
        });
        let members = snapshot.containers_of(&sandbox.id).filter(|it| it.phase.is_shown());
        all.extend(members.map(|container| admin::Event {
            number,
            at_ns: container.created_at_ns,
            kind: container.phase.word().to_owned(),
            present: true,
            pod: pod.clone(),
            container: container.spec.name.clone(),
            id: container.id.to_string(),
            reason: to_proto::reason_of(container).to_owned(),
            subject: String::new(),
        }));
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tonic::Code;

    use super::*;
    use crate::container::testing::sandbox;

    /// A pod that comes and goes: four events.
    fn pod_passes(world: &World) {
        let pod = Arc::new(sandbox());
        world.change(|world| world.sandboxes.insert(pod.id.clone(), pod.clone()));
        world.change(|world| world.sandboxes.remove(&pod.id));
    }

    #[tokio::test]
    async fn who_falls_behind_gets_an_error_and_no_gap_and_others_do_not_notice() {
        let world = World::new(Snapshot::default());
        let dropped = IntCounter::new("dropped", "test").unwrap();
        let subscribe = || event_stream(world.events().follow().1, dropped.clone(), wire);
        let (mut slow, mut quick) = (subscribe(), subscribe());
        for _ in 0..300 {
            pod_passes(&world);
            for _ in 0..4 {
                quick.next().await.unwrap().unwrap();
            }
        }
        assert_eq!(slow.next().await.unwrap().unwrap_err().code(), Code::DataLoss);
        assert!(slow.next().await.is_none(), "the stream has ended");
        assert_eq!(dropped.get(), 1200 - 1024);
        pod_passes(&world);
        let event = quick.next().await.unwrap().unwrap();
        assert_eq!(event.pod_sandbox_status.unwrap().id, event.container_id);
    }

    #[tokio::test]
    async fn our_own_stream_begins_with_what_is_there_and_goes_on_without_a_gap() {
        let world = World::new(Snapshot::default());
        pod_passes(&world);
        let pod = Arc::new(sandbox());
        world.change(|world| world.sandboxes.insert(pod.id.clone(), pod.clone()));
        let mut events = watch(&world, IntCounter::new("dropped", "test").unwrap());
        let first = events.next().await.unwrap().unwrap();
        assert_eq!((first.present, first.number, &*first.pod), (true, 6, "default/web"));
        world.change(|world| world.sandboxes.remove(&pod.id));
        for (number, kind) in [(7, "stopped"), (8, "deleted")] {
            let event = events.next().await.unwrap().unwrap();
            assert_eq!((event.present, event.number, &*event.kind), (false, number, kind));
        }
        world.events().repaired("the table was missing".to_owned());
        pod_passes(&world);
        let event = events.next().await.unwrap().unwrap();
        assert_eq!((event.number, &*event.kind, &*event.pod), (9, "repaired", ""));
        assert_eq!(event.reason, "the table was missing");
        for number in 10..14 {
            assert_eq!(events.next().await.unwrap().unwrap().number, number);
        }
    }
}
