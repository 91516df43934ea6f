//! A bundle of busybox, and the command line on it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const BUSYBOX: &str = "/bin/busybox";

const APPLETS: [&str; 22] = [
    "sh", "sleep", "echo", "cat", "id", "tty", "hostname", "kill", "mkdir", "grep", "env", "ls",
    "stat", "touch", "readlink", "chown", "mount", "true", "pwd", "ln", "uname", "head",
];

/// A directory that ends with the test, holding a root file system of busybox and a configuration.
pub(crate) struct Bundle {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) id: String,
}

/// The static one that is shipped, where the environment names it; else what cargo has built beside the tests.
pub(crate) fn program() -> OsString {
    let built = || env!("CARGO_BIN_EXE_lapstrake-oci").into();
    std::env::var_os("LAPSTRAKE_OCI").unwrap_or_else(built)
}

impl Bundle {
    /// `None`, said loudly, when this machine cannot run the test and is not required to.
    pub(crate) fn new(name: &str, script: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new(BUSYBOX).exists() {
            let why = format!("SKIPPED {name}: needs root and {BUSYBOX} (package busybox-static)");
            assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
            eprintln!("{why}");
            return None;
        }
        let dir = tempfile::tempdir().expect("tempdir");
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("mkdir");
        fs::copy(BUSYBOX, bin.join("busybox")).expect("busybox");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", bin.join(applet)).expect("link");
        }
        let bundle = Self { dir, id: format!("oci-test-{name}-{}", std::process::id()) };
        assert!(bundle.oci(&["spec"]).status.success());
        bundle.change(|c| {
            c["process"]["args"] = serde_json::json!(["/bin/sh", "-c", script]);
            c["process"]["terminal"] = false.into();
        });
        Some(bundle)
    }

    pub(crate) fn change(&self, edit: impl FnOnce(&mut serde_json::Value)) {
        let path = self.dir.path().join("config.json");
        let mut config = serde_json::from_slice(&fs::read(&path).expect("read")).expect("json");
        edit(&mut config);
        fs::write(path, config.to_string()).expect("write");
    }

    pub(crate) fn oci(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run lapstrake-oci")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let root = self.dir.path().join("root");
        let mut command = Command::new(program());
        command.arg("--root").arg(root).args(args).current_dir(self.dir.path());
        command
    }

    /// As `oci`, for verbs after which a container holds our pipes open: output goes to a file.
    pub(crate) fn oci_to_file(&self, args: &[&str]) -> (bool, PathBuf) {
        let (out, file) = self.output_file();
        let mut command = self.command(args);
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("dup")).stderr(file);
        (command.status().expect("run lapstrake-oci").success(), out)
    }

    pub(crate) fn output_file(&self) -> (PathBuf, fs::File) {
        let out = self.dir.path().join("out");
        let file = fs::File::options().append(true).create(true).open(&out).expect("open");
        (out, file)
    }

    /// With `--systemd-cgroup`, by the system's bus or by another one. Answers the exit code and all that was said.
    pub(crate) fn oci_by_systemd(&self, bus: Option<&str>, args: &[&str]) -> (i32, String) {
        let printed = self.dir.path().join("printed");
        let file = fs::File::create(&printed).expect("create");
        let mut command = self.command(&[&["--systemd-cgroup"], args].concat());
        command.stdin(Stdio::null()).stdout(file.try_clone().expect("dup")).stderr(file);
        command.envs(bus.map(|bus| ("DBUS_SYSTEM_BUS_ADDRESS", bus)));
        let status = command.status().expect("run lapstrake-oci");
        (status.code().expect("exited"), text(&fs::read(printed).expect("printed")))
    }

    pub(crate) fn status(&self) -> String {
        let out = self.oci(&["state", &self.id]);
        let state: serde_json::Value = serde_json::from_slice(&out.stdout).expect("state is JSON");
        state["status"].as_str().expect("status").to_owned()
    }

    pub(crate) fn ends(&self) {
        for _ in 0..500 {
            if self.status() == "stopped" {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("still {}", self.status());
    }

    pub(crate) fn pid(&self) -> i32 {
        let out = self.oci(&["state", &self.id]);
        let state: serde_json::Value = serde_json::from_slice(&out.stdout).expect("state is JSON");
        i32::try_from(state["pid"].as_i64().expect("pid")).expect("pid")
    }

    /// Until the script has come to its `exec sleep`.
    pub(crate) fn waits_for_sleep(&self, pid: i32) {
        for _ in 0..1000 {
            let command = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
            if command.starts_with(b"sleep") {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("not asleep: {}", fs::read_to_string(self.dir.path().join("out")).expect("out"));
    }

    pub(crate) fn groups(&self) -> Vec<PathBuf> {
        let node = cgroup::Hierarchies::detect().expect("cgroups");
        node.dirs(&format!("/{}", self.id)).into_iter().filter(|d| d.exists()).collect()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(crate) fn receive_fd(stream: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    receive_fd_and_text(stream).0
}

pub(crate) fn receive_fd_and_text(
    stream: &std::os::unix::net::UnixStream,
) -> (std::os::fd::OwnedFd, String) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0u8; 4096];
    let mut iov = [std::io::IoSliceMut::new(&mut bytes)];
    let got = recvmsg(stream, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let fd = ancillary.drain().find_map(|m| match m {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (fd.expect("a descriptor"), text(&bytes[..got.bytes]))
}

/// A bind mount of the host that goes with the value.
pub(crate) struct Bound(PathBuf);

impl Bound {
    pub(crate) fn mount(source: &Path, at: &Path) -> Self {
        rustix::mount::mount_bind(source, at).expect("bind");
        Self(at.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(&self.0, flags).expect("unmount");
    }
}
