//! What must be opened in the host's mount namespace before there is a container: mount sources and namespaces.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::create::{Creation, Rootfs, SharedMemory};
use crate::error::{At, Error, words};
use crate::gate::Gate;
use crate::mapper::Mapper;
use crate::options::{self, Attributes, Idmap, Kind, Options, Propagation};
use crate::plan::{From, Mappings, Mount, Namespace, Node, NodeKind, Plan};
use crate::sys::mount::{Change, MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, attr, set};
use crate::users::{self, Users};
use crate::whole::Whole;
use crate::{dev, elsewhere, mask, overlay};

/// Everything init needs from the host, by descriptor.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) root: OwnedFd,
    /// One per mount of the plan.
    pub(crate) mounts: Vec<Source>,
    /// Joined by the creator, all but those of users and mounts.
    pub(crate) joins: Vec<(Namespace, OwnedFd)>,
    pub(crate) view: View,
    /// Id-maps what init may not.
    pub(crate) mapper: Option<Mapper>,
    /// One per node of `dev::nodes`: the host's, where init may not make it.
    pub(crate) devices: Vec<Option<OwnedFd>>,
    /// The host's null device, when there is something to mask.
    pub(crate) null: Option<OwnedFd>,
}

/// Which mounts the container lives among.
#[derive(Debug)]
pub(crate) enum View {
    /// A copy of the host's, that it is taken out of.
    Own,
    /// A copy of those of a namespace with nothing in it, however many the host has. Init makes it when it needs the
    /// host's files no more.
    Bare(OwnedFd),
    /// The same for init in a user namespace, which keeps it from going there: it is born in it, and sees these.
    BareOfUsers(OwnedFd, Whole),
    /// Those of a namespace that is there: joined by init when it needs the host's files no more.
    Joined(OwnedFd),
    /// The caller's: its mounts show there until they are unmounted.
    Shared,
}

#[derive(Debug)]
pub(crate) enum Source {
    /// A detached tree, ready to be moved into place.
    Tree(OwnedFd),
    /// The container's own v1 groups, which come to init by themselves.
    Groups,
    /// Cloned by init from its own tree, and id-mapped by this user namespace.
    Inside(Option<OwnedFd>),
    /// Made by init, in its namespaces.
    Later,
}

pub(crate) fn open_all(c: &Creation<'_>, users: Option<&Users>) -> Result<Sources, Error> {
    let label = c.plan.mount_label.as_deref();
    let root = match &c.rootfs {
        Rootfs::Layers(layers) => overlay::overlay(layers, users, label)?,
        Rootfs::Directory(path) => overlay::plain(path)?,
        Rootfs::Empty { .. } => overlay::empty(users, label)?,
    };
    let private = Propagation { kind: Kind::Private, recursive: true };
    change(&root, "mount the root file system", private.into())?;
    let mut pinned = Pinned { users, others: Vec::new() };
    let mounts =
        c.plan.mounts.iter().map(|m| source(c, m, &mut pinned)).collect::<Result<_, _>>()?;
    let mut joins = Vec::new();
    let bare = c.bare.map(|fd| fd.try_clone_to_owned()).transpose();
    let bare = bare.at("join namespaces", "duplicate the mount namespace")?;
    let mut view = match (c.plan.namespaces.makes(Namespace::Mount), bare) {
        (true, Some(bare)) if !needs_the_hosts(c.plan) => match users {
            None => View::Bare(bare),
            Some(_) => View::BareOfUsers(bare, Whole::of_host()?),
        },
        (true, _) => View::Own,
        (false, _) => View::Shared,
    };
    for (kind, path) in &c.plan.namespaces.join {
        if *kind == Namespace::User || *kind == Namespace::Net && c.netns.is_some() {
            continue;
        }
        let fd = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .at("join namespaces", format!("open {}", path.display()))?;
        match kind {
            Namespace::Mount if is_own(&fd)? => {}
            // Labels are written to the /proc that is seen then, which is somebody's there.
            Namespace::Mount if label.or(c.plan.process.selinux.as_deref()).is_some() => {
                let why = "SELinux labels need a mount namespace of the container's own";
                return Err(Error::new("join namespaces", why));
            }
            Namespace::Mount => view = View::Joined(fd),
            _ => joins.push((*kind, fd)),
        }
    }
    if let Some(netns) = c.netns {
        joins.push((
            Namespace::Net,
            netns.try_clone_to_owned().at("join namespaces", "duplicate the netns")?,
        ));
    }
    let from_host = |node: &Node| users.is_some() && node.kind != NodeKind::Fifo;
    let devices = match c.rootfs {
        Rootfs::Empty { .. } => Vec::new(),
        _ => dev::nodes(c.plan)
            .iter()
            .map(|node| from_host(node).then(|| host_device(node)).transpose())
            .collect::<Result<_, _>>()?,
    };
    let null = (!c.plan.masked.is_empty()).then(mask::null_device).transpose()?;
    let mapper = Mapper::new(c.plan)?;
    Ok(Sources { root, mounts, joins, view, mapper, devices, null })
}

