//! The same kernel objects as the bundle asks for, made by nothing but the system calls they need: what no runtime
//! can undercut, because nothing here is decided, checked or cleaned up beyond them.

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use container::sys::process::{CloneArgs, clone, execve, load_seccomp};
use rustix::fs::{CWD, FileType, Mode, makedev, mkdirat, mknodat, symlinkat};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change,
    mount_remount, unmount,
};
use rustix::process::{WaitOptions, chdir, pivot_root, waitpid};

use crate::bundle::{Bundle, capability_names};

const NEW_NAMESPACES: i32 =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// Whose network the process is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    Own,
    /// That of the pod, which is there: nothing to make.
    Joined,
}

/// One life, from the first directory of its cgroup to the last.
pub(crate) fn run(bundle: &Bundle, number: usize, network: Network) -> Duration {
    let node = cgroup::Hierarchies::detect().unwrap();
    let group = format!("/lapstrake-floor-{}-{number}", std::process::id());
    let dirs = node.dirs(&group);
    let (root, filter) = (bundle.dir.join("rootfs"), &bundle.filter);
    let masked = existing(bundle.paths("maskedPaths"));
    let read_only = existing(bundle.paths("readonlyPaths"));
    let own_network = if network == Network::Own { libc::CLONE_NEWNET } else { 0 };
    let begun = Instant::now();
    let (tasks, born) = make_groups(&dirs);
    let args = CloneArgs {
        namespaces: (NEW_NAMESPACES | own_network) as u64,
        sibling: false,
        cgroup: born.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
    };
    let pid = clone(args, || init(&root, filter, &dirs, &tasks, (&masked, &read_only))).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
    drop((tasks, born));
    dirs.iter().for_each(|dir| std::fs::remove_dir(dir).unwrap());
    let took = begun.elapsed();
    assert_eq!(status.exit_status(), Some(0), "the floor's process failed");
    took
}

/// Those that this kernel has, and whether they are directories.
fn existing<'a>(paths: impl Iterator<Item = &'a Path>) -> Vec<(&'a Path, bool)> {
    // As seen from the root that they are to be changed in.
    let relative = |path: &'a Path| path.strip_prefix("/").unwrap_or(path);
    paths.filter(|p| p.exists()).map(|p| (relative(p), p.is_dir())).collect()
}

/// v1 `tasks` files to join, and the v2 directory to be born in.
fn make_groups(dirs: &[PathBuf]) -> (Vec<File>, Option<OwnedFd>) {
    let (mut tasks, mut born) = (Vec::new(), None);
    for dir in dirs {
        mkdirat(CWD, dir, Mode::from_raw_mode(0o755)).unwrap();
        // On v2 it is the parent's where nobody says otherwise.
        if dir.join("cpuset.cpus").exists() && dir.join("tasks").exists() {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let all = std::fs::read(dir.parent().unwrap().join(file)).unwrap();
                std::fs::write(dir.join(file), all).unwrap();
            }
        }
        if dir.join("devices.deny").exists() {
            std::fs::write(dir.join("devices.deny"), "a").unwrap();
            for rule in [
                "c *:* m",
                "b *:* m",
                "c 1:3 rwm",
                "c 1:5 rwm",
                "c 1:7 rwm",
                "c 1:8 rwm",
                "c 1:9 rwm",
                "c 5:0 rwm",
                "c 5:2 rwm",
                "c 136:* rwm",
            ] {
                std::fs::write(dir.join("devices.allow"), rule).unwrap();
            }
        }
        match File::options().write(true).open(dir.join("tasks")) {
            Ok(file) => tasks.push(file),
            Err(_) => born = Some(File::open(dir).unwrap().into()),
        }
    }
    (tasks, born)
}

