//! Measures what goes through a streaming session, ours and containerd's in one run, against the bare copy that a
//! session cannot beat. An argument, `floor`, `lapstrake` or `containerd`, limits it to one of them.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::flood::{self, PIECE};
use e2e::peer::Containerd;
use e2e::spdy::{self, Asked, Spdy};
use e2e::{Cri, Node, Pod, container, host, image, pod};

/// 1 GiB each way.
const TOTAL: usize = 1 << 30;
/// What a session has to reach: so many times the other's throughput, or this part of a bare copy's.
const TIMES_BOUND: f64 = 2.0;
const PART_BOUND: f64 = 0.9;
/// Short sessions, one after the other.
const SESSIONS: usize = 30;
/// In the pod, where `nc` runs `cat` for whoever connects.
const PORT: u16 = 81;

const DUPLEX: Asked = Asked { stdin: true, stdout: true, stderr: false, tty: false };
const OUT: Asked = Asked { stdin: false, ..DUPLEX };

#[tokio::main]
async fn main() {
    println!("{} MiB each way through `cat`; {SESSIONS} short sessions\n", TOTAL >> 20);
    let wanted = |name: &str| std::env::args().nth(1).is_none_or(|it| it == name);
    let (mut floor, mut ours, mut theirs) = (None, None, None);
    if wanted("floor") {
        let (through, elapsed) = tokio::task::spawn_blocking(bare_copy).await.unwrap();
        floor = Some(report("bare copy, socket to pipe and back", through, elapsed));
    }
    if wanted("lapstrake") {
        let node = Node::with_busybox().await;
        let server = || node.streaming_processes().into_iter().max();
        ours = Some(measure("lapstrake", &node.cri, &server).await);
        node.finish().await;
    }
    if wanted("containerd") {
        match Containerd::start().await {
            Some(peer) => {
                let name = format!("containerd {}", peer.version);
                theirs = Some(measure(&name, &peer.cri, &|| Some(peer.pid())).await);
            }
            None => println!("SKIPPED: containerd is not installed"),
        }
    }
    if let (Some(floor), Some(ours), Some(theirs)) = (floor, ours, theirs) {
        for (what, ours, theirs) in
            [("exec", ours.exec, theirs.exec), ("port-forward", ours.forward, theirs.forward)]
        {
            let (times, part) = (ours / theirs, ours / floor);
            let holds = times >= TIMES_BOUND || part >= PART_BOUND;
            let verdict = if holds { "holds" } else { "MISSED" };
            println!(
                "{what:14} {times:.2} times containerd's, {part:.2} of a bare copy (bound {TIMES_BOUND} or {PART_BOUND}: {verdict})"
            );
        }
    }
}

/// MiB/s each way.
struct Rates {
    exec: f64,
    forward: f64,
}

async fn measure(name: &str, cri: &Cri, server: &dyn Fn() -> Option<i32>) -> Rates {
    let pod = Pod::run(cri, pod("streaming")).await.expect("RunPodSandbox");
    let script = format!("nc -ll -p {PORT} -e cat & sleep 1000");
    let mut spec = container("main", image::BUSYBOX).shell(&script);
    spec.config.log_path.clear();
    let container = pod.start(&spec).await;
    println!("{name}");

    let mut times = Vec::new();
    for _ in 0..=SESSIONS {
        let began = Instant::now();
        assert_eq!(container.stream("true", OUT).await.end().await.code(), 0);
        times.push(began.elapsed());
    }
    times.remove(0); // the first one may start a process
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("  exec, RPC to status      p50 {:8.2} ms  p95 {:8.2} ms", at(50), at(95));

    let idle = server().map_or(0, host::pss_kib);
    let url = container.try_exec_url(&["cat"], DUPLEX).await.expect("Exec");
    let command = spdy::Command::dial(&url, DUPLEX).await;
    let (socket, early) = command.spdy.into_std();
    let (stdin, stdout) = (command.stdin, command.stdout);
    let work = move || through(&socket, &early, (stdin, stdout));
    let (moved, elapsed) = tokio::task::spawn_blocking(work).await.unwrap();
    let exec = report("  exec, stdin to stdout", moved, elapsed);
    let busy = server().map_or(0, host::pss_kib);

    let url = pod.try_forward_url(&[PORT.into()]).await.expect("PortForward");
    let mut session = Spdy::dial(&url, "portforward.k8s.io").await.unwrap();
    let port = PORT.to_string();
    let mut data = 0;
    for kind in ["error", "data"] {
        let headers = [("streamtype", kind), ("port", &*port), ("requestid", "0")];
        data = session.writer.open(&headers).await;
    }
    let (socket, early) = session.into_std();
    let work = move || through(&socket, &early, (data, data));
    let (moved, elapsed) = tokio::task::spawn_blocking(work).await.unwrap();
    let forward = report("  port-forward, both ways", moved, elapsed);
    let after = server().map_or(0, host::pss_kib);
    println!("  server PSS {idle} KiB before, {busy} KiB after the exec, {after} KiB at the end\n");
    pod.stop().await;
    pod.remove().await;
    Rates { exec, forward }
}

fn report(what: &str, moved: usize, elapsed: Duration) -> f64 {
    assert_eq!(moved, TOTAL, "{what}: all came back");
    let rate = (TOTAL >> 20) as f64 / elapsed.as_secs_f64();
    println!("{what:36} {rate:8.0} MiB/s each way");
    rate
}

fn through(socket: &TcpStream, early: &[u8], streams: (u32, u32)) -> (usize, Duration) {
    let began = Instant::now();
    (flood::through(socket, early, streams, TOTAL), began.elapsed())
}

/// The least that any server does: two threads that copy between a socket and the pipes of `cat`.
fn bare_copy() -> (usize, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
    let began = Instant::now();
    let moved = std::thread::scope(|scope| {
        scope.spawn(|| {
            copy(&server, &mut stdin);
            drop(stdin);
        });
        scope.spawn(|| {
            copy(&mut stdout, &server);
            server.shutdown(Shutdown::Write).unwrap();
        });
        scope.spawn(|| {
            let piece = vec![b'x'; PIECE];
            for _ in 0..TOTAL / PIECE {
                (&client).write_all(&piece).unwrap();
            }
            client.shutdown(Shutdown::Write).unwrap();
        });
        let (mut moved, mut chunk) = (0, vec![0; 256 * 1024]);
        loop {
            match (&client).read(&mut chunk).unwrap() {
                0 => return moved,
                length => moved += length,
            }
        }
    });
    cat.wait().unwrap();
    (moved, began.elapsed())
}

/// By read and write: `io::copy` would use splice, which no protocol with frames can.
fn copy(mut from: impl Read, mut to: impl Write) {
    let mut chunk = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        to.write_all(&chunk[..length]).unwrap();
    }
}
