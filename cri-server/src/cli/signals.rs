//! Ctrl-C and SIGTERM as something a sequence of steps can wait for and clean up after.

use std::{future::Future, io, process::ExitCode};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::console;

/// The signals that ask this process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    received: Option<Interrupted>,
}

/// The signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interrupted(SignalKind);

impl Interrupted {
    /// 128 and the signal's number, as shells report it.
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(u8::try_from(128 + self.0.as_raw_value()).unwrap_or(u8::MAX))
    }
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            received: None,
        })
    }

    pub(crate) async fn next(&mut self) -> Interrupted {
        let interrupted = tokio::select! {
            _ = self.interrupt.recv() => Interrupted(SignalKind::interrupt()),
            _ = self.terminate.recv() => Interrupted(SignalKind::terminate()),
        };
        self.received = Some(interrupted);
        interrupted
    }

    /// Does `work` unless a signal comes first; then the work is dropped.
    pub(crate) async fn or_stop<T>(
        &mut self,
        work: impl Future<Output = T>,
    ) -> Result<T, Interrupted> {
        tokio::select! {
            biased;
            interrupted = self.next() => Err(interrupted),
            answer = work => Ok(answer),
        }
    }

    /// Does `work` to its end even when a signal comes, because what is half done cannot be
    /// undone; only a second signal gives it up. `check` tells of the first.
    pub(crate) async fn see_through<T>(
        &mut self,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Interrupted> {
        tokio::pin!(work);
        tokio::select! {
            biased;
            answer = &mut work => return Ok(answer),
            _ = self.next() => {}
        }
        console::note(format!("waiting for {what} in order to undo it; once more gives it up"));
        self.or_stop(work).await
    }

    /// Whether a signal came while something was seen through.
    pub(crate) fn check(&self) -> Result<(), Interrupted> {
        self.received.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupt_exits_as_shells_do() {
        assert_eq!(Interrupted(SignalKind::interrupt()).exit_code(), ExitCode::from(130));
        assert_eq!(Interrupted(SignalKind::terminate()).exit_code(), ExitCode::from(143));
    }

    #[tokio::test]
    async fn work_is_done_when_no_signal_comes() {
        let mut signals = Signals::listen().unwrap();
        assert_eq!(signals.or_stop(async { 7 }).await, Ok(7));
        assert_eq!(signals.see_through("it", async { 8 }).await, Ok(8));
        assert_eq!(signals.check(), Ok(()));
    }
}
