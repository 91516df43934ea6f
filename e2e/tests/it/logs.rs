//! Log files, as the kubelet and `kubectl logs` read them.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::pod::parse_log;
use e2e::{Node, Pod, container, image, pod};
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn a_line_has_time_stream_and_tag() {
    let (node, pod) = busybox_pod().await;
    let container =
        pod.start(&container("main", image::BUSYBOX).shell("echo out; echo; echo err >&2")).await;
    container.exited().await;
    let mut lines = container.log_lines();
    for line in &lines {
        // 2006-01-02T15:04:05.000000000Z or an offset; kubelet wants nanoseconds.
        let (date, time) = line.time.split_once('T').expect("RFC 3339");
        assert_eq!((date.len(), &time[8..9]), (10, "."), "{line:?}");
        assert!(time[9..18].bytes().all(|it| it.is_ascii_digit()), "{line:?}");
    }
    lines.sort_by(|a, b| a.stream.cmp(&b.stream));
    let shown: Vec<_> = lines.iter().map(|it| (&*it.stream, &*it.tag, &*it.text)).collect();
    assert_eq!(shown, [("stderr", "F", "err"), ("stdout", "F", "out"), ("stdout", "F", "")]);
    assert_eq!(fs::metadata(&container.log).unwrap().permissions().mode() & 0o777, 0o640);
    node.finish().await;
}

#[tokio::test]
async fn long_lines_are_split_and_bytes_are_kept() {
    let (node, pod) = busybox_pod().await;
    let script = "head -c 40000 /dev/zero | tr '\\0' x; echo end; printf 'cr\\r\\n\\377\\376\\n'; printf open";
    let container = pod.start(&container("main", image::BUSYBOX).shell(script)).await;
    container.exited().await;
    let lines = container.log_lines();
    let mut joined = vec![String::new()];
    for line in &lines {
        assert!(line.text.len() <= 16 << 10, "{} bytes in one line", line.text.len());
        joined.last_mut().unwrap().push_str(&line.text);
        if line.tag == "F" {
            joined.push(String::new());
        }
    }
    assert_eq!(joined[0], format!("{}end", "x".repeat(40000)));
    assert_eq!(joined[1], "cr\r");
    assert!(joined.iter().any(|it| it == "open"), "the unfinished last line: {joined:?}");
    let raw = fs::read(&container.log).unwrap();
    assert!(raw.windows(3).any(|it| it == [0xff, 0xfe, b'\n']), "bytes that are not UTF-8");
    node.finish().await;
}

#[tokio::test]
async fn rotation_under_load_loses_nothing() {
    let (node, pod) = busybox_pod().await;
    let spec = container("main", image::BUSYBOX).shell(
        "i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); \
            [ $((i % 500)) -ne 0 ] || usleep 20000; done",
    );
    let container = pod.start(&spec).await;
    let mut parts = Vec::new();
    for number in 0..5 {
        let part = container.log.with_extension(format!("log.{number}"));
        container.wait_for_log("");
        fs::rename(&container.log, &part).unwrap();
        if container.reopen_log().await.is_err() {
            fs::rename(&part, &container.log).unwrap(); // it had ended; as the kubelet does
            break;
        }
        parts.push(part);
    }
    container.exited().await;
    let mut bytes = Vec::new();
    for part in parts.iter().chain([&container.log]) {
        bytes.extend(fs::read(part).unwrap_or_default());
    }
    let numbers: Vec<usize> = parse_log(&bytes).iter().map(|it| it.text.parse().unwrap()).collect();
    assert_eq!(numbers, (0..30000).collect::<Vec<_>>());
    assert!(!parts.is_empty(), "rotated at least once");
    node.finish().await;
}

#[tokio::test]
async fn reopening_the_log_of_what_does_not_run_fails_and_makes_no_file() {
    let (node, pod) = busybox_pod().await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("echo once")).await;
    container.exited().await;
    fs::remove_file(&container.log).unwrap();
    refused(container.reopen_log().await, Code::FailedPrecondition, &[&container.id]);
    assert!(!container.log.exists());
    node.finish().await;
}

#[tokio::test]
async fn a_pod_without_a_log_directory_has_no_log_and_does_not_block() {
    let node = Node::with_busybox().await;
    let pod = e2e::Pod::run(&node.cri, pod("silent")).await.unwrap();
    let mut spec = container("main", image::BUSYBOX).shell("head -c 1000000 /dev/zero; exit 4");
    spec.config.log_path.clear();
    let container = pod.start(&spec).await;
    assert_eq!(container.exited().await.exit_code, 4);
    assert_eq!(container.status().await.log_path, "");
    node.finish().await;
}

async fn busybox_pod() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

#[tokio::test]
async fn a_pod_that_floods_its_log_keeps_to_the_size_that_its_annotation_gives() {
    let node = Node::with_busybox().await;
    let limited = pod("flood").annotation("lapstrake.io/log-size", "100000");
    let limited = node.run_pod(limited).await;
    let flood = container("main", image::BUSYBOX).shell("seq 1 1000000; exit 2");
    let flood = limited.start(&flood).await;
    assert_eq!(flood.exited().await.exit_code, 2);
    let size = fs::metadata(&flood.log).unwrap().len();
    assert!((100_000..2_000_000).contains(&size), "{size}");
    let wrong = pod("wrong").annotation("lapstrake.io/log-policy", "perhaps");
    let wrong = node.run_pod(wrong).await;
    let refusal = wrong.try_create(&container("main", image::BUSYBOX)).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
    assert!(refusal.message().contains("lapstrake.io/log-policy"), "{refusal}");
    node.finish().await;
}
