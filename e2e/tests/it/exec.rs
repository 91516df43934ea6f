//! ExecSync: what probes and lifecycle hooks run inside a container.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use e2e::pod::SOON;
use e2e::wait::scaled;
use e2e::{Container, Node, container, image, pod, wait};
use k8s_cri::v1 as cri;
use prost::Message;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn output_and_exit_code_come_back_apart() {
    let (node, container) = sleeping().await;
    let done =
        container.try_exec(&["sh", "-c", "echo out; echo err >&2; exit 9"], 10).await.unwrap();
    assert_eq!((&*done.stdout, &*done.stderr, done.exit_code), (&b"out\n"[..], &b"err\n"[..], 9));
    node.finish().await;
}

#[tokio::test]
async fn an_exec_runs_as_the_container_does() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let spec = container("main", image::BUSYBOX)
        .shell("sleep 1000")
        .env("KEY", "value")
        .working_dir("/tmp")
        .user(1000, None);
    let container = pod.start(&spec).await;
    assert_eq!(
        container.shell("echo $(id -u) $(id -g) $(pwd) $KEY; id -G").await,
        "1000 1000 /tmp value\n1000 1234"
    );
    for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        let [own, first] = ["self", "1"].map(|it| format!("readlink /proc/{it}/ns/{kind}"));
        assert_eq!(container.shell(&own).await, container.shell(&first).await, "{kind}");
    }
    assert_eq!(
        container.shell("grep -E 'Cap|Seccomp:' /proc/self/status").await,
        container.shell("grep -E 'Cap|Seccomp:' /proc/1/status").await
    );
    let own = container.shell("cat /proc/self/cgroup").await;
    let first = container.shell("cat /proc/1/cgroup").await;
    for (own, first) in own.lines().zip(first.lines()) {
        assert!(own.starts_with(first), "{own} is not below {first}");
    }
    node.finish().await;
}

#[tokio::test]
async fn a_timeout_kills_the_command_and_all_it_started() {
    let (node, container) = sleeping().await;
    let asked = Instant::now();
    let answer =
        container.try_exec(&["sh", "-c", "sleep 7001 & setsid sleep 7002 & sleep 7003"], 1).await;
    refused(answer, Code::DeadlineExceeded, &["1 s"]);
    assert!(asked.elapsed() < scaled(Duration::from_secs(10)), "{:?}", asked.elapsed());
    // A kill is sent before the answer; the kernel carries it out in its own time.
    wait::until_async("all of them are gone", SOON, async || {
        let left = container.shell("ps -o args | grep -c '[s]leep 700' || true").await;
        (left == "0").then_some(())
    })
    .await;
    assert_eq!(container.state().await, cri::ContainerState::ContainerRunning);
    node.finish().await;
}

/// With curl, because a client library gives up at its deadline by itself and hides what was answered.
#[tokio::test]
async fn a_callers_own_deadline_is_answered_as_one() {
    let (node, container) = sleeping().await;
    let request = cri::ExecSyncRequest {
        container_id: container.id.clone(),
        cmd: vec!["sleep".to_owned(), "7004".to_owned()],
        timeout: 5,
    };
    let mut frame = vec![0];
    frame.extend(u32::try_from(request.encoded_len()).unwrap().to_be_bytes());
    request.encode(&mut frame).unwrap();
    let body = node.scratch().join("request");
    fs::write(&body, frame).unwrap();
    let answer = Command::new("curl")
        .args(["--silent", "--show-error", "--http2-prior-knowledge", "--include"])
        .args(["--max-time", "60", "--unix-socket", node.endpoint().trim_start_matches("unix://")])
        .args(["--header", "content-type: application/grpc", "--header", "te: trailers"])
        .args(["--header", "grpc-timeout: 300m", "--data-binary", &format!("@{}", body.display())])
        .arg("http://node/runtime.v1.RuntimeService/ExecSync")
        .output()
        .unwrap();
    let answer = format!(
        "{}{}",
        String::from_utf8_lossy(&answer.stdout),
        String::from_utf8_lossy(&answer.stderr)
    );
    let status = format!("grpc-status: {}", Code::DeadlineExceeded as i32);
    assert!(answer.lines().any(|line| line == status), "{answer}");
    assert!(answer.contains("grpc-message: ExecSync:"), "{answer}");
    node.finish().await;
}

