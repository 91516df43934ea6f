//! Runs one plugin: a process group of its own, bounded in time and in what is read of it.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::Failure;

/// An answer has a few KiB; a long chain's some more.
const ANSWER_MAX: usize = 4 << 20;
/// How much of the end of what a plugin complained is kept.
const COMPLAINT_MAX: usize = 2048;
/// A plugin that has ended may have left a child with its end of a pipe: nobody waits for that one.
const LINGER: Duration = Duration::from_secs(1);

/// How a plugin ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) answer: Vec<u8>,
    /// The end of what it wrote to standard error.
    pub(crate) complaint: Vec<u8>,
}

/// A call of a program.
pub(crate) struct Call<'a> {
    pub(crate) program: &'a Path,
    pub(crate) environment: Vec<(&'static str, OsString)>,
    pub(crate) input: Vec<u8>,
    pub(crate) deadline: Instant,
    /// What the deadline was counted from the begin of the whole operation, for the error.
    pub(crate) seconds: u64,
}

/// Runs it to its end. Whatever goes wrong, and also if the caller gives up: the process group is
/// killed, so that no child of the plugin lives on.
pub(crate) async fn run(call: Call<'_>) -> Result<Ended, Failure> {
    let mut command = Command::new(call.program);
    command
        .envs(call.environment)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let child = command
        .spawn()
        .map_err(|source| Failure::Start { program: call.program.to_owned(), source })?;
    let mut group = Group { child, ended: false };
    match timeout_at(call.deadline, converse(&mut group, &call.input)).await {
        Ok(ended) => ended,
        Err(_) => Err(Failure::Deadline { seconds: call.seconds }),
    }
}

async fn converse(group: &mut Group, input: &[u8]) -> Result<Ended, Failure> {
    let (stdin, stdout, stderr) =
        (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A plugin that does not read what it is told is judged by its answer.
            let _ = stdin.write_all(input).await;
        }
    };
    let mut answer = Vec::new();
    let mut complaint = Vec::new();
    let status = {
        let talk = async {
            let (read, (), ()) = tokio::join!(
                read_answer(stdout, &mut answer),
                write,
                read_end(stderr, &mut complaint)
            );
            read
        };
        tokio::pin!(talk);
        tokio::select! {
            read = &mut talk => {
                read?;
                group.child.wait().await
            }
            status = group.child.wait() => {
                // What it wrote is in the pipes.
                if let Ok(read) = timeout(LINGER, talk).await {
                    read?;
                }
                status
            }
        }
    };
    let status = status.map_err(Failure::Pipe)?;
    group.ended = true;
    Ok(Ended { status, answer, complaint })
}

async fn read_answer(
    stdout: Option<impl AsyncRead + Unpin>,
    answer: &mut Vec<u8>,
) -> Result<(), Failure> {
    let Some(stdout) = stdout else { return Ok(()) };
    let limit = u64::try_from(ANSWER_MAX).unwrap_or(u64::MAX);
    stdout.take(limit + 1).read_to_end(answer).await.map_err(Failure::Pipe)?;
    if answer.len() > ANSWER_MAX {
        return Err(Failure::TooMuch { limit: ANSWER_MAX });
    }
    Ok(())
}

/// Reads on, so that the plugin does not wait for a reader, and keeps the end.
async fn read_end(stderr: Option<impl AsyncRead + Unpin>, end: &mut Vec<u8>) {
    let Some(mut stderr) = stderr else { return };
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stderr.read(&mut buffer).await {
        end.extend_from_slice(&buffer[..length]);
        let surplus = end.len().saturating_sub(COMPLAINT_MAX);
        end.drain(..surplus);
    }
}

/// A plugin and all it started, killed when dropped before its end.
struct Group {
    child: Child,
    ended: bool,
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // The child has not been waited for, so its number is still its own, and so is its group's.
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        // The runtime waits for it in the background.
        let _: io::Result<()> = self.child.start_kill();
    }
}
