//! The thread that moves output from pipes and terminals to log files, and the queue by which it is told what to do.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::{Errno, read, write};

use super::file::LogFile;
use super::lines::{Head, Lines};
use container::stamp;

/// How long output is awaited after the main process has ended: a child that keeps the pipe open must not delay
/// the news of the exit.
const DRAIN: Duration = Duration::from_millis(250);
/// One read: the default capacity of a pipe.
const READ: usize = 64 * 1024;
/// What is still taken at the drain deadline of a stream that never pauses.
const LAST_READS: usize = 16;
/// Output buffers larger than this are given back when the streams fall silent.
const KEEP: usize = 4 * 1024;
/// Silence after which they are.
const QUIET: Duration = Duration::from_secs(1);
/// Its own frames only; the default of 2 MiB would just be address space, but a small one is honest.
const STACK: usize = 128 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A container's output and where it goes.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) key: u32,
    /// Non-blocking read ends.
    pub(crate) fds: Vec<(Stream, OwnedFd)>,
    pub(crate) path: Option<PathBuf>,
    pub(crate) line_max: usize,
    /// Counts bytes that could not be written.
    pub(crate) dropped: Arc<AtomicU64>,
}

/// What the thread has to tell.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All output of an ended container is in its log, or the drain deadline has passed.
    Drained {
        key: u32,
    },
    Reopened {
        key: u32,
        result: Result<(), Errno>,
    },
}

enum Order {
    Add(Source),
    Reopen(u32),
    Finish(u32),
    Quit,
}

/// The control thread's handle.
#[derive(Debug)]
pub(crate) struct Pump {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    orders: Mutex<Vec<Order>>,
    outcomes: Mutex<Vec<Outcome>>,
    to_pump: OwnedFd,
    to_control: OwnedFd,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Order")
    }
}

impl Pump {
    pub(crate) fn start() -> Result<Self, std::io::Error> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let shared = Arc::new(Shared {
            orders: Mutex::default(),
            outcomes: Mutex::default(),
            to_pump: eventfd(0, flags)?,
            to_control: eventfd(0, flags)?,
        });
        let mut worker = Worker::new(Arc::clone(&shared))?;
        std::thread::Builder::new()
            .name("log".into())
            .stack_size(STACK)
            .spawn(move || worker.run())?;
        Ok(Self { shared })
    }

    /// Readable when `outcomes` has something.
    pub(crate) fn wake(&self) -> &OwnedFd {
        &self.shared.to_control
    }

    pub(crate) fn outcomes(&self) -> Vec<Outcome> {
        let _ = read(&self.shared.to_control, &mut [0u8; 8]);
        std::mem::take(&mut *lock(&self.shared.outcomes))
    }

    pub(crate) fn add(&self, source: Source) {
        self.order(Order::Add(source));
    }

    pub(crate) fn reopen(&self, key: u32) {
        self.order(Order::Reopen(key));
    }

    /// The container has ended: drain, close, tell.
    pub(crate) fn finish(&self, key: u32) {
        self.order(Order::Finish(key));
    }

    pub(crate) fn quit(&self) {
        self.order(Order::Quit);
    }

    fn order(&self, order: Order) {
        lock(&self.shared.orders).push(order);
        let _ = write(&self.shared.to_pump, &1u64.to_ne_bytes());
    }
}

/// A panicking holder aborts the process in release builds, so a poisoned lock still holds whole data.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Worker {
    shared: Arc<Shared>,
    epoll: OwnedFd,
    logs: BTreeMap<u32, Log>,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Log {
    streams: [Option<Reader>; 2],
    file: LogFile,
    deadline: Option<Instant>,
}

struct Reader {
    fd: OwnedFd,
    lines: Lines,
}

/// Token of the order eventfd; all others are `key << 1 | stream`.
const ORDERS: u64 = u64::MAX;

