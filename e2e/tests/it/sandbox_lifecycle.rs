//! Pods: their life, their names, their files, their namespaces.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::time::Duration;

use e2e::pod::SOON;
use e2e::{Node, Pod, container, image, pod, wait};
use k8s_cri::v1 as cri;
use k8s_cri::v1::PodSandboxState::{SandboxNotready, SandboxReady};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_sandbox_is_shown_as_it_was_asked_for() {
    let node = Node::start().await;
    let spec = pod("shown").label("app", "web").annotation("note", "líne one\nline two");
    let pod = node.run_pod(spec.clone()).await;

    let status = pod.status().await;
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), SandboxReady);
    assert_eq!(status.metadata, spec.config.metadata);
    assert_eq!(status.labels, spec.config.labels);
    assert_eq!(status.annotations, spec.config.annotations);
    assert!(status.created_at > 0);
    let namespaces = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(namespaces.pid(), cri::NamespaceMode::Container, "given back unchanged");

    let [listed] = &*list(&node, None).await else { panic!("one sandbox") };
    assert_eq!((&listed.id, &listed.metadata), (&pod.id, &spec.config.metadata));
    assert_eq!(
        (&listed.labels, &listed.annotations),
        (&spec.config.labels, &spec.config.annotations)
    );
    assert_eq!(listed.created_at, status.created_at);
    node.finish().await;
}

#[tokio::test]
async fn stop_and_remove_can_be_repeated_and_forget() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("repeated")).await;
    pod.stop().await;
    assert_eq!(pod.status().await.state(), SandboxNotready);
    pod.stop().await;
    pod.remove().await;
    refused(pod.try_status().await, Code::NotFound, &[&pod.id]);
    pod.remove().await;
    pod.stop().await;
    assert_eq!(list(&node, None).await, []);
    node.finish().await;
}

#[tokio::test]
async fn stop_gives_the_network_and_the_processes_back_before_removal() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("stopped")).await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    pod.stop().await;
    let status = container.status().await;
    assert_eq!((status.state(), status.exit_code), (cri::ContainerState::ContainerExited, 137));
    // The kernel takes a link away some time after the last process of its namespace.
    let now = wait::until("only the bridge is left", SOON, || {
        let now = node.scope.snapshot(node.pid());
        (now.of("link").len() == 1).then_some(now)
    });
    assert!(now.of("process").iter().all(|it| !it.contains("sleep")), "{now:?}");
    node.finish().await;
}

#[tokio::test]
async fn removing_a_running_pod_removes_its_containers() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("forced")).await;
    let container =
        pod.start(&container("main", image::BUSYBOX).shell("trap '' TERM; sleep 1000")).await;
    pod.remove().await;
    refused(container.try_status().await, Code::NotFound, &[&container.id]);
    node.finish().await;
}

#[tokio::test]
async fn the_same_request_again_is_the_same_sandbox() {
    let node = Node::start().await;
    let spec = pod("again");
    let first = node.run_pod(spec.clone()).await;
    let second = node.run_pod(spec.clone()).await;
    assert_eq!(first.id, second.id);

    let other = node.try_run_pod(spec.clone().label("other", "configuration")).await;
    refused(other, Code::AlreadyExists, &[&first.id]);

    first.remove().await;
    assert_ne!(node.run_pod(spec).await.id, first.id, "a removed one's name is free");
    node.finish().await;
}

