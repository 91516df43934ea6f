//! Another process in a running container: into all of its namespaces and groups, under all of its confinement.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use crate::create::{Seccomp, Stdio, own_pipes};
use crate::error::{At, Error};
use crate::plan::{MemoryPolicy, Process};
use crate::process::{self, Domain, Ending};
use crate::root::Root;
use crate::sys::lend::{Born, LENDS, lend};
use crate::sys::process::{CloneArgs, clone, close_all_except, set_stdio};
use crate::sys::schedule::{set_all_cpus, set_cpus};
use crate::{channel, dev, label, rdt, users};

/// A process to start in the container whose init is `init_pid`.
#[derive(Debug)]
pub struct Entry<'a> {
    pub init_pid: i32,
    pub process: &'a Process,
    pub node: &'a cgroup::Hierarchies,
    /// The container's group.
    pub cgroup: &'a str,
    /// A group inside it by which the new process' whole tree can be found and killed; made by the caller
    /// (see `cgroup::Hierarchies::create_tracker`).
    pub tracker: Option<&'a str>,
    /// Groups below the container's that are there already: see `cgroup::Hierarchies::joins_below`.
    pub below: &'a [(String, String)],
    pub stdio: Stdio<'a>,
    pub seccomp: Option<&'a Seccomp>,
    /// The container's.
    pub memory_policy: Option<&'a MemoryPolicy>,
    pub channel: BorrowedFd<'a>,
    pub sibling: bool,
    /// Descriptors 3 to 3 + n are for the program.
    pub preserve_fds: u32,
}

const STAGE: &str = "enter the container";

/// Starts the process; it reports over the channel and waits for no start. Returns its pid: with a tracker, by which it can
/// be killed, when it has become its program or has ended, for it works in our memory until then. As for `create`, the
/// caller must have one thread and should end soon.
pub fn enter(e: &Entry<'_>) -> Result<i32, Error> {
    let init =
        Pid::from_raw(e.init_pid).ok_or_else(|| Error::new(STAGE, "the container has no init"))?;
    let init = pidfd_open(init, PidfdFlags::empty()).at(STAGE, "find the container's init")?;
    let failed = |e: cgroup::Error| Error::new(STAGE, format!("adding pid to its cgroups: {e}"));
    let groups = match e.tracker {
        Some(tracker) => e.node.tracked_joins(e.cgroup, tracker),
        None => e.node.joins_below(e.cgroup, e.below),
    };
    let asked = e.tracker.is_some() || !e.below.is_empty();
    let follow = !asked && e.node.is_v2();
    let groups = match groups {
        Err(_) if follow => e.node.joins_of(e.init_pid),
        other => other,
    };
    let groups = groups.map_err(failed)?;
    move_into_thread_name_spaces(init.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        .at(STAGE, "join its pid namespace")?;
    if let [Some(cpus), _] = &e.process.schedule.exec_cpus {
        set_cpus(cpus).at("CPU affinity", format!("set {cpus:?}"))?;
    }
    let others = Others::of(e.init_pid)?;
    let start = |groups: &cgroup::Joins| {
        let cgroup = groups.born.as_ref().map(AsRawFd::as_raw_fd);
        let args = CloneArgs { namespaces: 0, sibling: e.sibling, cgroup };
        let work = || {
            let Err(error) = become_it(e, init.as_fd(), groups, &others);
            channel::say_failed(e.channel, &error);
            1
        };
        if LENDS && e.tracker.is_some() && !others.clocks {
            let born = Born::default();
            lend(args, &born, work)?;
            return born.wait().ok_or(Errno::SRCH);
        }
        clone(args, work)
    };
    let started = match start(&groups) {
        // It holds groups with limits of their own by now, and no processes: where init has gone, others may.
        Err(Errno::BUSY) if follow => start(&e.node.joins_of(e.init_pid).map_err(failed)?),
        other => other,
    };
    started.at(STAGE, format!("adding pid to cgroups: clone into {}", e.cgroup))
}

fn become_it(
    e: &Entry<'_>,
    init: BorrowedFd<'_>,
    groups: &cgroup::Joins,
    others: &Others,
) -> Result<Infallible, Error> {
    process::be_undumpable()?;
    rustix::process::setsid().at("start", "setsid")?;
    channel::say_init(e.channel)?;
    groups.enter().at("join the cgroup", format!("write 0 to the files of {}", e.cgroup))?;
    process::host_settings(e.process, e.channel)?;
    rdt::enter_that_of(e.init_pid)?;
    if let Some(label) = &e.process.selinux {
        label::on_exec(label)?;
    }
    match &e.process.schedule.exec_cpus {
        [_, Some(cpus)] => set_cpus(cpus).at("CPU affinity", format!("set {cpus:?}"))?,
        [Some(_), None] => {} // as far as the group allows them, they stay
        [None, None] => set_all_cpus().at("CPU affinity", "any CPU of the group")?,
    }
    let its_root = root_of(e.init_pid, init, others)?;
    let personality = Some(personality_of(e.init_pid)?).filter(|p| *p != 0);
    if let Stdio::Pipes(fds) = e.stdio {
        let uid = e.process.uid;
        own_pipes(&fds, if others.users { users::host_uid(e.init_pid, uid)? } else { Some(uid) });
        set_stdio(fds).at("set up stdio", "dup2")?;
    }
    // From here on the container can see this process: nothing of the host may be open but what is needed.
    let first = 3 + i32::try_from(e.preserve_fds).unwrap_or(0);
    let keep: Vec<_> = (0..first).chain([e.channel.as_raw_fd()]).collect();
    let needed = [Some(init), its_root.as_ref().map(AsFd::as_fd)];
    let needed: Vec<_> = needed.iter().flatten().map(AsRawFd::as_raw_fd).collect();
    close_all_except(&[keep.as_slice(), &needed].concat());
    move_into_thread_name_spaces(init, others.namespaces()).at(STAGE, "join its namespaces")?;
    if others.users {
        users::become_root()?;
    }
    process::own_keyring()?;
    if let Some(root) = &its_root {
        rustix::process::fchdir(root).at(STAGE, "change to its root")?;
        rustix::process::chroot(".").at(STAGE, "change its root")?;
    }
    close_all_except(&keep);
    if matches!(e.stdio, Stdio::Terminal) {
        let root = rustix::fs::open(
            "/",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let master = dev::terminal(&Root::new(root.at(STAGE, "open its root")?), e.process, false)?;
        channel::say_ready(e.channel, Some(master.as_fd()))?;
    }
    let ending = Ending {
        channel: e.channel,
        early: false,
        seccomp: e.seccomp,
        sealed: None,
        supervised: false,
        preserve_fds: e.preserve_fds,
        domain: Domain { personality, memory_policy: e.memory_policy },
        hooks: None,
    };
    process::become_it(e.process, &ending, || Ok(()))
}

/// The root of a container that lives among our mounts: there, it is not that of the namespace.
fn root_of(pid: i32, init: BorrowedFd<'_>, others: &Others) -> Result<Option<OwnedFd>, Error> {
    if others.mounts {
        return Ok(None);
    }
    let path = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&path, flags, Mode::empty()).at(STAGE, format!("open {path}"))?;
    // Where init has not ended by now, what was opened is its own.
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut [PollFd::new(&init, PollFlags::IN)], Some(&now)) {
        Ok(0) => Ok(Some(root)),
        _ => Err(Error::new(STAGE, "the container's init has ended")),
    }
}