impl Worker {
    fn new(shared: Arc<Shared>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &shared.to_pump,
            epoll::EventData::new_u64(ORDERS),
            epoll::EventFlags::IN,
        )?;
        Ok(Self { shared, epoll, logs: BTreeMap::new(), input: Vec::new(), output: Vec::new() })
    }

    fn run(&mut self) {
        let mut events = Vec::with_capacity(16);
        loop {
            events.clear();
            let timeout = self.timeout();
            let timeout = timeout.map(|t| rustix::event::Timespec {
                tv_sec: t.as_secs() as i64,
                tv_nsec: t.subsec_nanos().into(),
            });
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for event in &events {
                match event.data.u64() {
                    ORDERS => {
                        if self.obey() {
                            return;
                        }
                    }
                    token => self.readable((token >> 1) as u32, (token & 1) as usize),
                }
            }
            self.expire();
            if events.is_empty() {
                self.shrink();
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let next = self.logs.values().filter_map(|l| l.deadline).min();
        let next = next.map(|d| d.saturating_duration_since(Instant::now()));
        let quiet = (self.output.capacity() > KEEP).then_some(QUIET);
        next.into_iter().chain(quiet).min()
    }

    /// Returns true when asked to quit.
    fn obey(&mut self) -> bool {
        let _ = read(&self.shared.to_pump, &mut [0u8; 8]);
        let orders = std::mem::take(&mut *lock(&self.shared.orders));
        for order in orders {
            match order {
                Order::Add(source) => self.add(source),
                Order::Reopen(key) => {
                    let result =
                        self.logs.get_mut(&key).map_or(Err(Errno::NOENT), |l| l.file.reopen());
                    self.tell(Outcome::Reopened { key, result });
                }
                Order::Finish(key) => self.finish(key),
                Order::Quit => return true,
            }
        }
        false
    }

    fn add(&mut self, source: Source) {
        let Source { key, fds, path, line_max, dropped } = source;
        // The control thread has opened this file once already; if it cannot be opened now, output is still read.
        let file =
            LogFile::open(path, Arc::clone(&dropped)).or_else(|_| LogFile::open(None, dropped));
        let Ok(file) = file else { return };
        let mut log = Log { streams: [None, None], file, deadline: None };
        for (stream, fd) in fds {
            let token = u64::from(key) << 1 | stream as u64;
            let watched = epoll::add(
                &self.epoll,
                &fd,
                epoll::EventData::new_u64(token),
                epoll::EventFlags::IN,
            );
            if watched.is_ok() {
                log.streams[stream as usize] = Some(Reader { fd, lines: Lines::new(line_max) });
            }
        }
        self.logs.insert(key, log);
    }

    fn finish(&mut self, key: u32) {
        match self.logs.get_mut(&key) {
            Some(log) => log.deadline = Some(Instant::now() + DRAIN),
            None => return self.tell(Outcome::Drained { key }),
        }
        // What is in the pipes already is taken now; usually that includes their end.
        for stream in 0..2 {
            for _ in 0..LAST_READS {
                if !self.read_some(key, stream) {
                    break;
                }
            }
        }
    }

    fn readable(&mut self, key: u32, stream: usize) {
        self.read_some(key, stream);
    }

    /// One read and one write. False when there is nothing (more) to read now.
    fn read_some(&mut self, key: u32, stream: usize) -> bool {
        let Some(log) = self.logs.get_mut(&key) else { return false };
        let Some(reader) = &mut log.streams[stream] else { return false };
        self.input.reserve(READ);
        self.input.clear();
        let got = read(&reader.fd, rustix::buffer::spare_capacity(&mut self.input));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = stamp::format(now.as_secs() as i64, now.subsec_nanos());
        let head = Head { stamp: &stamp, stream: if stream == 0 { "stdout" } else { "stderr" } };
        self.output.clear();
        let more = match got {
            Ok(n) if n > 0 => {
                reader.lines.push(&self.input, head, &mut self.output);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // The end; a terminal says EIO when its last user is gone.
            Ok(_) | Err(_) => {
                reader.lines.finish(head, &mut self.output);
                let _ = epoll::delete(&self.epoll, reader.fd.as_fd());
                log.streams[stream] = None;
                false
            }
        };
        log.file.append(&self.output);
        more
    }

    /// Lets go of every ended container whose streams are at their end or whose time is up.
    fn expire(&mut self) {
        let now = Instant::now();
        let over: Vec<u32> = self
            .logs
            .iter()
            .filter(|(_, l)| {
                l.deadline.is_some_and(|d| d <= now || l.streams.iter().all(Option::is_none))
            })
            .map(|(key, _)| *key)
            .collect();
        for key in over {
            for stream in 0..2 {
                self.close(key, stream);
            }
            self.logs.remove(&key);
            self.tell(Outcome::Drained { key });
        }
    }

    fn close(&mut self, key: u32, stream: usize) {
        for _ in 0..LAST_READS {
            if !self.read_some(key, stream) {
                break;
            }
        }
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(mut reader) = log.streams[stream].take() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = stamp::format(now.as_secs() as i64, now.subsec_nanos());
        let head = Head { stamp: &stamp, stream: if stream == 0 { "stdout" } else { "stderr" } };
        self.output.clear();
        reader.lines.finish(head, &mut self.output);
        log.file.append(&self.output);
        let _ = epoll::delete(&self.epoll, reader.fd.as_fd());
    }

    fn tell(&self, outcome: Outcome) {
        lock(&self.shared.outcomes).push(outcome);
        let _ = write(&self.shared.to_control, &1u64.to_ne_bytes());
    }

    fn shrink(&mut self) {
        if self.output.capacity() > KEEP {
            self.output = Vec::new();
            self.input = Vec::new();
            crate::sys::trim_heap();
        }
    }
}
