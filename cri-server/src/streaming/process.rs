//! The daemon's handle on its streaming process: started at first use, asked for URLs, started again when it has ended
//! for want of sessions.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ::streaming::Errand;
use prometheus::IntGauge;
use runtime::cgroup::Hierarchies;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::message::{Answer, Question, Target, receive, send};
use super::serve::group_of;
use super::{Error, Settings};
use crate::config::Config;

/// A start takes some twenty milliseconds; a node under pressure may need seconds.
const START: Duration = Duration::from_secs(20);
/// An answer comes from memory.
const ASK: Duration = Duration::from_secs(10);
/// How long the daemon's end waits for a process without sessions, which ends at once.
const LEAVE: Duration = Duration::from_secs(1);

/// The streaming process of this daemon.
#[derive(Debug)]
pub(crate) struct Streaming {
    settings: Settings,
    pods: PathBuf,
    /// Below which it has its own.
    cgroup: String,
    cgroups: Arc<Hierarchies>,
    link: Arc<Mutex<Option<Link>>>,
    /// How many there are in the processes that this daemon speaks to.
    sessions: IntGauge,
}

#[derive(Debug)]
struct Link {
    questions: OwnedWriteHalf,
    answers: mpsc::Receiver<Answer>,
    pid: u32,
    /// Done when the process has ended.
    ended: JoinHandle<()>,
}

impl Streaming {
    pub(crate) fn new(config: &Config, cgroups: Arc<Hierarchies>, sessions: IntGauge) -> Self {
        Self {
            settings: config.streaming.clone(),
            pods: config.state.join("pods"),
            cgroup: config.runtime.shim_cgroup.clone(),
            cgroups,
            link: Arc::default(),
            sessions,
        }
    }

    pub(crate) fn replay(&self) -> u64 {
        self.settings.replay
    }

    /// The URL by which a client may run an errand, once, within a minute.
    pub(crate) async fn issue(&self, errand: Errand, target: Target) -> Result<String, Error> {
        let question = Question::Issue { errand, target };
        let mut place = self.link.lock().await;
        // The process may be ending for want of sessions just now; a new one does not at once.
        if let Some(link) = place.take()
            && let Ok(answer) = self.ask(&mut place, link, &question).await
        {
            return answer;
        }
        let mut link = self.start()?;
        let Settings { listen, idle, creation, .. } = self.settings.clone();
        let open = Question::Open { listen, idle, creation };
        match exchange(&mut link, &open, START).await.map_err(Error::Broken)? {
            Answer::Open => {}
            Answer::Refused(why) => return Err(Error::Refused(why)),
            Answer::Url(_) | Answer::TooMany(_) | Answer::Sessions(_) => {
                return Err(Error::Broken(confused()));
            }
        }
        self.ask(&mut place, link, &question).await.map_err(Error::Broken)?
    }

    /// Keeps the link as long as it works.
    async fn ask(
        &self,
        place: &mut Option<Link>,
        mut link: Link,
        question: &Question,
    ) -> io::Result<Result<String, Error>> {
        let answer = match exchange(&mut link, question, ASK).await {
            Ok(answer) => answer,
            Err(error) => return Err(error),
        };
        *place = Some(link);
        match answer {
            Answer::Url(url) => Ok(Ok(url)),
            Answer::TooMany(why) => Ok(Err(Error::TooMany(why))),
            Answer::Refused(why) => Ok(Err(Error::Refused(why))),
            Answer::Open | Answer::Sessions(_) => Err(confused()),
        }
    }

    fn start(&self) -> Result<Link, Error> {
        let start = || {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            // The file may have been replaced by an upgrade; this is what runs.
            let mut command = Command::new("/proc/self/exe");
            command.arg0("lapstrake").arg("streaming").arg("--pods").arg(&self.pods);
            command.arg("--cgroup").arg(&self.cgroup);
            command.stdin(Stdio::from(OwnedFd::from(theirs))).stdout(Stdio::null());
            let (socket, child) = (UnixStream::from_std(ours)?, command.spawn()?);
            let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
            let group = group_of(&self.cgroup, pid);
            let ended = tokio::spawn(reap(child, self.link.clone(), self.cgroups.clone(), group));
            let ((read, questions), (tell, answers)) = (socket.into_split(), mpsc::channel(1));
            tokio::spawn(listen(read, tell, self.sessions.clone()));
            Ok(Link { questions, answers, pid, ended })
        };
        start().map_err(Error::Start)
    }

    /// Lets go of the process, which ends with its last session, at once if it has none.
    pub(crate) async fn leave(&self) {
        let link = self.link.lock().await.take();
        if let Some(Link { questions, answers, ended, .. }) = link {
            drop((questions, answers));
            // One that has sessions stays behind, as it should.
            let _ = tokio::time::timeout(LEAVE, ended).await;
        }
    }
}

async fn exchange(link: &mut Link, question: &Question, limit: Duration) -> io::Result<Answer> {
    let exchange = async {
        send(&mut link.questions, question).await?;
        link.answers.recv().await.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    };
    tokio::time::timeout(limit, exchange)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Hands answers on, and keeps count of the sessions, until the process or its link is gone.
async fn listen(mut read: OwnedReadHalf, tell: mpsc::Sender<Answer>, sessions: IntGauge) {
    let mut counted = 0;
    while let Ok(Some(answer)) = receive(&mut read).await {
        match answer {
            Answer::Sessions(count) => {
                let count = i64::try_from(count).unwrap_or(i64::MAX);
                sessions.add(count - counted);
                counted = count;
            }
            answer => {
                if tell.send(answer).await.is_err() {
                    break;
                }
            }
        }
    }
    sessions.sub(counted);
}

/// Waits for the process, so that no zombie stays, no socket to it, and no cgroup of one that was killed.
async fn reap(
    mut child: Child,
    link: Arc<Mutex<Option<Link>>>,
    cgroups: Arc<Hierarchies>,
    group: String,
) {
    let pid = child.id();
    match child.wait().await {
        Ok(status) if status.success() => {}
        Ok(status) => {
            tracing::warn!(%status, "the streaming process ended");
            let removed = tokio::task::spawn_blocking(move || cgroups.remove(&group)).await;
            tracing::debug!(?removed, "its cgroup");
        }
        Err(error) => tracing::warn!(%error, "wait for the streaming process"),
    }
    let mut place = link.lock().await;
    if place.as_ref().is_some_and(|link| Some(link.pid) == pid) {
        *place = None;
    }
}

fn confused() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the streaming process answered something else")
}
