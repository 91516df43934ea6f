//! Exec, attach and port-forward as a client of the streaming server sees them.

use std::collections::BTreeMap;
use std::time::Duration;

use e2e::pod::SOON;
use e2e::spdy::{Asked, Command, Got, Spdy};
use e2e::{Container, Node, Options, container, flood, image, pod, tls, wait};
use tokio::net::{TcpListener, UnixStream};
use tonic::Code;

use crate::metrics::left_to_the_host;
use crate::refused::refused;

const ALL: Asked = Asked { stdin: true, stdout: true, stderr: true, tty: false };
const OUT: Asked = Asked { stdin: false, stdout: true, stderr: false, tty: false };
const TTY: Asked = Asked { stdin: true, stdout: true, stderr: false, tty: true };

/// Waits until its terminal has that size, says so, and repeats what it gets.
fn on_size(size: &str) -> String {
    format!("until [ \"$(stty size)\" = '{size}' ]; do sleep 0.05; done; stty size; exec cat")
}

/// For the long runs that CI has no time for.
fn from_environment(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |it| it.parse().expect("a whole number"))
}

async fn sleeping() -> (Node, Container) {
    sleeping_on(Options::default()).await
}

/// A node with such options and a container that does nothing.
pub(crate) async fn sleeping_on(options: Options) -> (Node, Container) {
    let node = Node::start_with(options).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    (node, container)
}

