//! Bundles made to reach the host: images full of links, working directories behind leaked descriptors, volumes that
//! change while they are mounted. What is outside of the container must stay as it is, whether it starts or not.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::bundle::{Bundle, text};

/// A directory of the host with one file, and what it looked like.
struct Canary {
    dir: PathBuf,
    before: String,
}

impl Canary {
    fn new(b: &Bundle) -> Self {
        let dir = b.dir.path().join("canary");
        fs::create_dir_all(dir.join("sub")).expect("mkdir");
        fs::write(dir.join("file"), "alive").expect("write");
        let mut canary = Self { dir, before: String::new() };
        canary.before = canary.look();
        canary
    }

    fn look(&self) -> String {
        let mut seen = Vec::new();
        for path in [self.dir.clone(), self.dir.join("sub"), self.dir.join("file")] {
            let stat = fs::symlink_metadata(&path).expect("stat");
            seen.push(format!("{:o} {} {} {}", stat.mode(), stat.uid(), stat.gid(), stat.rdev()));
        }
        let mut names: Vec<_> = fs::read_dir(&self.dir)
            .expect("list")
            .chain(fs::read_dir(self.dir.join("sub")).expect("list"))
            .map(|e| e.expect("entry").file_name())
            .collect();
        names.sort();
        format!("{seen:?} {names:?} {}", fs::read_to_string(self.dir.join("file")).expect("file"))
    }