#[tokio::test]
async fn a_retry_joins_the_operation_that_still_runs() {
    let node = Node::start().await;
    let spec = pod("joined");
    let runs = (0..6).map(|_| node.run_pod(spec.clone()));
    let ids: BTreeSet<_> =
        futures::future::join_all(runs).await.into_iter().map(|it| it.id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(list(&node, None).await.len(), 1);
    node.finish().await;
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_leave_half_a_pod() {
    let node = Node::start().await;
    for round in 0..8 {
        let spec = pod(&format!("hung-up-{round}"));
        let patience = Duration::from_millis(round * 3);
        let _ = tokio::time::timeout(patience, node.try_run_pod(spec.clone())).await;
        let pod = node.run_pod(spec).await;
        assert_eq!(pod.status().await.state(), SandboxReady);
    }
    assert_eq!(list(&node, None).await.len(), 8);
    node.finish().await;
}

#[tokio::test]
async fn pods_started_together_have_addresses_of_their_own() {
    let node = Node::start().await;
    let names: Vec<_> = (0..12).map(|it| format!("many-{it}")).collect();
    let pods = futures::future::join_all(names.iter().map(|it| node.run_pod(pod(it)))).await;
    let mut addresses = BTreeSet::new();
    for pod in &pods {
        addresses.insert(pod.address().await);
    }
    assert_eq!(addresses.len(), 12);
    assert!(addresses.iter().all(|it| it.starts_with(&node.network())), "{addresses:?}");
    node.finish().await;
}

#[tokio::test]
async fn lists_can_be_filtered() {
    let node = Node::start().await;
    let web = node.run_pod(pod("web").label("app", "web").label("tier", "front")).await;
    let db = node.run_pod(pod("db").label("app", "db")).await;
    db.stop().await;
    let ids = async |filter| {
        let found = list(&node, Some(filter)).await;
        found.into_iter().map(|it| it.id).collect::<BTreeSet<_>>()
    };
    let filter = cri::PodSandboxFilter::default();
    let selector = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let state = |it| Some(cri::PodSandboxStateValue { state: it as i32 });
    let both = BTreeSet::from([web.id.clone(), db.id.clone()]);
    let (web, db) = (BTreeSet::from([web.id]), BTreeSet::from([db.id]));
    let whole = web.first().unwrap().clone();

    assert_eq!(ids(filter.clone()).await, both);
    assert_eq!(ids(cri::PodSandboxFilter { id: whole.clone(), ..filter.clone() }).await, web);
    assert_eq!(ids(cri::PodSandboxFilter { id: whole[..12].into(), ..filter.clone() }).await, web);
    assert_eq!(
        ids(cri::PodSandboxFilter { id: "absent".into(), ..filter.clone() }).await,
        [].into()
    );
    assert_eq!(
        ids(cri::PodSandboxFilter { state: state(SandboxReady), ..filter.clone() }).await,
        web
    );
    assert_eq!(
        ids(cri::PodSandboxFilter { state: state(SandboxNotready), ..filter.clone() }).await,
        db
    );
    let labels = selector(&[("app", "web"), ("tier", "front")]);
    assert_eq!(ids(cri::PodSandboxFilter { label_selector: labels, ..filter.clone() }).await, web);
    let labels = selector(&[("app", "db"), ("tier", "front")]);
    assert_eq!(ids(cri::PodSandboxFilter { label_selector: labels, ..filter }).await, [].into());
    node.finish().await;
}

#[tokio::test]
async fn the_pods_files_name_the_pod() {
    let node = Node::with_busybox().await;
    let spec = pod("named").hostname("harbour").dns(
        &["10.0.0.10", "10.0.0.11"],
        &["ns.svc.cluster.local", "svc.cluster.local"],
        &["ndots:5"],
    );
    let pod = node.run_pod(spec).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    assert_eq!(
        main.shell("hostname; cat /etc/hostname; echo $HOSTNAME").await,
        "harbour\nharbour\nharbour"
    );
    assert_eq!(
        main.shell("cat /etc/resolv.conf").await,
        "search ns.svc.cluster.local svc.cluster.local\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5"
    );
    let hosts = main.shell("cat /etc/hosts").await;
    assert!(hosts.contains("localhost"), "{hosts}");
    node.finish().await;
}

#[tokio::test]
async fn without_dns_settings_the_hosts_are_used() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("plain")).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    assert_eq!(main.shell("cat /etc/resolv.conf").await, host.trim_end_matches('\n'));
    node.finish().await;
}

