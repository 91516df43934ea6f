//! Watches containers until they end, through a restart of the daemon if need be.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use proto::cri::v1 as cri;
use tonic::Code;

use super::{Error, follow::Follower, sequence::Stop};
use crate::cli::{
    client::{self, Client},
    console,
    signals::Signals,
};

/// Between two looks at the containers: the answer comes from the daemon's memory.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long the daemon may be away, for a restart or an upgrade, before a run gives up on it. The
/// pod goes on meanwhile.
const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// What stands for an exit code that nobody can tell any more.
const EXIT_UNKNOWN: i32 = 255;

/// A container that was created and perhaps started.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) name: String,
    pub(super) id: String,
    /// Absent when nobody stays to read it.
    pub(super) log: Option<Follower>,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ended {
    name: String,
    exit_code: i32,
    finished_at_ns: i64,
    reason: String,
    message: String,
}

/// Waits until all of `running` have ended and their logs are printed; answers them in the order
/// of their ends. What has not ended when a signal comes is still in `running`.
pub(super) async fn until_all_ended(
    client: &Client,
    signals: &mut Signals,
    running: &mut Vec<Running>,
) -> Result<Vec<Ended>, Stop> {
    let mut ended = Vec::new();
    let mut absent_since = None;
    while !running.is_empty() {
        signals.or_stop(tokio::time::sleep(POLL_INTERVAL)).await?;
        let found = match signals.or_stop(look(client, running)).await? {
            Ok(found) => found,
            Err(error) if is_absence(&error) => {
                if absent_since.is_none() {
                    console::note("the daemon is away; the pod goes on, waiting for it");
                }
                if absent_since.get_or_insert_with(Instant::now).elapsed() > ABSENCE_MAX {
                    return Err(error.into());
                }
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if absent_since.take().is_some() {
            console::note("the daemon is back");
        }
        // From the last on, so that the indices of the others stay true.
        for (index, end) in found.into_iter().rev() {
            if let Some(log) = running.remove(index).log {
                signals.or_stop(log.finish()).await?.map_err(Error::Log)?;
            }
            console::note(describe(&end));
            ended.push(end);
        }
    }
    ended.sort_by_key(|end| end.finished_at_ns);
    Ok(ended)
}

/// The exit code of the first that failed.
pub(super) fn failure(ended: &[Ended]) -> Option<ExitCode> {
    let failed = ended.iter().find(|end| end.exit_code != 0)?;
    Some(ExitCode::from(u8::try_from(failed.exit_code).unwrap_or(u8::MAX)))
}

/// Which of the containers ended, by their index in `running`, the least first.
async fn look(client: &Client, running: &[Running]) -> Result<Vec<(usize, Ended)>, client::Error> {
    let mut found = Vec::new();
    for (index, container) in running.iter().enumerate() {
        let object = format!("container {}", container.name);
        match client.container_status(&object, &container.id).await {
            Ok(status) if status.state() == cri::ContainerState::ContainerExited => {
                found.push((index, ended(&container.name, status)));
            }
            Ok(_) => {}
            Err(error) if error.code() == Some(Code::NotFound) => {
                let name = container.name.clone();
                let reason = "Removed".to_owned();
                let gone = Ended { name, exit_code: EXIT_UNKNOWN, reason, ..Default::default() };
                found.push((index, gone));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn ended(name: &str, status: cri::ContainerStatus) -> Ended {
    Ended {
        name: name.to_owned(),
        exit_code: status.exit_code,
        finished_at_ns: status.finished_at,
        reason: status.reason,
        message: status.message,
    }
}

/// Whether the call failed because nobody was there to answer it, or not to its end.
fn is_absence(error: &client::Error) -> bool {
    matches!(error.code(), Some(Code::Unavailable | Code::Unknown | Code::Cancelled))
}

fn describe(end: &Ended) -> String {
    let mut text = format!("container {} ended with exit code {}", end.name, end.exit_code);
    // The usual reasons repeat the exit code.
    if !matches!(end.reason.as_str(), "" | "Completed" | "Error") {
        text.push_str(&format!(" ({})", end.reason));
    }
    if !end.message.is_empty() {
        text.push_str(&format!(": {}", end.message));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(exit_code: i32) -> Ended {
        Ended { name: "c".to_owned(), exit_code, ..Default::default() }
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_failure() {
        for (codes, expect) in [
            (&[][..], None),
            (&[0, 0], None),
            (&[0, 3, 4], Some(3)),
            (&[137], Some(137)),
            (&[-1], Some(255)),
            (&[256], Some(255)),
        ] {
            let ended: Vec<Ended> = codes.iter().copied().map(end).collect();
            assert_eq!(failure(&ended), expect.map(ExitCode::from), "{codes:?}");
        }
    }

    #[test]
    fn a_container_that_was_killed_for_memory_says_so() {
        let killed = Ended { reason: "OOMKilled".to_owned(), ..end(137) };
        assert_eq!(describe(&killed), "container c ended with exit code 137 (OOMKilled)");
        let plain = Ended { reason: "Error".to_owned(), ..end(1) };
        assert_eq!(describe(&plain), "container c ended with exit code 1");
    }
}
