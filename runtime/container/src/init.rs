//! The init stage, between clone and exec: one linear recipe.

use std::convert::Infallible;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::create::{Creation, Program, Rootfs, Start, Stdio};
use crate::error::{At, Error};
use crate::groups::Groups;
use crate::hooks::Moment;
use crate::jail::{self, Jail};
use crate::mounts::Unfinished;
use crate::plan::{Namespace, Plan};
use crate::process::{self, Domain, Ending};
use crate::root::Root;
use crate::sources::{Sources, View};
use crate::sys::process::{close_all_except, set_stdio, unshare};
use crate::sys::signals;
use crate::template::Templates;
use crate::{channel, dev, label, mask, mounts, users};

/// Runs in the new process; returns only when something failed or the parent is gone. `own_users`: in a user
/// namespace, as nobody yet. `gate` returns when the hooks on the host are through.
pub(crate) fn run(
    c: &Creation<'_>,
    given: (&Sources, &Groups),
    own_users: bool,
    gate: &dyn Fn() -> Result<(), Error>,
) -> Error {
    match build_and_become(c, given, own_users, gate) {
        Err(error) => error,
    }
}

fn build_and_become(
    c: &Creation<'_>,
    (sources, groups): (&Sources, &Groups),
    own_users: bool,
    gate: &dyn Fn() -> Result<(), Error>,
) -> Result<Infallible, Error> {
    let plan = c.plan;
    begin(c)?;
    let early = if groups.beside { Vec::new() } else { groups.join(c)? };
    // Still as the owner of the host's files: the clocks' file is root's, the bundle may be closed to others.
    if plan.namespaces.makes(Namespace::Time) {
        own_clocks(plan)?;
    }
    let place = place_of_root(c, &sources.view)?;
    if own_users {
        users::become_root()?;
    }
    if plan.namespaces.makes(Namespace::Cgroup) {
        unshare(Namespace::Cgroup as u64).at("make a cgroup namespace", "unshare")?;
    }
    names(plan)?;
    // All writes to /proc happen before here or now, where it still is the host's: nothing of the container is
    // mounted yet.
    sysctls(plan)?;
    if !c.extras.keep_keyring {
        process::own_keyring()?;
    }

    let (root, jail, mut templates) = attach_root(c, sources, place)?;
    let mut unfinished = Unfinished::default();
    if let Rootfs::Empty { shm_size } = c.rootfs {
        mounts::shared_memory(&root, shm_size, plan.mount_label.as_deref())?;
    } else {
        unfinished = mounts::attach_all(&root, c, sources, &early, &mut templates)?;
        dev::populate(&root, plan, &sources.devices)?;
    }
    let terminal = match c.stdio {
        Stdio::Pipes(fds) => {
            set_stdio(fds).at("set up stdio", "dup2")?;
            None
        }
        Stdio::Terminal => Some(dev::terminal(&root, &plan.process, plan.make_dev)?),
    };
    mask::hide(&root, plan, sources.null.as_ref(), templates.empty.take())?;
    // The working directory may lie on a volume or in the image; it is made before the root turns read-only.
    root.make_dirs(&plan.process.cwd)
        .at("working directory", format!("make {}", plan.process.cwd.display()))?;
    unfinished.writable.iter().try_for_each(|tree| mounts::make_readonly(tree.as_fd()))?;
    if plan.root_readonly {
        mounts::make_readonly(root.fd())?;
    }
    gate()?;
    // Its hooks work on the root from outside: that is where they start.
    rustix::process::fchdir(root.fd()).at("createContainer hook", "change to its root")?;
    plan.hooks.run(Moment::CreateContainer, process::own_pid(), c.bundle)?;
    // The hooks before this run as what they are.
    if let Some(label) = &plan.process.selinux {
        label::on_exec(label)?;
    }
    jail.close(&root)?;
    if let Some(p) = plan.root_propagation {
        crate::sys::mount::set(root.fd(), p.into(), None)
            .at(jail::STAGE, "set rootfsPropagation")?;
    }
    drop(root);
    if groups.beside {
        unfinished.attach_groups(c, &groups.join(c)?, &mut templates)?;
    }
    // It may wait for long, beside processes of the same pid namespace: nothing of the host stays open.
    let sealed = match c.program {
        Program::Sealed(fd) | Program::Init(fd) => Some(fd),
        Program::Args => None,
    };
    let listener = match c.start {
        Start::Listener(listener) => Some(listener),
        Start::Channel => None,
    };
    close_others(c, [Some(c.channel), sealed, listener, terminal.as_ref().map(AsFd::as_fd)]);
    if listener.is_some() {
        // Engines that create and start by two commands expect to hear of a wrong one from the first.
        process::look_for_program(&plan.process)?;
        // Who does not start it after all may end it as any program; what it becomes has its own handlers.
        signals::end_by(&[libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM]);
    }
    channel::say_ready(c.channel, terminal.as_ref().map(AsFd::as_fd))?;
    drop(terminal);

    let accepted = match c.start {
        Start::Channel => None,
        Start::Listener(listener) => Some(channel::accept(listener)?),
    };
    let channel = accepted.as_ref().map_or(c.channel, AsFd::as_fd);
    become_on_start(c, channel, sealed).inspect_err(|e| {
        // The creation's channel may be closed by now; the one who started hears it by its own.
        if accepted.is_some() {
            channel::say_failed(channel, e);
        }
    })
}

/// All but stdio, what is for the program, and `ours`.
fn close_others(c: &Creation<'_>, ours: [Option<BorrowedFd<'_>>; 4]) {
    let first = 3 + i32::try_from(c.extras.preserve_fds).unwrap_or(0);
    let ours = ours.iter().flatten().map(AsRawFd::as_raw_fd);
    close_all_except(&(0..first).chain(ours).collect::<Vec<_>>());
}

