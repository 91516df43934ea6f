//! What a streaming process is handed: exec'd processes with their stdio, attached containers, sockets in the pod.
//! The bytes never pass through the control thread.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use container::{Report, Stdio, channel};
use protocol::{
    Attach, Empty, Exec, Family, Kind, News, Opened, Phase, Reply, Resize, SessionEnded,
};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Pod;
use crate::link::Caller;
use crate::log::Stream;
use crate::serve::Token;
use crate::start::note;
use container::sys::signals::Ended;

/// Apart from the probes, which must find room however many people look around in a pod.
const STREAMS_MAX: usize = 256;

/// One exec'd process whose stdio somebody else has.
#[derive(Debug)]
pub(super) struct Streamed {
    /// Whose end is its end.
    link: u32,
    /// Who waits to hear that it runs.
    waiting: Option<Caller>,
    /// Handed over when it does.
    ends: Ends,
    member: u32,
    pub(super) report: Option<OwnedFd>,
    pid: i32,
    tracker: String,
    code: Option<i32>,
    /// Also before it exists.
    killed: bool,
    tty: bool,
}

/// The outer ends of a process' stdio.
#[derive(Debug, Default)]
struct Ends {
    terminal: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Ends {
    fn opened(&self, session: u32) -> (Reply, Vec<BorrowedFd<'_>>) {
        let reply = Opened {
            session,
            terminal: self.terminal.is_some(),
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
        };
        let all = [&self.terminal, &self.stdin, &self.stdout, &self.stderr];
        (Reply::Opened(reply), all.into_iter().flatten().map(AsFd::as_fd).collect())
    }
}

impl Pod {
    pub(crate) fn exec(&mut self, caller: Caller, ask: &Exec) {
        const STAGE: &str = "exec";
        if self.streams.len() >= STREAMS_MAX {
            let why = format!("{STREAMS_MAX} processes are exec'd in this pod already");
            return self.links.fail(caller, Kind::Failed, STAGE, why);
        }
        let Some(key) = self.enterable(caller, &ask.id, &ask.seccomp_bpf) else { return };
        if let Err(e) = self.try_stream(caller, key, ask) {
            self.links.fail(caller, Kind::Failed, STAGE, container::error::words(&e.into()));
        }
    }

    fn try_stream(&mut self, caller: Caller, key: u32, ask: &Exec) -> Result<(), Errno> {
        let number = self.new_key();
        let Some(member) = self.members.get(&key) else { return Err(Errno::SRCH) };
        let (ends, inner) = if ask.tty { (Ends::default(), None) } else { pipes(ask)? };
        let stdio = match &inner {
            Some(fds) => Stdio::Pipes([fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()]),
            None => Stdio::Terminal,
        };
        let (ours, tracker) =
            self.enter(member, number, (&ask.process_json, &ask.seccomp_bpf), stdio)?;
        self.watch(ours.as_fd(), Token::StreamReport(number))?;
        let streamed = Streamed {
            link: caller.link,
            waiting: Some(caller),
            ends,
            member: key,
            report: Some(ours),
            pid: 0,
            tracker,
            code: None,
            killed: false,
            tty: ask.tty,
        };
        self.streams.insert(number, streamed);
        Ok(())
    }

    pub(crate) fn stream_report(&mut self, number: u32) {
        loop {
            let Some(streamed) = self.streams.get_mut(&number) else { return };
            let Some(report) = &streamed.report else { return };
            match channel::listen(report.as_fd()) {
                Err(Errno::AGAIN | Errno::INTR) => return,
                Ok(Report::Init { pid } | Report::External { pid }) => {
                    streamed.pid = pid;
                    if streamed.killed {
                        let _ = container::sys::process::signal(pid, libc::SIGKILL);
                    }
                }
                Ok(Report::Ready { terminal, .. }) => {
                    if let Some(master) = &terminal {
                        let _ = rustix::io::ioctl_fionbio(master, true);
                    }
                    streamed.ends.terminal = terminal;
                }
                Ok(Report::Failed(e)) => {
                    streamed.ends = Ends::default();
                    if let Some(caller) = streamed.waiting.take() {
                        self.links.fail(caller, Kind::Failed, &e.stage, e.message);
                    }
                }
                Ok(Report::Clamped(text)) => note(&text),
                Ok(Report::Listener(_)) => {}
                Err(_) | Ok(Report::Closed) => return self.stream_begun(number),
            }
        }
    }

