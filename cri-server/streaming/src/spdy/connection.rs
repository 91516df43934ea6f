//! One SPDY connection: many streams over one socket, each with an end of its own in both directions.
//!
//! One task reads. It never waits for the socket to take anything, so client and server cannot lock each other up:
//! answers go into a bounded queue that whoever holds the socket next writes first. Each writer of a stream holds the
//! socket for one frame. What a stream's reader has not taken yet waits in a short queue; when that is full, the
//! socket is no longer read, and TCP brakes the client.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::flow::{INITIAL, Windows};
use super::frame::{self, Decoder, Fault, Frame, Goodbye, Reset};
use super::headers::{Deflater, Headers};
use crate::activity::Activity;
use crate::socket::{BoxRead, BoxWrite, Liveness};

/// One read of the socket, and the largest piece of data that is handed on.
const READ: usize = 64 * 1024;
/// Pieces that wait for the reader of a stream: at most 256 KiB.
const INBOX: usize = 4;
/// Streams at once: a port-forward has two per connection.
const STREAMS_MAX: usize = 2048;
/// New streams that nobody has taken yet.
const BACKLOG: usize = 16;
/// Answers that the client does not take. More is a flood of pings or of streams.
const CONTROL_MAX: usize = 64 * 1024;
/// Credit is given back in portions: half a window.
const CREDIT: u32 = INITIAL as u32 / 2;

/// The streams that the client opens.
#[derive(Debug)]
pub(crate) struct Streams {
    new: mpsc::Receiver<Stream>,
    shared: Arc<Shared>,
}

/// A stream that the client has opened; both directions are open unless it said otherwise.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(crate) receiver: Receiver,
    pub(crate) sender: Sender,
}

/// What the client sends on a stream.
#[derive(Debug)]
pub(crate) struct Receiver {
    inbox: mpsc::Receiver<Bytes>,
    id: u32,
    /// Taken, and not yet given back as credit.
    taken: u32,
    shared: Arc<Shared>,
}

/// What we send on a stream.
#[derive(Debug)]
pub(crate) struct Sender {
    id: u32,
    gone: CancellationToken,
    finished: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Windows grew.
    opened: Notify,
    control: Mutex<Control>,
    /// Something is in the control queue.
    queued: Notify,
    socket: tokio::sync::Mutex<Socket>,
    /// The connection is over.
    ended: CancellationToken,
    activity: Arc<Activity>,
}

struct Socket {
    write: BoxWrite,
    /// A frame was cut off in the middle: nothing that follows would be understood.
    broken: bool,
}

#[derive(Debug, Default)]
struct Control {
    queue: Vec<u8>,
    deflater: Deflater,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<u32, Entry>,
    windows: Windows,
    last: u32,
    /// The client opens no more streams.
    going: bool,
}

#[derive(Debug)]
struct Entry {
    /// `None`: the client has finished its side.
    inbox: Option<mpsc::Sender<Bytes>>,
    window: i64,
    /// We have finished our side.
    finished: bool,
    /// The stream is no more: reset, or its connection has ended.
    gone: CancellationToken,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Socket").field("broken", &self.broken).finish_non_exhaustive()
    }
}

/// Serves a connection by tasks of `tasks`; `early` is what was read of it already.
pub(crate) fn start(
    (read, write): (BoxRead, BoxWrite),
    early: Bytes,
    liveness: Liveness,
    activity: Arc<Activity>,
    tasks: &mut JoinSet<()>,
) -> Streams {
    let (accept, new) = mpsc::channel(BACKLOG);
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        opened: Notify::new(),
        control: Mutex::default(),
        queued: Notify::new(),
        socket: tokio::sync::Mutex::new(Socket { write, broken: false }),
        ended: CancellationToken::new(),
        activity,
    });
    let reader = Reader { shared: shared.clone(), accept, liveness };
    tasks.spawn(reader.run(read, BytesMut::from(early)));
    tasks.spawn(write_control(shared.clone()));
    Streams { new, shared }
}

impl Streams {
    /// The next stream; `None`: the connection is over.
    pub(crate) async fn next(&mut self) -> Option<Stream> {
        self.new.recv().await
    }

    /// Ends when the client is gone.
    pub(crate) async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Says good-bye and closes our direction; then what the client still sends is read and dropped until it closes.
    pub(crate) async fn close(&self) {
        let last = lock(&self.shared.state).last;
        let _ = self.shared.queue(|it| frame::go_away(last, Goodbye::Ok, &mut it.queue));
        let closing = async {
            let mut socket = self.shared.socket.lock().await;
            self.shared.flush(&mut socket).await?;
            socket.write.shutdown().await
        };
        if closing.await.is_ok() {
            self.ended().await;
        }
    }
}

