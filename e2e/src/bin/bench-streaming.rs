//! Measures what goes through a streaming session, ours and containerd's in one run, against the bare copy that a
//! session cannot beat. An argument, `floor`, `lapstrake` or `containerd`, limits it to one of them.
#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]
#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use e2e::peer::Containerd;
use e2e::spdy::{self, Asked, Spdy};
use e2e::{Cri, Node, Pod, container, host, image, pod};

/// 1 GiB each way.
const TOTAL: usize = 1 << 30;
/// What clients read and send at once: the buffer of Go's `io.Copy`.
const PIECE: usize = 32 * 1024;
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
    if wanted("floor") {
        let (through, elapsed) = tokio::task::spawn_blocking(bare_copy).await.unwrap();
        report("bare copy, socket to pipe and back", through, elapsed);
    }
    if wanted("lapstrake") {
        let node = Node::with_busybox().await;
        let server = || {
            let pids = node.scope.pids(node.pid()).into_iter();
            pids.filter(|pid| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.contains("\0streaming\0")
            })
            .max()
        };
        measure("lapstrake", &node.cri, &server).await;
        node.finish().await;
    }
    if wanted("containerd") {
        match Containerd::start().await {
            Some(peer) => {
                let name = format!("containerd {}", peer.version);
                measure(&name, &peer.cri, &|| Some(peer.pid())).await;
            }
            None => println!("SKIPPED: containerd is not installed"),
        }
    }
}

async fn measure(name: &str, cri: &Cri, server: &dyn Fn() -> Option<i32>) {
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
    let work = move || through(&socket, early, stdin, stdout);
    let (moved, elapsed) = tokio::task::spawn_blocking(work).await.unwrap();
    report("  exec, stdin to stdout", moved, elapsed);
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
    let work = move || through(&socket, early, data, data);
    let (moved, elapsed) = tokio::task::spawn_blocking(work).await.unwrap();
    report("  port-forward, both ways", moved, elapsed);
    let after = server().map_or(0, host::pss_kib);
    println!("  server PSS {idle} KiB before, {busy} KiB after the exec, {after} KiB at the end\n");
    pod.stop().await;
    pod.remove().await;
}

fn report(what: &str, moved: usize, elapsed: Duration) {
    assert_eq!(moved, TOTAL, "{what}: all came back");
    let rate = (TOTAL >> 20) as f64 / elapsed.as_secs_f64();
    println!("{what:36} {rate:8.0} MiB/s each way");
}

/// Sends all on one stream while it counts what comes on another.
fn through(socket: &TcpStream, early: Vec<u8>, to: u32, from: u32) -> (usize, Duration) {
    let began = Instant::now();
    let moved = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut socket = socket;
            let mut frame = to.to_be_bytes().to_vec();
            frame.extend((PIECE as u32).to_be_bytes());
            frame.resize(8 + PIECE, b'x');
            for _ in 0..TOTAL / PIECE {
                socket.write_all(&frame).unwrap();
            }
            frame.truncate(8);
            frame[4..].copy_from_slice(&[1, 0, 0, 0]);
            socket.write_all(&frame).unwrap();
        });
        count(socket, early, from)
    });
    (moved, began.elapsed())
}

/// Bytes of data on a stream until it is finished, or all have come.
fn count(mut socket: &TcpStream, mut buffer: Vec<u8>, stream: u32) -> usize {
    let (mut moved, mut left, mut counts) = (0, 0, false);
    let mut chunk = vec![0; 256 * 1024];
    loop {
        let mut at = 0;
        while at < buffer.len() {
            if left > 0 {
                let take = left.min(buffer.len() - at);
                moved += if counts { take } else { 0 };
                (left, at) = (left - take, at + take);
                continue;
            }
            let Some(head) = buffer.get(at..at + 8) else { break };
            let word = |from: usize| u32::from_be_bytes(head[from..from + 4].try_into().unwrap());
            (counts, left) = (word(0) == stream, (word(4) & 0x00ff_ffff) as usize);
            at += 8;
        }
        buffer.drain(..at);
        if moved == TOTAL {
            return moved;
        }
        match socket.read(&mut chunk) {
            Ok(0) | Err(_) => return moved,
            Ok(length) => buffer.extend_from_slice(&chunk[..length]),
        }
    }
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
