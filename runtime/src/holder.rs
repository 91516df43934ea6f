//! A process that sleeps: what keeps a group that may not be empty until its own process is in it.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::error::{Error, ErrorKind};
use crate::shims::Shims;

/// Ends with this value, and with this process: it sleeps at the other end of a pipe.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait(); // it has nothing to do before it ends: this takes no time
    }
}

impl Shims {
    /// Starts one from the sealed image.
    pub fn holder(&self, id: &str) -> Result<Holder, Error> {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.image().as_raw_fd()));
        command.arg0("/hold").env_clear().current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn();
        Ok(Holder(child.map_err(|e| Error::new(ErrorKind::Failed, id, "hold its scope", e))?))
    }
}
