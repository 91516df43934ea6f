//! What strangers cannot do.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{Client, split};
use super::{LIMITS, PLAIN, start};
use crate::{Errand, Refused};

#[tokio::test]
async fn a_url_works_once_and_for_its_own_verb() {
    let running = start(LIMITS, None).await;
    let url = running.exec("true");
    let status = async |url: &str| {
        let answer = Client::connect(url, "v4.channel.k8s.io").await.answer;
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(&url).await, "101");
    assert_eq!(status(&url).await, "404");
    let url = running.exec("true");
    assert_eq!(status(&url.replace("/exec/", "/attach/")).await, "404");
    assert_eq!(status(&url).await, "404", "spent");
    let longer = format!("{}/x", running.exec("true"));
    assert_eq!(status(&longer).await, "404");
    assert_eq!(status(&format!("http://{}/", split(&url).0)).await, "404");
    let secret = url.rsplit('/').next().unwrap();
    assert!(secret.len() * 6 >= 128, "{secret}");
}

#[tokio::test]
async fn waiting_requests_are_bounded() {
    let running = start(LIMITS, None).await;
    let issue = || running.server.issue(Errand::Exec(PLAIN), "true".to_owned());
    while issue().is_ok() {}
    assert_eq!(issue(), Err(Refused::TooMany));
    assert_eq!(running.server.waiting(), 1000);
}

#[tokio::test]
async fn requests_that_are_not_for_us_are_refused_in_words() {
    let running = start(LIMITS, None).await;
    let url = running.exec("true");
    let (host, path) = split(&url);
    let cases = [
        (format!("DELETE {path} HTTP/1.1\r\nHost: x\r\n\r\n"), "405"),
        (format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"), "400"),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ];
    for (request, status) in cases {
        let mut socket = TcpStream::connect(host).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.split(' ').nth(1), Some(status), "{request:?} got {answer:?}");
    }
    let wrong = Client::connect(&running.exec("true"), "v9.channel.k8s.io").await.answer;
    assert!(wrong.starts_with("HTTP/1.1 403 "), "{wrong}");
    assert!(wrong.to_lowercase().contains("x-accepted-stream-protocol-versions: v4.channel"));
}
