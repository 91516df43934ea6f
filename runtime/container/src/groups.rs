//! The control group of a container, made by the creator and handed to init. Where nothing else depends on it, that
//! happens while init builds the root: the directories of cgroup v1 take as long as all mounts of a root together.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cgroup::Joins;
use cgroup::hierarchy::Hierarchy;
use rustix::io::{Errno, retry_on_intr};
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::channel;
use crate::create::Creation;
use crate::error::{At, Error};
use crate::gate::Gate;
use crate::mounts::move_onto;
use crate::overlay;
use crate::plan::{From, Mount, Namespace};
use crate::sources::{change, clone_tree};
use crate::sys::mount::{Change, attr};
use crate::sys::process::close_copy;
use crate::sys::schedule;
use crate::template::Templates;
use crate::users::Users;

pub(crate) const STAGE: &str = "create the cgroup";
const JOIN: &str = "join the cgroup";
/// SCM_MAX_FD, more than one message carries.
const FDS_MAX: usize = 253;
/// The message that brings a part of it by descriptors.
const MADE: u8 = b'M';

/// What a cgroup mount of v1 shows: the container's own group in each hierarchy, a detached tree.
#[derive(Debug)]
pub(crate) struct CgroupMount(Vec<OwnedFd>);

#[derive(Debug)]
pub(crate) struct Groups {
    /// The directory of the v2 group that init is to be born in.
    pub(crate) born: Option<OwnedFd>,
    /// Whether the creator makes them when init is there rather than before.
    pub(crate) beside: bool,
    creator: OwnedFd,
    init: OwnedFd,
}

impl Groups {
    /// What there must be before init. With `users`, the creator is about to lose its power over the host's groups.
    pub(crate) fn new(c: &Creation<'_>, users: Option<&Users>) -> Result<Self, Error> {
        let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
        let (creator, init) =
            socketpair(family, kind, SocketFlags::CLOEXEC, None).at(STAGE, "make a socket pair")?;
        let mut born = None;
        // Root of a user namespace may not make a process in a group of the host's, but write to a file that is open.
        if users.is_none() {
            let made = match c.has_sibling {
                true => c.node.create_unified_sibling(&c.plan.cgroup),
                false => c.node.create_unified(&c.plan.cgroup),
            };
            made.map_err(failed(STAGE))?;
            born = c.node.born(&c.plan.cgroup).map_err(failed(JOIN))?;
        }
        let beside = users.is_none() && !is_needed_early(c);
        let groups = Self { born, beside, creator, init };
        if !beside {
            groups.make(c)?;
        }
        Ok(groups)
    }

    /// Makes them, writes their limits and hands them over, what init is to join first; it waits for that before it
    /// says that it is ready.
    pub(crate) fn make(&self, c: &Creation<'_>) -> Result<(), Error> {
        let tasks = self.limit(c).and_then(|()| self.tasks(c));
        self.hand_over(tasks, |tasks| tasks.iter().map(AsFd::as_fd).collect())?;
        cgroup_mounts(c).try_for_each(|mount| {
            let made = CgroupMount::make(c, mount);
            self.hand_over(made, |made| made.0.iter().map(AsFd::as_fd).collect())
        })
    }

    fn hand_over<T>(
        &self,
        made: Result<T, Error>,
        fds: impl FnOnce(&T) -> Vec<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let (text, fds) = match &made {
            Ok(made) => (vec![MADE], fds(made)),
            Err(error) => (channel::encode_failed(error), Vec::new()),
        };
        match send(self.creator.as_fd(), &text, &fds) {
            Ok(()) | Err(Errno::PIPE | Errno::CONNRESET) => made.map(drop), // init has said itself why it ended
            Err(e) => Err(e).at(STAGE, "hand it to init"),
        }
    }

    fn limit(&self, c: &Creation<'_>) -> Result<(), Error> {
        let (node, group, r) = (c.node, &c.plan.cgroup, &c.plan.resources);
        let limit = || {
            if self.born.is_none() {
                node.create_unified(group)?;
            }
            node.create_v1(group)?;
            node.apply(group, &cgroup::limits::settings(r, node)?)?;
            r.devices.as_ref().map_or(Ok(()), |rules| node.restrict_devices(group, rules))
        };
        limit().map_err(failed(STAGE))
    }

    fn tasks(&self, c: &Creation<'_>) -> Result<Vec<OwnedFd>, Error> {
        let tasks = match self.born {
            Some(_) => c.node.tasks(&c.plan.cgroup),
            None => c.node.written_joins(&c.plan.cgroup).map(|joins| joins.tasks),
        };
        tasks.map_err(failed(JOIN))
    }

    /// Init's side: waits for the groups and goes into them. Returns what the cgroup mounts of the plan are to be, which
    /// are made meanwhile.
    pub(crate) fn join(&self, c: &Creation<'_>) -> Result<Vec<CgroupMount>, Error> {
        close_copy(self.creator.as_fd()); // so that its end is noticed
        let tasks = receive(self.init.as_fd())?;
        // By itself: moving another process takes a global lock for milliseconds.
        let joins = Joins { tasks, born: None };
        joins.enter().at(JOIN, format!("write 0 to the files of {}", c.plan.cgroup))?;
        schedule::set_all_cpus().at("CPU affinity", "any CPU of the group")?;
        let mount = |_| receive(self.init.as_fd()).map(CgroupMount);
        cgroup_mounts(c).map(mount).collect()
    }
}

