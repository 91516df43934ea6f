//! How much a container may write into its own layer: kept by the kernel where the file system counts
//! by project, counted by the daemon elsewhere.

use std::process::Command;

use e2e::pod::SOON;
use e2e::{ContainerSpec, Node, Options, container, guest, image, pod, wait};
use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState::ContainerRunning;
use proto::admin::v1::WatchEventsRequest;
use tonic::Code;

use crate::refused::refused;

const LIMIT: &str = "lapstrake.io/writable-limit";

fn writer(name: &str, megabytes: u32) -> ContainerSpec {
    let script = format!("dd if=/dev/zero of=/file bs=1M count={megabytes}; echo done; sleep 1000");
    container(name, image::BUSYBOX).shell(&script)
}

#[tokio::test]
async fn a_container_beyond_its_limit_is_ended_and_says_so_everywhere() {
    // A tmpfs does not count by project.
    let root_size = Some("96m".to_owned());
    let node = Node::start_with(Options { root_size, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod").annotation(LIMIT, "1Gi")).await;
    refused(
        pod.try_create(&writer("bad", 1).annotation(LIMIT, "much")).await,
        Code::InvalidArgument,
        &[LIMIT, "much"],
    );
    let within = pod.start(&writer("within", 4).annotation(LIMIT, "8Mi")).await;
    let as_its_pod = pod.start(&writer("as-its-pod", 16)).await;
    let beyond = pod.start(&writer("beyond", 16).annotation(LIMIT, "8Mi")).await;

    let status = beyond.exited().await;
    assert_eq!((status.exit_code, &*status.reason), (137, "WritableLimitExceeded"), "{status:?}");
    assert!(status.message.contains("its limit is 8388608"), "{}", status.message);
    let log = node.log();
    assert!(log.contains("written more than its limit") && log.contains(&beyond.id), "{log}");
    let mut events = node.cri.admin.clone();
    let mut events = events.watch_events(WatchEventsRequest {}).await.unwrap().into_inner();
    let told = loop {
        let event = events.message().await.unwrap().expect("an event about it");
        if event.id == beyond.id {
            break event;
        }
    };
    assert_eq!(told.reason, "WritableLimitExceeded");
    for other in [within, as_its_pod] {
        other.wait_for_log("done");
        assert_eq!(other.state().await, ContainerRunning);
    }
    node.finish().await;
}

#[tokio::test]
async fn the_kernel_keeps_a_container_to_its_limit_and_counts_for_it() {
    if !guest::inside() {
        println!("SKIPPED: project quotas need a file system with them, `make test-vm` has one");
        return;
    }
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let limited = pod.start(&writer("limited", 16).annotation(LIMIT, "8Mi")).await;
    limited.wait_for_log("quota exceeded");
    limited.wait_for_log("done");
    assert_eq!(limited.state().await, ContainerRunning, "nothing but the write failed");
    let free = pod.start(&writer("free", 16)).await;
    free.wait_for_log("done");

    for container in [&limited, &free] {
        let upper = node.root_dir().join("containers").join(&container.id).join("upper");
        let du = || {
            let du = Command::new("du").args(["-s", "-B1"]).arg(&upper).output().unwrap();
            let du = String::from_utf8(du.stdout).unwrap();
            du.split_whitespace().next().unwrap().parse::<u64>().unwrap()
        };
        wait::until_async("what is counted is what du finds", SOON, || async {
            let container_id = container.id.clone();
            let request = cri::ContainerStatsRequest { container_id };
            let stats = node.cri.runtime.clone().container_stats(request).await.unwrap();
            let stats = stats.into_inner().stats.unwrap();
            let told = stats.writable_layer.and_then(|it| it.used_bytes).map_or(0, |it| it.value);
            (told.abs_diff(du()) * 100 <= du()).then_some(())
        })
        .await;
    }
    node.finish().await;
}