#[tokio::test]
async fn sysctls_hold_in_the_pod_and_nowhere_else() {
    let node = Node::with_busybox().await;
    let before = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let spec =
        pod("tuned").sysctl("net.core.somaxconn", "1234").sysctl("kernel.shm_rmid_forced", "1");
    let pod = node.run_pod(spec).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    assert_eq!(
        main.shell("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced").await,
        "1234\n1"
    );
    assert_eq!(fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap(), before);
    node.finish().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_has_the_pods_own_process_first() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("shared").shared_pids()).await;
    let one = container("one", image::BUSYBOX).shared_pids().shell("sleep 1001");
    let two = container("two", image::BUSYBOX).shared_pids().shell("sleep 1002");
    let (one, _two) = (pod.start(&one).await, pod.start(&two).await);
    let seen = one.shell("ps -o pid,args").await;
    assert!(seen.contains("sleep 1001") && seen.contains("sleep 1002"), "{seen}");
    assert_ne!(one.shell("cat /proc/1/comm").await, "sleep");
    // An orphan is reaped there.
    one.shell("(sleep 0.1 &) ; sleep 0.5; ! ps -o stat | grep -q Z").await;
    node.finish().await;
}

#[tokio::test]
async fn private_pid_namespaces_do_not_see_each_other() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("private")).await;
    let one = pod.start(&container("one", image::BUSYBOX).command(&["sleep", "1001"])).await;
    let _two = pod.start(&container("two", image::BUSYBOX).command(&["sleep", "1002"])).await;
    let seen = one.shell("ps -o pid,args").await;
    assert!(seen.contains("1 sleep 1001") && !seen.contains("sleep 1002"), "{seen}");
    node.finish().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_memory_segments_and_nothing_of_the_host() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("ipc").annotation("lapstrake.io/shm-size", "8Mi")).await;
    let sleep = |name| container(name, image::BUSYBOX).shell("sleep 1000");
    let (one, two) = (pod.start(&sleep("one")).await, pod.start(&sleep("two")).await);
    one.shell("echo shared > /dev/shm/note").await;
    assert_eq!(
        two.shell("cat /dev/shm/note; stat -fc '%b %S' /dev/shm").await,
        "shared\n2048 4096"
    );
    assert_eq!(
        one.shell("readlink /proc/self/ns/ipc").await,
        two.shell("readlink /proc/self/ns/ipc").await
    );
    let host = fs::read_link("/proc/self/ns/ipc").unwrap().display().to_string();
    assert_ne!(one.shell("readlink /proc/self/ns/ipc").await, host);
    node.finish().await;
}

#[tokio::test]
async fn a_sandbox_whose_process_died_is_not_ready_and_can_be_removed() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("bereft")).await;
    kill_process(Pid::from_raw(sandbox_pid(&node, &pod).await).unwrap(), Signal::KILL).unwrap();
    wait::until_async("the sandbox is not ready", Duration::from_secs(10), || async {
        (pod.status().await.state() == SandboxNotready).then_some(())
    })
    .await;
    node.finish().await;
}

#[tokio::test]
async fn the_pods_cgroup_is_below_the_given_parent() {
    let node = Node::with_busybox().await;
    let parent = format!("{}/kubepods/pod-1", node.scope.cgroup);
    let mut spec = pod("parented");
    spec.linux().cgroup_parent = parent.clone();
    let pod = node.run_pod(spec).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", node.pid_of(&main).await)).unwrap();
    assert!(cgroups.contains(&format!(":{parent}/{}", main.id)), "{cgroups}");
    pod.remove().await;
    // The kubelet's own directories are not ours to take; it removes them itself.
    for cgroup in e2e::host::cgroup_dirs(&format!("{}/kubepods", node.scope.cgroup)).iter().rev() {
        fs::remove_dir(cgroup).unwrap_or_else(|it| panic!("{}: {it}", cgroup.display()));
    }
    node.finish().await;
}

async fn sandbox_pid(node: &Node, pod: &Pod) -> i32 {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: true };
    let status = node.cri.runtime.clone().pod_sandbox_status(request).await.unwrap();
    let info: serde_json::Value = serde_json::from_str(&status.into_inner().info["info"]).unwrap();
    i32::try_from(info["pid"].as_i64().expect("info has a pid")).unwrap()
}

async fn list(node: &Node, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    let request = cri::ListPodSandboxRequest { filter };
    node.cri.runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items
}
