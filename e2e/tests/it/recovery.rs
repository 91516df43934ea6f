//! The daemon may go at any moment; no container, log line or exit code notices.

use std::fs;
use std::time::Duration;

use e2e::{ContainerSpec, Node, container, host, image, pod, wait};
use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState::{ContainerExited, ContainerRunning};
use k8s_cri::v1::PodSandboxState::{SandboxNotready, SandboxReady};
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn kill_9_and_a_start_change_nothing_for_a_running_pod() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("steady").label("k", "v")).await;
    let counter = container("counter", image::BUSYBOX)
        .shell("i=0; while :; do echo $i; i=$((i+1)); usleep 2000; done");
    let container = pod.start(&counter).await;
    container.wait_for_log("20");
    let pid = node.pid_of(&container).await;
    let (status, sandbox, address) =
        (container.status().await, pod.status().await, pod.address().await);

    node.kill9();
    let at_death = container.log_lines().len();
    wait::until("the log grows without a daemon", e2e::pod::SOON, || {
        (container.log_lines().len() > at_death + 20).then_some(())
    });
    node.spawn().await;

    assert_eq!(node.pid_of(&container).await, pid);
    assert_eq!(container.status().await, status);
    assert_eq!(pod.status().await, sandbox);
    assert_eq!(pod.address().await, address);
    assert_eq!(container.shell("echo still here").await, "still here");
    container.stop(0).await;
    let numbers: Vec<usize> =
        container.log_lines().iter().map(|it| it.text.parse().unwrap()).collect();
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "no line lost, none twice");

    assert_eq!(pod.start(&counter.attempt(1)).await.state().await, ContainerRunning);
    pod.stop().await;
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn sigterm_leaves_containers_running() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("steady")).await;
    let container = pod.start(&sleeper("main")).await;
    let pid = node.pid_of(&container).await;
    assert!(node.stop().success());
    assert!(fs::exists(format!("/proc/{pid}")).unwrap());
    node.spawn().await;
    assert_eq!((node.pid_of(&container).await, container.state().await), (pid, ContainerRunning));
    assert_eq!(pod.status().await.state(), SandboxReady);
    node.finish().await;
}

#[tokio::test]
async fn an_exit_while_no_daemon_ran_is_known_afterwards() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("exits")).await;
    let go = node.scratch().join("go");
    let script =
        format!("while ! test -e {}; do sleep 0.05; done; echo bye; exit 42", "/scratch/go");
    let spec = container("main", image::BUSYBOX).shell(&script).mount(
        &node.scratch().display().to_string(),
        "/scratch",
        true,
    );
    let container = pod.start(&spec).await;
    let pid = node.pid_of(&container).await;
    node.kill9();
    fs::write(go, "").unwrap();
    wait::until("the process is gone", e2e::pod::SOON, || {
        (!fs::exists(format!("/proc/{pid}")).unwrap()).then_some(())
    });
    node.spawn().await;
    let status = container.exited().await;
    assert_eq!((status.exit_code, &*status.reason), (42, "Error"));
    assert!(status.finished_at > status.started_at && status.started_at > 0);
    container.wait_for_log("bye");
    node.finish().await;
}

#[tokio::test]
async fn names_and_states_are_the_same_after_a_restart() {
    let mut node = Node::with_busybox().await;
    let spec = pod("kept");
    let pod = node.run_pod(spec.clone()).await;
    let (created, exited) =
        (sleeper("created"), container("exited", image::BUSYBOX).shell("exit 5"));
    let created_before = pod.create(&created).await;
    let exited_before = pod.start(&exited).await;
    let exit = exited_before.exited().await;
    node.kill9();
    node.spawn().await;
    assert_eq!(node.run_pod(spec).await.id, pod.id, "the same request is the same sandbox");
    assert_eq!(pod.create(&created).await.id, created_before.id);
    assert_eq!(exited_before.status().await, exit);
    created_before.start().await;
    assert_eq!(created_before.state().await, ContainerRunning);
    node.finish().await;
}

#[tokio::test]
async fn images_are_the_same_after_a_restart() {
    let mut node = Node::with_busybox().await;
    let list = async |node: &Node| {
        let request = cri::ListImagesRequest { filter: None };
        node.cri.images.clone().list_images(request).await.unwrap().into_inner().images
    };
    let before = list(&node).await;
    node.kill9();
    node.spawn().await;
    assert_eq!(list(&node).await, before);
    node.finish().await;
}

