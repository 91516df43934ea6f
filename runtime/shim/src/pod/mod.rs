//! The pod as its shim knows it: members, sessions, and what is due when.

mod adopt;
mod create;
mod creators;
mod end;
mod handler;
mod pause;
mod record;
mod session;
mod stream;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use cgroup::Hierarchies;
use container::Facts;
use container::sys::signals::Ended;
use protocol::{Empty, Hello, Kind, Phase, Reply, Update};
use rustix::event::epoll;
use rustix::io::Errno;

use crate::exec::Session;
use crate::link::{Caller, Links, inventory};
use crate::log::{Outcome, Pump};
use crate::member::Member;
use crate::serve::Token;
use crate::start::note;
use crate::sys;

/// Containers of one pod, exited ones included until they are deleted. The kubelet keeps a few dead ones per name.
const MEMBERS_MAX: usize = 512;

#[derive(Debug)]
pub(crate) struct Pod {
    epoll: OwnedFd,
    pub(crate) links: Links,
    node: Hierarchies,
    /// What plans depend on, asked once.
    facts: Facts,
    /// Our own sealed image, from which pause is started.
    image: OwnedFd,
    pump: Pump,
    creators: Vec<creators::Working>,
    /// Ended before a creator has said whose they are.
    unborn: Vec<Ended>,
    members: BTreeMap<u32, Member>,
    sandbox: Option<u32>,
    /// Where the pod's shared memory is asked for by its containers.
    shm_path: Option<PathBuf>,
    sessions: BTreeMap<u32, Session>,
    streams: BTreeMap<u32, stream::Streamed>,
    pausing: Vec<pause::Pausing>,
    next: u32,
    removals: Vec<end::Removing>,
    stoppers: Vec<Caller>,
    ending: Option<Caller>,
    over: bool,
}

