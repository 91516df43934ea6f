//! GetContainerEvents: what a kubelet with Evented PLEG lives on.

use e2e::pod::SOON;
use e2e::{Node, container, image, pod};
use k8s_cri::v1::ContainerState;
use proto::cri::v1 as cri;
use proto::cri::v1::ContainerEventType as Type;
use tonic::Streaming;

async fn subscribe(node: &Node) -> Streaming<cri::ContainerEventResponse> {
    let request = cri::GetEventsRequest {};
    let stream = node.cri.newer_runtime.clone().get_container_events(request).await;
    stream.expect("GetContainerEvents").into_inner()
}

async fn next(stream: &mut Streaming<cri::ContainerEventResponse>) -> cri::ContainerEventResponse {
    let event = tokio::time::timeout(SOON, stream.message()).await.expect("an event comes");
    event.expect("no error").expect("no end")
}

#[tokio::test]
async fn every_step_is_told_to_every_subscriber_with_the_whole_pod() {
    let node = Node::with_busybox().await;
    let before = node.run_pod(pod("before")).await;
    let (mut first, mut second) = (subscribe(&node).await, subscribe(&node).await);
    let pod = node.run_pod(pod("told")).await;
    let container = pod.start(&container("main", image::BUSYBOX).command(&["sleep", "1000"])).await;
    container.stop(0).await;
    container.remove().await;
    pod.stop().await;
    pod.remove().await;
    let (of_pod, of_container) = (pod.id.clone(), container.id.clone());
    let expect = [
        (&of_pod, Type::ContainerCreatedEvent),
        (&of_pod, Type::ContainerStartedEvent),
        (&of_container, Type::ContainerCreatedEvent),
        (&of_container, Type::ContainerStartedEvent),
        (&of_container, Type::ContainerStoppedEvent),
        (&of_container, Type::ContainerDeletedEvent),
        (&of_pod, Type::ContainerStoppedEvent),
        (&of_pod, Type::ContainerDeletedEvent),
    ];
    let mut last = 0;
    for (id, kind) in expect {
        let event = next(&mut first).await;
        assert_eq!(
            (&event.container_id, event.container_event_type()),
            (id, kind),
            "in this order"
        );
        assert_eq!(next(&mut second).await, event, "each subscriber has a queue of its own");
        assert!(event.created_at > last, "later events have later times");
        last = event.created_at;
        let sandbox = event.pod_sandbox_status.expect("the kubelet passes over others");
        assert_eq!(sandbox.metadata.unwrap().name, "told");
        if *id == of_container && kind != Type::ContainerDeletedEvent {
            let [status] = &*event.containers_statuses else { panic!("the container's status") };
            assert_eq!(status.id, of_container);
        }
    }
    before.stop().await;
    let event = next(&mut first).await;
    assert_eq!(event.container_id, before.id, "nothing came of what was there before");
    drop((first, second));
    node.finish().await;
}

#[tokio::test]
async fn an_event_is_sent_after_its_effect_can_be_seen() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("seen")).await;
    let mut events = subscribe(&node).await;
    let container = pod.start(&container("short", image::BUSYBOX).command(&["true"])).await;
    loop {
        let event = next(&mut events).await;
        if event.container_event_type() == Type::ContainerStoppedEvent {
            assert_eq!(container.state().await, ContainerState::ContainerExited);
            assert_eq!(event.containers_statuses[0].exit_code, 0);
            assert_eq!(event.containers_statuses[0].reason, "Completed");
            break;
        }
    }
    drop(events);
    node.finish().await;
}

#[tokio::test]
async fn a_status_carries_its_time_and_its_containers() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("whole")).await;
    let mut events = subscribe(&node).await;
    let container = pod.start(&container("main", image::BUSYBOX).command(&["sleep", "1000"])).await;
    let started = loop {
        let event = next(&mut events).await;
        if event.container_event_type() == Type::ContainerStartedEvent {
            break event.created_at;
        }
    };
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = node.cri.newer_runtime.clone().pod_sandbox_status(request).await.unwrap();
    let status = status.into_inner();
    assert!(status.timestamp >= started, "newer than the event: {} {started}", status.timestamp);
    let [one] = &*status.containers_statuses else { panic!("{status:?}") };
    assert_eq!((&one.id, one.state()), (&container.id, cri::ContainerState::ContainerRunning));
    drop(events);
    node.finish().await;
}

#[tokio::test]
async fn the_verb_tells_what_is_there_and_what_happens() {
    let node = Node::with_busybox().await;
    let there = node.run_pod(pod("there")).await;
    let mut verb = std::process::Command::new(e2e::node::binary("lapstrake"));
    verb.args(["events", "--json", "--count", "4", "--endpoint", &node.endpoint()]);
    let mut verb = verb.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(verb.stdout.take().unwrap()));
    let mut lines = lines.map(|line| {
        serde_json::from_str::<serde_json::Value>(&line.unwrap()).expect("JSON in every line")
    });
    let first = lines.next().unwrap();
    assert_eq!((&first["present"], &first["pod"]), (&true.into(), &"default/there".into()));
    assert_eq!((&first["kind"], &first["id"]), (&"ready".into(), &there.id.clone().into()));
    node.run_pod(pod("new")).await;
    there.stop().await;
    there.remove().await;
    let mut number = first["number"].as_u64().unwrap();
    for (name, kind) in [
        ("default/new", "created"),
        ("default/new", "started"),
        ("default/there", "stopped"),
        ("default/there", "deleted"),
    ] {
        let event = lines.next().unwrap();
        number += 1;
        assert_eq!((&event["pod"], &event["kind"]), (&name.into(), &kind.into()));
        assert_eq!(event["number"], number);
    }
    assert!(verb.wait().unwrap().success());
    node.finish().await;
}
