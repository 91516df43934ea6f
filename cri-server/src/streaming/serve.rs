//! The streaming process: serves clients until the daemon that started it is gone and the last session has ended.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::streaming::{Address, Listen, ListenError, Server, Timeouts};
use anyhow::Context;
use runtime::cgroup::{Hierarchies, Removal};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::message::{Answer, Question, Target, receive, send};
use super::target::Pods;

/// Without sessions and without clients under way the process goes, and its memory with it. Long enough for the
/// next command of somebody who types them.
const LINGER: Duration = Duration::from_secs(2);
/// How often that is looked at, while there is something to wait for.
const LOOK: Duration = Duration::from_millis(250);
/// The daemon before ours may be about to let go of the address.
const BIND: Duration = Duration::from_secs(2);
/// How long the last threads may take to be out of the cgroup, and how often that is tried.
const EMPTY: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the directories of the pods are.
    #[arg(long, value_name = "DIR")]
    pods: PathBuf,
    /// The cgroup below which this process makes one of its own: outside the daemon's unit.
    #[arg(long, value_name = "PATH")]
    cgroup: String,
}

/// Serves in a cgroup of its own, so that neither the limits nor the end of the daemon's unit touch the sessions.
/// The process must have one thread.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let cgroups = Hierarchies::detect()?;
    let group = group_of(&args.cgroup, std::process::id());
    cgroups.create(&group)?;
    cgroups.written_joins(&group)?.enter().context("enter the streaming process' cgroup")?;
    let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let inside = threads.enter();
    let filter = std::env::var("LAPSTRAKE_LOG").unwrap_or_else(|_| "info".to_owned());
    let _log = crate::log::start(crate::log::parse(&filter)?, crate::log::Format::Auto);
    drop(inside);
    let served = threads.block_on(serve(args.pods));
    // The threads end here: only whole processes can leave a group.
    drop(threads);
    if cgroups.written_joins("/").is_ok_and(|root| root.enter().is_ok()) {
        // A thread that has ended is in its group until the kernel is through with it.
        let until = std::time::Instant::now() + EMPTY;
        while cgroups.remove(&group)? == Removal::Busy && std::time::Instant::now() < until {
            std::thread::sleep(AGAIN);
        }
        if let Ok(Daemon::Gone) = served {
            // Whoever is last takes the parents along, if nothing else is in them.
            cgroups.prune(&group);
        }
    }
    served?;
    Ok(())
}

/// What is known of the daemon when the process ends.
enum Daemon {
    Lives,
    Gone,
}

/// The cgroup of a streaming process.
pub(super) fn group_of(parent: &str, pid: u32) -> String {
    format!("/{}/streaming-{pid}", parent.trim_matches('/'))
}

/// The daemon's socket is standard input.
async fn serve(pods: PathBuf) -> io::Result<Daemon> {
    // Whoever ends the daemon's session or process group does not mean its clients' sessions.
    let _ = rustix::process::setsid();
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    let mut daemon = UnixStream::from_std(socket)?;
    detach_stdin()?;
    let Some(Question::Open { listen, idle, creation }) = receive(&mut daemon).await? else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let timeouts = Timeouts { idle, creation };
    let server = match bind(&listen, timeouts, Arc::new(Pods::new(pods))).await {
        Ok(server) => server,
        Err(error) => {
            send(&mut daemon, &Answer::Refused(error.to_string())).await?;
            return Ok(Daemon::Lives);
        }
    };
    send(&mut daemon, &Answer::Open).await?;
    let (stop, running) = (CancellationToken::new(), server.clone());
    let stopping = stop.clone();
    tokio::spawn(async move { running.run(stopping).await });
    if let Daemon::Lives = with_daemon(&server, daemon).await {
        return Ok(Daemon::Lives);
    }
    // An address that the next daemon wants as well is free from here on. A port of our own is kept for the clients
    // that have a URL and not come yet.
    let own_port = matches!(&listen.address, Address::Tcp(address) if address.port() == 0);
    if !own_port {
        stop.cancel();
    }
    let mut sessions = server.sessions();
    while *sessions.borrow_and_update() > 0 || own_port && server.waiting() > 0 {
        let _ = tokio::time::timeout(LOOK, sessions.changed()).await;
    }
    Ok(Daemon::Gone)
}

/// Answers the daemon until it is gone, or until there has been nothing to do for a while.
async fn with_daemon(server: &Server<Target>, daemon: UnixStream) -> Daemon {
    let (mut read, mut write) = daemon.into_split();
    // A question half read must not be dropped for a look at the clock.
    let (asked, mut questions) = mpsc::channel(1);
    let reading = tokio::spawn(async move {
        while let Ok(Some(question)) = receive(&mut read).await {
            if asked.send(question).await.is_err() {
                return;
            }
        }
    });
    let mut busy = Instant::now();
    let mut sessions = server.sessions();
    let daemon = loop {
        tokio::select! {
            Ok(()) = sessions.changed() => {
                let count = *sessions.borrow_and_update();
                if send(&mut write, &Answer::Sessions(count)).await.is_err() {
                    break Daemon::Gone;
                }
            }
            question = questions.recv() => {
                let answer = match question {
                    Some(Question::Issue { errand, target }) => match server.issue(errand, target) {
                        Ok(url) => Answer::Url(url),
                        Err(refused) => Answer::TooMany(refused.to_string()),
                    },
                    Some(Question::Open { .. }) => Answer::Refused("is open already".to_owned()),
                    None => break Daemon::Gone,
                };
                if send(&mut write, &answer).await.is_err() {
                    break Daemon::Gone;
                }
                busy = Instant::now();
            }
            () = tokio::time::sleep(LOOK) => {
                if *server.sessions().borrow() > 0 || server.waiting() > 0 {
                    busy = Instant::now();
                } else if busy.elapsed() >= LINGER {
                    break Daemon::Lives;
                }
            }
        }
    };
    reading.abort();
    daemon
}

async fn bind(
    listen: &Listen,
    timeouts: Timeouts,
    pods: Arc<Pods>,
) -> Result<Server<Target>, ListenError> {
    let until = Instant::now() + BIND;
    loop {
        match Server::bind(listen, timeouts, pods.clone()).await {
            Err(ListenError::Bind { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse && Instant::now() < until =>
            {
                tokio::time::sleep(LOOK).await;
            }
            bound => return bound,
        }
    }
}

/// The daemon notices our end by its socket, so no copy of it may stay open.
fn detach_stdin() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    Ok(rustix::stdio::dup2_stdin(&null)?)
}
