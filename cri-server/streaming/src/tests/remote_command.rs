//! Exec by every protocol and version.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::client::{Client, split};
use super::{LIMITS, Running, start};
use crate::spdy::frame::{self, Frame};
use crate::{Errand, Timeouts, Wanted};

const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;

#[tokio::test]
async fn a_command_gets_its_input_and_its_end_and_the_client_its_output_and_exit_code() {
    let running = start(LIMITS, None).await;
    let script = "cat; echo problem >&2; exit 3";
    let mut client = Client::connect(&running.exec(script), "v4.channel.k8s.io").await;
    assert!(client.answer.starts_with("HTTP/1.1 101 "), "{}", client.answer);
    let answer = client.answer.to_lowercase();
    for header in ["x-stream-protocol-version: v4.channel.k8s.io", "connection: upgrade"] {
        assert!(answer.contains(header), "{answer}");
    }
    client.open_exec().await;
    client.send(3, b"\0binary\xff").await;
    client.finish(3).await;
    let got = client.rest().await;
    assert_eq!(got[&5].bytes, b"\0binary\xff");
    assert_eq!(got[&7].text(), "problem\n");
    assert!(got[&1].text().contains(r#""reason":"ExitCode","message":"3""#), "{got:?}");
    assert!([1, 3, 5, 7].iter().all(|id| got[id].finished && !got[id].reset), "{got:?}");
    running.settled().await;
}

#[tokio::test]
async fn older_versions_say_the_end_in_words() {
    let running = start(LIMITS, None).await;
    for version in ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io"] {
        for (script, words) in
            [("true", ""), ("exit 3", "command terminated with non-zero exit code: exit status 3")]
        {
            let mut client = Client::connect(&running.exec(script), version).await;
            client.open_exec().await;
            let got = client.rest().await;
            assert_eq!((got[&1].text(), got[&1].finished), (words, true), "{version}");
        }
    }
    running.settled().await;
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_an_error_of_the_server() {
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.exec("absent"), "v4.channel.k8s.io").await;
    client.open_exec().await;
    let got = client.rest().await;
    assert!(got[&1].text().contains("executing command in container: no such file"), "{got:?}");
    assert!(got[&1].text().contains("InternalError") && got[&5].finished);
    running.settled().await;
}

#[tokio::test]
async fn a_megabyte_comes_back_whole_from_a_client_that_is_slow_to_read() {
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.exec("sleep 0.2; cat"), "v4.channel.k8s.io").await;
    client.open_exec().await;
    // More than all buffers on the way hold would need a client that reads meanwhile.
    let bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for piece in bytes.chunks(30_000) {
        client.send(3, piece).await;
    }
    client.finish(3).await;
    let got = client.rest().await;
    assert!(got[&5].bytes == bytes, "{} bytes came back", got[&5].bytes.len());
    assert_eq!(got[&1].text(), SUCCESS);
}

#[tokio::test]
async fn a_client_that_keeps_windows_is_waited_for() {
    let running = start(LIMITS, None).await;
    let script = "head -c 100000 /dev/zero";
    let mut client = Client::connect(&running.exec(script), "v4.channel.k8s.io").await;
    // SETTINGS: windows of 1000 bytes.
    client.raw(&[0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 3, 0xe8]).await;
    client.open_exec().await;
    let (mut open, mut total, mut ended) = (1000i64, 0, false);
    while let Some(frame) = client.next().await {
        if let Frame::Data { stream: 5, bytes, fin } = frame {
            open -= bytes.len() as i64;
            total += bytes.len();
            ended |= fin;
            assert!(open >= 0, "sent more than the window");
            if open == 0 {
                let mut update = Vec::new();
                frame::window_update(5, 1000, &mut update);
                client.raw(&update).await;
                open = 1000;
            }
        }
    }
    assert_eq!((total, ended), (100_000, true));
}

#[tokio::test]
async fn input_earns_credit() {
    let running = start(LIMITS, None).await;
    let script = "cat >/dev/null";
    let mut client = Client::connect(&running.exec(script), "v4.channel.k8s.io").await;
    client.open_exec().await;
    client.send(3, &[0; 60_000]).await;
    let mut credit = 0;
    while credit < 60_000 / 2 {
        if let Frame::WindowUpdate { stream: 3, delta } = client.next().await.unwrap() {
            credit += delta as usize;
        }
    }
    assert!(credit <= 60_000);
}

#[tokio::test]
async fn a_client_that_vanishes_ends_its_command() {
    let running = start(LIMITS, None).await;
    for _ in 0..20 {
        // Longer than anybody waits here; what the double of a shim does not end ends by itself.
        let script = "trap '' HUP; sleep 30 & sleep 30";
        let mut client = Client::connect(&running.exec(script), "v4.channel.k8s.io").await;
        client.open_exec().await;
        // An answer to the last stream says that all were taken.
        while !matches!(client.next().await.unwrap(), Frame::SynReply { stream: 7, .. }) {}
    }
    running.settled().await;
}

#[tokio::test]
async fn a_client_that_vanishes_while_its_input_is_not_taken_is_noticed() {
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.exec("sleep 30"), "v4.channel.k8s.io").await;
    client.open_exec().await;
    let full = async {
        loop {
            client.send(3, &[0; 64 * 1024]).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(500), full).await.is_err(), "it brakes");
    drop(client);
    running.settled().await;
}

#[tokio::test]
async fn pings_are_answered_and_broken_rules_end_the_connection() {
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.exec("cat"), "v4.channel.k8s.io").await;
    let mut ping = Vec::new();
    frame::ping(77, &mut ping);
    client.raw(&ping).await;
    assert_eq!(client.next().await, Some(Frame::Ping { id: 77 }));
    client.open(4, &[("streamtype", "stdin")]).await;
    assert!(matches!(client.next().await, Some(Frame::GoAway { .. })));
    assert_eq!(client.next().await, None);
    running.settled().await;
}

