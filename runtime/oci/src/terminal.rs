//! Terminals: handing a master to a console socket, and attending to a container in the foreground.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use container::sys::{process::signal, signals};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, read, write};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::termios::{
    OptionalActions, OutputModes, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize,
};

use crate::error::Error;

/// Sends the master end, with the name that engines expect in the message.
pub(crate) fn send(socket: &Path, master: BorrowedFd<'_>) -> Result<(), Error> {
    send_fd(socket, master, b"/dev/ptmx")
}

/// Sends a descriptor of a process that cannot become another's when the process is gone.
pub(crate) fn send_pidfd(socket: &Path, pid: i32) -> Result<(), Error> {
    let pid = rustix::process::Pid::from_raw(pid).ok_or(Errno::SRCH);
    let pidfd = pid
        .and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()))
        .map_err(Error::system("pidfd_open"))?;
    send_fd(socket, pidfd.as_fd(), b"pidfd")
}

fn send_fd(socket: &Path, fd: BorrowedFd<'_>, name: &[u8]) -> Result<(), Error> {
    let fail = |e: Errno| Error::file("connect to", socket)(e.into());
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(fail)?;
    connect(&stream, &SocketAddrUnix::new(socket).map_err(fail)?).map_err(fail)?;
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(name)], &mut ancillary, SendFlags::NOSIGNAL).map_err(fail)?;
    Ok(())
}

/// Waits for the process, passing signals on and, with a terminal, bytes to and fro. All signals must be blocked.
/// Returns its exit code, 128 + n for signal n.
pub(crate) fn attend(pid: i32, master: Option<OwnedFd>) -> Result<u8, Error> {
    let all: Vec<i32> = (1..32).filter(|s| ![libc::SIGKILL, libc::SIGSTOP].contains(s)).collect();
    let news = signals::signal_fd(&all).map_err(Error::system("signalfd"))?;
    let _raw = master.as_ref().and_then(|m| Raw::enter(m.as_fd()));
    let mut open = [true, master.is_some()];
    loop {
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![PollFd::new(&news, PollFlags::IN)];
        if let Some(master) = master.as_ref().filter(|_| open[1]) {
            fds.push(PollFd::new(master, PollFlags::IN));
            if open[0] {
                fds.push(PollFd::new(&stdin, PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(Error::system("poll")(e)),
        }
        let ready: Vec<bool> = fds.iter().map(|f| !f.revents().is_empty()).collect();
        if let Some(master) = &master {
            if ready.get(1) == Some(&true) {
                open[1] = copy(master.as_fd(), rustix::stdio::stdout());
            }
            if ready.get(2) == Some(&true) {
                open[0] = copy(stdin, master.as_fd());
            }
        }
        if ready[0]
            && let Some(code) = handle_signals(&news, pid, master.as_ref())
        {
            while master.as_ref().is_some_and(|m| open[1] && copy_ready(m)) {}
            return Ok(code);
        }
    }
}

/// Takes what has been signalled; the exit code when the process has ended.
fn handle_signals(news: &OwnedFd, pid: i32, master: Option<&OwnedFd>) -> Option<u8> {
    let mut info = [0u8; 128];
    let mut code = None;
    while read(news, &mut info).is_ok_and(|n| n > 0) {
        let number = i32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        match number {
            libc::SIGCHLD => {
                while let Some(ended) = signals::reap() {
                    if ended.pid == pid {
                        code = Some(ended.code as u8);
                    }
                }
            }
            libc::SIGWINCH => resize(master),
            other => {
                let _ = signal(pid, other); // it may have ended just now
            }
        }
    }
    code
}

fn resize(master: Option<&OwnedFd>) {
    if let (Some(master), Ok(size)) = (master, tcgetwinsize(rustix::stdio::stdin())) {
        let _ = tcsetwinsize(master, size);
    }
}

/// One buffer full; false at the end.
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0u8; 4096];
    match read(from, &mut buffer) {
        Ok(n) if n > 0 => {
            let mut rest = &buffer[..n];
            while !rest.is_empty() {
                match write(to, rest) {
                    Ok(n) => rest = &rest[n..],
                    Err(Errno::INTR) => {}
                    Err(_) => return false,
                }
            }
            true
        }
        Err(Errno::INTR | Errno::AGAIN) => true,
        Ok(_) | Err(_) => false,
    }
}

/// What is left in the master after the end.
fn copy_ready(master: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(master, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut fds, Some(&now)).is_ok_and(|n| n > 0);
    ready && copy(master.as_fd(), rustix::stdio::stdout())
}

/// Before the program writes: the caller's terminal makes a carriage return of each newline already; a pipe wants none.
pub(crate) fn plain_newlines(master: BorrowedFd<'_>) {
    if let Ok(mut modes) = tcgetattr(master) {
        modes.output_modes.remove(OutputModes::ONLCR);
        let _ = tcsetattr(master, OptionalActions::Now, &modes);
    }
}

/// The caller's terminal in raw mode, until dropped.
struct Raw(Termios);

impl Raw {
    fn enter(master: BorrowedFd<'_>) -> Option<Self> {
        let stdin = rustix::stdio::stdin();
        let before = tcgetattr(stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        raw.output_modes.insert(OutputModes::OPOST);
        tcsetattr(stdin, OptionalActions::Now, &raw).ok()?;
        if let Ok(size) = tcgetwinsize(stdin) {
            let _ = tcsetwinsize(master, size);
        }
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.0);
    }
}