#[tokio::test]
async fn output_is_capped_without_an_error() {
    let (node, container) = sleeping().await;
    let done = container.try_exec(&["head", "-c", "20000000", "/dev/zero"], 50).await.unwrap();
    // The kubelet reads messages up to 16 MiB, so all of it must fit in one.
    assert!((15 << 20..=16 << 20).contains(&done.stdout.len()), "{} bytes", done.stdout.len());
    assert_eq!(done.exit_code, 0);
    node.finish().await;
}

#[tokio::test]
async fn a_background_child_that_keeps_the_pipe_does_not_hold_the_answer_for_ever() {
    let (node, container) = sleeping().await;
    let asked = Instant::now();
    let done = container.try_exec(&["sh", "-c", "sleep 1000 & echo done"], 0).await.unwrap();
    assert_eq!((&*done.stdout, done.exit_code), (&b"done\n"[..], 0));
    assert!(asked.elapsed() < scaled(Duration::from_secs(20)), "{:?}", asked.elapsed());
    node.finish().await;
}

#[tokio::test]
async fn many_execs_at_once_do_not_mix() {
    let (node, container) = sleeping().await;
    let container = &container;
    let answers =
        (0..20).map(|it| async move { (it, container.shell(&format!("echo {it}")).await) });
    for (number, answer) in futures::future::join_all(answers).await {
        assert_eq!(answer, number.to_string());
    }
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named() {
    let (node, container) = sleeping().await;
    match container.try_exec(&["/no/such/command"], 10).await {
        Err(status) => assert!(status.message().contains("/no/such/command"), "{status}"),
        Ok(done) => {
            assert!(matches!(done.exit_code, 126 | 127), "{done:?}");
            let text = String::from_utf8_lossy(&done.stderr);
            assert!(text.contains("/no/such/command"), "{text}");
        }
    }
    node.finish().await;
}

#[tokio::test]
async fn only_a_running_container_can_be_execed_into() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.create(&container("main", image::BUSYBOX).shell("exit 0")).await;
    refused(container.try_exec(&["true"], 10).await, Code::FailedPrecondition, &[&container.id]);
    container.start().await;
    container.exited().await;
    refused(container.try_exec(&["true"], 10).await, Code::FailedPrecondition, &[&container.id]);
    container.remove().await;
    refused(container.try_exec(&["true"], 10).await, Code::NotFound, &[&container.id]);
    node.finish().await;
}

#[tokio::test]
async fn an_empty_command_is_refused() {
    let (node, container) = sleeping().await;
    refused(container.try_exec(&[], 10).await, Code::InvalidArgument, &["cmd"]);
    node.finish().await;
}

#[tokio::test]
async fn an_exec_ends_with_its_container() {
    let (node, container) = sleeping().await;
    let running = tokio::spawn({
        let container = container.clone();
        async move { container.try_exec(&["sleep", "1000"], 0).await }
    });
    e2e::wait::until_async("the exec runs", e2e::pod::SOON, || async {
        container.shell("ps -o args").await.matches("sleep 1000").nth(1).map(drop)
    })
    .await;
    container.stop(0).await;
    let answer = tokio::time::timeout(scaled(Duration::from_secs(20)), running).await;
    if let Ok(done) = answer.expect("the exec answers").unwrap() {
        assert_eq!(done.exit_code, 137);
    }
    node.finish().await;
}

async fn sleeping() -> (Node, Container) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", image::BUSYBOX).command(&["sleep", "1000"])).await;
    (node, container)
}