/// Whether init must see the host's files while it builds the root: labels are written to /proc, and hooks look at
/// anything.
fn needs_the_hosts(plan: &Plan) -> bool {
    plan.mount_label.is_some()
        || plan.process.selinux.is_some()
        || !plan.hooks.create_container.is_empty()
        || Gate::is_needed(plan)
}

/// Whether a mount namespace is the caller's, whose root must not be pivoted away.
fn is_own(namespace: &OwnedFd) -> Result<bool, Error> {
    const STAGE: &str = "join namespaces";
    let its = rustix::fs::fstat(namespace).at(STAGE, "stat the mount namespace")?;
    let own = rustix::fs::stat("/proc/self/ns/mnt").at(STAGE, "stat /proc/self/ns/mnt")?;
    Ok((its.st_dev, its.st_ino) == (own.st_dev, own.st_ino))
}

/// The user namespaces by which mounts are id-mapped, each made once.
struct Pinned<'a> {
    users: Option<&'a Users>,
    others: Vec<(Mappings, OwnedFd)>,
}

impl Pinned<'_> {
    fn get(&mut self, wanted: &Mappings, stage: &str) -> Result<BorrowedFd<'_>, Error> {
        let at = match (self.users, self.others.iter().position(|(m, _)| m == wanted)) {
            (Some(own), _) if wanted.is_empty() || *wanted == own.mappings => {
                return Ok(own.fd.as_fd());
            }
            (_, Some(at)) => at,
            (_, None) => {
                let made =
                    users::pin(wanted).map_err(|e| Error::new(stage, format!("its ids: {e}")))?;
                self.others.push((wanted.clone(), made));
                self.others.len() - 1
            }
        };
        Ok(self.others[at].1.as_fd())
    }
}

/// The host's node of the same path, which must be the same device.
fn host_device(node: &Node) -> Result<OwnedFd, Error> {
    let stage = format!("device {}", node.path.display());
    let tree = clone_tree(&node.path, false, &stage)?;
    let stat = rustix::fs::fstat(&tree).at(&stage, "stat the host's")?;
    if dev::is(node, &stat) {
        return Ok(tree);
    }
    Err(Error::new(
        stage,
        "in a user namespace a node is the host's of the same path, and there that is another device",
    ))
}

fn source(c: &Creation<'_>, mount: &Mount, pinned: &mut Pinned<'_>) -> Result<Source, Error> {
    let stage = format!("mount {}", mount.destination.display());
    match &mount.from {
        From::New { .. } | From::Root => Ok(Source::Later),
        From::Inside(_) if mount.options.idmap == Idmap::No => Ok(Source::Inside(None)),
        From::Inside(_) => {
            let users = pinned.get(&mount.mappings, &stage)?.try_clone_to_owned();
            Ok(Source::Inside(Some(users.at(&stage, "duplicate its user namespace")?)))
        }
        From::Cgroup if c.node.is_v2() => Ok(Source::Later),
        From::Cgroup => Ok(Source::Groups),
        From::Bind(path) => {
            if let Some((_, made)) = c.trees.iter().find(|(at, _)| *at == mount.destination) {
                let tree = made.try_clone().at(&stage, "duplicate its tree")?;
                configure(&tree, &mount.options, &stage)?;
                return Ok(Source::Tree(tree));
            }
            let path = c.bundle.join(path);
            let tree = match c.shm.as_ref().filter(|s| s.path == path) {
                Some(shm) => open_shm(shm, &stage)?,
                None => clone_tree(&path, mount.options.recursive, &stage)?,
            };
            if mount.options.idmap != Idmap::No {
                let recursive = mount.options.idmap == Idmap::Recursive;
                map_ids(&tree, pinned.get(&mount.mappings, &stage)?, recursive, &stage)?;
            }
            configure(&tree, &mount.options, &stage)?;
            Ok(Source::Tree(tree))
        }
    }
}

pub(crate) fn clone_tree(path: &Path, recursive: bool, stage: &str) -> Result<OwnedFd, Error> {
    open_tree_at(path, recursive).at(stage, format!("open {}", path.display()))
}

pub(crate) fn open_tree_at(path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    open_tree(CWD, path, flags)
}

