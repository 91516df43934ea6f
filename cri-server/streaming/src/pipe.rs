//! A pipe's or a terminal's end, read and written without blocking a thread.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::termios::{LocalModes, SpecialCodeIndex, tcgetattr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

/// A pipe this large halves the number of times that writer and reader wake each other.
const PIPE: usize = 256 * 1024;

/// After the process has ended, so long is output awaited of children that hold the pipe open.
const QUIET: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Pipe(AsyncFd<OwnedFd>);

impl Pipe {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Terminals have no size, and users without the right have small pipes.
        if fcntl_getpipe_size(&fd).is_ok_and(|size| size < PIPE) {
            let _ = fcntl_setpipe_size(&fd, PIPE);
        }
        Ok(Self(crate::sys::watch(fd)?))
    }

    /// 0: the end.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.async_io(Interest::READABLE, |fd| {
            rustix::io::read(fd, &mut *buffer).map_err(io::Error::from)
        });
        match read.await {
            // What a terminal says when its last user is gone.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            read => read,
        }
    }

    /// Like `read`; once `ended` is cancelled, it ends when nothing comes for a while.
    pub(crate) async fn read_until(
        &self,
        buffer: &mut [u8],
        ended: &CancellationToken,
    ) -> io::Result<usize> {
        tokio::select! {
            biased;
            read = self.read(buffer) => return read,
            () = ended.cancelled() => {}
        }
        tokio::time::timeout(QUIET, self.read(buffer)).await.unwrap_or(Ok(0))
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = self.0.async_io(Interest::WRITABLE, |fd| {
                rustix::io::write(fd, bytes).map_err(io::Error::from)
            });
            bytes = &bytes[write.await?..];
        }
        Ok(())
    }

    /// Ends a terminal's input as a person would: only where the line discipline makes an end of it.
    pub(crate) async fn end_terminal(&self) {
        let Ok(modes) = tcgetattr(self.0.get_ref()) else { return };
        if modes.local_modes.contains(LocalModes::ICANON) {
            let end = modes.special_codes[SpecialCodeIndex::VEOF];
            // A terminal that is gone needs no end.
            let _ = self.write_all(&[end]).await;
        }
    }
}
