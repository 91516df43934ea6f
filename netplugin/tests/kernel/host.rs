//! A host to test on: a thread in a network namespace of its own, with witnesses.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use netplugin::{AttachRequest, Attachment, Config, Network, PortMapping};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;
use tempfile::TempDir;

/// Longer than any answer between two namespaces of one machine takes.
const PATIENCE: Duration = Duration::from_secs(3);

/// The current thread's namespace with a directory for leases.
pub(crate) struct Host {
    pub(crate) dir: TempDir,
}

/// Runs a test as root on a host of its own. Without root there is nothing to see: says so, and fails
/// where that is not acceptable.
pub(crate) fn on_a_host(test: impl FnOnce(&Host) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("E2E_REQUIRE_ROOT").is_some_and(|value| value == "1");
        assert!(!required, "kernel tests need root");
        eprintln!("SKIPPED: kernel tests need root");
        return;
    }
    let host = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        run("ip link set lo up");
        test(&Host { dir: TempDir::new().unwrap() });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Host {
    pub(crate) fn config(&self, ranges: &[&str]) -> Config {
        Config {
            bridge: "br-test".into(),
            ranges: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            exclude: vec![],
            mtu: None,
            masquerade: true,
            no_masquerade: vec![],
            table: "test".into(),
            leases_dir: self.dir.path().join("leases"),
        }
    }

    pub(crate) fn network(&self, ranges: &[&str]) -> Network {
        Network::open(self.config(ranges)).unwrap()
    }

    /// A neighbour machine: a namespace with a veth to this host, which has `ours` on it.
    pub(crate) fn neighbour(&self, ours: &str, theirs: &str) -> OwnedFd {
        let netns = Network::loopback_only(None).unwrap();
        let path = path_of(&netns);
        run("ip link add uplink type veth peer name peer");
        run(&format!("ip link set peer netns {path}"));
        run(&format!("ip addr add {ours} dev uplink nodad"));
        run("ip link set uplink up");
        run(&format!("nsenter --net={path} ip addr add {theirs} dev peer nodad"));
        run(&format!("nsenter --net={path} ip link set peer up"));
        netns
    }
}

pub(crate) fn request(id: &str) -> AttachRequest {
    AttachRequest {
        sandbox_id: id.to_owned(),
        owner: format!("default/{id}"),
        ..AttachRequest::default()
    }
}

pub(crate) fn request_with(id: &str, port_mappings: Vec<PortMapping>) -> AttachRequest {
    AttachRequest { port_mappings, ..request(id) }
}

/// The address of a pod in the family of `like`.
pub(crate) fn address(pod: &Attachment, like: &str) -> IpAddr {
    let like: IpAddr = like.parse().unwrap();
    pod.addresses.iter().map(|net| net.ip()).find(|ip| ip.is_ipv4() == like.is_ipv4()).unwrap()
}

/// Runs a command in the current namespace; gives its output, or fails with it.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {}\n{text}{errors}", output.status);
    text
}

pub(crate) fn json(command: &str) -> Value {
    let text = run(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
}

/// Runs a command inside a namespace.
pub(crate) fn run_in(netns: &impl AsFd, command: &str) -> String {
    run(&format!("nsenter --net={} {command}", path_of(netns)))
}

/// Runs code on a thread inside a namespace.
pub(crate) fn inside<T: Send>(netns: &(impl AsFd + Sync), body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            body()
        });
        inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Starts a server inside a namespace that answers each connection with the address it came from.
pub(crate) fn serve_tcp(netns: &(impl AsFd + Sync), at: &str) {
    let listener = inside(netns, || TcpListener::bind(at).unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = stream.write_all(peer.ip().to_string().as_bytes());
        }
    });
}

/// Connects from a namespace; gives the address the server saw.
pub(crate) fn ask_tcp(netns: &(impl AsFd + Sync), to: &str) -> Result<String, String> {
    let to: SocketAddr = to.parse().unwrap();
    inside(netns, || {
        let mut stream =
            TcpStream::connect_timeout(&to, PATIENCE).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
        Ok(text)
    })
}

/// This thread's own namespace.
pub(crate) fn own_netns() -> OwnedFd {
    File::open("/proc/thread-self/ns/net").unwrap().into()
}

pub(crate) fn link_names() -> Vec<String> {
    let links = json("ip -j link");
    links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().into()).collect()
}

/// Waits until a condition holds.
pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    eventually_within(PATIENCE, what, condition);
}

pub(crate) fn eventually_within(patience: Duration, what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen within {patience:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A path that leads any process of this machine to a namespace.
pub(crate) fn path_of(netns: &impl AsFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}