#[tokio::test]
async fn a_command_has_its_streams_its_exit_code_and_its_containers_confinement() {
    let (node, container) = sleeping().await;
    let mut command = container.stream("cat; echo err >&2; exit 7", ALL).await;
    command.send("binary \u{1} and more").await;
    command.finish_input().await;
    let end = command.end().await;
    assert_eq!((&*end.stdout, &*end.stderr, end.code()), ("binary \u{1} and more", "err\n", 7));
    let status =
        "grep -E '^(Cap|Seccomp|NoNewPrivs|Groups)' /proc/self/status; cat /proc/self/cgroup";
    let end = container.stream(status, OUT).await.end().await;
    let own = container.shell("grep -E '^(Cap|Seccomp|NoNewPrivs|Groups)' /proc/1/status").await;
    assert!(end.stdout.starts_with(&own), "{} is not {own}", end.stdout);
    // A namespace of its own hides the name of its container's group, but not that it is below it.
    let first = container.shell("cat /proc/1/cgroup").await;
    let inside = first.lines().all(|group| end.stdout.lines().any(|own| own.starts_with(group)));
    assert!(inside, "in {first}: {}", end.stdout);
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_has_a_size_that_follows_its_client_and_ends_with_its_input() {
    let (node, container) = sleeping().await;
    let script = &format!("echo $TERM; tty; {}", on_size("45 123"));
    let mut command = container.stream(script, TTY).await;
    command.until("/dev/pts/").await;
    command.resize(123, 45).await;
    command.until("45 123\r\n").await; // whole: what is typed sooner is echoed in between
    command.send("word\n").await;
    let seen = command.until("word\r\nword\r\n").await; // the terminal's echo, then cat's
    assert!(seen.starts_with("xterm\r\n"), "{seen:?}");
    command.finish_input().await;
    assert_eq!(command.end().await.code(), 0);
    node.finish().await;
}

#[tokio::test]
async fn a_command_that_cannot_run_says_why() {
    let (node, container) = sleeping().await;
    let url = container.try_exec_url(&["/no/such/program"], OUT).await.unwrap();
    let end = Command::dial(&url, OUT).await.end().await;
    assert_eq!(end.status["reason"], "InternalError", "{end:?}");
    let message = end.status["message"].as_str().unwrap();
    assert!(message.contains("/no/such/program"), "{message}");
    node.finish().await;
}

#[tokio::test]
async fn what_cannot_be_streamed_is_refused_at_once() {
    let (node, container) = sleeping().await;
    let none = Asked::default();
    refused(container.try_exec_url(&["true"], none).await, Code::InvalidArgument, &["stdout"]);
    let both = Asked { tty: true, ..ALL };
    refused(container.try_exec_url(&["true"], both).await, Code::InvalidArgument, &["stderr"]);
    refused(container.try_exec_url(&[], OUT).await, Code::InvalidArgument, &["cmd"]);
    container.stop(0).await;
    for answer in
        [container.try_exec_url(&["true"], OUT).await, container.try_attach_url(OUT).await]
    {
        refused(answer, Code::FailedPrecondition, &[&container.id]);
    }
    node.finish().await;
}

#[tokio::test]
async fn a_url_works_once() {
    let (node, container) = sleeping().await;
    let url = container.try_exec_url(&["true"], OUT).await.unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    assert!(url.rsplit('/').next().unwrap().len() * 6 >= 128, "{url}");
    assert_eq!(Command::dial(&url, OUT).await.end().await.code(), 0);
    let again = Spdy::dial(&url, "v4.channel.k8s.io").await.unwrap_err();
    assert!(again.starts_with("HTTP/1.1 404 "), "{again}");
    node.finish().await;
}

#[tokio::test]
async fn dropped_sessions_end_their_commands_and_leave_nothing() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let container = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let round = async |number: usize| match number % 4 {
        0 | 1 => {
            let asked = if number.is_multiple_of(2) { ALL } else { TTY };
            let mut command = container.stream("trap '' HUP; echo up; sleep 7001", asked).await;
            command.until("up").await;
        }
        2 => drop(container.attach(OUT).await),
        _ => {
            let url = pod.try_forward_url(&[]).await.unwrap();
            let mut session = Spdy::dial(&url, "portforward.k8s.io").await.unwrap();
            ask(&mut session, 81, number, "nobody listens\n").await;
        }
    };
    // One that stays, and with it the process that serves all.
    let mut kept = container.stream("cat", ALL).await;
    for number in 0..8 {
        round(number).await;
    }
    let descriptors = || {
        let of = |pid: i32| std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let processes = node.streaming_processes();
        assert_eq!(processes.len(), 1);
        (of(processes[0]), of(node.shim_of(&pod)))
    };
    let alone = || {
        let one = node.metric("lapstrake_streaming_sessions").as_deref() == Some("1");
        one.then(descriptors)
    };
    let ended = "while ps -o args | grep -q '[s]leep 7001'; do sleep 0.1; done; echo none";
    assert_eq!(container.shell(ended).await, "none");
    let before = wait::until("one session", SOON, alone);
    for number in 0..from_environment("E2E_SESSIONS", 40) {
        round(number).await;
    }
    assert_eq!(container.shell(ended).await, "none");
    wait::until("descriptors as before", SOON, || (alone()? <= before).then_some(()));
    kept.send("still here").await;
    kept.until("still here").await;
    drop(kept);
    node.finish().await;
}

