//! Port-forward by every protocol.

use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use super::client::{Client, split};
use super::{LIMITS, start};

/// Answers each connection with what it got, turned round, after the client has finished: half close works.
async fn reverser() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                socket.read_to_end(&mut bytes).await.unwrap();
                bytes.reverse();
                socket.write_all(&bytes).await.unwrap();
            });
        }
    });
    port
}

/// A port on which nobody listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn many_connections_share_a_session_and_an_error_touches_one_only() {
    let running = start(LIMITS, None).await;
    let (good, other, bad) = (reverser().await, reverser().await, closed_port().await);
    let mut client = Client::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let ports = [good, bad, other, good];
    for (id, port) in (1..).step_by(4).zip(ports) {
        client.open_port(id, port).await;
    }
    for data in [3, 7, 11, 15] {
        client.send(data, format!("hello {data}").as_bytes()).await;
        client.finish(data).await;
    }
    let got = client.until_over(&[1, 3, 5, 7, 9, 11, 13, 15]).await;
    for data in [3, 11, 15] {
        let reversed: String = format!("hello {data}").chars().rev().collect();
        assert_eq!((got[&data].text(), got[&data].finished), (&*reversed, true));
        assert_eq!(got[&(data - 2)].text(), "");
    }
    let expect = format!("error forwarding port {bad}: Connection refused");
    assert!(got[&5].text().starts_with(&expect), "{got:?}");
    // The session is as good as before.
    client.open_port(17, good).await;
    client.send(19, b"again").await;
    client.finish(19).await;
    assert_eq!(client.until_over(&[19]).await[&19].text(), "niaga");
    drop(client);
    running.settled().await;
}

#[tokio::test]
async fn a_port_that_was_not_asked_for_is_not_dialled() {
    let running = start(LIMITS, None).await;
    let port = reverser().await;
    let mut client = Client::connect(&running.forward(&[1]), "portforward.k8s.io").await;
    client.open_port(1, port).await;
    let got = client.until_over(&[1]).await;
    assert!(got[&1].text().ends_with("this port was not asked for"), "{got:?}");
}

#[tokio::test]
async fn clients_that_do_not_number_their_requests_are_served() {
    let running = start(LIMITS, None).await;
    let port = reverser().await.to_string();
    let mut client = Client::connect(&running.forward(&[]), "portforward.k8s.io").await;
    client.open(1, &[("streamtype", "error"), ("port", &port)]).await;
    client.open(3, &[("streamtype", "data"), ("port", &port)]).await;
    client.send(3, b"abc").await;
    client.finish(3).await;
    assert_eq!(client.until_over(&[3]).await[&3].text(), "cba");
}

#[tokio::test]
async fn a_reset_ends_the_connection_to_the_pod() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let running = start(LIMITS, None).await;
    let mut client = Client::connect(&running.forward(&[]), "portforward.k8s.io").await;
    client.open_port(1, listener.local_addr().unwrap().port()).await;
    let (mut pod, _) = listener.accept().await.unwrap();
    let mut reset = Vec::new();
    crate::spdy::frame::rst_stream(3, crate::spdy::frame::Reset::Cancel, &mut reset);
    client.raw(&reset).await;
    assert_eq!(pod.read(&mut [0; 8]).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_megabyte_each_way_is_intact() {
    let running = start(LIMITS, None).await;
    let port = reverser().await;
    let mut client = Client::connect(&running.forward(&[port]), "portforward.k8s.io").await;
    client.open_port(1, port).await;
    let mut bytes: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    for piece in bytes.chunks(30_000) {
        client.send(3, piece).await;
    }
    client.finish(3).await;
    let got = client.until_over(&[3]).await;
    bytes.reverse();
    assert!(got[&3].bytes == bytes, "{} bytes came back", got[&3].bytes.len());
}

#[tokio::test]
async fn websocket_channels_forward_ports() {
    let running = start(LIMITS, None).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (good, bad) = (listener.local_addr().unwrap().port(), closed_port().await);
    let url = format!("{}?port={bad}&port={good}", running.forward(&[]));
    let socket = TcpStream::connect(split(&url).0).await.unwrap();
    let mut request = url.replace("http:", "ws:").into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "v4.channel.k8s.io".parse().unwrap());
    let (mut socket, _) = client_async(request, socket).await.unwrap();
    socket.send(Message::Binary(Bytes::from_static(b"\x02ping"))).await.unwrap();
    let (mut pod, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 4];
    pod.read_exact(&mut bytes).await.unwrap();
    pod.write_all(b"pong").await.unwrap();
    assert_eq!(&bytes, b"ping");
    drop((pod, listener));
    let mut channels = vec![BytesMut::new(); 4];
    while channels[2].len() < 6 || channels[1].len() < 3 {
        let Message::Binary(it) = socket.next().await.unwrap().unwrap() else { panic!() };
        channels[usize::from(it[0])].extend_from_slice(&it[1..]);
    }
    assert_eq!(&channels[2][..], [&good.to_le_bytes()[..], b"pong"].concat());
    assert_eq!(&channels[3][..], good.to_le_bytes());
    assert!(channels[1][2..].starts_with(b"error forwarding port"), "{channels:?}");
}

#[tokio::test]
async fn spdy_goes_through_a_websocket() {
    let running = start(LIMITS, None).await;
    let port = reverser().await;
    let url = running.forward(&[]);
    let socket = TcpStream::connect(split(&url).0).await.unwrap();
    let mut request = url.replace("http:", "ws:").into_client_request().unwrap();
    let protocol = "SPDY/3.1+portforward.k8s.io";
    request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
    let (websocket, response) = client_async(request, socket).await.unwrap();
    assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
    let (near, far) = duplex(1 << 16);
    tokio::spawn(carry(websocket, far));
    let mut client = Client::new(Box::new(near), BytesMut::new(), String::new());
    client.open_port(1, port).await;
    client.send(3, b"tunnel").await;
    client.finish(3).await;
    assert_eq!(client.until_over(&[3]).await[&3].text(), "lennut");
    drop(client);
    running.settled().await;
}

/// The client's end of the tunnel.
async fn carry(mut socket: tokio_tungstenite::WebSocketStream<TcpStream>, mut bytes: DuplexStream) {
    let mut buffer = vec![0; 4096];
    loop {
        tokio::select! {
            read = bytes.read(&mut buffer) => match read {
                Ok(length @ 1..) => {
                    let message = Message::Binary(Bytes::copy_from_slice(&buffer[..length]));
                    socket.send(message).await.unwrap();
                }
                Ok(0) | Err(_) => return drop(socket.close(None).await),
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(piece))) => bytes.write_all(&piece).await.unwrap(),
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return,
            },
        }
    }
}