#[tokio::test]
async fn a_stream_that_nobody_expects_is_reset_and_harms_nothing() {
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.exec("echo hello"), "v4.channel.k8s.io").await;
    for (id, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stdout"), (9, "stderr")] {
        client.open(id, &[("streamtype", kind)]).await;
    }
    let got = client.rest().await;
    assert!(got[&7].reset && got[&5].text() == "hello\n", "{got:?}");
}

#[tokio::test]
async fn a_client_that_does_not_open_its_streams_is_not_kept() {
    let timeouts = Timeouts { creation: Duration::from_millis(50), ..LIMITS };
    let running = start(timeouts, None).await;
    let mut client = Client::connect(&running.exec("cat"), "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.rest().await;
    running.settled().await;
}

#[tokio::test]
async fn a_session_in_which_nothing_moves_ends() {
    let running = start(Timeouts { idle: Duration::from_millis(200), ..LIMITS }, None).await;
    let mut client = Client::connect(&running.exec("cat"), "v4.channel.k8s.io").await;
    client.open_exec().await;
    client.rest().await;
    running.settled().await;
}

#[tokio::test]
async fn a_child_that_keeps_the_output_open_does_not_hold_the_session() {
    let running = start(LIMITS, None).await;
    let script = "sleep 5 & echo done";
    let mut client = Client::connect(&running.exec(script), "v4.channel.k8s.io").await;
    client.open_exec().await;
    let got = tokio::time::timeout(Duration::from_secs(4), client.rest()).await.unwrap();
    assert_eq!((got[&5].text(), got[&1].text()), ("done\n", SUCCESS));
}

async fn websocket(running: &Running, script: &str, protocol: &str) -> WebSocketStream<TcpStream> {
    let url = running.exec(script);
    let socket = TcpStream::connect(split(&url).0).await.unwrap();
    let mut request = url.replace("http:", "ws:").into_client_request().unwrap();
    if !protocol.is_empty() {
        request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    }
    let (socket, response) = client_async(request, socket).await.unwrap();
    let chosen = response.headers().get("sec-websocket-protocol");
    assert_eq!(chosen.map_or("", |it| it.to_str().unwrap()), protocol);
    socket
}

#[tokio::test]
async fn websocket_clients_of_every_version_are_served() {
    let running = start(LIMITS, None).await;
    let words = "command terminated with non-zero exit code: exit status 3";
    for (protocol, expect) in [
        ("", words),
        ("channel.k8s.io", words),
        ("v4.channel.k8s.io", r#""message":"3""#),
        ("v5.channel.k8s.io", r#""message":"3""#),
    ] {
        let script = "head -c 5; echo problem >&2; exit 3";
        let mut socket = websocket(&running, script, protocol).await;
        socket.send(Message::Binary(Bytes::from_static(b"\0he\xffo!"))).await.unwrap();
        let mut channels = vec![BytesMut::new(); 4];
        let code = loop {
            match socket.next().await.unwrap().unwrap() {
                Message::Binary(it) => channels[usize::from(it[0])].extend_from_slice(&it[1..]),
                Message::Close(close) => break close.unwrap().code,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(u16::from(code), 1000, "anything else is a failure to clients");
        assert_eq!((&channels[1][..], &channels[2][..]), (&b"he\xffo!"[..], &b"problem\n"[..]));
        assert!(
            channels[3].ends_with(expect.as_bytes())
                || std::str::from_utf8(&channels[3]).unwrap().contains(expect)
        );
    }
    running.settled().await;
}

#[tokio::test]
async fn base64_clients_are_served() {
    let running = start(LIMITS, None).await;
    for protocol in ["base64.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let mut socket = websocket(&running, "head -c 2", protocol).await;
        socket.send(Message::Text("0aGk=".into())).await.unwrap();
        let mut texts = String::new();
        while let Some(Ok(Message::Text(text))) = socket.next().await {
            texts.push_str(&text);
        }
        assert!(texts.starts_with("11aGk="), "an empty message, then the output: {texts}");
    }
    running.settled().await;
}

#[tokio::test]
async fn version_5_ends_the_input() {
    let running = start(LIMITS, None).await;
    let mut socket = websocket(&running, "cat; echo over", "v5.channel.k8s.io").await;
    socket.send(Message::Binary(Bytes::from_static(b"\0one "))).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
    let (mut output, mut status) = (Vec::new(), Vec::new());
    while let Some(Ok(Message::Binary(it))) = socket.next().await {
        if it[0] == 1 {
            output.extend_from_slice(&it[1..])
        } else {
            status.extend_from_slice(&it[1..])
        }
    }
    assert_eq!(output, b"one over\n");
    assert_eq!(status, SUCCESS.as_bytes());
    running.settled().await;
}

#[tokio::test]
async fn only_what_was_granted_is_given() {
    let running = start(LIMITS, None).await;
    let wanted = Wanted { stdin: false, stdout: true, stderr: false, tty: false };
    let url = running.server.issue(Errand::Exec(wanted), "cat; echo out; echo err >&2".to_owned());
    let mut client = Client::connect(&url.unwrap(), "v4.channel.k8s.io").await;
    client.open(1, &[("streamtype", "error")]).await;
    client.open(3, &[("streamtype", "stdout")]).await;
    let got = client.rest().await;
    assert_eq!((got[&3].text(), got[&1].text()), ("out\n", SUCCESS));
}
