//! The thread that moves output from pipes and terminals to log files, and the queue by which it is told what to do.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::{Errno, read, write};

use super::Counters;
use super::file::LogFile;
use super::limits::{Limiter, Limits};
use super::lines::{Head, Lines};
use super::readers::{READERS_MAX, Reader, Taken};
use super::tail;
use crate::link::Caller;
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
    pub(crate) limits: Limits,
    /// Readers that fall behind are waited for: see `readers`.
    pub(crate) interactive: bool,
    pub(crate) counters: Arc<Counters>,
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
    Held {
        key: u32,
        caller: Caller,
        fds: [Option<OwnedFd>; 2],
    },
}

enum Order {
    Add(Source),
    Attach {
        key: u32,
        readers: Vec<(Stream, OwnedFd)>,
        replay: u64,
    },
    /// Duplicates of the read ends are wanted.
    Hold {
        key: u32,
        caller: Caller,
    },
    Reopen(u32),
    Finish(u32),
    Forget(u32),
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

    /// Copies of the output go into these non-blocking write ends, until their readers close or fall behind.
    pub(crate) fn attach(&self, key: u32, readers: Vec<(Stream, OwnedFd)>, replay: u64) {
        self.order(Order::Attach { key, readers, replay });
    }

    /// Asks for duplicates of a container's read ends.
    pub(crate) fn hold(&self, key: u32, caller: Caller) {
        self.order(Order::Hold { key, caller });
    }

    pub(crate) fn reopen(&self, key: u32) {
        self.order(Order::Reopen(key));
    }

    /// The container has ended: drain, close, tell.
    pub(crate) fn finish(&self, key: u32) {
        self.order(Order::Finish(key));
    }

