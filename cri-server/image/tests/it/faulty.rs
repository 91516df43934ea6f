//! A registry that does what it is told to do wrong: a few lines of HTTP/1.1 on a loopback port.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::build::{Image, OCI_MANIFEST, digest};

/// What a client asked.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// What it gets.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Told instead of the body's length.
    pub(crate) length: Option<usize>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Wait this long after each byte beyond the first `fast`.
    pub(crate) trickle: Option<(usize, Duration)>,
    /// Close the connection without a word.
    pub(crate) hang_up: bool,
}

type Rule = Arc<dyn Fn(&Request) -> Option<Reply> + Send + Sync>;

/// The server; it ends with the test's runtime.
pub(crate) struct Faulty {
    pub(crate) address: String,
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
    pub(crate) sent: Arc<Mutex<u64>>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: &[u8]) -> Reply {
        let (headers, body) = (Vec::new(), body.to_vec());
        Reply { status, headers, body, length: None, cut: None, trickle: None, hang_up: false }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Reply {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn is_blob(&self, image: &Image, layer: usize) -> bool {
        self.target.ends_with(&digest(&image.layers[layer].bytes))
    }

    fn range_start(&self) -> usize {
        let range = self.header("range").strip_prefix("bytes=").unwrap_or("0-");
        range.split('-').next().and_then(|n| n.parse().ok()).unwrap_or(0)
    }
}

/// How a good registry answers for `image` under any name and tag.
pub(crate) fn honest(image: &Image, request: &Request) -> Reply {
    let target = request.target.split('?').next().unwrap_or_default();
    let manifest = image.manifest();
    let last = target.rsplit('/').next().unwrap_or_default();
    if target.contains("/manifests/") {
        return Reply::new(200, &manifest)
            .with("content-type", OCI_MANIFEST)
            .with("docker-content-digest", &digest(&manifest));
    }
    let blobs = image.layers.iter().map(|layer| &layer.bytes).chain([&image.config]);
    for blob in blobs {
        if digest(blob) == last {
            let start = request.range_start().min(blob.len());
            let status = if start > 0 { 206 } else { 200 };
            let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            return Reply::new(status, &blob[start..]).with("content-range", &range);
        }
    }
    Reply::new(404, br#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#)
}

impl Faulty {
    /// Serves `image` well except where `rule` has another answer.
    pub(crate) async fn start(
        image: Image,
        rule: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Faulty {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (seen, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let server =
            Arc::new((image, Arc::new(rule) as Rule, Arc::clone(&seen), Arc::clone(&sent)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    let (image, rule, seen, sent) = &*server;
                    let _ = serve(stream, image, rule, (seen, sent)).await;
                });
            }
        });
        Faulty { address, seen, sent }
    }

    pub(crate) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.seen.lock().unwrap().iter().filter(|r| r.target.contains(part)).count()
    }
}

async fn serve(
    stream: TcpStream,
    image: &Image,
    rule: &Rule,
    (seen, sent): (&Mutex<Vec<Request>>, &Mutex<u64>),
) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let Some(request) = read(&mut stream).await? else { return Ok(()) };
        seen.lock().unwrap().push(request.clone());
        let reply = rule(&request).unwrap_or_else(|| honest(image, &request));
        if reply.hang_up {
            return stream.shutdown().await;
        }
        let mut head = format!("HTTP/1.1 {} X\r\n", reply.status);
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = reply.length.unwrap_or(reply.body.len());
        head.push_str(&format!("content-length: {length}\r\n\r\n"));
        stream.write_all(head.as_bytes()).await?;
        if request.method == "HEAD" {
            continue;
        }
        let body = &reply.body[..reply.cut.unwrap_or(reply.body.len()).min(reply.body.len())];
        let fast = reply.trickle.map_or(body.len(), |(fast, _)| fast.min(body.len()));
        stream.write_all(&body[..fast]).await?;
        *sent.lock().unwrap() += fast as u64;
        for byte in &body[fast..] {
            tokio::time::sleep(reply.trickle.map_or(Duration::ZERO, |(_, pause)| pause)).await;
            stream.write_all(&[*byte]).await?;
        }
        if reply.cut.is_some() || reply.length.is_some() {
            return stream.shutdown().await;
        }
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = HashMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { method, target, headers, body: String::from_utf8_lossy(&body).into() }))
}