    fn is_untouched(&self, after: &str) {
        assert_eq!(self.look(), self.before, "{after}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        assert!(!mounts.contains(&*self.dir.to_string_lossy()), "{after}: {mounts}");
    }
}

/// The image's own `/dev` and `/proc`, without the runtime's mounts over them.
fn without_mounts(c: &mut serde_json::Value, below: &str) {
    let list = c["mounts"].as_array_mut().expect("mounts");
    list.retain(|m| !m["destination"].as_str().expect("destination").starts_with(below));
}

fn bind(to: &str) -> serde_json::Value {
    json!({ "destination": to, "source": "given", "options": ["bind"] })
}

type Attack = (&'static str, fn(&Path, &Path), fn(&mut serde_json::Value));

/// (name, what the image contains, what the configuration asks for).
const ATTACKS: &[Attack] = &[
    ("dev is a link to the host", |root, out| link(root, "dev", out), |_| {}),
    ("dev is a link out by dots", |root, _| link(root, "dev", dots("canary")), |_| {}),
    (
        "null is a link",
        |root, out| link(root, "dev/null", out.join("file")),
        |c| {
            without_mounts(c, "/dev");
        },
    ),
    ("null is a plain file", |root, _| plain(root, "dev/null"), |c| without_mounts(c, "/dev")),
    (
        "null is another device",
        |root, _| {
            fs::create_dir_all(root.join("dev")).expect("mkdir");
            let dir = fs::File::open(root.join("dev")).expect("open");
            let (kind, mode) =
                (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
            rustix::fs::mknodat(&dir, "null", kind, mode, rustix::fs::makedev(1, 1))
                .expect("mknod");
        },
        |c| without_mounts(c, "/dev"),
    ),
    (
        "pts is a link",
        |root, out| link(root, "dev/pts", out.join("sub")),
        |c| {
            without_mounts(c, "/dev/shm");
            without_mounts(c, "/dev/mqueue");
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/dev");
        },
    ),
    (
        "console is a link and there is a terminal",
        |root, out| {
            link(root, "dev/console", out.join("file"));
        },
        |c| {
            c["mounts"].as_array_mut().expect("mounts").retain(|m| m["destination"] != "/dev");
            c["process"]["terminal"] = true.into();
        },
    ),
    (
        "ptmx is a plain file and there is a terminal",
        |root, _| plain(root, "dev/pts/ptmx"),
        |c| {
            without_mounts(c, "/dev");
            c["process"]["terminal"] = true.into();
        },
    ),
    ("proc is a link", |root, out| link(root, "proc", out), |_| {}),
    (
        "proc lies behind a link",
        |root, out| link(root, "x", out),
        |c| {
            c["mounts"][0]["destination"] = "/x/proc".into();
        },
    ),
    ("sys is a link", |root, out| link(root, "sys", out), |_| {}),
    (
        "etc is a link to the host",
        |root, out| link(root, "etc", out),
        |c| {
            c["mounts"].as_array_mut().expect("mounts").push(bind("/etc/hosts"));
        },
    ),
    (
        "etc is a link out by dots",
        |root, _| link(root, "etc", dots("canary")),
        |c| {
            c["mounts"].as_array_mut().expect("mounts").push(bind("/etc/hosts"));
        },
    ),
    (
        "hosts is a dangling link out",
        |root, out| link(root, "etc/hosts", out.join("new")),
        |c| {
            c["mounts"].as_array_mut().expect("mounts").push(bind("/etc/hosts"));
        },
    ),
    (
        "the destination goes up",
        |_, _| {},
        |c| {
            c["mounts"].as_array_mut().expect("mounts").push(bind("/../../../../canary/file"));
        },
    ),
    (
        "the destination goes through a magic link",
        |root, _| link(root, "m", "/proc/1/root"),
        |c| {
            c["mounts"].as_array_mut().expect("mounts").push(bind("/m/canary/file"));
        },
    ),
    (
        "a masked path is a link",
        |root, out| link(root, "secret", out.join("file")),
        |c| {
            c["linux"]["maskedPaths"] = json!(["/secret"]);
        },
    ),
    (
        "a read-only path is a link",
        |root, _| link(root, "frozen", dots("canary")),
        |c| {
            c["linux"]["readonlyPaths"] = json!(["/frozen"]);
        },
    ),
    (
        "the working directory is a link out",
        |root, _| link(root, "work", dots("canary/new")),
        |c| {
            c["process"]["cwd"] = "/work".into();
        },
    ),
    (
        "a device lies behind a link",
        |root, out| link(root, "d", out),
        |c| {
            c["linux"]["devices"] =
                json!([{ "path": "/d/null", "type": "c", "major": 1, "minor": 3 }]);
        },
    ),
    (
        "passwd is a pipe that nobody writes",
        |root, _| {
            fs::create_dir_all(root.join("etc")).expect("mkdir");
            let dir = fs::File::open(root.join("etc")).expect("open");
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644));
            rustix::fs::mknodat(&dir, "passwd", kind, mode, 0).expect("mkfifo");
        },
        |_| {},
    ),
];

fn link(root: &Path, at: &str, to: impl AsRef<Path>) {
    let at = root.join(at);
    fs::create_dir_all(at.parent().expect("parent")).expect("mkdir");
    symlink(to, at).expect("symlink");
}

fn plain(root: &Path, at: &str) {
    let at = root.join(at);
    fs::create_dir_all(at.parent().expect("parent")).expect("mkdir");
    fs::write(at, "").expect("write");
}

/// From the root file system to beside it, and further up than there is a way.
fn dots(beside: &str) -> PathBuf {
    Path::new("../../../../../../..").join("..").join(beside)
}

#[test]
fn no_image_reaches_the_host_by_links_or_false_devices() {
    for (n, (name, image, config)) in ATTACKS.iter().enumerate() {
        let Some(b) = Bundle::new(&format!("image{n}"), "echo x > /dev/null; true") else { return };
        let canary = Canary::new(&b);
        fs::write(b.dir.path().join("given"), "").expect("write");
        b.change(|c| {
            c["root"]["readonly"] = false.into();
            config(c);
        });
        image(&b.dir.path().join("rootfs"), &canary.dir);
        // Beside the root file system, where dots would lead without a root to stop at.
        let out = b.oci(&["run", &b.id]);
        canary.is_untouched(name);
        assert!(!Path::new("/canary").exists(), "{name}");
        let said = text(&out.stderr);
        assert!(out.status.code().is_some_and(|c| c < 2), "{name}: {out:?}");
        if name.starts_with("null is") {
            assert!(said.contains("something else is there already"), "{name}: {out:?}");
        }
        if name.starts_with("proc") || name.starts_with("sys") {
            assert!(said.contains("ordinary directory"), "{name}: {out:?}");
        }
        if name.starts_with("ptmx") {
            assert!(said.contains("not a pty multiplexer"), "{name}: {out:?}");
        }
        assert_eq!(b.groups(), Vec::<PathBuf>::new(), "{name}");
    }
}

#[test]
fn a_volume_that_changes_while_it_is_mounted_gets_no_mount_outside_of_the_root() {
    const STARTS: usize = 40;
    let Some(b) = Bundle::new("racer", "true") else { return };
    let canary = Canary::new(&b);
    let volume = b.dir.path().join("volume");
    fs::create_dir_all(volume.join("dir/in")).expect("mkdir");
    symlink(&canary.dir, volume.join("link")).expect("symlink");
    let strays = b.dir.path().join("strays");
    // In the container's mount namespace, before the pivot, a stray mount would show at a path of the host.
    let look = format!(
        "grep ' - tmpfs racer ' /proc/self/mountinfo | grep -v '{}/rootfs/' >> {}; true",
        b.dir.path().display(),
        strays.display()
    );
    b.change(|c| {
        let list = c["mounts"].as_array_mut().expect("mounts");
        list.push(json!({ "destination": "/vol", "source": "volume", "options": ["rbind"] }));
        list.push(json!({ "destination": "/vol/dir/in", "type": "tmpfs", "source": "racer" }));
        c["hooks"] =
            json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", look] }] });
    });
    let stop = AtomicBool::new(false);
    let mut refused = 0;
    std::thread::scope(|s| {
        let swaps = s.spawn(|| {
            let (dir, link) = (volume.join("dir"), volume.join("link"));
            let mut swaps = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let cwd = rustix::fs::CWD;
                rustix::fs::renameat_with(cwd, &dir, cwd, &link, flags).expect("swap");
                swaps += 1;
            }
            swaps
        });
        for _ in 0..STARTS {
            refused += usize::from(!b.oci(&["run", &b.id]).status.success());
        }
        stop.store(true, Ordering::Relaxed);
        assert!(swaps.join().expect("swapper") > STARTS as u64, "the volume changed all the time");
    });
    canary.is_untouched("racer");
    assert_eq!(fs::read_to_string(&strays).expect("the hook has looked"), "", "{refused} refused");
}