    /// The container has ended, and its output was complete: nothing to tell.
    pub(crate) fn forget(&self, key: u32) {
        self.order(Order::Forget(key));
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
    next_reader: u32,
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Log {
    streams: [Option<Input>; 2],
    file: LogFile,
    deadline: Option<Instant>,
    /// Its end was told; it only stays for readers that are waited for.
    over: bool,
    interactive: bool,
    limiter: Limiter,
    /// Nothing is read before: the log has had more than its share.
    resting: Option<Instant>,
    counters: Arc<Counters>,
    /// By the number in their token.
    readers: BTreeMap<u32, Reader>,
}

/// One stream of a container.
struct Input {
    fd: OwnedFd,
    lines: Lines,
    /// Not read at the moment, because a reader is waited for.
    held: bool,
}

/// Token of the order eventfd. The others are `key << 32 | number`, where numbers up to 1 are the container's streams
/// and the rest its readers.
const ORDERS: u64 = u64::MAX;
const FIRST_READER: u32 = 2;

impl Worker {
    fn new(shared: Arc<Shared>) -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(
            &epoll,
            &shared.to_pump,
            epoll::EventData::new_u64(ORDERS),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            shared,
            epoll,
            logs: BTreeMap::new(),
            next_reader: FIRST_READER,
            input: Vec::new(),
            output: Vec::new(),
        })
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
                    token => match ((token >> 32) as u32, token as u32) {
                        (key, number @ 0..FIRST_READER) => {
                            self.read_some(key, number as usize);
                        }
                        (key, reader) => self.writable(key, reader),
                    },
                }
            }
            self.expire();
            if events.is_empty() {
                self.shrink();
            }
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let stalls = self.logs.values().flat_map(|l| l.readers.values()).filter_map(|r| r.until);
        let own = self.logs.values().flat_map(|l| [l.deadline, l.resting]).flatten();
        let next = own.chain(stalls).min();
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
                Order::Attach { key, readers, replay } => self.attach(key, readers, replay),
                Order::Hold { key, caller } => {
                    let copy = |input: &Option<Input>| {
                        let fd = &input.as_ref()?.fd;
                        rustix::io::fcntl_dupfd_cloexec(fd, 3).ok()
                    };
                    let fds = self.logs.get(&key).map(|l| l.streams.each_ref().map(copy));
                    self.tell(Outcome::Held { key, caller, fds: fds.unwrap_or_default() });
                }
                Order::Reopen(key) => {
                    let result = self.logs.get_mut(&key).map_or(Err(Errno::NOENT), Log::reopen);
                    self.release(key);
                    self.tell(Outcome::Reopened { key, result });
                }
                Order::Finish(key) => self.finish(key),
                Order::Forget(key) => {
                    self.logs.entry(key).and_modify(|log| log.over = true);
                }
                Order::Quit => return true,
            }
        }
        false
    }

    fn add(&mut self, source: Source) {
        let Source { key, fds, path, limits, interactive, counters } = source;
        // The control thread has opened this file once already; if it cannot be opened now, output is still read.
        let file = LogFile::open(path, Arc::clone(&counters))
            .or_else(|_| LogFile::open(None, Arc::clone(&counters)));
        let Ok(file) = file else { return };
        let mut log = Log {
            streams: [None, None],
            file,
            deadline: None,
            over: false,
            interactive,
            limiter: Limiter::new(limits, Instant::now()),
            resting: None,
            counters,
            readers: BTreeMap::new(),
        };
        for (stream, fd) in fds {
            if self.watch(&fd, key, stream as u32, epoll::EventFlags::IN).is_ok() {
                let lines = Lines::new(limits.line_max);
                log.streams[stream as usize] = Some(Input { fd, lines, held: false });
            }
        }
        self.logs.insert(key, log);
    }

    fn finish(&mut self, key: u32) {
        match self.logs.get_mut(&key) {
            Some(log) => (log.deadline, log.resting) = (Some(Instant::now() + DRAIN), None),
            None => return self.tell(Outcome::Drained { key }),
        }
        self.release(key);
        // What is in the pipes already is taken now; usually that includes their end.
        for stream in 0..2 {
            for _ in 0..LAST_READS {
                if !self.read_some(key, stream) {
                    break;
                }
            }
        }
    }

    fn watch(
        &self,
        fd: &OwnedFd,
        key: u32,
        number: u32,
        flags: epoll::EventFlags,
    ) -> Result<(), Errno> {
        let token = u64::from(key) << 32 | u64::from(number);
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)
    }

    fn attach(&mut self, key: u32, readers: Vec<(Stream, OwnedFd)>, replay: u64) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        if log.readers.len() + readers.len() > READERS_MAX {
            return; // their pipes close, which they see
        }
        let mut past: [Vec<u8>; 2] = Default::default();
        if let Some(path) = log.file.path().filter(|_| replay > 0) {
            past = tail::replay(path, replay);
            for (past, input) in past.iter_mut().zip(&log.streams) {
                past.extend_from_slice(input.as_ref().map_or(&[], |i| i.lines.unfinished()));
            }
        }
        for (stream, fd) in readers {
            let stream = stream as usize;
            let mut reader = Reader::new(fd, stream);
            // A fresh pipe takes it; where it does not, the kernel gave a small pipe, and the oldest is missing.
            let _ = reader.offer(&past[stream], false, Instant::now());
            let number = self.next_reader;
            self.next_reader = self.next_reader.checked_add(1).unwrap_or(FIRST_READER);
            // Watched for nothing but the end of its other side.
            if self.watch(&reader.fd, key, number, epoll::EventFlags::empty()).is_ok()
                && let Some(log) = self.logs.get_mut(&key)
            {
                log.readers.insert(number, reader);
            }
        }
    }

    /// A reader that was waited for has room, or is gone.
    fn writable(&mut self, key: u32, number: u32) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(reader) = log.readers.get_mut(&number) else { return };
        if !reader.is_behind() || reader.flush(Instant::now()) == Taken::Lost {
            log.readers.remove(&number); // an event without interest means that the other end is closed
        } else if !reader.is_behind() {
            let token = epoll::EventData::new_u64(u64::from(key) << 32 | u64::from(number));
            let _ = epoll::modify(&self.epoll, &reader.fd, token, epoll::EventFlags::empty());
        }
        self.release(key);
    }

    /// Reads on where nobody is waited for any more.
    fn release(&mut self, key: u32) {
        let Some(log) = self.logs.get_mut(&key) else { return };
        for (stream, input) in log.streams.iter_mut().enumerate() {
            let Some(input) = input.as_mut().filter(|i| i.held) else { continue };
            if log.resting.is_some()
                || log.readers.values().any(|r| r.stream == stream && r.is_behind())
            {
                continue;
            }
            let token = epoll::EventData::new_u64(u64::from(key) << 32 | stream as u64);
            input.held = epoll::add(&self.epoll, &input.fd, token, epoll::EventFlags::IN).is_err();
        }
    }

    /// One read and one write. False when there is nothing (more) to read now.
    fn read_some(&mut self, key: u32, stream: usize) -> bool {
        let Some(log) = self.logs.get_mut(&key) else { return false };
        let Some(input) = log.streams[stream].as_mut().filter(|i| !i.held) else { return false };
        self.input.reserve(READ);
        self.input.clear();
        let got = read(&input.fd, rustix::buffer::spare_capacity(&mut self.input));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = stamp::format(now.as_secs() as i64, now.subsec_nanos());
        let head = Head { stamp: &stamp, stream: if stream == 0 { "stdout" } else { "stderr" } };
        self.output.clear();
        let more = match got {
            Ok(n) if n > 0 => {
                let verdict =
                    log.limiter.admit(stream, &self.input, Instant::now(), log.file.len());
                if verdict.cut {
                    input.lines.cut(head, &mut self.output);
                }
                input.lines.push(verdict.keep, head, &mut self.output);
                log.counters.lines.fetch_add(input.lines.take_emitted(), Ordering::Relaxed);
                log.counters.limited.fetch_add(verdict.dropped as u64, Ordering::Relaxed);
                if !log.readers.is_empty() {
                    log.share(key, stream, &self.input, &self.epoll);
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => return false,
            // The end; a terminal says EIO when its last user is gone.
            Ok(_) | Err(_) => {
                input.lines.finish(head, &mut self.output);
                log.counters.lines.fetch_add(input.lines.take_emitted(), Ordering::Relaxed);
                let _ = epoll::delete(&self.epoll, input.fd.as_fd());
                log.streams[stream] = None;
                false
            }
        };
        log.file.append(&self.output);
        if log.streams.iter().all(Option::is_none) {
            log.counters.complete.store(true, Ordering::Release);
        }
        log.rest(&self.epoll);
        more
    }

    /// Lets go of every ended container whose streams are at their end or whose time is up.
    fn expire(&mut self) {
        let now = Instant::now();
        let stalled = |r: &Reader| r.until.is_some_and(|u| u <= now);
        let held: Vec<u32> = self
            .logs
            .iter()
            .filter(|(_, l)| {
                l.readers.values().any(stalled) || l.resting.is_some_and(|until| until <= now)
            })
            .map(|(key, _)| *key)
            .collect();
        for key in held {
            if let Some(log) = self.logs.get_mut(&key) {
                log.readers.retain(|_, r| !stalled(r));
                log.resting = log.resting.filter(|until| *until > now);
            }
            self.release(key);
        }
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
            if let Some(log) = self.logs.get_mut(&key) {
                (log.over, log.deadline, log.resting) = (true, None, None);
            }
            self.tell(Outcome::Drained { key });
        }
        self.logs.retain(|_, log| {
            if log.over {
                log.readers.retain(|_, r| r.is_behind());
            }
            !log.over || !log.readers.is_empty()
        });
    }

    fn close(&mut self, key: u32, stream: usize) {
        if let Some(input) = self.logs.get_mut(&key).and_then(|l| l.streams[stream].as_mut()) {
            input.held = false; // the end does not wait for readers
        }
        for _ in 0..LAST_READS {
            if !self.read_some(key, stream) {
                break;
            }
        }
        let Some(log) = self.logs.get_mut(&key) else { return };
        let Some(mut input) = log.streams[stream].take() else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let stamp = stamp::format(now.as_secs() as i64, now.subsec_nanos());
        let head = Head { stamp: &stamp, stream: if stream == 0 { "stdout" } else { "stderr" } };
        self.output.clear();
        input.lines.finish(head, &mut self.output);
        log.counters.lines.fetch_add(input.lines.take_emitted(), Ordering::Relaxed);
        log.file.append(&self.output);
        let _ = epoll::delete(&self.epoll, input.fd.as_fd());
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

impl Log {
    fn reopen(&mut self) -> Result<(), Errno> {
        self.file.reopen()?;
        self.resting = None;
        Ok(())
    }

    /// Stops reading when the log has had its share and the container is to wait; at its end nothing waits.
    fn rest(&mut self, epoll: &OwnedFd) {
        if self.resting.is_some() || self.deadline.is_some() {
            return;
        }
        self.resting = self.limiter.rest(Instant::now(), self.file.len());
        if self.resting.is_some() {
            for input in self.streams.iter_mut().flatten().filter(|i| !i.held) {
                let _ = epoll::delete(epoll, &input.fd);
                input.held = true;
            }
        }
    }

    /// Passes on to the readers what was just read; the stream is held when one of them is to be waited for.
    fn share(&mut self, key: u32, stream: usize, bytes: &[u8], epoll: &OwnedFd) {
        let now = Instant::now();
        let (mut held, interactive) = (false, self.interactive);
        self.readers.retain(|number, reader| {
            if reader.stream != stream {
                return true;
            }
            let taken = reader.offer(bytes, interactive, now);
            if taken == Taken::Partly {
                let token = epoll::EventData::new_u64(u64::from(key) << 32 | u64::from(*number));
                held |= epoll::modify(epoll, &reader.fd, token, epoll::EventFlags::OUT).is_ok();
            }
            taken != Taken::Lost
        });
        if let Some(input) = self.streams[stream].as_mut().filter(|_| held) {
            // Not only disinterest: the end of a stream would be reported over and over.
            let _ = epoll::delete(epoll, &input.fd);
            input.held = true;
        }
    }
}