impl Pod {
    pub(crate) fn new(node: Hierarchies) -> Result<Self, std::io::Error> {
        let image = std::fs::File::open("/proc/self/exe")?;
        let pump = Pump::start()?;
        let pod = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            links: Links::default(),
            node,
            facts: container::own_facts(),
            image: image.into(),
            pump,
            creators: Vec::new(),
            unborn: Vec::new(),
            members: BTreeMap::new(),
            sandbox: None,
            shm_path: None,
            sessions: BTreeMap::new(),
            streams: BTreeMap::new(),
            pausing: Vec::new(),
            next: 0,
            removals: Vec::new(),
            stoppers: Vec::new(),
            ending: None,
            over: false,
        };
        pod.watch(pod.pump.wake().as_fd(), Token::Log)?;
        sys::trim_heap(); // what reading mountinfo took
        Ok(pod)
    }

    pub(crate) fn epoll(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: Token) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.pack()), epoll::EventFlags::IN)
    }

    pub(crate) fn has_sandbox(&self) -> bool {
        self.sandbox.is_some()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Lets the log thread go.
    pub(crate) fn farewell(&self) {
        self.pump.quit();
    }

    /// A daemon has connected.
    pub(crate) fn admit(&mut self, socket: OwnedFd) {
        if rustix::io::ioctl_fionbio(&socket, true).is_err() {
            return;
        }
        let Some(link) = self.links.add(socket) else { return };
        let watched = self.links.get(link).map(|fd| self.watch(fd, Token::Link(link)));
        if !matches!(watched, Some(Ok(()))) {
            self.links.drop(link);
        }
    }

    pub(crate) fn hello(&mut self, caller: Caller, _theirs: Hello) {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        self.links.answer(caller, Reply::Hello(Hello { version: protocol::VERSION, pid }));
    }

    pub(crate) fn inventory(&mut self, caller: Caller) {
        let sandbox = self.sandbox.and_then(|key| self.members.get(&key)).map(Member::state);
        let containers = self
            .members
            .iter()
            .filter(|(key, m)| Some(**key) != self.sandbox && m.phase != Phase::Creating);
        let containers = containers.map(|(_, m)| m.state()).collect();
        self.links.answer(caller, inventory(sandbox, containers));
    }

    fn key_of(&self, id: &str) -> Option<u32> {
        self.members.iter().find(|(_, m)| m.id == id).map(|(key, _)| *key)
    }

    /// The container, or an answer that there is none.
    fn find(&mut self, caller: Caller, id: &str, stage: &str) -> Option<u32> {
        let found = self.key_of(id);
        if found.is_none() {
            self.links.fail(caller, Kind::NotFound, stage, format!("no container {id}"));
        }
        found
    }

    fn new_key(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    pub(crate) fn signal(&mut self, caller: Caller, id: &str, signal: i32) {
        let Some(member) = self.find(caller, id, "signal").and_then(|k| self.members.get(&k))
        else {
            return;
        };
        if !member.is_alive() {
            return self.links.fail(
                caller,
                Kind::AlreadyExited,
                "signal",
                format!("{id} has exited"),
            );
        }
        match member.signal(signal) {
            Ok(()) => self.links.answer(caller, Reply::Done(Empty {})),
            Err(e) => self.links.fail(
                caller,
                Kind::InvalidArgument,
                "signal",
                format!("signal {signal}: {e}"),
            ),
        }
    }

    pub(crate) fn kill(&mut self, caller: Caller, id: &str) {
        let Some(key) = self.find(caller, id, "kill") else { return };
        self.kill_member(key);
        self.links.answer(caller, Reply::Done(Empty {}));
    }

    pub(crate) fn update(&mut self, caller: Caller, ask: &Update) {
        const STAGE: &str = "update resources";
        let Some(key) = self.find(caller, &ask.id, STAGE) else { return };
        let Some(member) = self.members.get(&key) else { return };
        if member.phase == Phase::Exited {
            return self.links.fail(
                caller,
                Kind::AlreadyExited,
                STAGE,
                format!("{} has exited", ask.id),
            );
        }
        let parsed = serde_json::from_slice::<cgroup::Resources>(&ask.resources_json)
            .map_err(|e| e.to_string());
        let settings = parsed
            .and_then(|r| cgroup::limits::settings(&r, &self.node).map_err(|e| e.to_string()));
        match settings {
            Err(why) => self.links.fail(caller, Kind::InvalidArgument, STAGE, why),
            Ok(settings) => match self.node.update(&member.cgroup, &settings) {
                Ok(()) => self.links.answer(caller, Reply::Done(Empty {})),
                Err(e) => self.links.fail(caller, Kind::Failed, STAGE, e.to_string()),
            },
        }
    }

    pub(crate) fn reopen_log(&mut self, caller: Caller, id: &str) {
        let Some(key) = self.find(caller, id, "reopen the log") else { return };
        let Some(member) = self.members.get_mut(&key) else { return };
        if !member.logged {
            return self.links.fail(
                caller,
                Kind::InvalidState,
                "reopen the log",
                format!("{id} is not running"),
            );
        }
        member.reopening.push(caller);
        self.pump.reopen(key);
    }

    /// News from the log thread.
    pub(crate) fn log_news(&mut self) {
        for outcome in self.pump.outcomes() {
            match outcome {
                Outcome::Drained { key } => self.publish(key),
                Outcome::Held { key, caller, fds } => self.held(key, caller, &fds),
                Outcome::Reopened { key, result } => {
                    let waiting =
                        self.members.get_mut(&key).map(|m| std::mem::take(&mut m.reopening));
                    for caller in waiting.into_iter().flatten() {
                        match result {
                            Ok(()) => self.links.answer(caller, Reply::Done(Empty {})),
                            Err(e) => {
                                let why = container::error::words(&e.into());
                                self.links.fail(caller, Kind::Failed, "reopen the log", why);
                            }
                        }
                    }
                }
            }
        }
    }

    /// How long until `tick` has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let members = self.members.values().flat_map(|m| [m.publish_by, m.code_by]).flatten();
        let sessions = self.sessions.values().flat_map(|s| {
            let running = if s.caller.is_some() && s.code.is_none() { s.deadline } else { None };
            let draining = if s.code.is_some() { s.drain_by } else { None };
            [running, draining]
        });
        let removals = self.removals.iter().map(|r| r.next);
        let pausing = self.pausing.iter().map(|p| p.next);
        let own = removals.chain(pausing).chain(self.next_look_at_creators());
        let next = members.chain(sessions.flatten()).chain(own).min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// What is due by time, and what became possible by the last events.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        let late: Vec<u32> = self
            .members
            .iter()
            .filter(|(_, m)| m.publish_by.is_some_and(|d| d <= now))
            .map(|(k, _)| *k)
            .collect();
        for key in late {
            note("the log thread did not answer in time: the exit is published without it");
            self.publish(key);
        }
        self.adopted_tick(now);
        self.sessions_tick(now);
        self.streams_tick();
        self.pausing_tick(now);
        self.removals_tick(now);
        self.endings_tick(now);
        self.creators_tick(now);
    }
}

/// Our end, which never blocks and tells who speaks, and that of a process to come.
fn report_channel() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = protocol::pair()?;
    container::channel::expect_credentials(ours.as_fd())?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Unix time in nanoseconds.
fn now_ns() -> i64 {
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}
