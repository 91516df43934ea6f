//! The vm ring's machine: a QEMU guest with a Debian kernel, systemd and pure cgroup v2, in which
//! a test binary runs as it does on the host.
//!
//! `e2e/guest/` says what the guest is; it is made once for each version of that and of the
//! packages, and kept in [`CACHE`]. Nothing of a run is written to it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::node::binary;

/// Outside the repository, as packages are.
const CACHE: &str = "/var/cache/lapstrake-vm";

/// The recipe: all of it counts for whether a kept guest is still the right one.
const RECIPE: &[&str] = &["build", "guest-task.service", "init", "packages"];

/// What goes into the guest anew with every run, beside the recipe.
const TASK: &[&str] = &["pace", "task"];

/// What of ours a node runs.
const BINARIES: &[&str] = &["lapstrake", "lapstrake-shim", "lapstrake-oci", "lapstrake-bridge"];

/// Enough for a handful of pods and what the file systems in memory hold.
const MEMORY_MIB: &str = "2048";

/// A crowded host can keep the guest from its timer long enough for the kernel to give up on it.
const KERNEL_OPTIONS: &str = "console=ttyS0 panic=-1 psi=1 mitigations=off no_timer_check";

const QEMU: &str = "qemu-system-x86_64";

/// How often the end of the guest is looked for.
const PAUSE: Duration = Duration::from_millis(50);

/// A guest that can be booted. While it exists no other test of this machine boots one: software
/// emulation takes a whole processor.
#[derive(Debug)]
pub struct Guest {
    dir: PathBuf,
    /// Added to [`KERNEL_OPTIONS`].
    kernel: &'static str,
    _only: File,
}

/// A test binary of this machine and what it is called with.
#[derive(Debug)]
pub struct Tests<'a> {
    pub file: PathBuf,
    pub arguments: &'a [&'a str],
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// 0 when all test binaries were content; none when the guest ended before they did.
    pub exit: Option<i32>,
    /// What the test binaries wrote.
    pub output: String,
    /// What kernel and systemd wrote.
    pub console: String,
}

impl Guest {
    /// Makes the guest or finds it. Without QEMU there is none: that is said, and fails in CI.
    pub fn prepared() -> Option<Self> {
        if let Some(lack) = lacking() {
            let why = format!("SKIPPED: no guest without {lack}");
            assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
            println!("{why}");
            return None;
        }
        fs::create_dir_all(CACHE).unwrap();
        let only = File::create(Path::new(CACHE).join("lock")).unwrap();
        flock(&only, FlockOperation::LockExclusive).unwrap();
        let dir = Path::new(CACHE).join(recipe_key());
        if !dir.exists() {
            make(&dir);
        }
        Some(Self { dir, kernel: "", _only: only })
    }

    /// With more options for its kernel.
    pub fn with_kernel(self, options: &'static str) -> Self {
        Self { kernel: options, ..self }
    }

    /// Boots, runs test binaries one after another, and waits for the end. The output is shown
    /// while it comes.
    ///
    /// Panics when `limit` is over, with what the guest has said.
    pub fn run(&self, tests: &[Tests<'_>], limit: Duration) -> Outcome {
        let scratch = tempfile::tempdir().unwrap();
        let payload = scratch.path().join("payload.tar");
        pack(&payload, scratch.path(), tests);
        let console = scratch.path().join("console");
        let mut guest = Running(self.boot(&payload, &console));

        let stdout = guest.0.stdout.take().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let reader = std::thread::spawn(move || follow(BufReader::new(stdout)));
        let end = Instant::now() + limit;
        while guest.0.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                over.store(true, Ordering::Relaxed);
                break;
            }
            std::thread::sleep(PAUSE);
        }
        drop(guest);
        let output = reader.join().unwrap();
        let console = String::from_utf8_lossy(&fs::read(console).unwrap_or_default()).into_owned();
        assert!(
            !over.load(Ordering::Relaxed),
            "the guest did not end within {limit:?}:\n{output}\n{console}"
        );
        let exit = output.lines().rev().find_map(|it| it.strip_prefix("guest: exit "));
        let exit = exit.map(|it| it.parse().unwrap());
        Outcome { exit, output, console }
    }

    fn boot(&self, payload: &Path, console: &Path) -> Child {
        let disk =
            |file: &Path| format!("if=virtio,format=raw,cache=unsafe,file={}", file.display());
        // With this process, however that ends, the guest ends.
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", QEMU])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-accel", "tcg", "-machine", "q35", "-cpu", "max", "-smp", "1"])
            .args(["-m", MEMORY_MIB])
            .arg("-kernel")
            .arg(self.dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(self.dir.join("initrd"))
            .args(["-append", &format!("{KERNEL_OPTIONS} {}", self.kernel)])
            .arg("-drive")
            .arg(format!("{},snapshot=on", disk(&self.dir.join("root.img"))))
            .arg("-drive")
            .arg(format!("{},readonly=on", disk(payload)))
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

/// Whether this is the guest: nothing here is anybody else's.
pub fn inside() -> bool {
    std::env::var_os("E2E_GUEST").is_some()
}

/// Killed when the test ends in any way.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What this machine has not, of what a guest takes.
fn lacking() -> Option<&'static str> {
    let found = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).exists())
    };
    if !cfg!(target_arch = "x86_64") {
        return Some("an x86_64 host: the guest runs the host's binaries");
    }
    [(QEMU, "QEMU (package qemu-system-x86)"), ("apt-get", "Debian's packages")]
        .into_iter()
        .find(|(program, _)| !found(program))
        .map(|(_, what)| what)
}

