//! A pod of its own for each test, with a leak check at its end.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroup::Hierarchies;
use runtime::{
    ContainerCreated, CreateContainer, CreateSandbox, Error, ErrorKind, ExecOutput, ExecSync, Exit,
    LogLimits, Rootfs, SandboxCreated, Shim, ShimCgroup, Shims,
};
use rustix::process::{Pid, Signal, kill_process};

const BUSYBOX: &str = "/bin/busybox";
/// The kernel ends what was killed in milliseconds, on a crowded machine in seconds.
const DEATH_LIMIT: Duration = Duration::from_secs(10);

const DEFAULT_CAPS: &str = r#"["CAP_CHOWN","CAP_DAC_OVERRIDE","CAP_FSETID","CAP_FOWNER","CAP_MKNOD","CAP_NET_RAW",
    "CAP_SETGID","CAP_SETUID","CAP_SETFCAP","CAP_SETPCAP","CAP_NET_BIND_SERVICE","CAP_SYS_CHROOT","CAP_KILL",
    "CAP_AUDIT_WRITE"]"#;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) shims: Shims,
    pub(crate) shim: Shim,
    pub(crate) sandbox: SandboxCreated,
    place: Place,
}

/// Where a pod is. Whatever of it is still alive at the end, of a test that failed or forgot, ends with it.
#[derive(Debug)]
struct Place {
    name: String,
    dir: tempfile::TempDir,
    hierarchies: Hierarchies,
}

#[derive(Debug)]
pub(crate) struct Payload {
    pub(crate) args: Vec<String>,
    pub(crate) mounts: Vec<String>,
    pub(crate) resources: String,
    pub(crate) user: String,
    pub(crate) cwd: String,
    pub(crate) caps: String,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) limits: LogLimits,
    pub(crate) pod_pids: bool,
    pub(crate) handler: Option<PathBuf>,
    pub(crate) hooks: String,
}

impl Payload {
    pub(crate) fn args(args: &[&str]) -> Self {
        Self {
            args: args.iter().map(|a| (*a).to_owned()).collect(),
            mounts: Vec::new(),
            resources: "{}".into(),
            user: r#"{"uid":0,"gid":0}"#.into(),
            cwd: "/".into(),
            caps: DEFAULT_CAPS.into(),
            tty: false,
            stdin: false,
            limits: LogLimits::default(),
            pod_pids: false,
            handler: None,
            hooks: "{}".into(),
        }
    }

    pub(crate) fn sh(script: &str) -> Self {
        Self::args(&["/bin/sh", "-c", script])
    }
}

#[derive(Debug)]
pub(crate) struct Running<'n> {
    pub(crate) id: String,
    node: &'n Node,
    short: String,
}

impl Node {
    /// `None`, said loudly, when this machine cannot run the test and is not required to.
    pub(crate) async fn start(name: &str) -> Option<Self> {
        Self::start_in(name, std::fs::File::open("/proc/self/ns/net").expect("netns")).await
    }

