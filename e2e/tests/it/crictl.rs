//! The client that operators use, `crictl`, over both of its transports. No Debian package has it: it is taken from
//! `CRICTL` or the path, and what its frames look like is replayed by the tests of `cri-server/streaming` everywhere.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Output, Stdio};

use e2e::pod::SOON;
use e2e::terminal::Terminal;
use e2e::{Container, Node, Pod, container, image, pod, wait};

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// `None`, said loudly, where there is none.
fn crictl() -> Option<String> {
    let path = std::env::var("CRICTL").unwrap_or_else(|_| "crictl".to_owned());
    let there = Command::new(&path).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: crictl is not installed; CRICTL may name one");
    }
    there.then_some(path)
}

/// A node, and how `crictl` is called for it.
struct Bench {
    node: Node,
    pod: Pod,
    container: Container,
    call: Vec<String>,
}

impl Bench {
    async fn set(crictl: String, script: &str) -> Self {
        let node = Node::with_busybox().await;
        let pod = node.run_pod(pod("pod")).await;
        let mut spec = container("main", image::BUSYBOX).shell(script);
        spec.config.stdin = true;
        let container = pod.start(&spec).await;
        let call = vec![crictl, "--runtime-endpoint".to_owned(), node.endpoint()];
        Self { node, pod, container, call }
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        self.call.iter().map(String::as_str).chain(words.iter().copied()).collect()
    }

    fn start(&self, words: &[&str]) -> Child {
        let words = self.words(words);
        Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// With all of its input at once.
    fn run(&self, words: &[&str], input: &[u8]) -> Output {
        let mut child = self.start(words);
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

#[tokio::test]
async fn crictl_runs_commands_with_streams_codes_and_terminals_over_both_transports() {
    let Some(crictl) = crictl() else { return };
    let bench = Bench::set(crictl, "sleep 1000").await;
    let id = &*bench.container.id;
    let noise: Vec<u8> =
        (0..200_000_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for transport in TRANSPORTS {
        let exec = ["exec", "--transport", transport];
        let done = bench.run(&[&exec[..], &["-i", id, "cat"]].concat(), &noise);
        assert!(done.status.success(), "{transport}: {}", String::from_utf8_lossy(&done.stderr));
        assert!(done.stdout == noise, "{transport}: what cat was given comes back");

        let script = "echo out; echo err >&2; exit 7";
        let done = bench.run(&[&exec[..], &[id, "sh", "-c", script]].concat(), b"");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert_eq!(&*done.stdout, b"out\n", "{transport}");
        let told = said.lines().any(|line| line == "err") && said.contains("exit code 7");
        assert!(told, "{transport}: {said}");
        assert!(!done.status.success(), "{transport}");

        let script = "until [ \"$(stty size)\" = '45 123' ]; do sleep 0.05; done; echo first; \
                      until [ \"$(stty size)\" = '50 99' ]; do sleep 0.05; done; echo second; cat";
        let words = bench.words(&["exec", "--transport", transport, "-it", id, "sh", "-c", script]);
        let mut terminal = Terminal::open(&words, (45, 123));
        terminal.until("first\r\n");
        terminal.resize((50, 99));
        terminal.until("second\r\n");
        terminal.press("word\r");
        terminal.until("word\r\nword\r\n"); // the terminal's echo, then cat's
        terminal.press("\u{4}");
        assert!(terminal.end().success(), "{transport}");
    }
    bench.node.finish().await;
}

#[tokio::test]
async fn crictl_attaches_and_goes_and_the_container_stays() {
    let Some(crictl) = crictl() else { return };
    let bench = Bench::set(crictl, "while read line; do echo got $line; done").await;
    for transport in TRANSPORTS {
        let mut client =
            bench.start(&["attach", "-i", "--transport", transport, &bench.container.id]);
        let mut input = client.stdin.take().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        writeln!(input, "{transport}").unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), format!("got {transport}"));
        client.kill().unwrap();
        client.wait().unwrap();
    }
    assert_eq!(bench.container.shell("echo alive").await, "alive");
    bench.node.finish().await;
}

#[tokio::test]
async fn crictl_forwards_ports_over_both_transports() {
    let Some(crictl) = crictl() else { return };
    let script = "nc -ll -p 81 -e sh -c 'read line; echo got $line' & sleep 1000";
    let bench = Bench::set(crictl, script).await;
    bench.container.shell("until netstat -ltn | grep -q ':81 '; do sleep 0.05; done").await;
    for transport in TRANSPORTS {
        let words = ["port-forward", "--transport", transport, &bench.pod.id, "0:81"];
        let mut client = bench.start(&words);
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it says where").unwrap();
        // "Forwarding from 127.0.0.1:12345 -> 81"
        let address = first.split_whitespace().nth(2).unwrap_or_else(|| panic!("{first}"));
        for number in 0..3 {
            let mut socket =
                wait::until("the forwarded port", SOON, || TcpStream::connect(address).ok());
            writeln!(socket, "{transport} {number}").unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).unwrap();
            assert_eq!(answer, format!("got {transport} {number}\n"));
        }
        client.kill().unwrap();
        client.wait().unwrap();
    }
    bench.node.finish().await;
}
