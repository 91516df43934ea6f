//! The control loop: one epoll, no file I/O outside tmpfs, never blocking on anything of a container.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cgroup::Hierarchies;
use protocol::{Ask, Body, Kind, Packet, WireError};
use rustix::event::{Timespec, epoll};
use rustix::io::{Errno, read};
use rustix::net::{SocketFlags, accept_with};

use crate::link::Caller;
use crate::pod::Pod;
use container::sys::signals;

/// A shim that was never given a pod ends itself: the daemon that started it has died or changed its mind.
const IDLE: Duration = Duration::from_secs(60);

/// What an event is about. Packed into epoll's 64 bits: kind above, number below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Signals,
    Log,
    Link(u32),
    Report(u32),
    ExecReport(u32),
    ExecOutput(u32, usize),
    StreamReport(u32),
    /// The pidfd of a process that is not our child.
    Adopted(u32),
}

impl Token {
    pub(crate) fn pack(self) -> u64 {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Log => (2, 0),
            Self::Link(n) => (3, n),
            Self::Report(n) => (4, n),
            Self::ExecReport(n) => (5, n),
            Self::ExecOutput(n, stream) => (6 + stream as u64, n),
            Self::StreamReport(n) => (8, n),
            Self::Adopted(n) => (9, n),
        };
        kind << 32 | u64::from(number)
    }

    fn unpack(token: u64) -> Self {
        let number = token as u32;
        match token >> 32 {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Log,
            3 => Self::Link(number),
            4 => Self::Report(number),
            5 => Self::ExecReport(number),
            8 => Self::StreamReport(number),
            9 => Self::Adopted(number),
            kind => Self::ExecOutput(number, (kind & 1) as usize),
        }
    }
}

/// Serves until the pod was shut down, or for a bounded time when there never was one.
pub(crate) fn run(
    node: Hierarchies,
    connection: OwnedFd,
    listener: OwnedFd,
    lock: OwnedFd,
) -> Result<(), String> {
    let signals = signals::signal_fd(&[libc::SIGCHLD]).map_err(|e| format!("signalfd: {e}"))?;
    let mut pod = Pod::new(node).map_err(|e| format!("start: {e}"))?;
    pod.watch(listener.as_fd(), Token::Listener).map_err(|e| format!("watch: {e}"))?;
    pod.watch(signals.as_fd(), Token::Signals).map_err(|e| format!("watch: {e}"))?;
    pod.admit(connection);
    let born = Instant::now();
    let mut buffer = vec![0u8; protocol::wire::INLINE_MAX];
    let mut events = Vec::with_capacity(16);
    while !pod.is_over() {
        if !pod.has_sandbox() && born.elapsed() > IDLE {
            break;
        }
        events.clear();
        let idle = (!pod.has_sandbox())
            .then(|| IDLE.saturating_sub(born.elapsed()) + Duration::from_millis(1));
        let timeout = pod
            .next_deadline()
            .into_iter()
            .chain(idle)
            .min()
            .map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
        match epoll::wait(
            pod.epoll(),
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(format!("epoll: {e}")),
        }
        for event in &events {
            match Token::unpack(event.data.u64()) {
                Token::Listener => {
                    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                    if let Ok(socket) = accept_with(&listener, flags) {
                        pod.admit(socket);
                        pod.obey_tombstone();
                    }
                }
                Token::Signals => {
                    let mut info = [0u8; 128];
                    while read(&signals, &mut info).is_ok_and(|n| n > 0) {}
                    pod.reap();
                }
                Token::Log => pod.log_news(),
                Token::Link(link) => receive(&mut pod, link, &mut buffer),
                Token::Report(key) => pod.report(key),
                Token::ExecReport(session) => pod.exec_report(session),
                Token::ExecOutput(session, stream) => pod.exec_output(session, stream, &mut buffer),
                Token::StreamReport(session) => pod.stream_report(session),
                Token::Adopted(key) => pod.adopted_ended(key),
            }
        }
        pod.tick();
    }
    for file in ["shim.sock", "shim.pid", "shim.lock"] {
        let _ = std::fs::remove_file(file);
    }
    drop(lock);
    pod.farewell();
    Ok(())
}

fn receive(pod: &mut Pod, link: u32, buffer: &mut [u8]) {
    let Some(socket) = pod.links.get(link) else { return };
    match protocol::receive(socket, buffer) {
        Ok(Some((packet, fds))) => dispatch(pod, link, packet, fds),
        Err(e) if e.is_would_block() => {}
        Err(WireError::Os(Errno::INTR)) => {}
        // A peer that is gone or talks nonsense.
        Ok(None) | Err(_) => {
            pod.links.drop(link);
            pod.obey_tombstone();
        }
    }
}

fn dispatch(pod: &mut Pod, link: u32, packet: Packet, mut fds: Vec<OwnedFd>) {
    let caller = Caller { link, seq: packet.seq };
    let Some(Body::Call(call)) = packet.body else { return pod.links.drop(link) };
    match call.ask {
        Some(Ask::Hello(hello)) => pod.hello(caller, hello),
        Some(Ask::CreateSandbox(ask)) => pod.create_sandbox(caller, ask, fds),
        Some(Ask::CreateContainer(ask)) => pod.create_container(caller, ask, fds),
        Some(Ask::Start(target)) => pod.start(caller, &target.id),
        Some(Ask::Signal(ask)) => pod.signal(caller, &ask.id, ask.signal),
        Some(Ask::Kill(target)) => pod.kill(caller, &target.id),
        Some(Ask::ExecSync(ask)) => pod.exec_sync(caller, &ask),
        Some(Ask::ReopenLog(target)) => pod.reopen_log(caller, &target.id),
        Some(Ask::Update(ask)) => pod.update(caller, &ask),
        Some(Ask::Delete(target)) => pod.delete(caller, &target.id),
        Some(Ask::StopSandbox(_)) => pod.stop(caller),
        Some(Ask::Shutdown(_)) => pod.shutdown(caller),
        Some(Ask::Inventory(_)) => pod.inventory(caller),
        Some(Ask::Exec(ask)) => pod.exec(caller, &ask),
        Some(Ask::KillSession(ask)) => pod.kill_session(caller, ask.session),
        Some(Ask::Attach(ask)) => pod.attach(caller, &ask),
        Some(Ask::CloseStdin(target)) => pod.close_stdin(caller, &target.id),
        Some(Ask::Socket(ask)) => pod.socket(caller, ask.family()),
        Some(Ask::Pause(target)) => pod.pause(caller, &target.id),
        Some(Ask::Resume(target)) => pod.resume(caller, &target.id),
        Some(Ask::Resize(ask)) => pod.resize(caller, &ask),
        Some(Ask::Hold(target)) => pod.hold(caller, &target.id),
        Some(Ask::Adopt(held)) => pod.adopt(caller, held, fds),
        Some(Ask::Remember(target)) => pod.remember(caller, &target.id, fds.pop()),
        Some(Ask::Recall(target)) => pod.recall(caller, &target.id),
        // A call of a newer daemon: say so, so that it can do without.
        None => {
            pod.links.fail(caller, Kind::Unsupported, "call", "this shim is older than the call")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_survives_being_packed() {
        let all = [
            Token::Listener,
            Token::Signals,
            Token::Log,
            Token::Link(7),
            Token::Report(u32::MAX),
            Token::ExecReport(1),
            Token::ExecOutput(3, 0),
            Token::ExecOutput(3, 1),
            Token::StreamReport(4),
            Token::Adopted(5),
        ];
        for token in all {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }
}
