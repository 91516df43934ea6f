//! The same life of a container, made by an external OCI runtime: Debian's runc.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use runtime::{Attach, CreateContainer, ErrorKind, Event, Exec, Rootfs};

use crate::node::{Node, Payload};
use crate::sessions::{exec, read_until};

const RUNC: &str = "/usr/sbin/runc";

/// `None`, said loudly, when this machine cannot run the test and is not required to.
async fn node(name: &str) -> Option<Node> {
    if !Path::new(RUNC).exists() {
        let why = format!("SKIPPED {name}: needs {RUNC} (package runc)");
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("{why}");
        return None;
    }
    Node::start(name).await
}

fn by_runc(script: &str) -> Payload {
    Payload { handler: Some(RUNC.into()), ..Payload::sh(script) }
}

/// What the external runtime keeps about containers of this pod.
fn kept(node: &Node) -> usize {
    std::fs::read_dir(node.pod_dir().join("handler")).map_or(0, |entries| entries.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_of_an_external_runtime_runs_logs_and_leaves_nothing() {
    let Some(node) = node("runc-runs").await else { return };
    let mut events = node.shim.events();
    let script = "hostname; echo err >&2; touch /mine; df -k /dev/shm | tail -1; exit 7";
    let mut payload = by_runc(script);
    let shm = node.pod_dir().join("shm");
    payload.mounts.push(format!(
        r#"{{"destination":"/dev/shm","source":"{}","type":"bind","options":["rbind","rw"]}}"#,
        shm.display()
    ));
    let c = node.create("c1", payload).await.expect("create");
    assert_eq!((c.log(), kept(&node)), (String::new(), 1), "it waits for start");
    c.start().await.expect("start");
    let exit = c.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (7, false), "{}", c.log());
    let log = c.log();
    assert!(log.contains(" stdout F the-pod\n") && log.contains(" stderr F err\n"), "{log}");
    assert!(c.text().contains(" 1024 "), "the pod's shared memory of 1 MiB: {log}");
    assert!(node.scratch("c1/upper").join("mine").exists(), "the root is the overlay");
    assert!(matches!(events.recv().await, Ok(Event::Exited { id, .. }) if id == c.id));
    node.shim.delete_container(&c.id).await.expect("delete");
    assert_eq!(kept(&node), 0);
    assert!(!node.hierarchies().exists(&node.group("c1")));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_is_execd_by_the_external_runtime_and_killed_with_its_tree_when_late() {
    let Some(node) = node("runc-exec").await else { return };
    let c = node.create("c1", by_runc("echo up; exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let output = c.exec("echo out; echo err >&2; exit 3", None).await.expect("exec");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        (output.exit_code, text(&output.stdout), text(&output.stderr)),
        (3, "out\n".to_owned(), "err\n".to_owned())
    );
    let late = c.exec("sleep 777 & sleep 777", Some(Duration::from_secs(2))).await;
    assert_eq!(late.expect_err("late").kind, ErrorKind::Timeout);
    let seen = c.exec("sleep 0.2; ps", None).await.expect("ps");
    assert!(!text(&seen.stdout).contains("777"), "{}", text(&seen.stdout));
    node.shim.update_container(&c.id, br#"{"pids":{"limit":50}}"#).await.expect("update");
    node.shim.kill(&c.id).await.expect("kill");
    assert_eq!(c.exit().await.code, 137);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_and_memory_limits_are_the_same_under_an_external_runtime() {
    let Some(node) = node("runc-oom").await else { return };
    let term = by_runc("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done");
    let term = node.create("c1", term).await.expect("create");
    term.start().await.expect("start");
    while !term.log().contains("up") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.shim.signal(&term.id, 15).await.expect("signal");
    assert_eq!(term.exit().await.code, 3);
    let mut payload = by_runc("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    payload.resources = r#"{"memory":{"limit":16777216,"swap":16777216}}"#.to_owned();
    let c = node.create("c2", payload).await.expect("create");
    c.start().await.expect("start");
    let exit = c.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_of_the_external_runtime_is_told_in_its_words_and_leaves_nothing() {
    let Some(node) = node("runc-fails").await else { return };
    let missing = Payload { args: vec!["no-such-command".into()], ..by_runc("") };
    let error = node.create("c1", missing).await.expect_err("no such command");
    assert!(error.to_string().contains("no-such-command"), "{error}");
    let gone = Payload { handler: Some("/no/such/runtime".into()), ..by_runc("") };
    let error = node.create("c2", gone).await.expect_err("no such runtime");
    assert!(error.to_string().contains("/no/such/runtime: No such file"), "{error}");
    assert_eq!(node.shim.inventory().await.expect("inventory").containers, []);
    for short in ["c1", "c2"] {
        assert!(!node.hierarchies().exists(&node.group(short)), "{short}");
    }
    assert_eq!(kept(&node), 0);
    // Never started: deleted by its kill.
    let created = node.create("c3", by_runc("echo never")).await.expect("create");
    node.shim.delete_container(&created.id).await.expect("delete");
    assert_eq!((created.log(), kept(&node)), (String::new(), 0));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn short_lives_under_an_external_runtime_are_not_lost_and_a_shutdown_ends_a_long_one() {
    let Some(node) = node("runc-short").await else { return };
    let long = node.create("long", by_runc("exec sleep 1000")).await.expect("create");
    long.start().await.expect("start");
    for code in 0..12 {
        let c = node.create("short", by_runc(&format!("exit {code}"))).await.expect("create");
        c.start().await.expect("start");
        assert_eq!(c.exit().await.code, code);
        node.shim.delete_container(&c.id).await.expect("delete");
    }
    assert_eq!(kept(&node), 1);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_external_runtime_cannot_be_given_is_refused_by_name() {
    let Some(node) = node("runc-refuses").await else { return };
    let layers = Rootfs { lowers: vec!["/".into()], ..Default::default() };
    let base = || CreateContainer {
        id: "c".into(),
        handler: Some(RUNC.into()),
        rootfs: layers.clone(),
        ..Default::default()
    };
    let filter = CreateContainer { seccomp_bpf: Some("/filter".into()), ..base() };
    let init = CreateContainer { init: true, ..base() };
    for (request, want) in [(filter, "a compiled seccomp program"), (init, "an init of ours")] {
        let error = node.shim.create_container(request).await.expect_err(want);
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.message.starts_with(want) && error.message.contains(RUNC), "{error}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn terminals_and_streams_are_the_same_under_an_external_runtime() {
    let Some(node) = node("runc-tty").await else { return };
    let mut payload = by_runc("read x; echo got $x; stty size; exec sleep 1000");
    (payload.tty, payload.stdin) = (true, true);
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    node.shim.resize(&c.id, 11, 22).await.expect("resize");
    let ask =
        Attach { id: c.id.clone(), stdin: true, stdout: true, stderr: false, ..Default::default() };
    let streams = node.shim.attach(ask).await.expect("attach");
    let mut out = File::from(streams.stdout.expect("stdout"));
    File::from(streams.terminal.expect("terminal")).write_all(b"word\n").expect("write");
    let text = read_until(&mut out, "11 22").await;
    assert!(text.contains("got word"), "{text:?}");

    for tty in [false, true] {
        let ask = Exec { tty, ..exec(&c, "test -t 0 && echo terminal; read x; echo $x; exit 3") };
        let mut session = node.shim.exec(ask).await.expect("exec");
        let streams = std::mem::take(&mut session.streams);
        assert_eq!(streams.terminal.is_some(), tty);
        let (mut input, mut output) = match streams.terminal {
            Some(master) => (File::from(master.try_clone().expect("dup")), File::from(master)),
            None => (
                File::from(streams.stdin.expect("stdin")),
                File::from(streams.stdout.expect("stdout")),
            ),
        };
        // What is typed earlier is echoed before what the command says.
        let mut text = String::new();
        if tty {
            text += &read_until(&mut output, "terminal\r\n").await;
        }
        input.write_all(b"hello\n").expect("write");
        text += &read_until(&mut output, if tty { "hello\r\nhello" } else { "hello\n" }).await;
        assert_eq!(text.contains("terminal"), tty, "{text:?}");
        assert_eq!(session.wait().await.expect("code"), 3);
    }
    node.end().await;
}