type Paths<'a> = &'a [(&'a Path, bool)];

fn init(
    root: &Path,
    filter: &[u8],
    groups: &[PathBuf],
    tasks: &[File],
    (masked, read_only): (Paths<'_>, Paths<'_>),
) -> i32 {
    for mut file in tasks {
        file.write_all(b"0").unwrap();
    }
    rustix::process::setsid().unwrap();
    rustix::system::sethostname(b"floor").unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    mount_bind(root, root).unwrap();
    chdir(root).unwrap();
    file_systems();
    own_groups(groups);
    devices();
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (path, is_dir) in masked {
        if *is_dir {
            mount("tmpfs", *path, "tmpfs", secure | MountFlags::RDONLY, None).unwrap();
        } else {
            mount_bind("dev/null", *path).unwrap();
        }
    }
    for (path, _) in read_only {
        mount_bind(*path, *path).unwrap();
        mount_remount(*path, MountFlags::BIND | secure | MountFlags::RDONLY, "").unwrap();
    }
    pivot_root(".", ".").unwrap();
    unmount(".", UnmountFlags::DETACH).unwrap();
    chdir("/").unwrap();
    mount_remount("/", MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    confine();
    load_seccomp(filter, 0).unwrap();
    execve(c"/bin/true", &[c"/bin/true".to_owned()], &[CString::new("PATH=/bin").unwrap()]);
    1
}

fn file_systems() {
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let no_dev = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("proc", "proc", "proc", secure, None).unwrap();
    mount("tmpfs", "dev", "tmpfs", MountFlags::NOSUID, c"mode=755,size=65536k").unwrap();
    for dir in ["dev/pts", "dev/shm", "dev/mqueue"] {
        mkdirat(CWD, dir, Mode::from_raw_mode(0o755)).unwrap();
    }
    let options = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    mount("devpts", "dev/pts", "devpts", no_dev, options).unwrap();
    mount("shm", "dev/shm", "tmpfs", secure, c"mode=1777,size=65536k").unwrap();
    mount("mqueue", "dev/mqueue", "mqueue", secure, None).unwrap();
    mount("sysfs", "sys", "sysfs", secure | MountFlags::RDONLY, None).unwrap();
}

/// v1: a small tmpfs with the process' own group of each hierarchy; v2: the tree.
fn own_groups(groups: &[PathBuf]) {
    const PLACE: &str = "sys/fs/cgroup";
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if groups.len() == 1 {
        return mount("cgroup2", PLACE, "cgroup2", secure | MountFlags::RDONLY, None).unwrap();
    }
    mount("tmpfs", PLACE, "tmpfs", secure, c"mode=755").unwrap();
    for group in groups {
        let hierarchy = group.parent().and_then(Path::file_name).unwrap();
        let place = Path::new(PLACE).join(hierarchy);
        mkdirat(CWD, &place, Mode::from_raw_mode(0o755)).unwrap();
        mount_bind(group, &place).unwrap();
        mount_remount(&place, MountFlags::BIND | secure | MountFlags::RDONLY, "").unwrap();
    }
    mount_remount(PLACE, MountFlags::BIND | secure | MountFlags::RDONLY, "").unwrap();
}

fn devices() {
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o666));
        mknodat(CWD, format!("dev/{name}"), kind, mode, makedev(major, minor)).unwrap();
    }
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
    ] {
        symlinkat(target, CWD, format!("dev/{name}")).unwrap();
    }
}

/// The capabilities of the bundle, and no new ones.
fn confine() {
    use rustix::thread::{
        CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    };
    let names = capability_names();
    let keep = |set: CapabilitySet| {
        let mut all = set.iter_names().map(|(name, _)| format!("CAP_{name}"));
        all.any(|name| names.contains(&name.as_str()))
    };
    let mut kept = CapabilitySet::empty();
    for set in CapabilitySet::all().iter() {
        if keep(set) {
            kept |= set;
        } else {
            let _ = remove_capability_from_bounding_set(set); // newer than the kernel
        }
    }
    let sets =
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).unwrap();
    set_no_new_privs(true).unwrap();
}