    /// The same with a network namespace of the test's choice.
    pub(crate) async fn start_in(name: &str, netns: std::fs::File) -> Option<Self> {
        let root = rustix::process::geteuid().is_root();
        if !root || !Path::new(BUSYBOX).exists() {
            let why = format!("SKIPPED {name}: needs root and {BUSYBOX} (package busybox-static)");
            assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
            eprintln!("{why}");
            return None;
        }
        let dir = tempfile::tempdir().expect("tempdir");
        lay_out(dir.path());
        let shims = shims();
        let id = format!("{name}-pod");
        let hierarchies = Hierarchies::detect().expect("cgroups");
        let place = Place { name: name.to_owned(), dir, hierarchies };
        let shim = shims.spawn(&id, &place.pod_dir()).await.expect("spawn");
        let group = format!("{}/{id}", place.group());
        let config = format!(
            r#"{{"ociVersion":"1.2.0","hostname":"the-pod","process":{{"args":["/pause"],"cwd":"/"}},
            "linux":{{"cgroupsPath":"{group}","namespaces":[{{"type":"ipc"}},{{"type":"uts"}},{{"type":"mount"}},
            {{"type":"pid"}}]}}}}"#
        );
        std::fs::write(place.pod_dir().join("config.json"), config).expect("config");
        let request =
            CreateSandbox { id, bundle: place.pod_dir(), shm_size: 1 << 20, seccomp_bpf: None };
        let sandbox = shim.create_sandbox(request, Some(netns.into())).await.expect("sandbox");
        Some(Self { shims, shim, sandbox, place })
    }

    pub(crate) fn hierarchies(&self) -> &Hierarchies {
        &self.place.hierarchies
    }

    pub(crate) fn group(&self, short: &str) -> String {
        format!("{}/{}-{short}", self.place.group(), self.place.name)
    }

    pub(crate) fn sandbox_id(&self) -> String {
        self.place.sandbox_id()
    }

    pub(crate) fn sandbox_group(&self) -> String {
        format!("{}/{}", self.place.group(), self.sandbox_id())
    }

    pub(crate) fn shim_group(&self) -> String {
        self.place.shim_group()
    }

    pub(crate) fn pod_dir(&self) -> PathBuf {
        self.place.pod_dir()
    }

    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        let path = self.place.dir.path().join(name);
        std::fs::create_dir_all(&path).expect("mkdir");
        path
    }

    pub(crate) fn log_path(&self, short: &str) -> PathBuf {
        self.place.dir.path().join(format!("{short}.log"))
    }

    pub(crate) fn log(&self, short: &str) -> String {
        std::fs::read_to_string(self.log_path(short)).unwrap_or_default()
    }

    pub(crate) async fn create(&self, short: &str, payload: Payload) -> Result<Running<'_>, Error> {
        let (created, pid) = self.create_and_look_away(short, payload).await?;
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        Ok(created)
    }

    /// Its init may be gone again.
    pub(crate) async fn create_and_look_away(
        &self,
        short: &str,
        payload: Payload,
    ) -> Result<(Running<'_>, i32), Error> {
        let id = format!("{}-{short}", self.place.name);
        let bundle = self.scratch(&format!("pod/containers/{id}"));
        self.scratch(&format!("pod/containers/{id}/rootfs"));
        std::fs::write(bundle.join("config.json"), self.config(short, &payload)).expect("config");
        let request = CreateContainer {
            id: id.clone(),
            bundle,
            rootfs: Rootfs {
                lowers: vec![self.place.dir.path().join("layer")],
                upper: Some(self.scratch(&format!("{short}/upper"))),
                work: Some(self.scratch(&format!("{short}/work"))),
                volatile: false,
            },
            log_path: Some(self.log_path(short)),
            tty: payload.tty,
            stdin: payload.stdin,
            handler: payload.handler,
            limits: payload.limits,
            ..Default::default()
        };
        let ContainerCreated { pid } = self.shim.create_container(request).await?;
        Ok((Running { id, node: self, short: short.to_owned() }, pid))
    }

    fn config(&self, short: &str, p: &Payload) -> String {
        let pause = self.sandbox.pause_pid;
        let args = serde_json::to_string(&p.args).expect("args");
        let pid =
            if p.pod_pids { format!(r#","path":"/proc/{pause}/ns/pid""#) } else { String::new() };
        let extra: String = p.mounts.iter().map(|m| format!(",{m}")).collect();
        let caps = &p.caps;
        format!(
            r#"{{"ociVersion":"1.2.0","root":{{"path":"rootfs"}},"hooks":{hooks},
            "process":{{"args":{args},"cwd":"{cwd}","user":{user},"env":["PATH=/bin"],"terminal":{tty},
              "oomScoreAdj":100,"noNewPrivileges":true,
              "capabilities":{{"bounding":{caps},"effective":{caps},"permitted":{caps}}}}},
            "mounts":[
              {{"destination":"/proc","type":"proc","source":"proc","options":["nosuid","noexec","nodev"]}},
              {{"destination":"/dev","type":"tmpfs","source":"tmpfs","options":["nosuid","strictatime","mode=755","size=65536k"]}},
              {{"destination":"/dev/pts","type":"devpts","source":"devpts",
                "options":["nosuid","noexec","newinstance","ptmxmode=0666","mode=0620","gid=5"]}},
              {{"destination":"/dev/mqueue","type":"mqueue","source":"mqueue","options":["nosuid","noexec","nodev"]}},
              {{"destination":"/sys","type":"sysfs","source":"sysfs","options":["nosuid","noexec","nodev","ro"]}},
              {{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup",
                "options":["nosuid","noexec","nodev","relatime","ro"]}}{extra}],
            "linux":{{"cgroupsPath":"{group}","resources":{resources},
              "maskedPaths":["/proc/kcore","/proc/keys","/sys/firmware"],
              "readonlyPaths":["/proc/sys","/proc/bus"],
              "namespaces":[{{"type":"mount"}},{{"type":"pid"{pid}}},
                {{"type":"network","path":"/proc/{pause}/ns/net"}},{{"type":"ipc","path":"/proc/{pause}/ns/ipc"}},
                {{"type":"uts","path":"/proc/{pause}/ns/uts"}}]}}}}"#,
            cwd = p.cwd,
            hooks = p.hooks,
            user = p.user,
            tty = p.tty,
            resources = p.resources,
            group = self.group(short),
        )
    }

    pub(crate) async fn lose_connection(self) -> Disconnected {
        let Self { shims, shim, sandbox, place } = self;
        drop(shim);
        Disconnected { shims, sandbox, place }
    }

    /// Shuts the pod down and looks for what it left.
    pub(crate) async fn end(self) {
        let pid = self.shim.pid();
        self.shim.shutdown().await.expect("shutdown");
        self.shim.shutdown().await.expect("a gone shim is fine");
        self.place.has_nothing_left(&self.shims).await;
        assert!(!is_alive(pid), "the shim still runs");
        let left = mounts_of(self.place.dir.path());
        assert!(left.is_empty(), "mounts left in the host's namespace: {left:?}");
    }
}