const MOUNT_ROOT: &str = "mount the root file system";

/// A time namespace with shifted clocks. It must be shifted before anybody is in it, so it is made, shifted, entered.
fn own_clocks(plan: &Plan) -> Result<(), Error> {
    const STAGE: &str = "time namespace";
    unshare(Namespace::Time as u64).at(STAGE, "unshare")?;
    let lines: String =
        plan.time_offsets.iter().map(|(clock, s, ns)| format!("{clock} {s} {ns}\n")).collect();
    if !lines.is_empty() {
        fs::write("/proc/self/timens_offsets", &lines)
            .at(STAGE, format!("write {:?} to /proc/self/timens_offsets", lines.trim()))?;
    }
    let path = "/proc/self/ns/time_for_children";
    let made = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    join(Namespace::Time, &made.at(STAGE, format!("open {path}"))?)
}

fn become_on_start(
    c: &Creation<'_>,
    channel: BorrowedFd<'_>,
    sealed: Option<BorrowedFd<'_>>,
) -> Result<Infallible, Error> {
    let ending = Ending {
        channel,
        early: matches!(c.start, Start::Channel),
        seccomp: c.seccomp,
        sealed,
        supervised: matches!(c.program, Program::Init(_)),
        preserve_fds: c.extras.preserve_fds,
        domain: Domain {
            personality: c.plan.personality,
            memory_policy: c.plan.memory_policy.as_ref(),
        },
        hooks: Some((&c.plan.hooks, c.bundle)),
    };
    let started = || match channel::wait_start(channel)? {
        true => Ok(()),
        false => Err(Error::new("wait for start", "the parent is gone")),
    };
    process::become_it(&c.plan.process, &ending, started)
}

/// First words: be unreachable, say who we are.
fn begin(c: &Creation<'_>) -> Result<(), Error> {
    process::be_undumpable()?;
    rustix::process::setsid().at("start", "setsid")?;
    if c.words.is_none() { channel::say_init(c.channel) } else { Ok(()) }
}

pub(crate) fn join(kind: Namespace, fd: &OwnedFd) -> Result<(), Error> {
    let link = match kind {
        Namespace::Time => LinkNameSpaceType::Time,
        Namespace::Mount => LinkNameSpaceType::Mount,
        Namespace::Cgroup => LinkNameSpaceType::ControlGroup,
        Namespace::Uts => LinkNameSpaceType::HostNameAndNISDomainName,
        Namespace::Ipc => LinkNameSpaceType::InterProcessCommunication,
        Namespace::User => LinkNameSpaceType::User,
        Namespace::Pid => LinkNameSpaceType::ProcessID,
        Namespace::Net => LinkNameSpaceType::Network,
    };
    move_into_link_name_space(fd.as_fd(), Some(link))
        .at("join namespaces", format!("setns {kind:?}"))
}

fn names(plan: &Plan) -> Result<(), Error> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).at("hostname", format!("set {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).at("domainname", format!("set {name:?}"))?;
    }
    Ok(())
}

fn sysctls(plan: &Plan) -> Result<(), Error> {
    for (path, value) in &plan.sysctls {
        let file = Path::new("/proc/sys").join(path);
        let key = path.to_string_lossy().replace('/', ".");
        let stage = format!("sysctl {key}");
        fs::write(&file, value).at(&stage, format!("write {value:?} to {}", file.display()))?;
    }
    Ok(())
}

/// Where the root will hang, in this namespace only; nowhere yet where the bundle is not to be seen.
fn place_of_root(c: &Creation<'_>, view: &View) -> Result<Option<OwnedFd>, Error> {
    if !matches!(view, View::Own | View::Shared) {
        return Ok(None);
    }
    let at = match &c.rootfs {
        Rootfs::Directory(path) => path.clone(),
        Rootfs::Layers(_) => c.bundle.join("rootfs"),
        Rootfs::Empty { .. } => c.bundle.to_path_buf(),
    };
    directory(&at).map(Some)
}

fn directory(path: &Path) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at(MOUNT_ROOT, format!("open {}", path.display()))
}

/// Goes among the mounts that the container is to have, and puts its root there.
fn attach_root(
    c: &Creation<'_>,
    sources: &Sources,
    place: Option<OwnedFd>,
) -> Result<(Root, Jail, Templates), Error> {
    let mut templates = Templates::default();
    match &sources.view {
        View::Own | View::Shared | View::BareOfUsers(..) => {} // it was born there
        View::Joined(namespace) => join(Namespace::Mount, namespace)?,
        View::Bare(namespace) => {
            join(Namespace::Mount, namespace)?;
            unshare(Namespace::Mount as u64).at("copy the mounts to start from", "unshare")?;
            templates = Templates::here(c)?;
        }
    }
    // What a joined one has below its root is not ours to walk: the container's root is put right over it.
    let place = place.map_or_else(|| directory(Path::new("/")), Ok)?;
    if !matches!(sources.view, View::Shared) {
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .at("detach from the host's mounts", "make / a slave")?;
    }
    let jail = Jail::of(&sources.view, c.extras.no_pivot)?;
    mounts::move_onto(&sources.root, &place)
        .at(MOUNT_ROOT, format!("attach to {}", c.bundle.display()))?;
    // The descriptor of the detached mount is the root of the attached one.
    let root = Root::new(sources.root.try_clone().at(MOUNT_ROOT, "duplicate")?);
    Ok((root, jail, templates))
}