impl Receiver {
    /// The next piece; `None`: the client has finished, has reset the stream, or is gone.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.give_credit();
        let piece = self.inbox.recv().await?;
        self.taken += piece.len() as u32;
        Some(piece)
    }

    fn give_credit(&mut self) {
        if self.taken >= CREDIT {
            let (id, delta) = (self.id, std::mem::take(&mut self.taken));
            // A full queue ends the connection, where it is filled.
            let _ = self.shared.queue(|it| {
                frame::window_update(id, delta, &mut it.queue);
                frame::window_update(0, delta, &mut it.queue);
            });
        }
    }
}

impl Sender {
    /// Sends what stands behind the first `frame::HEADER` bytes, which are overwritten.
    pub(crate) async fn send(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let mut from = 0;
        while from + frame::HEADER < buffer.len() {
            let take = self.window(buffer.len() - frame::HEADER - from).await?;
            let frame = &mut buffer[from..from + frame::HEADER + take];
            frame[..frame::HEADER].copy_from_slice(&frame::data_header(self.id, false, take));
            self.shared.write(frame).await?;
            // The end of the payload just sent becomes room for the next header.
            from += take;
        }
        Ok(())
    }

    /// We send nothing more.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.finished, true) || self.gone.is_cancelled() {
            return Ok(());
        }
        let written = self.shared.write(&frame::data_header(self.id, true, 0)).await;
        self.shared.finish(self.id);
        written
    }

    /// Ends both directions at once.
    pub(crate) fn reset(&mut self) {
        self.finished = true;
        self.shared.reset(self.id, Reset::Cancel);
    }

    /// Ends when the client has reset the stream or is gone.
    pub(crate) fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    async fn window(&self, want: usize) -> io::Result<usize> {
        loop {
            let opened = self.shared.opened.notified();
            tokio::pin!(opened);
            opened.as_mut().enable();
            if self.finished || self.gone.is_cancelled() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            {
                let State { entries, windows, .. } = &mut *lock(&self.shared.state);
                let entry = entries.get_mut(&self.id).ok_or(io::ErrorKind::BrokenPipe)?;
                match windows.take(&mut entry.window, want) {
                    0 => {}
                    take => return Ok(take),
                }
            }
            tokio::select! {
                () = opened => {}
                () = self.gone.cancelled() => {}
            }
        }
    }
}

impl Drop for Sender {
    /// A stream that is let go in the middle must not look finished.
    fn drop(&mut self) {
        if !self.finished && !self.gone.is_cancelled() {
            self.reset();
        }
    }
}

impl Shared {
    fn queue(&self, add: impl FnOnce(&mut Control)) -> Result<(), Fault> {
        let mut control = lock(&self.control);
        if control.queue.len() > CONTROL_MAX {
            return Err(Fault::Flood);
        }
        add(&mut control);
        drop(control);
        self.queued.notify_one();
        Ok(())
    }

    /// What is queued goes first: an answer to a stream comes before its data.
    async fn write(&self, frame: &[u8]) -> io::Result<()> {
        let mut socket = self.socket.lock().await;
        self.flush(&mut socket).await?;
        put(&mut socket, frame).await?;
        self.activity.touch();
        Ok(())
    }

    async fn flush(&self, socket: &mut Socket) -> io::Result<()> {
        let queue = std::mem::take(&mut lock(&self.control).queue);
        if queue.is_empty() { Ok(()) } else { put(socket, &queue).await }
    }

    fn finish(&self, id: u32) {
        let mut state = lock(&self.state);
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.finished = true;
            if entry.inbox.is_none() {
                state.entries.remove(&id);
            }
        }
    }

    fn reset(&self, id: u32, reset: Reset) {
        let entry = lock(&self.state).entries.remove(&id);
        if let Some(entry) = entry {
            entry.gone.cancel();
            let _ = self.queue(|it| frame::rst_stream(id, reset, &mut it.queue));
        }
    }
}

async fn put(socket: &mut Socket, bytes: &[u8]) -> io::Result<()> {
    if std::mem::replace(&mut socket.broken, true) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    socket.write.write_all(bytes).await?;
    socket.write.flush().await?;
    socket.broken = false;
    Ok(())
}

/// Writes queued answers when nobody else does.
async fn write_control(shared: Arc<Shared>) {
    loop {
        shared.queued.notified().await;
        let mut socket = shared.socket.lock().await;
        if shared.flush(&mut socket).await.is_err() {
            return;
        }
    }
}

/// The one task that reads.
struct Reader {
    shared: Arc<Shared>,
    accept: mpsc::Sender<Stream>,
    liveness: Liveness,
}

impl Reader {
    async fn run(mut self, mut read: BoxRead, mut buffer: BytesMut) {
        let result = self.read(&mut read, &mut buffer).await;
        if let Err(fault) = result {
            tracing::debug!(%fault, "SPDY connection ended");
            let last = lock(&self.shared.state).last;
            let _ = self.shared.queue(|it| frame::go_away(last, Goodbye::Protocol, &mut it.queue));
            let mut socket = self.shared.socket.lock().await;
            let _ = self.shared.flush(&mut socket).await;
            let _ = socket.write.shutdown().await;
        }
        for (_, entry) in lock(&self.shared.state).entries.drain() {
            entry.gone.cancel();
        }
        self.shared.ended.cancel();
    }