#[tokio::test]
async fn clients_attach_late_and_together_and_a_slow_one_stalls_nobody() {
    const BLOCK: usize = 64 * 1024;
    /// More than the sockets of a client that does not read take in.
    const BLOCKS: usize = 256;
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let script = "while read word; do
        if [ $word = block ]; then head -c 65536 /dev/zero; else echo out $word; fi
        echo err $word >&2
        done; echo over";
    let mut spec = container("main", image::BUSYBOX).shell(script);
    spec.config.log_path.clear();
    (spec.config.stdin, spec.config.stdin_once) = (true, true);
    let container = pod.start(&spec).await;
    let mut writer = container.attach(ALL).await;
    writer.send("one\n").await;
    writer.until("out one\n").await;
    let watching = Asked { stdout: true, stderr: true, ..Asked::default() };
    let mut late = container.attach(watching).await;
    let mut slow = container.attach(watching).await;
    // An open stream does not mean that output is copied to it already: the first word that comes does.
    for client in [&mut late, &mut slow] {
        loop {
            writer.send("word\n").await;
            let came = client.until("out word");
            if tokio::time::timeout(Duration::from_millis(300), came).await.is_ok() {
                break;
            }
        }
    }
    let length = |it: &BTreeMap<u32, Got>, id| it.get(&id).map_or(0, |got: &Got| got.bytes.len());
    for block in 1..=BLOCKS {
        writer.send("block\n").await;
        for client in [&mut writer, &mut late] {
            let id = client.stdout;
            client.spdy.reader.until(|it| length(it, id) >= block * BLOCK).await;
        }
    }
    // The only client with input ends it: stdin_once.
    writer.finish_input().await;
    let end = writer.end().await;
    assert!(end.stdout.starts_with("out one\n") && end.stdout.ends_with("over\n"));
    assert!(end.stderr.ends_with("err block\n"));
    assert_eq!(end.status["status"], "Success");
    let end = late.end().await;
    assert!(!end.stdout.contains("out one\n"), "from the attach on only");
    assert!(end.stdout.ends_with("over\n"));
    assert_eq!(container.exited().await.exit_code, 0);
    let cut = slow.end().await.stdout.len();
    assert!(cut < BLOCK * BLOCKS, "a client that does not read is cut off, {cut} bytes behind");
    node.finish().await;
}

#[tokio::test]
async fn a_container_with_a_terminal_is_attached_to() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let mut spec = container("main", image::BUSYBOX).shell(&on_size("33 99"));
    (spec.config.stdin, spec.config.tty) = (true, true);
    let container = pod.start(&spec).await;
    let mut client = container.attach(TTY).await;
    client.resize(99, 33).await;
    client.until("33 99\r\n").await;
    client.send("a\n").await;
    client.until("a\r\na\r\n").await;
    drop(client);
    let mut client = container.attach(TTY).await;
    client.send("b\n").await;
    client.until("b\r\nb\r\n").await;
    drop(client);
    node.finish().await;
}

/// One connection over a session, which says one thing; its error and data stream.
async fn ask(session: &mut Spdy, port: u16, request: usize, text: &str) -> [u32; 2] {
    let ids = open(session, port, request).await;
    session.writer.send(ids[1], text.as_bytes()).await;
    session.writer.finish(ids[1]).await;
    ids
}

/// One connection over a session; its error and data stream.
async fn open(session: &mut Spdy, port: u16, request: usize) -> [u32; 2] {
    let (port, request) = (port.to_string(), request.to_string());
    let mut ids = [0; 2];
    for (id, kind) in ids.iter_mut().zip(["error", "data"]) {
        let headers = [("streamtype", kind), ("port", &*port), ("requestid", &*request)];
        *id = session.writer.open(&headers).await;
    }
    ids
}

#[tokio::test]
async fn ports_of_loopback_are_reached_many_at_once_and_one_error_is_its_own() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let script = "httpd -p '[::1]:82' -h /etc; httpd -p 127.0.0.1:84 -h /etc
        nc -ll -p 81 -e sh -c 'read line; echo got $line'";
    let container = pod.start(&container("main", image::BUSYBOX).shell(script)).await;
    let listen = "while [ $(netstat -ltn | grep -c ':8[124] ') -lt 3 ]; do sleep 0.05; done";
    container.shell(listen).await;
    let url = pod.try_forward_url(&[]).await.unwrap();
    let mut session = Spdy::dial(&url, "portforward.k8s.io").await.unwrap();
    let mut asked = Vec::new();
    for (request, port) in [81, 83, 82, 81, 84, 82, 81].into_iter().enumerate() {
        let text = match port {
            82 | 84 => "GET /hostname HTTP/1.0\r\n\r\n".to_owned(),
            _ => format!("request {request}\n"),
        };
        asked.push((port, request, ask(&mut session, port, request, &text).await));
    }
    let over: Vec<u32> = asked.iter().flat_map(|(_, _, ids)| *ids).collect();
    let streams = session
        .reader
        .until(|it| over.iter().all(|id| it.get(id).is_some_and(|it| it.finished || it.reset)))
        .await;
    for (port, request, [error, data]) in asked {
        let (error, data) = (streams[&error].text(), streams[&data].text());
        match port {
            81 => assert_eq!((&*error, data), ("", format!("got request {request}\n"))),
            83 => assert!(error.contains("port 83") && error.contains("refused"), "{error:?}"),
            _ => {
                assert!(error.is_empty() && data.contains(" 200 OK"), "{port}: {error:?} {data:?}")
            }
        }
    }
    drop(session);
    node.finish().await;
}

