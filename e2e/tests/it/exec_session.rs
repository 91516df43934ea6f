//! `lapstrake exec` with the user's input and terminal.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use e2e::node::binary;
use e2e::pod::SOON;
use e2e::terminal::{self, Terminal};
use e2e::{Node, Options, wait};

use crate::streaming::sleeping_on;

fn exec(node: &Node, words: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(binary("lapstrake"))
        .args(["exec", "--endpoint", &node.endpoint()])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not run reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn a_command_gets_the_input_and_its_exit_code_comes_back() {
    let (node, container) = sleeping_on(Options::default()).await;
    let noise: Vec<u8> =
        (0..3_000_000_u32).map(|it| (it.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
    let script = "cat; echo err >&2; exit 7";
    let done = exec(&node, &["-i", &container.id, "--", "sh", "-c", script], &noise);
    assert_eq!(done.status.code(), Some(7), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stdout == noise, "{} of {} bytes", done.stdout.len(), noise.len());
    assert_eq!(&*done.stderr, b"err\n");

    let done = exec(&node, &["-i", &container.id, "--", "/no/such/program"], b"");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("/no/such/program") && said.contains(&*container.id), "{said}");

    // More input than anybody takes is no reason to miss the end.
    let ended = Command::new("timeout")
        .arg("20")
        .arg(binary("lapstrake"))
        .args(["exec", "--endpoint", &node.endpoint(), "-i", &container.id, "--", "true"])
        .stdin(std::fs::File::open("/dev/zero").unwrap())
        .status();
    assert_eq!(ended.unwrap().code(), Some(0));

    let done = exec(&node, &["-it", &container.id, "--", "sh"], b"");
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!((done.status.code(), said.contains("--tty")), (Some(64), true), "{said}");
    node.finish().await;
}

#[tokio::test]
async fn a_terminal_is_handed_over_with_its_size_and_given_back() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("streaming.sock");
    let over_tcp = String::new();
    let over_unix = format!("[streaming]\nlisten = \"unix://{}\"\n", socket.display());
    for config in [over_tcp, over_unix] {
        let (node, container) = sleeping_on(Options { config, ..Options::default() }).await;
        let program = binary("lapstrake").display().to_string();
        let endpoint = node.endpoint();
        let script = "until [ \"$(stty size)\" = '45 123' ]; do sleep 0.05; done; echo first; \
                      until [ \"$(stty size)\" = '50 99' ]; do sleep 0.05; done; \
                      trap 'echo interrupted; exit 9' INT; echo second; while :; do sleep 0.05; done";
        let exec = [&*program, "exec", "--endpoint", &endpoint, "-it", &container.id, "--"];
        let words = [&exec[..], &["sh", "-c", script]].concat();
        // What is typed is for the command, and a person's shell comes after it.
        let shell = format!("{}; echo code $?; read line", terminal::quoted(&words));
        let mut terminal = Terminal::open(&["sh", "-c", &shell], (45, 123));
        terminal.until("first\r\n");
        assert!(terminal.settings().contains("-icanon"), "{}", terminal.settings());
        terminal.resize((50, 99));
        terminal.until("second\r\n");
        terminal.press("\u{3}");
        terminal.until("interrupted\r\ncode 9\r\n");
        let settings = terminal.settings();
        assert!(settings.contains(" icanon") && settings.contains(" echo "), "{settings}");
        terminal.press("\n");
        assert!(terminal.end().success());
        node.finish().await;
    }
}

#[tokio::test]
async fn a_client_that_is_killed_takes_its_command_along() {
    let (node, container) = sleeping_on(Options::default()).await;
    let mut client = Command::new(binary("lapstrake"))
        .args(["exec", "--endpoint", &node.endpoint(), "-i", &container.id, "--"])
        .args(["sleep", "7002"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let sleeps = async || {
        let found = container.shell("ps -o args | grep -c '[s]leep 7002' || true").await;
        found == "1"
    };
    wait::until_async("the command runs", SOON, || async { sleeps().await.then_some(()) }).await;
    client.kill().unwrap();
    client.wait().unwrap();
    wait::until_async("and ends", SOON, || async { (!sleeps().await).then_some(()) }).await;
    node.finish().await;
}