    /// Until the client closes, or breaks the rules.
    async fn read(&mut self, read: &mut BoxRead, buffer: &mut BytesMut) -> Result<(), Fault> {
        let mut decoder = Decoder::default();
        loop {
            while let Some(frame) = decoder.next(buffer)? {
                if !self.take(frame).await? {
                    return Ok(());
                }
            }
            buffer.reserve(READ);
            match read.read_buf(buffer).await {
                Ok(n) if n > 0 => self.shared.activity.touch(),
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }

    /// False when the client is gone.
    async fn take(&mut self, frame: Frame) -> Result<bool, Fault> {
        match frame {
            Frame::Data { stream, fin, bytes } => return self.data(stream, fin, bytes).await,
            Frame::SynStream { stream, fin, unidirectional, headers } => {
                return self.open(stream, fin, unidirectional, headers).await;
            }
            Frame::RstStream { stream, .. } => {
                if let Some(entry) = lock(&self.shared.state).entries.remove(&stream) {
                    entry.gone.cancel();
                }
            }
            Frame::Ping { id } if id % 2 == 1 => {
                self.shared.queue(|it| frame::ping(id, &mut it.queue))?;
            }
            Frame::GoAway { .. } => lock(&self.shared.state).going = true,
            Frame::Settings { initial_window: Some(initial) } => {
                let State { entries, windows, .. } = &mut *lock(&self.shared.state);
                windows.settings(initial, entries.values_mut().map(|entry| &mut entry.window));
                self.shared.opened.notify_waiters();
            }
            Frame::WindowUpdate { stream, delta } => {
                self.grow(stream, delta)?;
                self.shared.opened.notify_waiters();
            }
            Frame::Headers { stream, fin: true, .. } => self.client_finished(stream),
            // Answers to streams and pings of ours, which we do not send.
            Frame::SynReply { .. }
            | Frame::Headers { .. }
            | Frame::Ping { .. }
            | Frame::Settings { .. } => {}
        }
        Ok(true)
    }

    async fn open(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    ) -> Result<bool, Fault> {
        let (inbox, receiver) = mpsc::channel(INBOX);
        let gone = self.shared.ended.child_token();
        {
            let mut state = lock(&self.shared.state);
            if id.is_multiple_of(2) || id <= state.last {
                return Err(Fault::StreamOrder(id));
            }
            state.last = id;
            if state.going || state.entries.len() >= STREAMS_MAX {
                drop(state);
                self.shared.queue(|it| frame::rst_stream(id, Reset::Refused, &mut it.queue))?;
                return Ok(true);
            }
            let entry = Entry {
                inbox: (!fin).then_some(inbox),
                window: state.windows.open(),
                finished: unidirectional,
                gone: gone.clone(),
            };
            state.entries.insert(id, entry);
        }
        self.shared.queue(|it| frame::syn_reply(id, &mut it.deflater, &mut it.queue))?;
        let shared = || self.shared.clone();
        let stream = Stream {
            id,
            headers,
            receiver: Receiver { inbox: receiver, id, taken: 0, shared: shared() },
            sender: Sender { id, gone, finished: unidirectional, shared: shared() },
        };
        Ok(self.accept.send(stream).await.is_ok() || !self.shared.ended.is_cancelled())
    }

    async fn data(&mut self, id: u32, fin: bool, bytes: Bytes) -> Result<bool, Fault> {
        let inbox = {
            let state = lock(&self.shared.state);
            match state.entries.get(&id) {
                Some(entry) => entry.inbox.clone(),
                // On its way while we reset the stream.
                None if id <= state.last => None,
                None => {
                    drop(state);
                    self.shared
                        .queue(|it| frame::rst_stream(id, Reset::InvalidStream, &mut it.queue))?;
                    return Ok(true);
                }
            }
        };
        if let Some(inbox) = inbox
            && !bytes.is_empty()
            && let Err(mpsc::error::TrySendError::Full(bytes)) = inbox.try_send(bytes)
        {
            let alive = self.liveness.while_alive(inbox.send(bytes)).await;
            if alive.is_none() {
                return Ok(false);
            }
        }
        if fin {
            self.client_finished(id);
        }
        Ok(true)
    }

    fn client_finished(&self, id: u32) {
        let mut state = lock(&self.shared.state);
        if let Some(entry) = state.entries.get_mut(&id) {
            entry.inbox = None;
            if entry.finished {
                state.entries.remove(&id);
            }
        }
    }

    fn grow(&self, id: u32, delta: u32) -> Result<(), Fault> {
        let State { entries, windows, .. } = &mut *lock(&self.shared.state);
        let grown = match id {
            0 => windows.update_session(delta),
            id => match entries.get_mut(&id) {
                Some(entry) => windows.update(&mut entry.window, delta),
                None => Ok(()),
            },
        };
        grown.map_err(|_| Fault::Window(id))
    }
}

/// Nothing panics while holding it, so the data of a poisoned lock is whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