#[tokio::test]
async fn what_goes_through_a_forwarded_port_comes_back_whole() {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    let script = "nc -ll -p 81 -e cat & while ! netstat -ltn | grep -q ':81 '; do sleep 0.05; done
        echo ready; sleep 1000";
    pod.start(&container("main", image::BUSYBOX).shell(script)).await.wait_for_log("ready");
    let url = pod.try_forward_url(&[81]).await.unwrap();
    let mut session = Spdy::dial(&url, "portforward.k8s.io").await.unwrap();
    let [_, data] = open(&mut session, 81, 0).await;
    let (socket, early) = session.into_std();
    let total = from_environment("E2E_FORWARD_MIB", 48) << 20;
    let sent = move || flood::through(&socket, &early, (data, data), total);
    assert_eq!(tokio::task::spawn_blocking(sent).await.unwrap(), total);
    node.finish().await;
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_has_the_nodes_ports() {
    let node = Node::start().await;
    let pod = node.run_pod(pod("pod").host_network()).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = pod.try_forward_url(&[port.into()]).await.unwrap();
    let mut session = Spdy::dial(&url, "portforward.k8s.io").await.unwrap();
    ask(&mut session, port, 0, "request 0\n").await;
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut text = String::new();
    tokio::io::AsyncReadExt::read_to_string(&mut socket, &mut text).await.unwrap();
    assert_eq!(text, "request 0\n", "half-closed by the client");
    drop((socket, session));
    node.finish().await;
}

#[tokio::test]
async fn sessions_go_on_while_the_daemon_is_killed_and_started_again() {
    let (mut node, container) = sleeping().await;
    let mut command =
        container.stream("while read line; do echo got $line; done; exit 5", ALL).await;
    command.send("before\n").await;
    command.until("got before").await;
    let unused = container.try_exec_url(&["echo", "late"], OUT).await.unwrap();
    node.kill9();
    command.send("without a daemon\n").await;
    command.until("got without a daemon").await;
    let late = Command::dial(&unused, OUT).await.end().await;
    assert_eq!((&*late.stdout, late.code()), ("late\n", 0), "a URL outlives its daemon");
    node.spawn().await;
    let mut other = container.stream("read line; echo new $line", ALL).await;
    other.send("generation\n").await;
    assert_eq!(other.end().await.stdout, "new generation\n");
    assert!(node.stop().success(), "a graceful end does not wait for sessions");
    command.send("after\n").await;
    command.until("got after").await;
    command.finish_input().await;
    assert_eq!(command.end().await.code(), 5, "the exit code comes without a daemon");
    node.spawn().await;
    node.finish().await;
}

#[tokio::test]
async fn a_fixed_address_is_served_by_each_daemon_in_turn() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!("[streaming]\nlisten = \"127.0.0.1:{port}\"\nattach_replay_kib = 4\n");
    let mut node = Node::start_with(Options { config, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    let spec = container("main", image::BUSYBOX).shell("echo early; sleep 1000");
    let container = pod.start(&spec).await;
    container.wait_for_log("early");
    let mut watcher = container.attach(OUT).await;
    watcher.until("early\n").await;
    let mut command = container.stream("cat", ALL).await;
    assert!(node.stop().success());
    node.spawn().await;
    let url = container.try_exec_url(&["echo", "new"], OUT).await.unwrap();
    assert!(url.starts_with(&format!("http://127.0.0.1:{port}/exec/")), "{url}");
    assert_eq!(Command::dial(&url, OUT).await.end().await.stdout, "new\n");
    command.send("old").await;
    command.until("old").await;
    drop((watcher, command));
    node.finish().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_its_command_and_nothing_else() {
    let (node, container) = sleeping().await;
    // Renamed into place: a file that is being written is empty for a moment.
    let script = "i=0; while :; do i=$((i+1)); echo $i >/dev/shm/next; \
                  mv /dev/shm/next /dev/shm/progress; head -c 65536 /dev/zero; done";
    let stalled = container.stream(script, OUT).await;
    let progress = async || container.shell("cat /dev/shm/progress 2>/dev/null || echo 0").await;
    let mut last = String::new();
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = progress().await;
        if now != "0" && now == last {
            break; // the answer of exec'd commands shows that others go on
        }
        last = now;
    }
    let blocks: u64 = last.trim().parse().unwrap();
    assert!(
        blocks < 300,
        "{blocks} blocks of 64 KiB are on their way to a client that does not read"
    );
    drop(stalled);
    node.finish().await;
}

#[tokio::test]
async fn a_session_with_tls_goes_on_while_the_daemon_is_killed_and_started_again() {
    if left_to_the_host("sessions with TLS (openssl)") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    tls::certificate(files.path());
    let [certificate, key] = ["cert.pem", "key.pem"].map(|name| files.path().join(name));
    let config = format!("[streaming]\ntls_certificate = {certificate:?}\ntls_key = {key:?}\n");
    let (mut node, container) = sleeping_on(Options { config, ..Options::default() }).await;
    let stream = async |script: &str| {
        let url = container.try_exec_url(&["sh", "-c", script], ALL).await.unwrap();
        Command::dial(&tls::plain(&url, &certificate).await, ALL).await
    };
    let mut command = stream("while read line; do echo got $line; done; exit 5").await;
    command.send("before\n").await;
    command.until("got before").await;
    node.kill9();
    command.send("without a daemon\n").await;
    command.until("got without a daemon").await;
    node.spawn().await;
    let mut other = stream("read line; echo new $line").await;
    other.send("generation\n").await;
    assert_eq!(other.end().await.stdout, "new generation\n");
    command.send("after\n").await;
    command.until("got after").await;
    command.finish_input().await;
    assert_eq!(command.end().await.code(), 5);
    node.finish().await;
}

/// A plain URL that leads, once, to the same place as one of a unix socket.
async fn plain(url: &str, socket: &std::path::Path) -> String {
    let path = url.strip_prefix("http+unix://").expect("a URL of a unix socket");
    let path = path[path.find('/').unwrap()..].to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = UnixStream::connect(socket).await.unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    format!("http://{address}{path}")
}

#[tokio::test]
async fn sessions_come_over_a_unix_socket_of_each_daemon_in_turn() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("streaming.sock");
    let config = format!("[streaming]\nlisten = \"unix://{}\"\n", socket.display());
    let (mut node, container) = sleeping_on(Options { config, ..Options::default() }).await;
    let stream = async |script: &str| {
        let url = container.try_exec_url(&["sh", "-c", script], ALL).await.unwrap();
        Command::dial(&plain(&url, &socket).await, ALL).await
    };
    let mut command = stream("cat; exit 3").await;
    command.send("one").await;
    command.until("one").await;
    assert!(node.stop().success());
    node.spawn().await;
    assert_eq!(stream("echo new").await.end().await.stdout, "new\n");
    command.send(" two").await;
    command.finish_input().await;
    let end = command.end().await;
    assert_eq!((&*end.stdout, end.code()), ("one two", 3));
    node.finish().await;
    assert!(!socket.exists(), "the socket goes with its process");
}
