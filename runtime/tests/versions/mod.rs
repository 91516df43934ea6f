//! Old and new side by side: a daemon of version 1 drives today's shim, and today's client meets a shim of version 1.

#[path = "../../protocol/tests/v1/mod.rs"]
mod v1;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use prost::Message;
use runtime::{ErrorKind, Exec, Shim};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind,
    connect, listen, recv, send, socket_with,
};

use crate::node::{self, Node, Payload};

fn socket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("socket")
}

fn dial(node: &Node) -> OwnedFd {
    let dir = std::fs::File::open(node.pod_dir()).expect("the pod's directory");
    let path = format!("/proc/self/fd/{}/shim.sock", dir.as_raw_fd());
    let socket = socket();
    connect(&socket, &SocketAddrUnix::new(path.as_str()).expect("address")).expect("connect");
    socket
}

/// `None`: closed.
fn hear(socket: &OwnedFd) -> Option<v1::Packet> {
    let mut buffer = vec![0; 64 * 1024];
    let (n, _) = recv(socket, &mut buffer[..], RecvFlags::empty()).expect("receive");
    (n > 0).then(|| v1::Packet::decode(&buffer[..n]).expect("a packet"))
}

fn ask(socket: &OwnedFd, ask: v1::Ask) -> v1::Reply {
    let bytes = v1::Packet::call(7, ask).encode_to_vec();
    send(socket, &bytes, SendFlags::NOSIGNAL).expect("send");
    loop {
        match hear(socket).expect("an answer") {
            v1::Packet { seq: 7, body: Some(v1::Body::Answer(a)) } => {
                return a.reply.expect("a reply that version 1 knows");
            }
            v1::Packet { body: Some(v1::Body::Notice(_)), .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_of_the_first_version_drives_todays_shim() {
    let Some(node) = Node::start("old-daemon").await else { return };
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    let target = || v1::Target { id: c.id.clone() };
    let old = dial(&node);
    let hello = v1::Ask::Hello(v1::Hello { version: 1, pid: 1 });
    assert!(matches!(ask(&old, hello), v1::Reply::Hello(h) if h.version >= 1));
    assert!(matches!(ask(&old, v1::Ask::Start(target())), v1::Reply::Started(_)));
    let exec = v1::ExecSync {
        id: c.id.clone(),
        process_json: br#"{"args":["/bin/sh","-c","echo hi; exit 3"],"cwd":"/"}"#.to_vec(),
        timeout_ms: 10_000,
        output_cap: 100,
        seccomp_bpf: String::new(),
    };
    let v1::Reply::Output(out) = ask(&old, v1::Ask::ExecSync(exec)) else { panic!("no output") };
    assert_eq!((out.exit_code, out.stdout.as_slice()), (3, b"hi\n".as_slice()));
    assert!(matches!(ask(&old, v1::Ask::Kill(target())), v1::Reply::Done(_)));
    assert_eq!(c.exit().await.code, 137);
    let v1::Reply::Inventory(i) = ask(&old, v1::Ask::Inventory(v1::Empty {})) else {
        panic!("no inventory")
    };
    assert_eq!((i.containers.len(), i.containers[0].phase()), (1, v1::Phase::Exited));
    assert!(matches!(ask(&old, v1::Ask::Delete(target())), v1::Reply::Done(_)));
    node.end().await;
}

/// A shim of version 1, as far as this conversation needs one.
fn old_shim(listener: &OwnedFd) {
    let link = accept(listener).expect("accept");
    while let Some(packet) = hear(&link) {
        let Some(v1::Body::Call(call)) = packet.body else { panic!("not a call") };
        let reply = match call.ask {
            Some(v1::Ask::Hello(_)) => v1::Reply::Hello(v1::Hello { version: 1, pid: 42 }),
            Some(v1::Ask::Inventory(_)) => {
                let state = v1::State { id: "c".into(), pid: 9, ..Default::default() };
                v1::Reply::Inventory(v1::Inventory { sandbox: None, containers: vec![state] })
            }
            Some(other) => panic!("{other:?}"),
            None => {
                let why = "this shim is older than the call";
                v1::Reply::Failed(v1::Failed::new(v1::Kind::Unsupported, "call", why))
            }
        };
        let bytes = v1::Packet::answer(packet.seq, reply).encode_to_vec();
        send(&link, &bytes, SendFlags::NOSIGNAL).expect("send");
    }
}

/// What a living shim has in its pod's directory.
fn listening(dir: &std::path::Path) -> (OwnedFd, std::fs::File) {
    let listener = socket();
    let path = dir.join("shim.sock");
    bind(&listener, &SocketAddrUnix::new(path.as_path()).expect("address")).expect("bind");
    listen(&listener, 1).expect("listen");
    let lock = std::fs::File::create(dir.join("shim.lock")).expect("lock");
    rustix::fs::flock(lock.as_fd(), rustix::fs::FlockOperation::LockExclusive).expect("lock");
    (listener, lock)
}

#[tokio::test(flavor = "multi_thread")]
async fn todays_client_gets_on_with_a_shim_of_the_first_version() {
    let dir = tempfile::tempdir().expect("tempdir");
    let (listener, _lock) = listening(dir.path());
    let old = std::thread::spawn(move || old_shim(&listener));
    let shim = Shim::connect("pod", dir.path(), Duration::from_secs(5)).await.expect("connect");
    assert_eq!((shim.version(), shim.pid()), (1, 42));
    let inventory = shim.inventory().await.expect("inventory");
    assert_eq!((inventory.containers[0].pid, inventory.containers[0].cgroup.as_str()), (9, ""));
    let error = shim.exec(Exec { id: "c".into(), ..Default::default() }).await.expect_err("new");
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    drop(shim);
    old.join().expect("the conversation went as it should");
}

/// A shim of today, which is asked for a container. Returns whether the daemon's mount namespace came with that.
fn asked_for_a_container(listener: &OwnedFd) -> bool {
    let link = accept(listener).expect("accept");
    let mut buffer = vec![0; protocol::wire::INLINE_MAX];
    loop {
        let (packet, fds) =
            protocol::receive(link.as_fd(), &mut buffer).expect("receive").expect("a packet");
        let Some(protocol::Body::Call(call)) = packet.body else { panic!("not a call") };
        let (reply, came) = match call.ask {
            Some(protocol::Ask::Hello(hello)) => (protocol::Reply::Hello(hello), None),
            Some(protocol::Ask::CreateContainer(ask)) => {
                let created = protocol::Created { pid: 9, start_ticks: 9 };
                (protocol::Reply::Created(created), Some(ask.has_mounts && fds.len() == 1))
            }
            other => panic!("{other:?}"),
        };
        let bytes = protocol::Packet::answer(packet.seq, reply).encode_to_vec();
        send(&link, &bytes, SendFlags::NOSIGNAL).expect("send");
        if let Some(came) = came {
            return came;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_found_again_gets_the_bare_mounts_with_each_container() {
    let Some(node) = Node::start("found-again").await else { return };
    let dir = tempfile::tempdir().expect("tempdir");
    let (listener, _lock) = listening(dir.path());
    let shim = std::thread::spawn(move || asked_for_a_container(&listener));
    let limit = Duration::from_secs(5);
    let found = node.shims.connect("pod", dir.path(), limit).await.expect("connect");
    let ask = runtime::CreateContainer { id: "c".into(), ..Default::default() };
    found.create_container(ask).await.expect("created");
    assert!(shim.join().expect("the conversation went as it should"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_survives_what_no_daemon_says() {
    let Some(node) = Node::start("nonsense").await else { return };
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let golden = include_str!("../../protocol/tests/golden/2.txt");
    let calls = golden.lines().filter_map(|l| l.strip_prefix("call ")?.split_once(": "));
    for (_, hex) in calls {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        for end in 1..=bytes.len() {
            let link = dial(&node);
            // As it is, cut short, and with its last byte turned round.
            let mut turned = bytes[..end].to_vec();
            turned[end - 1] ^= 0xff;
            for bytes in [&bytes[..end], &turned] {
                let _ = send(&link, bytes, SendFlags::NOSIGNAL); // it may have hung up already
            }
        }
    }
    assert_eq!(c.exec("echo fine", None).await.expect("exec").stdout, b"fine\n");
    assert!(node::is_alive(node.shim.pid()));
    node.end().await;
}