#[derive(Debug)]
pub(crate) struct Disconnected {
    shims: Shims,
    sandbox: SandboxCreated,
    place: Place,
}

impl Disconnected {
    /// For a pod whose shim has ended by itself.
    pub(crate) async fn end(self) {
        self.place.has_nothing_left(&self.shims).await;
    }

    pub(crate) async fn reconnect(self) -> Node {
        let Self { shims, sandbox, place } = self;
        let id = place.sandbox_id();
        let shim = shims.connect(&id, &place.pod_dir(), Duration::from_secs(5)).await;
        Node { shims, shim: shim.expect("connect"), sandbox, place }
    }
}

impl Place {
    fn sandbox_id(&self) -> String {
        format!("{}-pod", self.name)
    }

    fn pod_dir(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    /// Above those of all its containers and of pause.
    fn group(&self) -> String {
        format!("/lapstrake-test-{}/{}/pod", std::process::id(), self.name)
    }

    fn shim_group(&self) -> String {
        format!("/{}/{}", shims_parent(), self.sandbox_id())
    }

    /// No shim, group or process of the pod.
    async fn has_nothing_left(&self, shims: &Shims) {
        let id = self.sandbox_id();
        shims.forget(&id).await.expect("forget");
        let gone = shims.connect(&id, &self.pod_dir(), Duration::from_secs(1)).await;
        assert_eq!(gone.expect_err("ended").kind, ErrorKind::Gone);
        let left = groups_below(&self.hierarchies, &self.group());
        assert!(left.is_empty(), "groups left: {left:?}");
        shims.prune();
        self.hierarchies.prune(&self.group());
        let left = processes_in(self.dir.path());
        assert!(left.is_empty(), "processes left: {left:?}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let shims_left = || processes_in(self.dir.path());
        for (pid, _) in shims_left() {
            let _ = kill_process(pid, Signal::KILL);
        }
        let group = self.group();
        let _ = self.hierarchies.kill(&group);
        let pids = || self.hierarchies.pids(&group).unwrap_or_default();
        let begun = Instant::now();
        while !(pids().is_empty() && shims_left().is_empty()) && begun.elapsed() < DEATH_LIMIT {
            std::thread::sleep(Duration::from_millis(2));
        }
        for group in [&group, &self.shim_group()] {
            let _ = self.hierarchies.remove(group);
            self.hierarchies.prune(group);
        }
    }
}

impl Running<'_> {
    pub(crate) async fn start(&self) -> Result<runtime::Started, Error> {
        self.node.shim.start_container(&self.id).await
    }

    pub(crate) async fn exit(&self) -> Exit {
        let exit = self.node.shim.wait(&self.id, Some(Duration::from_secs(20))).await;
        exit.expect("wait").expect("in time")
    }

    pub(crate) async fn exec(
        &self,
        script: &str,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        self.exec_args(&["/bin/sh", "-c", script], timeout).await
    }

    pub(crate) async fn exec_args(
        &self,
        args: &[&str],
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        let args = serde_json::to_string(args).expect("args");
        let process =
            format!(r#"{{"args":{args},"cwd":"/","env":["PATH=/bin"],"noNewPrivileges":true}}"#);
        let request = ExecSync {
            id: self.id.clone(),
            process_json: process.into_bytes(),
            timeout,
            output_cap: 16 << 20,
        };
        self.node.shim.exec_sync(request).await
    }

    pub(crate) fn log(&self) -> String {
        self.node.log(&self.short)
    }

    /// The log's contents without what the format adds.
    pub(crate) fn text(&self) -> String {
        self.log()
            .split_terminator('\n')
            .map(|l| format!("{}\n", l.splitn(4, ' ').nth(3).unwrap_or("")))
            .collect()
    }
}

/// An image layer with busybox and its applets, and the pod's directory.
fn lay_out(dir: &Path) {
    for sub in ["pod/shm", "layer/bin", "layer/etc", "layer/tmp"] {
        std::fs::create_dir_all(dir.join(sub)).expect("mkdir");
    }
    std::fs::copy(BUSYBOX, dir.join("layer/bin/busybox")).expect("busybox");
    let applets = [
        "sh", "cat", "ls", "sleep", "dd", "id", "ps", "grep", "hostname", "mount", "wc",
        "readlink", "tr", "touch", "head", "tail", "df", "tty", "stat", "uniq", "true", "yes",
        "seq", "stty", "nc", "printf",
    ];
    for applet in applets {
        std::os::unix::fs::symlink("busybox", dir.join("layer/bin").join(applet)).expect("link");
    }
    std::fs::write(dir.join("layer/etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")
        .expect("passwd");
}

/// One image for all pods of this process, as in the daemon.
fn shims() -> Shims {
    static SHIMS: std::sync::OnceLock<Shims> = std::sync::OnceLock::new();
    let open = || {
        let cgroup = ShimCgroup { parent: shims_parent() };
        Shims::open(&shim_binary(), cgroup).expect("open the shim")
    };
    SHIMS.get_or_init(open).clone()
}

/// The group of the shims' groups.
fn shims_parent() -> String {
    format!("lapstrake-test-{}/shims", std::process::id())
}

/// The statically linked shim (see the Makefile), or the one that `LAPSTRAKE_SHIM` names.
fn shim_binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LAPSTRAKE_SHIM") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("exe");
    let profile = exe.ancestors().nth(2).expect("target/profile");
    let target = profile.parent().expect("target");
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let shim =
        target.join(triple).join(profile.file_name().expect("profile")).join("lapstrake-shim");
    assert!(
        shim.exists(),
        "{} is missing: RUSTFLAGS='-C target-feature=+crt-static' cargo build -p lapstrake-shim --target {}",
        shim.display(),
        shim.ancestors().nth(2).and_then(Path::file_name).expect("triple").to_string_lossy()
    );
    shim
}

/// A zombie that init has not collected yet is dead enough.
pub(crate) fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Others mount things meanwhile; what is ours names the test's directory.
fn mounts_of(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let needle = dir.to_string_lossy().into_owned();
    text.lines().filter(|l| l.contains(&needle)).map(str::to_owned).collect()
}

fn groups_below(node: &Hierarchies, group: &str) -> BTreeSet<PathBuf> {
    let dirs = node.dirs(group);
    dirs.iter()
        .flat_map(|d| std::fs::read_dir(d).into_iter().flatten().flatten())
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect()
}

/// Processes whose root or working directory is below `dir`, or that were started with it in their command line.
fn processes_in(dir: &Path) -> Vec<(Pid, String)> {
    let needle = dir.to_string_lossy().into_owned();
    let pids = std::fs::read_dir("/proc").expect("proc").flatten();
    pids.filter_map(|e| {
        let pid = Pid::from_raw(e.file_name().to_str()?.parse().ok()?)?;
        let cwd = std::fs::read_link(e.path().join("cwd")).ok()?;
        let cmdline = std::fs::read_to_string(e.path().join("cmdline")).ok()?;
        let ours = cwd.to_string_lossy().contains(&needle) || cmdline.contains(&needle);
        ours.then_some((pid, cmdline))
    })
    .collect()
}