    /// The channel is closed: the process is its program, or it has said why not, or it was killed on the way.
    fn stream_begun(&mut self, number: u32) {
        let Some(streamed) = self.streams.get_mut(&number) else { return };
        if let Some(report) = streamed.report.take() {
            let _ = rustix::event::epoll::delete(&self.epoll, report.as_fd());
        }
        let ends = std::mem::take(&mut streamed.ends);
        match streamed.waiting.take() {
            Some(caller) if streamed.tty && ends.terminal.is_none() => {
                let why = "the process ended before its terminal was made";
                self.links.fail(caller, Kind::Failed, "exec", why);
            }
            Some(caller) if streamed.pid > 0 => {
                let (reply, fds) = ends.opened(number);
                self.links.answer_with(caller, reply, &fds);
            }
            Some(caller) => {
                let why = "the process was killed while it was set up";
                self.links.fail(caller, Kind::Failed, "exec", why);
            }
            None => {}
        }
        let gone = streamed.pid == 0;
        if gone {
            self.drop_stream(number);
        }
    }

    /// False when no session has that process.
    pub(super) fn stream_ended(&mut self, ended: Ended) -> bool {
        let mut all = self.streams.iter();
        let found = all.find(|(_, s)| s.pid == ended.pid && s.code.is_none()).map(|(n, _)| *n);
        let Some(number) = found else { return false };
        // That it ran, or why not, is told before its end is.
        self.stream_report(number);
        let Some(streamed) = self.streams.get_mut(&number) else { return true };
        if streamed.report.is_some() {
            // Its creator may hold the channel a moment longer; the process itself has ended.
            self.stream_begun(number);
        }
        if let Some(streamed) = self.streams.get_mut(&number) {
            streamed.code = Some(ended.code);
            let news = News::SessionEnded(SessionEnded { session: number, code: ended.code });
            self.links.tell_one(streamed.link, news);
            self.drop_stream(number);
        }
        true
    }

    /// The group stays only when the process left children behind; it goes with the container then.
    fn drop_stream(&mut self, number: u32) {
        if let Some(streamed) = self.streams.remove(&number)
            && self.members.contains_key(&streamed.member)
        {
            let _ = self.node.remove_tracker(&streamed.tracker);
        }
    }

    pub(crate) fn kill_session(&mut self, caller: Caller, number: u32) {
        self.kill_stream(number);
        self.links.answer(caller, Reply::Done(Empty {}));
    }

    fn kill_stream(&mut self, number: u32) {
        let Some(streamed) = self.streams.get_mut(&number) else { return };
        streamed.killed = true;
        let _ = self.node.kill(&streamed.tracker);
        if streamed.pid > 0 {
            let _ = container::sys::process::signal(streamed.pid, libc::SIGKILL);
        }
    }

    /// Whose connection has ended needs no process any more.
    pub(super) fn streams_tick(&mut self) {
        for link in self.links.take_closed() {
            let orphans = self.streams.iter().filter(|(_, s)| s.link == link).map(|(n, _)| *n);
            orphans.collect::<Vec<_>>().into_iter().for_each(|number| self.kill_stream(number));
        }
    }