#[tokio::test]
async fn a_daemon_killed_anywhere_in_run_or_remove_leaves_nothing_behind() {
    let mut node = Node::with_busybox().await;
    for round in 0..12 {
        let whole = {
            let node = &node;
            async move {
                let pod = node.try_run_pod(pod(&format!("crash-{round}"))).await?;
                let container = pod.try_create(&sleeper("main")).await?;
                container.try_start().await?;
                Ok::<_, tonic::Status>(())
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(2 + 6 * round), whole).await;
        node.kill9();
        node.spawn().await;
        node.remove_pods().await;
    }
    node.finish().await;
}

#[tokio::test]
async fn a_killed_shim_is_replaced_and_the_pod_goes_on() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("shimless")).await;
    let script =
        "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.02; done; echo end; exit 6";
    let main = container("main", image::BUSYBOX).command(&["sh", "-c", script]);
    let container = pod.start(&main).await;
    let done = pod.start(&container_that_ends("done")).await;
    assert_eq!(done.exited().await.exit_code, 3);
    let pid = node.pid_of(&container).await;
    for _ in 0..2 {
        let old = node.shim_of(&pod);
        kill_process(Pid::from_raw(old).unwrap(), Signal::KILL).unwrap();
        wait::until_async("another shim answers", e2e::pod::SOON, async || {
            let answers = container.try_exec(&["true"], 5).await.is_ok();
            (node.shim_of(&pod) != old && answers).then_some(())
        })
        .await;
        assert_eq!(pod.status().await.state(), SandboxReady);
        assert_eq!(container.state().await, ContainerRunning);
        assert_eq!(node.pid_of(&container).await, pid);
        let logged = container.log_lines().len();
        wait::until("it logs on", e2e::pod::SOON, || {
            (container.log_lines().len() > logged).then_some(())
        });
    }
    container.try_exec(&["touch", "/stop"], 5).await.unwrap();
    let exited = container.exited().await;
    let end = (exited.exit_code, &*exited.reason);
    // Before Linux 6.15 who is not a process' parent learns its exit code only when that is slow to reap it.
    let unknown = end == (255, "ShimLost") && host::kernel() < (6, 15);
    assert!(end == (6, "Error") || unknown, "{end:?}");
    assert_eq!(done.exited().await.exit_code, 3);
    let lines = container.log_lines();
    let (last, lines) = lines.split_last().unwrap();
    let numbers: Vec<u32> = lines.iter().map(|line| line.text.parse().unwrap()).collect();
    assert!(last.text == "end" && numbers.is_sorted(), "{numbers:?} {last:?}");
    pod.stop().await;
    pod.remove().await;
    node.finish().await;
}

/// With the daemon dead, too, nobody holds what the shim had: then the pod ends, and says so.
#[tokio::test]
async fn a_shim_killed_together_with_the_daemon_leaves_nothing_unknown() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("bereft")).await;
    let container = pod.start(&sleeper("main")).await;
    let shim = node.shim_of(&pod);
    node.kill9();
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    node.spawn().await;
    wait::until_async("the sandbox is not ready", e2e::pod::SOON, || async {
        (pod.status().await.state() == SandboxNotready).then_some(())
    })
    .await;
    let status = container.exited().await;
    assert_eq!((status.state(), status.exit_code), (ContainerExited, 255));
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_does_not_stop_the_daemon() {
    let mut node = Node::with_busybox().await;
    let spoiled = node.run_pod(pod("spoiled")).await;
    let healthy = node.run_pod(pod("healthy")).await;
    node.kill9();
    let record = node.state_dir().join("pods").join(&spoiled.id).join("record");
    let bytes = fs::read(&record).unwrap();
    fs::write(&record, &bytes[..bytes.len() / 2]).unwrap();
    node.spawn().await;
    assert_eq!(healthy.status().await.state(), SandboxReady);
    assert!(node.log().contains(&spoiled.id), "the log names the record");
    // Put right by hand, it is back: the workload was kept.
    node.kill9();
    let mut find = std::process::Command::new("busybox");
    let kept = find.arg("find").arg(node.state_dir().join("pods")).output().unwrap();
    assert!(
        String::from_utf8_lossy(&kept.stdout).contains(&spoiled.id),
        "nothing of it was removed"
    );
}