/// The execution domain of the container's init, which its other processes share.
fn personality_of(init: i32) -> Result<u64, Error> {
    let path = format!("/proc/{init}/personality");
    let text = fs::read_to_string(&path).at(STAGE, format!("read {path}"))?;
    u64::from_str_radix(text.trim(), 16)
        .map_err(|_| Error::new(STAGE, format!("{path}: {:?} is no number", text.trim())))
}

/// Namespaces that a container may share with the host; joining the one we are in is an error for the first of them.
struct Others {
    users: bool,
    clocks: bool,
    mounts: bool,
}

impl Others {
    fn of(init: i32) -> Result<Self, Error> {
        let differs = |name: &str| {
            let stat = |whose: &str| rustix::fs::stat(format!("/proc/{whose}/ns/{name}"));
            match (stat("self"), stat(&init.to_string())) {
                (Ok(ours), Ok(its)) => Ok(ours.st_ino != its.st_ino),
                (Err(Errno::NOENT), _) => Ok(false), // a kernel without this kind
                (Err(e), _) | (_, Err(e)) => {
                    Err(e).at(STAGE, format!("look at its {name} namespace"))
                }
            }
        };
        Ok(Self { users: differs("user")?, clocks: differs("time")?, mounts: differs("mnt")? })
    }

    fn namespaces(&self) -> ThreadNameSpaceType {
        let mut all = ThreadNameSpaceType::NETWORK
            | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
            | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
            | ThreadNameSpaceType::CONTROL_GROUP;
        all.set(ThreadNameSpaceType::MOUNT, self.mounts);
        all.set(ThreadNameSpaceType::USER, self.users);
        all.set(ThreadNameSpaceType::TIME, self.clocks);
        all
    }
}