#[test]
fn a_working_directory_behind_a_descriptor_is_refused_for_run_and_exec() {
    let Some(b) = Bundle::new("leak", "exec sleep 1000") else { return };
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    let Some(again) = Bundle::new("leak-run", "pwd; true") else { return };
    for fd in 3..12 {
        let cwd = format!("/proc/self/fd/{fd}");
        let out = b.oci(&["exec", "--cwd", &cwd, &b.id, "pwd"]);
        assert_eq!(out.status.code(), Some(255), "{cwd}: {out:?}");
        again.change(|c| c["process"]["cwd"] = cwd.clone().into());
        let out = again.oci(&["run", &again.id]);
        assert_eq!(out.status.code(), Some(1), "{cwd}: {out:?}");
        assert!(text(&out.stderr).contains("working directory"), "{cwd}: {out:?}");
    }
    // ls has one of its own.
    let out = b.oci(&["exec", &b.id, "ls", "/proc/self/fd"]);
    assert_eq!(text(&out.stdout).split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn the_runtimes_binary_cannot_be_written_by_who_reaches_it_from_inside() {
    let Some(b) = Bundle::new("exe", "true") else { return };
    assert!(b.oci_to_file(&["create", &b.id]).0);
    let pid = b.pid();
    // As the attack does: hold it while it runs, write when it does not run any more.
    let held = fs::File::open(format!("/proc/{pid}/exe")).expect("open");
    // Nothing of the host waits with it, either: stdio, the start socket.
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("list")
        .map(|e| fs::read_link(e.expect("entry").path()).expect("link"))
        .collect();
    let paths = open.iter().filter(|p| p.starts_with("/")).skip(3);
    assert_eq!(paths.count(), 0, "{open:?}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
    // Not by an open: that is refused as busy while any test runs the binary, which says nothing about later.
    let writable = rustix::fs::access(again, rustix::fs::Access::WRITE_OK);
    assert_eq!(writable, Err(rustix::io::Errno::ROFS));
}

#[test]
fn a_container_of_four_mebibytes_starts_every_time() {
    let Some(b) = Bundle::new("small", "true") else { return };
    b.change(|c| {
        c["process"]["args"] = json!(["/bin/true"]);
        c["linux"]["resources"]["memory"] = json!({ "limit": 4 << 20 });
    });
    for n in 0..20 {
        let out = b.oci(&["run", &b.id]);
        assert!(out.status.success(), "{n}: {out:?}");
    }
}

#[test]
fn exec_joins_all_of_the_confinement() {
    let Some(b) = Bundle::new("confined", "exec sleep 1000") else { return };
    b.change(|c| {
        c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
        // What `spec` writes has one on cgroup v2.
        let namespaces = c["linux"]["namespaces"].as_array_mut().expect("list");
        namespaces.retain(|it| it["type"] != "cgroup");
        namespaces.push(json!({ "type": "cgroup" }));
        c["process"]["noNewPrivileges"] = true.into();
        c["process"]["user"] = json!({ "uid": 7, "gid": 8, "additionalGids": [9], "umask": 0o27 });
        c["process"]["oomScoreAdj"] = 400.into();
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 99 }]);
    });
    let (made, out) = b.oci_to_file(&["run", "-d", &b.id]);
    assert!(made, "{}", fs::read_to_string(out).expect("out"));
    let pid = b.pid();
    b.waits_for_sleep(pid);
    let ask = "for n in cgroup ipc mnt net pid uts user time; do readlink /proc/self/ns/$n; done; \
        cat /proc/self/oom_score_adj /proc/self/limits /proc/self/status";
    let said = text(&b.oci(&["exec", &b.id, "sh", "-c", ask]).stdout);
    for name in ["cgroup", "ipc", "mnt", "net", "pid", "uts", "user", "time"] {
        let its = fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("link");
        assert!(said.contains(&*its.to_string_lossy()), "{name}: {said}");
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let keys = [
        "Uid:", "Gid:", "Groups:", "Umask:", "CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:",
    ];
    for key in keys.into_iter().chain(["NoNewPrivs:", "Seccomp:", "Seccomp_filters:"]) {
        let line = status.lines().find(|l| l.starts_with(key)).expect(key);
        assert!(said.contains(line), "{key}: {said}");
    }
    assert!(said.contains("\n400\n"), "{said}");
    let limit = said.lines().find(|l| l.starts_with("Max open files")).expect("limit");
    assert_eq!(limit.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["77", "99"]);
    assert!(b.oci_to_file(&["exec", "-d", "--pid-file", "exec.pid", &b.id, "sleep", "1000"]).0);
    let other = fs::read_to_string(b.dir.path().join("exec.pid")).expect("pid file");
    let groups = |pid: &str| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert_eq!(groups(&other), groups(&pid.to_string()));
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}
