//! What a streaming server is handed: exec'd processes, attached containers, sockets in the pod, pauses.

use std::fs::File;
use std::io::{ErrorKind as Io, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use runtime::{Attach, ErrorKind, Exec, Family, Streams};

use crate::node::{self, Node, Payload, Running};

const LONG: Duration = Duration::from_secs(20);

/// Everything until the end of a non-blocking stream, the end of a terminal included.
async fn read_all(fd: OwnedFd) -> Vec<u8> {
    let (mut file, mut all, begun) = (File::from(fd), Vec::new(), Instant::now());
    let mut buffer = [0; 65536];
    loop {
        assert!(begun.elapsed() < LONG, "no end after {} bytes", all.len());
        match file.read(&mut buffer) {
            Ok(0) => return all,
            Ok(n) => all.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == Io::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(e) if e.raw_os_error() == Some(5) => return all,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Reads until `want` has come.
pub(crate) async fn read_until(file: &mut File, want: &str) -> String {
    let (mut text, begun) = (Vec::new(), Instant::now());
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(want) {
        assert!(begun.elapsed() < LONG, "{:?}", String::from_utf8_lossy(&text));
        match file.read(&mut buffer) {
            Ok(0) => panic!("ended: {:?}", String::from_utf8_lossy(&text)),
            Ok(n) => text.extend_from_slice(&buffer[..n]),
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

pub(crate) fn exec(c: &Running<'_>, script: &str) -> Exec {
    let process = serde_json::json!({ "args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"],
        "consoleSize": { "height": 33, "width": 77 } });
    Exec {
        id: c.id.clone(),
        process_json: process.to_string().into_bytes(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn sleeper(node: &Node) -> Running<'_> {
    let c = node.create("c1", Payload::args(&["/bin/sleep", "1000"])).await.expect("create");
    c.start().await.expect("start");
    c
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execd_process_has_its_stdio_with_whoever_asked() {
    let Some(node) = Node::start("stream").await else { return };
    let c = sleeper(&node).await;
    let script = "echo err >&2; cat; exit 7";
    let mut session = node.shim.exec(exec(&c, script)).await.expect("exec");
    let streams = std::mem::take(&mut session.streams);
    let mut stdin = File::from(streams.stdin.expect("stdin"));
    stdin.write_all(b"through cat\r\n\0\xff").expect("write");
    drop(stdin);
    assert_eq!(read_all(streams.stdout.expect("stdout")).await, b"through cat\r\n\0\xff");
    assert_eq!(read_all(streams.stderr.expect("stderr")).await, b"err\n");
    assert!(streams.terminal.is_none());
    assert_eq!(session.wait().await.expect("code"), 7);

    // Only what is asked for is made.
    let ask = Exec { stdin: false, stderr: false, ..exec(&c, "echo gone >&2; cat; echo out") };
    let mut session = node.shim.exec(ask).await.expect("exec");
    let Streams { terminal: None, stdin: None, stdout: Some(out), stderr: None } =
        std::mem::take(&mut session.streams)
    else {
        panic!("other streams came")
    };
    assert_eq!(read_all(out).await, b"out\n");
    assert_eq!(session.wait().await.expect("code"), 0);
    let groups = node.hierarchies().pids(&node.group("c1")).expect("pids");
    assert_eq!(groups.len(), 1, "{groups:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execd_process_gets_a_terminal_of_the_container_with_the_size_asked_for() {
    let Some(node) = Node::start("stream-tty").await else { return };
    let c = sleeper(&node).await;
    let ask = Exec { tty: true, ..exec(&c, "tty; stty size; read x; stty size; exit 4") };
    let mut session = node.shim.exec(ask).await.expect("exec");
    let streams = std::mem::take(&mut session.streams);
    assert!(streams.stdin.is_none() && streams.stdout.is_none() && streams.stderr.is_none());
    let master = streams.terminal.expect("terminal");
    let mut file = File::from(master.try_clone().expect("dup"));
    let text = read_until(&mut file, "33 77").await;
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    let size = rustix::termios::Winsize { ws_row: 5, ws_col: 6, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).expect("resize");
    file.write_all(b"\n").expect("write");
    read_until(&mut file, "5 6").await;
    assert_eq!(session.wait().await.expect("code"), 4);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_cannot_begin_says_why_and_leaves_nothing() {
    let Some(node) = Node::start("stream-fails").await else { return };
    let c = sleeper(&node).await;
    let process = br#"{"args":["no-such"],"cwd":"/","env":["PATH=/bin"]}"#.to_vec();
    for tty in [false, true] {
        let ask = Exec { process_json: process.clone(), tty, ..exec(&c, "") };
        let error = node.shim.exec(ask).await.expect_err("no such command");
        assert_eq!((error.kind, error.stage.as_str()), (ErrorKind::Failed, "exec"));
        assert!(error.message.contains("executable file not found in $PATH"), "{error}");
    }
    let error = node.shim.exec(Exec { id: "other".into(), ..exec(&c, "") }).await;
    assert_eq!(error.expect_err("no container").kind, ErrorKind::NotFound);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_killed_with_its_tree_on_request_and_with_its_connection() {
    let Some(node) = Node::start("stream-kill").await else { return };
    let c = sleeper(&node).await;
    let script = "sleep 501 & sleep 502 & echo up; sleep 503";
    let mut session = node.shim.exec(exec(&c, script)).await.expect("exec");
    let mut out = File::from(session.streams.stdout.take().expect("stdout"));
    read_until(&mut out, "up").await;
    session.kill().await.expect("kill");
    assert_eq!(session.wait().await.expect("code"), 137);
    let alone = || async {
        let begun = Instant::now();
        while node.hierarchies().pids(&node.group("c1")).expect("pids").len() > 1 {
            assert!(begun.elapsed() < LONG, "the tree lives");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    alone().await;

    let second = runtime::Shim::connect(&node.sandbox_id(), &node.pod_dir(), LONG).await;
    let second = second.expect("a second connection");
    let mut session = second.exec(exec(&c, script)).await.expect("exec");
    let mut out = File::from(session.streams.stdout.take().expect("stdout"));
    read_until(&mut out, "up").await;
    drop((session, second));
    alone().await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reader_that_attaches_gets_all_the_output_and_stdin_ends_when_it_is_let_go() {
    let Some(node) = Node::start("attach").await else { return };
    let mut payload = Payload::sh("echo first; cat; echo err >&2; exit 6");
    payload.stdin = true;
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    while !c.log().contains("first") {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let all = Attach { id: c.id.clone(), stdin: true, stdout: true, stderr: true, replay: 0 };
    let one = node.shim.attach(all.clone()).await.expect("attach");
    let late = Attach { stdin: false, replay: 4096, ..all };
    let two = node.shim.attach(late).await.expect("attach");
    assert!(two.stdin.is_none() && one.terminal.is_none());
    // Far more than fits into a pipe: whoever is interactive loses nothing.
    let text: Vec<u8> = (0..200_000u32).flat_map(|n| format!("{n}\n").into_bytes()).collect();
    let mut input = File::from(one.stdin.expect("stdin"));
    let sent = text.clone();
    let writer = std::thread::spawn(move || {
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            match input.write(rest) {
                Ok(n) => rest = &rest[n..],
                Err(e) if e.kind() == Io::WouldBlock => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) => panic!("{e}"),
            }
        }
    });
    let closer = async {
        while !writer.is_finished() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        writer.join().expect("written");
        node.shim.close_stdin(&c.id).await.expect("close");
        node.shim.close_stdin(&c.id).await.expect("close again");
    };
    let (a, b, ae, be, ()) = tokio::join!(
        read_all(one.stdout.expect("stdout")),
        read_all(two.stdout.expect("stdout")),
        read_all(one.stderr.expect("stderr")),
        read_all(two.stderr.expect("stderr")),
        closer,
    );
    assert!(a == text, "the first reader got {} of {} bytes", a.len(), text.len());
    assert!(b == [b"first\n".as_slice(), &text].concat(), "the second got {} bytes", b.len());
    assert_eq!((ae.as_slice(), be.as_slice()), (b"err\n".as_slice(), b"err\n".as_slice()));
    assert_eq!(c.exit().await.code, 6);
    assert!(c.log().ends_with("stderr F err\n") || c.log().contains("199999"));
    let gone = node.shim.attach(Attach { id: c.id.clone(), ..Default::default() }).await;
    assert_eq!(gone.expect_err("it has ended").kind, ErrorKind::AlreadyExited);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_does_not_read_is_cut_off_and_holds_up_neither_container_nor_log() {
    let Some(node) = Node::start("attach-slow").await else { return };
    let script = "while [ ! -e /go ]; do sleep 0.01; done; seq 1 600000; exec sleep 1000";
    let c = node.create("c1", Payload::sh(script)).await.expect("create");
    c.start().await.expect("start");
    let ask = Attach { id: c.id.clone(), stdout: true, ..Default::default() };
    let lazy = node.shim.attach(ask.clone()).await.expect("attach");
    let dead = node.shim.attach(ask).await.expect("attach");
    drop(dead);
    c.exec("touch /go", None).await.expect("exec");
    let begun = Instant::now();
    let mut log = std::fs::File::open(node.log_path("c1")).expect("open");
    let mut end = String::new();
    while !end.ends_with(" 600000\n") {
        assert!(begun.elapsed() < LONG, "the log stands still: {end:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
        end.drain(..end.len().saturating_sub(64)); // it is long: what was read is not read once more
        log.read_to_string(&mut end).expect("read");
    }
    let got = read_all(lazy.stdout.expect("stdout")).await;
    assert!(got.starts_with(b"1\n2\n3\n") && got.len() <= 1 << 20, "{}", got.len());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_terminal_takes_input_and_a_size() {
    let Some(node) = Node::start("attach-tty").await else { return };
    let mut payload = Payload::sh("read x; stty size; echo got $x; exit 2");
    (payload.tty, payload.stdin) = (true, true);
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    node.shim.resize(&c.id, 11, 22).await.expect("resize");
    let ask =
        Attach { id: c.id.clone(), stdin: true, stdout: true, stderr: true, ..Default::default() };
    let streams = node.shim.attach(ask).await.expect("attach");
    assert!(streams.stdin.is_none() && streams.stderr.is_none());
    let mut out = File::from(streams.stdout.expect("stdout"));
    File::from(streams.terminal.expect("terminal")).write_all(b"word\n").expect("write");
    let text = read_until(&mut out, "got word").await;
    assert!(text.contains("11 22"), "{text:?}");
    assert_eq!(c.exit().await.code, 2);
    node.end().await;
}

/// A network namespace with nothing but its loopback, held by a process.
struct Netns(Child);

impl Netns {
    fn new() -> Self {
        let script = "ip link set lo up && echo up && exec sleep 1000";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("unshare");
        let mut word = [0; 3];
        child.stdout.take().expect("stdout").read_exact(&mut word).expect("up");
        Self(child)
    }

    fn open(&self) -> File {
        File::open(format!("/proc/{}/ns/net", self.0.id())).expect("netns")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_for_the_caller_is_made_in_the_network_of_the_pod() {
    if !rustix::process::geteuid().is_root() {
        return drop(Node::start("socket").await);
    }
    let netns = Netns::new();
    let Some(node) = Node::start_in("socket", netns.open()).await else { return };
    let server = "nc -l -p 7777 -e printf from-the-pod";
    let c = node.create("c1", Payload::sh(server)).await.expect("create");
    c.start().await.expect("start");
    let address = SocketAddr::from(([127, 0, 0, 1], 7777));
    let begun = Instant::now();
    let text = loop {
        let socket = node.shim.socket(Family::V4).await.expect("socket");
        rustix::io::ioctl_fionbio(&socket, false).expect("blocking");
        if rustix::net::connect(&socket, &address).is_ok() {
            let mut text = String::new();
            TcpStream::from(socket).read_to_string(&mut text).expect("read");
            break text;
        }
        assert!(begun.elapsed() < LONG, "nobody listens");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(text, "from-the-pod");
    node.shim.socket(Family::V6).await.expect("IPv6");
    // The shim itself has stayed where it was.
    let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("netns");
    assert_eq!(of(node.shim.pid()), of(std::process::id() as i32));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_container_stands_still_until_resumed_and_can_be_killed() {
    let Some(node) = Node::start("pause-it").await else { return };
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
    let c = node.create("c1", Payload::sh(script)).await.expect("create");
    assert_eq!(node.shim.pause(&c.id).await.expect_err("not yet").kind, ErrorKind::InvalidState);
    c.start().await.expect("start");
    while c.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    node.shim.pause(&c.id).await.expect("pause");
    assert!(node.hierarchies().is_frozen(&node.group("c1")).expect("state"));
    assert!(node.shim.inventory().await.expect("inventory").containers[0].paused);
    let refused = c.exec("true", None).await.expect_err("it would hang");
    assert_eq!(refused.kind, ErrorKind::InvalidState);
    node.shim.resume(&c.id).await.expect("resume");
    let now = c.log().len();
    while c.log().len() <= now {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    node.shim.pause(&c.id).await.expect("pause");
    node.shim.kill(&c.id).await.expect("kill");
    assert_eq!(c.exit().await.code, 137);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_sessions_opened_and_dropped_leave_the_shim_as_it_was() {
    let Some(node) = Node::start("stream-many").await else { return };
    let c = sleeper(&node).await;
    let fds = || {
        let dir = format!("/proc/{}/fd", node.shim.pid());
        std::fs::read_dir(dir).expect("alive").count()
    };
    c.exec("true", None).await.expect("exec");
    let before = fds();
    for n in 0..60 {
        let ask = Exec { tty: n % 3 == 0, ..exec(&c, "exit 0") };
        let mut session = node.shim.exec(ask).await.expect("exec");
        if n % 2 == 0 {
            assert_eq!(session.wait().await.expect("code"), 0);
        }
        let id = c.id.clone();
        let ask = Attach { id, stdout: true, stderr: true, ..Default::default() };
        drop(node.shim.attach(ask).await.expect("attach"));
    }
    let begun = Instant::now();
    while fds() > before {
        assert!(begun.elapsed() < LONG, "{} descriptors, before {before}", fds());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(node::is_alive(node.shim.pid()));
    node.end().await;
}