impl CgroupMount {
    fn make(c: &Creation<'_>, mount: &Mount) -> Result<Self, Error> {
        let stage = &format!("mount {}", mount.destination.display());
        let group = c.plan.cgroup.trim_start_matches('/');
        let tree = |h: &Hierarchy| clone_tree(&h.mount.join(group), false, stage);
        c.node.v1.iter().map(tree).collect::<Result<_, _>>().map(Self)
    }

    /// The first that is to be read-only has its places in the template, which nobody can write to, others in a small
    /// tmpfs.
    pub(crate) fn attach(
        &self,
        c: &Creation<'_>,
        mount: &Mount,
        place: &OwnedFd,
        templates: &mut Templates,
    ) -> Result<(), Error> {
        let stage = &format!("mount {}", mount.destination.display());
        let (own, below) = (mount.options.attributes, mount.options.recursive_attributes);
        let (set, clear) = (own.set | below.set, own.clear | below.clear);
        let holder = match templates.groups.take_if(|_| set & attr::RDONLY != 0) {
            Some(template) => template,
            None => own_holder(c, stage)?,
        };
        move_onto(&holder, place).at(stage, "attach")?;
        for (h, tree) in c.node.v1.iter().zip(&self.0) {
            let (name, flags) = (h.label(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
            move_mount(tree, "", &holder, &name, flags).at(stage, format!("attach {name}"))?;
        }
        change(&holder, stage, Change { set, clear, recursive: true, ..Default::default() })
    }
}

fn own_holder(c: &Creation<'_>, stage: &str) -> Result<OwnedFd, Error> {
    let label = c.plan.mount_label.as_deref();
    let holder = overlay::tmpfs(stage, &[("mode", "755")], label, MountAttrFlags::empty())?;
    c.node.make_places(&holder).at(stage, "make a place for each hierarchy")?;
    Ok(holder)
}

pub(crate) fn cgroup_mounts<'a>(c: &Creation<'a>) -> impl Iterator<Item = &'a Mount> {
    let v1 = !c.node.is_v2();
    c.plan.mounts.iter().filter(move |m| v1 && m.from == From::Cgroup)
}

/// Whether init must be in its groups before it builds the root: to make a namespace of them, to pay for what it copies,
/// for hooks that look at them, and where something is done to what only their mount shows.
fn is_needed_early(c: &Creation<'_>) -> bool {
    let plan = c.plan;
    let mounts = plan.mounts.iter().map(|m| &m.destination);
    let devices = plan.devices.iter().map(|d| &d.path);
    let others = plan.masked.iter().chain(&plan.readonly).chain([&plan.process.cwd]);
    let paths: Vec<_> = mounts.chain(devices).chain(others).collect();
    let within = |at: &PathBuf| paths.iter().any(|path| *path != at && path.starts_with(at));
    plan.namespaces.makes(Namespace::Cgroup) && !c.node.is_v2()
        || plan.mounts.iter().any(|m| m.options.tmpcopyup)
        || Gate::is_needed(plan)
        || !plan.hooks.create_container.is_empty()
        || cgroup_mounts(c).any(|m| within(&m.destination))
}

fn failed(stage: &str) -> impl Fn(cgroup::Error) -> Error {
    move |e| Error::new(stage, e.to_string())
}

fn send(socket: BorrowedFd<'_>, text: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    sendmsg(socket, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

fn receive(socket: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Error> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; channel::REPORT_MAX];
    let mut parts = [IoSliceMut::new(&mut text)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| recvmsg(socket, &mut parts, &mut ancillary, flags))
        .at(JOIN, "hear of it from the creator")?;
    match &text[..got.bytes] {
        [MADE] if got.flags.contains(ReturnFlags::CTRUNC) => {
            Err(Error::new(JOIN, "not all of its descriptors arrived (too many open files?)"))
        }
        [MADE] => Ok(channel::descriptors(&mut ancillary)),
        [] => Err(Error::new(JOIN, "its creator was killed")),
        [_, text @ ..] => Err(channel::decode_failed(text)),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, WaitOptions, setrlimit, waitpid};

    use super::*;
    use crate::sys::process::fork;

    #[test]
    fn descriptors_that_are_cut_are_an_error() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().expect("pair");
        send(ours.as_fd(), &[MADE], &[ours.as_fd(), theirs.as_fd()]).expect("sent");
        send(ours.as_fd(), &[MADE], &[ours.as_fd(), theirs.as_fd()]).expect("sent");
        assert_eq!(receive(theirs.as_fd()).expect("received").len(), 2);
        let child = fork(|| {
            let none = Rlimit { current: Some(0), maximum: Some(0) };
            setrlimit(Resource::Nofile, none).expect("limited");
            let error = receive(theirs.as_fd()).expect_err("cut");
            assert!(error.message.contains("too many open files"), "{error}");
            0
        });
        let child = rustix::process::Pid::from_raw(child.expect("fork"));
        let (_, status) = waitpid(child, WaitOptions::empty()).expect("waited").expect("ended");
        assert_eq!(status.exit_status(), Some(0));
    }
}
