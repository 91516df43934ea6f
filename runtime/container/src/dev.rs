//! `/dev`: the default nodes and links, the devices of the specification, and the terminal.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, fstatfs, major, makedev,
    minor, mknodat, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::umask;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::{At, Error};
use crate::mounts::move_onto;
use crate::plan::{Node, NodeKind, Plan, Process};
use crate::root::Root;
use crate::sys::process::{set_controlling_terminal, set_stdio};

/// The nodes every container has: name, major, minor; mode 0666, owned by root.
const DEFAULT: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/core", "/proc/kcore"),
];

/// `DEVPTS_SUPER_MAGIC` of `linux/magic.h`.
const DEVPTS: i64 = 0x1cd1;

/// The nodes of a container: the default ones unless it brings its own `/dev`, and those of its specification.
pub(crate) fn nodes(plan: &Plan) -> Vec<Node> {
    let asked = |path: &str| plan.devices.iter().any(|d| d.path == Path::new(path));
    let default = DEFAULT.iter().filter(|(path, ..)| plan.make_dev && !asked(path));
    let default = default.map(|(path, major, minor)| default_node(path, *major, *minor));
    default.chain(plan.devices.iter().cloned()).collect()
}

/// `from_host`: for each of `nodes` a detached mount of the host's, where init may not make it.
pub(crate) fn populate(
    root: &Root,
    plan: &Plan,
    from_host: &[Option<OwnedFd>],
) -> Result<(), Error> {
    let mut dirs = Directories { root, last: None };
    // So that a node has its mode from the start.
    let mask = umask(Mode::empty());
    for (node, tree) in nodes(plan).iter().zip(from_host) {
        match tree {
            Some(tree) => bind(root, node, tree)?,
            None => make(&mut dirs, node)?,
        }
    }
    if plan.make_dev {
        for (path, target) in LINKS {
            // Without a devpts there is nothing to point at; without CAP_SYS_RAWIO kcore is of no use.
            if path != "/dev/core" {
                link(&mut dirs, Path::new(path), target)?;
            }
        }
    }
    umask(mask);
    Ok(())
}

/// The directories that nodes are made in: mostly one for all.
struct Directories<'a> {
    root: &'a Root,
    last: Option<(PathBuf, OwnedFd)>,
}

impl Directories<'_> {
    /// The directory that holds `path`, made where missing, and the last name.
    fn of<'p>(&mut self, path: &'p Path) -> Result<(BorrowedFd<'_>, &'p OsStr), Errno> {
        let parent = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().ok_or(Errno::INVAL)?;
        let last = match self.last.take().filter(|(at, _)| at == parent) {
            Some(last) => last,
            None => (parent.to_owned(), self.root.make_dirs(parent)?),
        };
        Ok((self.last.insert(last).1.as_fd(), name))
    }
}

fn bind(root: &Root, node: &Node, tree: &OwnedFd) -> Result<(), Error> {
    let stage = format!("device {}", node.path.display());
    let place = root.make_file(&node.path).at(&stage, "make its place")?;
    move_onto(tree, &place).at(&stage, "attach the host's")
}

fn default_node(path: &str, major: u32, minor: u32) -> Node {
    Node { path: path.into(), kind: NodeKind::Char, major, minor, mode: 0o666, uid: 0, gid: 0 }
}

/// Makes a node, or accepts the one that is there if it is the same device.
fn make(dirs: &mut Directories<'_>, node: &Node) -> Result<(), Error> {
    let (root, stage) = (dirs.root, format!("device {}", node.path.display()));
    let (dir, name) = dirs.of(&node.path).at(&stage, "make its directory")?;
    let (kind, device) = identity(node);
    match mknodat(dir, name, kind, Mode::from_raw_mode(node.mode), device) {
        Ok(()) => {}
        Err(Errno::EXIST) => return same(root, node, &stage),
        Err(e) => return Err(e).at(&stage, "mknod"),
    }
    // It is root's by birth. The directory is ours and the name was made just now.
    if (node.uid, node.gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).at(&stage, "chown")
}

fn same(root: &Root, node: &Node, stage: &str) -> Result<(), Error> {
    let there =
        root.open(&node.path, OFlags::PATH | OFlags::NOFOLLOW).at(stage, "open what is there")?;
    if is(node, &fstat(&there).at(stage, "stat what is there")?) {
        return Ok(());
    }
    Err(Error::new(stage, "something else is there already"))
}

/// Whether a file is the device that the node says.
pub(crate) fn is(node: &Node, stat: &Stat) -> bool {
    let (kind, device) = identity(node);
    FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == device
}

fn identity(node: &Node) -> (FileType, u64) {
    match node.kind {
        NodeKind::Char => (FileType::CharacterDevice, makedev(node.major, node.minor)),
        NodeKind::Block => (FileType::BlockDevice, makedev(node.major, node.minor)),
        NodeKind::Fifo => (FileType::Fifo, 0),
    }
}

fn link(dirs: &mut Directories<'_>, path: &Path, target: &str) -> Result<(), Error> {
    let stage = format!("link {}", path.display());
    let (dir, name) = dirs.of(path).at(&stage, "make its directory")?;
    match symlinkat(target, dir, name) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e).at(&stage, format!("symlink to {target}")),
    }
}

/// Opens a terminal of the container's own devpts, makes it stdio, the controlling terminal and, when asked, `/dev/console`;
/// returns the master. Everything that was opened is checked to be what its name says.
pub(crate) fn terminal(root: &Root, process: &Process, console: bool) -> Result<OwnedFd, Error> {
    const STAGE: &str = "open a terminal";
    let master = root
        .open(Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
        .at(STAGE, "open /dev/pts/ptmx in the root")?;
    verify(&master, (5, 2), STAGE)?;
    unlockpt(&master).at(STAGE, "unlock")?;
    let slave =
        ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .at(STAGE, "open the other end")?;
    if let Some((rows, columns)) = process.console_size {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).at(STAGE, "set its size")?;
    }
    let uid = Uid::from_raw(process.uid);
    rustix::fs::fchown(&slave, Some(uid), None).at(STAGE, "give it to the user")?;
    if console {
        let place = root.make_file(Path::new("/dev/console")).at(STAGE, "make /dev/console")?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(&slave, "", flags).at(STAGE, "clone the slave's mount")?;
        move_onto(&tree, &place).at(STAGE, "attach /dev/console")?;
    }
    set_stdio([slave.as_fd(); 3]).at(STAGE, "dup2")?;
    set_controlling_terminal(slave.as_fd()).at(STAGE, "make it the controlling terminal")?;
    Ok(master)
}

/// A hostile image cannot give us a device or a file for a pty.
fn verify(fd: &OwnedFd, device: (u32, u32), stage: &str) -> Result<(), Error> {
    let stat = fstat(fd).at(stage, "stat")?;
    let fs = fstatfs(fd).at(stage, "statfs")?;
    let is = (major(stat.st_rdev), minor(stat.st_rdev));
    if fs.f_type as i64 == DEVPTS && is == device {
        return Ok(());
    }
    Err(Error::new(
        stage,
        format!("/dev/pts/ptmx is not a pty multiplexer (file system {:#x}, {is:?})", fs.f_type),
    ))
}