/// The pod's shared memory hangs in pause's mount namespace and nowhere else.
pub(crate) fn open_shm(shm: &SharedMemory, stage: &str) -> Result<OwnedFd, Error> {
    let stage = &format!("{stage}: the sandbox's, from pause");
    let take = || clone_tree(Path::new("/dev/shm"), false, stage);
    elsewhere::among_those_of(shm.pause_pid, stage, take)
}

/// Shows the files of a detached tree with the owners that the user namespace gives them.
pub(crate) fn map_ids(
    tree: &OwnedFd,
    userns: BorrowedFd<'_>,
    recursive: bool,
    stage: &str,
) -> Result<(), Error> {
    let change = Change { set: attr::IDMAP, recursive, ..Default::default() };
    set(tree.as_fd(), change, Some(userns)).map_err(|e| unmapped(e, stage))
}

pub(crate) fn unmapped(errno: Errno, stage: &str) -> Error {
    match errno {
        Errno::INVAL => Error::new(
            stage,
            "map its ids: this file system (or one below it) does not have id-mapped mounts, or is mapped already",
        ),
        e => Error::new(stage, format!("map its ids: {}", words(&e.into()))),
    }
}

/// Attributes and propagation of a tree that is attached nowhere yet. Unless asked, nothing propagates.
pub(crate) fn configure(tree: &OwnedFd, o: &Options, stage: &str) -> Result<(), Error> {
    let private = Propagation { kind: Kind::Private, recursive: true };
    change(tree, stage, o.propagation.unwrap_or(private).into())?;
    attributes(tree, o, stage)
}

/// The attributes of a mount and, for `rro` and its like, of everything below it.
pub(crate) fn attributes(tree: &OwnedFd, o: &Options, stage: &str) -> Result<(), Error> {
    for (Attributes { set, clear }, recursive) in
        [(o.recursive_attributes, true), (o.attributes, false)]
    {
        if set | clear != 0 {
            change(tree, stage, Change { set, clear, recursive, ..Default::default() })?;
        }
    }
    Ok(())
}

pub(crate) fn change(tree: &OwnedFd, stage: &str, change: Change) -> Result<(), Error> {
    set(tree.as_fd(), change, None).at(stage, "set attributes of the mount")
}

impl std::convert::From<options::Propagation> for Change {
    fn from(p: Propagation) -> Self {
        let propagation = match p.kind {
            Kind::Private => MS_PRIVATE,
            Kind::Slave => MS_SLAVE,
            Kind::Shared => MS_SHARED,
            Kind::Unbindable => MS_UNBINDABLE,
        };
        Self { propagation, recursive: p.recursive, ..Default::default() }
    }
}

/// The attributes that fsmount takes at birth.
pub(crate) fn birth_attributes(o: &Options) -> MountAttrFlags {
    MountAttrFlags::from_bits_retain((o.attributes.set | o.recursive_attributes.set) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Facts, plan};

    #[test]
    fn only_what_looks_at_the_hosts_files_needs_them() {
        let needs = |process: &str, rest: &str| {
            let text = format!(
                r#"{{"process":{{"args":["x"],"cwd":"/"{process}}},"linux":{{{rest}}},"root":{{"path":"/"}}}}"#
            );
            let facts = Facts { selinux: true, capabilities: u64::MAX, ..Default::default() };
            needs_the_hosts(
                &plan(&serde_json::from_str(&text).expect("spec"), &facts).expect("plan"),
            )
        };
        let namespaces = r#""namespaces":[{"type":"mount"},{"type":"pid"},{"type":"network"}]"#;
        assert!(!needs("", namespaces));
        assert!(!needs("", &format!(r#"{namespaces},"sysctl":{{"net.ipv4.ip_forward":"1"}}"#)));
        let ids = r#"[{"containerID":0,"hostID":9,"size":1}]"#;
        let user = r#""namespaces":[{"type":"mount"},{"type":"user"}]"#;
        assert!(!needs("", &format!(r#"{user},"uidMappings":{ids},"gidMappings":{ids}"#)));
        assert!(needs("", &format!(r#"{namespaces},"mountLabel":"a:b:c:s0""#)));
        assert!(needs(r#","selinuxLabel":"a:b:c:s0""#, namespaces));
        assert!(needs("", &format!(r#"{namespaces},"netDevices":{{"eth9":{{}}}}"#)));
        for (moment, looks) in
            [("createContainer", true), ("createRuntime", true), ("startContainer", false)]
        {
            let hooks = format!(r#"{namespaces}}},"hooks":{{"{moment}":[{{"path":"/bin/true"}}]"#);
            assert_eq!(needs("", &hooks), looks, "{moment}");
        }
    }
}