    pub(crate) fn attach(&mut self, caller: Caller, ask: &Attach) {
        const STAGE: &str = "attach";
        let Some(key) = self.find(caller, &ask.id, STAGE) else { return };
        let Some(member) = self.members.get(&key) else { return };
        if !member.logged || member.gone || !matches!(member.phase, Phase::Created | Phase::Running)
        {
            let why = format!("{} is not running", ask.id);
            return self.links.fail(caller, Kind::AlreadyExited, STAGE, why);
        }
        let terminal = member.stdio.terminal.as_ref();
        let input = terminal.or(member.stdio.stdin.as_ref()).filter(|_| ask.stdin);
        let copy = input.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, 3)).transpose();
        let mut ends = Ends::default();
        let mut readers = Vec::new();
        let made = copy.and_then(|input| {
            *(if terminal.is_some() { &mut ends.terminal } else { &mut ends.stdin }) = input;
            if ask.stdout {
                let (read, write) = reader_pipe()?;
                ends.stdout = Some(read);
                readers.push((Stream::Stdout, write));
            }
            if ask.stderr && terminal.is_none() {
                let (read, write) = reader_pipe()?;
                ends.stderr = Some(read);
                readers.push((Stream::Stderr, write));
            }
            Ok(())
        });
        if let Err(e) = made {
            let why = container::error::words(&e.into());
            return self.links.fail(caller, Kind::Failed, STAGE, why);
        }
        self.pump.attach(key, readers, ask.replay);
        let (reply, fds) = ends.opened(0);
        self.links.answer_with(caller, reply, &fds);
    }

    pub(crate) fn close_stdin(&mut self, caller: Caller, id: &str) {
        let Some(key) = self.find(caller, id, "close stdin") else { return };
        if let Some(member) = self.members.get_mut(&key) {
            member.stdio.stdin = None;
        }
        self.links.answer(caller, Reply::Done(Empty {}));
    }

    pub(crate) fn resize(&mut self, caller: Caller, ask: &Resize) {
        const STAGE: &str = "resize";
        let Some(key) = self.find(caller, &ask.id, STAGE) else { return };
        let terminal = self.members.get(&key).and_then(|m| m.stdio.terminal.as_ref());
        let Some(terminal) = terminal else {
            let why = format!("{} has no terminal, or has exited", ask.id);
            return self.links.fail(caller, Kind::InvalidState, STAGE, why);
        };
        let bounded = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let size = Winsize {
            ws_row: bounded(ask.rows),
            ws_col: bounded(ask.columns),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        match tcsetwinsize(terminal, size) {
            Ok(()) => self.links.answer(caller, Reply::Done(Empty {})),
            Err(e) => {
                self.links.fail(caller, Kind::Failed, STAGE, container::error::words(&e.into()));
            }
        }
    }

    pub(crate) fn socket(&mut self, caller: Caller, family: Family) {
        const STAGE: &str = "open a socket in the pod";
        let pause = self.sandbox.and_then(|key| self.members.get(&key)).filter(|m| m.is_alive());
        let Some(pause) = pause else {
            return self.links.fail(
                caller,
                Kind::InvalidState,
                STAGE,
                "the sandbox is not running",
            );
        };
        match socket_in(pause.pid, family) {
            Ok(socket) => {
                let done = Reply::Done(Empty {});
                self.links.answer_with(caller, done, &[socket.as_fd()]);
            }
            Err(e) => {
                self.links.fail(caller, Kind::Failed, STAGE, container::error::words(&e.into()));
            }
        }
    }
}

/// A socket belongs for ever to the network namespace it was made in: this thread goes there for one system call.
/// The process is our child and not reaped, so its pid is its own.
fn socket_in(pid: i32, family: Family) -> Result<OwnedFd, Errno> {
    let home = File::open("/proc/thread-self/ns/net").map_err(|_| Errno::NOENT)?;
    let there = File::open(format!("/proc/{pid}/ns/net")).map_err(|_| Errno::SRCH)?;
    enter_network(there.as_fd())?;
    let family = match family {
        Family::Inet => AddressFamily::INET,
        Family::Inet6 => AddressFamily::INET6,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None);
    if enter_network(home.as_fd()).is_err() {
        // Never seen, and nothing this process does afterwards could be trusted to be in the right place.
        note("could not return from the pod's network namespace");
        std::process::abort();
    }
    socket
}

fn enter_network(namespace: BorrowedFd<'_>) -> Result<(), Errno> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
}

/// The outer and the process' ends; what is not wanted is `/dev/null`.
fn pipes(ask: &Exec) -> Result<(Ends, Option<[OwnedFd; 3]>), Errno> {
    let null = || {
        let null = File::options().read(true).write(true).open("/dev/null");
        null.map(OwnedFd::from).map_err(|_| Errno::NODEV)
    };
    let mut ends = Ends::default();
    let stdin = if ask.stdin {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&write, true)?;
        ends.stdin = Some(write);
        read
    } else {
        null()?
    };
    let output = |wanted: bool, end: &mut Option<OwnedFd>| {
        if !wanted {
            return null();
        }
        let (read, write) = super::create::output_pipe()?;
        *end = Some(read);
        Ok(write)
    };
    let stdout = output(ask.stdout, &mut ends.stdout)?;
    let stderr = output(ask.stderr, &mut ends.stderr)?;
    Ok((ends, Some([stdin, stdout, stderr])))
}

/// Bytes that a reader may fall behind: as much as the kernel gives without asking its limits.
const BEHIND: usize = 1 << 20;

/// Both ends non-blocking; its capacity is the reader's whole buffer.
fn reader_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let _ = rustix::pipe::fcntl_setpipe_size(&write, BEHIND); // the default of 64 KiB serves as well
    Ok((read, write))
}