fn recipe(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest").join(file)
}

/// Changes with the recipe and with every package that the guest would be made of today.
fn recipe_key() -> String {
    let mut hash = Sha256::new();
    for file in RECIPE {
        hash.update(fs::read(recipe(file)).unwrap());
    }
    let packages = Command::new(recipe("build")).arg("list").output().unwrap();
    let error = String::from_utf8_lossy(&packages.stderr);
    assert!(!packages.stdout.is_empty(), "apt-get finds no packages: `apt-get update`? {error}");
    hash.update(&packages.stdout);
    hash.finalize().iter().take(8).map(|it| format!("{it:02x}")).collect()
}

/// Makes the guest; those of other recipes go.
fn make(dir: &Path) {
    let started = Instant::now();
    for old in fs::read_dir(CACHE).unwrap().flatten().filter(|it| it.path().is_dir()) {
        fs::remove_dir_all(old.path()).unwrap();
    }
    let partial = dir.with_extension("partial");
    fs::create_dir_all(&partial).unwrap();
    let made = Command::new(recipe("build")).arg(&partial).output().unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (said(&made.stdout), said(&made.stderr));
    assert!(made.status.success(), "the guest could not be made:\n{out}\n{error}");
    fs::rename(partial, dir).unwrap();
    println!("made the guest {} in {:.1?}", dir.display(), started.elapsed());
}

/// A tar archive that the guest unpacks at its root.
fn pack(payload: &Path, scratch: &Path, tests: &[Tests<'_>]) {
    let mut archive = tar::Builder::new(File::create(payload).unwrap());
    let mut add_stripped = |file: &Path, inside: &Path| {
        let stripped = scratch.join("stripped");
        let status = Command::new("strip").arg("-o").arg(&stripped).arg(file).status().unwrap();
        assert!(status.success(), "strip {}", file.display());
        archive.append_path_with_name(&stripped, inside.strip_prefix("/").unwrap()).unwrap();
    };
    for name in BINARIES {
        // Those that cargo would replace have names of their own.
        let named = match *name {
            "lapstrake-shim" => std::env::var_os("LAPSTRAKE_SHIM"),
            "lapstrake-oci" => std::env::var_os("LAPSTRAKE_OCI"),
            _ => None,
        };
        let file = named.map_or_else(|| binary(name), PathBuf::from);
        add_stripped(&file, &Path::new("/usr/local/bin").join(name));
    }
    for it in tests {
        add_stripped(&it.file, &it.file);
    }
    // Where the tests of their own crates look for them.
    for name in BINARIES {
        let (here, installed) =
            (binary(name).canonicalize().unwrap(), format!("/usr/local/bin/{name}"));
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        archive.append_link(&mut link, here.strip_prefix("/").unwrap(), installed).unwrap();
    }
    for name in TASK {
        archive.append_path_with_name(recipe(name), format!("opt/guest/{name}")).unwrap();
    }
    // Tests read what is shipped where the repository is; systemd finds the unit where users put it.
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let corpora = ["runtime/container/tests/corpus", "runtime/seccomp/tests/corpus"];
    for dir in ["deploy", "e2e/guest"].into_iter().chain(corpora) {
        let (here, inside) = (tree.join(dir), tree.strip_prefix("/").unwrap().join(dir));
        archive.append_dir_all(inside, here).unwrap();
    }
    let unit = "etc/systemd/system/lapstrake.service";
    archive.append_path_with_name(tree.join("deploy/lapstrake.service"), unit).unwrap();
    let settings = settings(tests);
    let mut header = tar::Header::new_gnu();
    header.set_size(settings.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "opt/guest/settings", settings.as_bytes()).unwrap();
    archive.finish().unwrap();
}

/// Sourced by `e2e/guest/task`.
fn settings(tests: &[Tests<'_>]) -> String {
    let pace = Command::new(recipe("pace")).output().unwrap();
    let pace = String::from_utf8(pace.stdout).unwrap();
    let mut lines = format!("HOST_PACE_MS={}\nall() {{\n", pace.trim());
    for it in tests {
        let words = it.arguments.iter().map(|it| format!(" '{it}'")).collect::<String>();
        lines += &format!("run '{}'{words}\n", it.file.display());
    }
    lines + "}\n"
}

fn follow(mut guest: impl BufRead) -> String {
    let (mut all, mut line) = (String::new(), Vec::new());
    while guest.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&line).replace('\r', "");
        println!("| {}", text.trim_end_matches('\n'));
        all.push_str(&text);
        line.clear();
    }
    all
}
