//! Between a client and the registry: counts what comes back, and cuts it where it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The wire; it goes with the runtime.
pub(crate) struct Wire {
    pub(crate) address: String,
    state: Arc<State>,
}

struct State {
    upstream: String,
    passed: AtomicU64,
    /// No byte passes beyond.
    limit: AtomicU64,
}

/// Large enough that the wire is not what is measured.
const BUFFER: usize = 256 << 10;

impl Wire {
    pub(crate) async fn start(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (passed, limit) = (AtomicU64::new(0), AtomicU64::new(u64::MAX));
        let state = Arc::new(State { upstream, passed, limit });
        let serving = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&serving);
                tokio::spawn(async move { state.carry(client).await });
            }
        });
        Self { address, state }
    }

    /// Bytes that came back since the last time.
    pub(crate) fn take(&self) -> u64 {
        self.state.passed.swap(0, Ordering::SeqCst)
    }

    /// From now on so many bytes, and then nobody is there.
    pub(crate) fn cut_after(&self, bytes: u64) {
        self.state.limit.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        self.state.limit.store(u64::MAX, Ordering::SeqCst);
    }
}

impl State {
    fn is_cut(&self) -> bool {
        self.passed.load(Ordering::SeqCst) >= self.limit.load(Ordering::SeqCst)
    }

    /// Both directions until either ends or the wire is cut.
    async fn carry(&self, client: TcpStream) {
        if self.is_cut() {
            return;
        }
        let Ok(server) = TcpStream::connect(&self.upstream).await else { return };
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let back = async {
            let mut buffer = vec![0; BUFFER];
            while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                self.passed.fetch_add(length as u64, Ordering::SeqCst);
                if self.is_cut() || to_client.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        };
        let forth = tokio::io::copy(&mut from_client, &mut to_server);
        tokio::select! {
            () = back => {}
            _ = forth => {}
        }
    }
}