#[tokio::test]
async fn a_shim_that_does_not_answer_keeps_its_pod_until_it_is_stopped() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("silent")).await;
    let container = pod.start(&sleeper("main")).await;
    let pid = node.pid_of(&container).await;
    let shim = node.shim_of(&pod);
    kill_process(Pid::from_raw(shim).unwrap(), Signal::STOP).unwrap();
    node.kill9();
    node.spawn().await;
    tokio::time::sleep(Duration::from_secs(2)).await; // longer than the daemon waits for a hello
    assert_eq!(pod.status().await.state(), SandboxReady);
    assert_eq!(container.state().await, ContainerRunning);
    assert!(fs::exists(format!("/proc/{pid}")).unwrap(), "an overloaded node kills nothing");
    let refusal = container.try_exec(&["true"], 5).await.unwrap_err();
    assert!(refusal.message().contains("does not answer"), "{refusal}");

    kill_process(Pid::from_raw(shim).unwrap(), Signal::CONT).unwrap();
    wait::until_async("the shim is found again", e2e::pod::SOON, async || {
        container.try_exec(&["true"], 5).await.ok()
    })
    .await;

    kill_process(Pid::from_raw(shim).unwrap(), Signal::STOP).unwrap();
    node.kill9();
    node.spawn().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    pod.stop().await;
    assert_eq!(pod.status().await.state(), SandboxNotready);
    assert!(!fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false), "the workload is gone");
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn records_that_were_lost_or_damaged_come_back_from_the_shim() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("damaged")).await;
    let container = pod.start(&sleeper("main")).await;
    let ended = pod.start(&container_that_ends("ended")).await;
    let exit = ended.exited().await;
    let other = node.run_pod(e2e::pod("whole")).await;
    let bare = other.start(&sleeper("bare")).await;
    let pids = [node.pid_of(&container).await, node.pid_of(&bare).await];
    let dir = node.state_dir().join("pods").join(&pod.id);
    let record = |pod: &str, container: &str| {
        node.state_dir().join("pods").join(pod).join("containers").join(container).join("record")
    };
    let before = (pod.status().await, container.status().await);
    let records = [record(&pod.id, &ended.id), record(&other.id, &bare.id)];
    node.kill9();
    fs::write(dir.join("record"), "rubbish").unwrap();
    records.iter().for_each(|record| fs::remove_file(record).unwrap());
    node.spawn().await;
    // At once: nobody may take the pod for gone.
    assert_eq!((pod.status().await, container.status().await), before);
    assert_eq!(other.status().await.state(), SandboxReady);
    assert_eq!([node.pid_of(&container).await, node.pid_of(&bare).await], pids);
    assert_eq!(container.shell("echo inside").await, "inside");
    assert_eq!(bare.shell("echo inside").await, "inside");
    assert_eq!(ended.exited().await.exit_code, exit.exit_code);
    assert!(!dir.join("record.quarantined").exists());

    bare.stop(0).await;
    bare.remove().await;
    pod.stop().await;
    assert_eq!(pod.status().await.state(), SandboxNotready);
    assert!(!fs::exists(format!("/proc/{}/exe", pids[0])).unwrap_or(false), "the workload is gone");
    pod.remove().await;
    assert!(!dir.exists());
    other.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn a_damaged_record_that_no_shim_has_costs_nobody_else_and_its_pod_can_be_removed() {
    let mut node = Node::with_busybox().await;
    let pod = node.run_pod(pod("damaged")).await;
    let container = pod.start(&sleeper("main")).await;
    let pid = node.pid_of(&container).await;
    let other = node.run_pod(e2e::pod("whole")).await;
    let dir = node.state_dir().join("pods").join(&pod.id);
    let shim = node.shim_of(&pod);
    node.kill9();
    kill_process(Pid::from_raw(shim).unwrap(), Signal::KILL).unwrap();
    fs::write(dir.join("record"), "rubbish").unwrap();
    node.spawn().await;
    assert_eq!(other.status().await.state(), SandboxReady);
    assert!(fs::exists(format!("/proc/{pid}/exe")).unwrap(), "the workload runs on");
    assert!(dir.join("record.quarantined").exists());
    pod.stop().await;
    assert!(!fs::exists(format!("/proc/{pid}/exe")).unwrap_or(false), "the workload is gone");
    pod.remove().await;
    assert!(!dir.exists());
    other.remove().await;
    node.finish().await;
}

fn container_that_ends(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sh", "-c", "exit 3"])
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
