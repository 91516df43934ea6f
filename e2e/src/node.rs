//! One node: a daemon of its own with its own directories, bridge and cgroup, and the oracle that
//! compares what it leaves.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use k8s_cri::v1 as cri;
use tonic::Status;

use crate::client::Cri;
use crate::host::{SETTLE_LIMIT, Scope, Snapshot};
use crate::image::{self, Image};
use crate::pod::{Container, Pod};
use crate::slot::Slot;
use crate::spec::{PodSpec, pod};
use crate::{archive, registry, wait};

/// A cold start on a busy machine; an idle one needs a few milliseconds.
const START_LIMIT: Duration = Duration::from_secs(20);

/// SIGTERM must not wait for containers.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Where plugins find `iptables`.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What `timeout` grants a verb of the command line.
const VERB_LIMIT: Duration = Duration::from_secs(60);

/// How much of the daemon's log a failing test prints.
const LOG_TAIL_BYTES: usize = 30_000;

/// How a node differs from the ordinary one.
#[derive(Debug, Default)]
pub struct Options {
    /// Length of the address range's prefix; 24 when 0. A larger range than that is for one node at a time.
    pub range_prefix: u8,
    /// Hosts (`docker.io`, …) to be looked for at an address (`127.0.0.1:5000`).
    pub mirrors: Vec<(String, String)>,
    /// Puts the root directory on a tmpfs of this size, such as `8m`.
    pub root_size: Option<String>,
    /// Lines of the configuration's `[images]`.
    pub images: String,
    /// Appended to the configuration.
    pub config: String,
    /// `bridge` when empty.
    pub network_mode: &'static str,
    /// Appended to the section `[network]`.
    pub network: String,
    /// Network configurations that are there before the daemon, by file name; see [`Node::add_conf`].
    pub conf: Vec<(&'static str, String)>,
    /// Added to the daemon's environment.
    pub environment: Vec<(&'static str, String)>,
    /// A named network namespace for the daemon to live in instead of the host's.
    pub netns: Option<String>,
}

/// A running daemon and all it needs. Dropped, it takes everything with it; [`Node::finish`]
/// before that proves that there was nothing to take.
#[derive(Debug)]
pub struct Node {
    pub cri: Cri,
    pub scope: Scope,
    options: Options,
    slot: Slot,
    daemon: Option<Child>,
    /// The daemon is not the one the baseline was taken of.
    restarted: bool,
    before: Snapshot,
}

impl Node {
    /// A node that has run its first pod: bridge, firewall table and caches are there, so that
    /// the oracle can be strict.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Self {
        Self::prepared(options, |_| ()).await
    }

    /// The same, with something put in place before the first pod.
    pub async fn prepared(options: Options, prepare: impl FnOnce(&Self)) -> Self {
        let mut node = Self::cold(options).await;
        prepare(&node);
        node.warm_up().await;
        node.before = node.scope.snapshot(node.pid());
        node
    }

    /// Runs a first pod, so that what is made at first use is there.
    async fn warm_up(&self) {
        self.run_pod(pod("first")).await.remove().await;
        // The kernel takes a dead namespace's links away in its own time.
        wait::until("the first pod's processes and links are gone", SETTLE_LIMIT, || {
            (self.scope.pids(self.pid()).is_empty() && self.scope.has_no_pod_links()).then_some(())
        });
    }

    /// A node that has done nothing yet.
    pub async fn cold(options: Options) -> Self {
        let slot = Slot::take();
        let scope = Scope::of(&slot, options.netns.clone());
        scope.sweep();
        let mut node = Self {
            cri: Cri::new(&slot.run_dir().join("state/lapstrake.sock")),
            scope,
            options,
            slot,
            daemon: None,
            restarted: false,
            before: Snapshot::default(),
        };
        node.lay_out();
        node.spawn().await;
        node.before = node.scope.snapshot(node.pid());
        node
    }

    /// A node with the busybox image.
    pub async fn with_busybox() -> Self {
        let node = Self::start().await;
        node.import(&image::busybox(), image::BUSYBOX).await;
        node
    }

    /// Removes every pod, then all must be as it was after the start; then the daemon ends, and
    /// its processes, mounts and descriptors with it.
    pub async fn finish(mut self) {
        self.remove_pods().await;
        if self.restarted {
            self.warm_up().await;
        }
        self.assert_clean();
        let status = self.stop();
        assert!(status.success(), "SIGTERM ends the daemon: {status}");
        let after = self.scope.snapshot(None);
        assert_eq!(after.of("process"), [].into(), "processes after the daemon's end");
    }

    /// Removes every pod there is.
    pub async fn remove_pods(&mut self) {
        let pods = cri::ListPodSandboxRequest { filter: None };
        let pods = self.cri.runtime.list_pod_sandbox(pods).await.expect("ListPodSandbox");
        for pod in pods.into_inner().items {
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id };
            self.cri.runtime.remove_pod_sandbox(request).await.expect("RemovePodSandbox");
        }
    }

    /// Removes every image there is.
    pub async fn remove_images(&mut self) {
        let images = self.cri.images.list_images(cri::ListImagesRequest::default()).await;
        for image in images.expect("ListImages").into_inner().images {
            let image = Some(cri::ImageSpec { image: image.id, ..Default::default() });
            let request = cri::RemoveImageRequest { image };
            self.cri.images.remove_image(request).await.expect("RemoveImage");
        }
    }

    /// All must be as after the start.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.scope.assert_same(&self.before, self.pid());
    }

    /// Takes the present state as the one to come back to, for what a test leaves on purpose.
    pub fn rebase(&mut self) {
        self.before = self.scope.snapshot(self.pid());
    }

    /// RunPodSandbox, with a log directory that exists, as the kubelet makes it.
    pub async fn try_run_pod(&self, mut spec: PodSpec) -> Result<Pod, Status> {
        if spec.config.log_directory.is_empty() {
            let name = spec.config.metadata.as_ref().map_or("", |it| &it.name);
            let dir = self.slot.var_dir().join("logs").join(name.get(..40).unwrap_or(name));
            fs::create_dir_all(&dir).unwrap();
            spec.config.log_directory = dir.display().to_string();
        }
        Pod::run(&self.cri, spec).await
    }

    pub async fn run_pod(&self, spec: PodSpec) -> Pod {
        self.try_run_pod(spec).await.expect("RunPodSandbox")
    }

    /// Whether the daemon says that pods can have a network; its reason if not.
    pub async fn network_ready(&self) -> Result<(), String> {
        let request = cri::StatusRequest { verbose: false };
        let status = self.cri.runtime.clone().status(request).await.expect("Status").into_inner();
        let conditions = status.status.expect("a status").conditions;
        let found = conditions.into_iter().find(|it| it.r#type == "NetworkReady");
        let found = found.expect("NetworkReady");
        if found.status { Ok(()) } else { Err(found.message) }
    }

    /// Gives the daemon an image, without a registry.
    pub async fn import(&self, image: &Image, name: &str) {
        let archive = archive::docker_save(&[(image, name)]);
        let imported = self.cri.import(archive, "").await.expect("ImportImages");
        assert_eq!(imported.len(), 1, "{imported:?}");
        assert_eq!(imported[0].id, image.id());
    }

    /// The pid of the daemon, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.daemon.as_ref().map(|it| i32::try_from(it.id()).unwrap())
    }

    /// SIGKILL, and nothing else.
    pub fn kill9(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.kill().unwrap();
        let status = daemon.wait().unwrap();
        assert_eq!(status.signal(), Some(9));
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait::until("the daemon ends after SIGTERM", STOP_LIMIT, || daemon.try_wait().unwrap())
    }

    /// Starts a daemon on what the last one left; returns when it answers.
    pub async fn spawn(&mut self) {
        assert!(self.daemon.is_none());
        self.restarted = self.before != Snapshot::default();
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        let mut daemon =
            self.command().stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut runtime = self.cri.runtime.clone();
        let end = std::time::Instant::now() + wait::scaled(START_LIMIT);
        while let Err(error) = runtime.version(cri::VersionRequest::default()).await {
            if let Some(status) = daemon.try_wait().unwrap() {
                panic!("the daemon ended with {status} before it answered:\n{}", self.log());
            }
            if std::time::Instant::now() > end {
                let _ = daemon.kill();
                let _ = daemon.wait();
                panic!("the daemon does not answer ({error}):\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.daemon = Some(daemon);
    }

    /// The command line of the daemon; a second one with the same is refused by it.
    pub fn command(&self) -> Command {
        let mut command = self.scope.command(&binary("lapstrake"));
        // Only plugins start programs: nothing but the kernel is needed at run time.
        let path = if self.options.network_mode.is_empty() { "/nonexistent" } else { PATH };
        command
            .arg("serve")
            .args(self.flags())
            .args(["--listen", &self.endpoint()])
            .args(["--metrics-listen", "127.0.0.1:0"])
            .env("PATH", path)
            .envs(self.options.environment.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null());
        command
    }

    /// The flags that say which node it is.
    pub fn flags(&self) -> Vec<OsString> {
        let config = self.slot.run_dir().join("config.toml");
        let pairs =
            [("--config", config), ("--root", self.root_dir()), ("--state", self.state_dir())];
        pairs.into_iter().flat_map(|(flag, path)| [flag.into(), path.into()]).collect()
    }

    /// Runs a verb of the `lapstrake` command against this node.
    pub fn verb(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.arg(wait::scaled(VERB_LIMIT).as_secs().to_string()).arg(binary("lapstrake"));
        command.args(arguments).args(["--endpoint", &self.endpoint()]);
        command.output().unwrap()
    }

    /// Runs a verb that needs no daemon, with this node's configuration and where it lives: whether it
    /// was content, and what it said.
    pub fn offline_verb(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = self.scope.command(&binary("lapstrake"));
        let output = command.args(arguments).args(self.flags()).output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}/lapstrake.sock", self.state_dir().display())
    }

    pub fn root_dir(&self) -> PathBuf {
        self.slot.var_dir().join("root")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.slot.run_dir().join("state")
    }

    /// A directory of the test's own, gone with the node.
    pub fn scratch(&self) -> PathBuf {
        let dir = self.slot.var_dir().join("scratch");
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// First three bytes of its pods' addresses, with the dot.
    pub fn network(&self) -> String {
        format!("{}.", self.slot.network())
    }

    /// All the daemon has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_path()).unwrap_or_default()).into_owned()
    }

    /// The process that a container's first process is on the host.
    pub async fn pid_of(&self, container: &Container) -> i32 {
        let info = container.try_response(true).await.expect("ContainerStatus").info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        i32::try_from(info["pid"].as_i64().expect("info has a pid")).unwrap()
    }

    /// The processes that serve sessions: of this daemon, and of earlier ones that still have some.
    pub fn streaming_processes(&self) -> Vec<i32> {
        let line = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline"));
        let serves = |pid: &i32| line(*pid).is_ok_and(|it| it.contains("\0streaming\0"));
        self.scope.pids(self.pid()).into_iter().filter(serves).collect()
    }

    /// The process of a pod's shim.
    pub fn shim_of(&self, pod: &Pod) -> i32 {
        let file = self.state_dir().join("pods").join(&pod.id).join("shim.pid");
        fs::read_to_string(file).expect("shim.pid").trim().parse().expect("a pid")
    }

    fn log_path(&self) -> PathBuf {
        self.slot.var_dir().join("daemon.log")
    }

    /// What plugins have: `conf.d`, `bin` (before Debian's), `cache`, `netns`, `ipam`.
    pub fn plugins_dir(&self) -> PathBuf {
        self.slot.run_dir().join("plugins")
    }

    /// Puts a network configuration where the daemon looks, in one step. `{dir}` in it is
    /// [`Node::plugins_dir`], `{bridge}` the node's bridge, `{net}` the begin of its addresses.
    pub fn add_conf(&self, name: &str, text: &str) {
        let text = text
            .replace("{dir}", &self.plugins_dir().display().to_string())
            .replace("{bridge}", &self.slot.bridge())
            .replace("{net}", &self.slot.network());
        let dir = self.plugins_dir().join("conf.d");
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }

    /// Puts a plugin before Debian's of the same name: a shell script.
    pub fn add_plugin(&self, name: &str, script: &str) {
        let dir = self.plugins_dir().join("bin");
        fs::write(dir.join("new"), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(dir.join("new"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }

    /// A line of the metrics endpoint, by the beginning of it.
    pub fn metric(&self, name: &str) -> Option<String> {
        let text = self.metrics();
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next().map(str::to_owned)
    }

    /// The whole page of metrics.
    pub fn metrics(&self) -> String {
        let pid = self.pid().expect("the daemon runs");
        let ask = |port: u16| {
            let url = format!("http://127.0.0.1:{port}/metrics");
            let mut fetch = self.scope.command(Path::new("busybox"));
            String::from_utf8(fetch.args(["wget", "-qO-", &url]).output().unwrap().stdout).unwrap()
        };
        let ports = crate::host::listening_ports(pid).into_iter();
        ports.map(ask).find(|text| !text.is_empty()).expect("a page of metrics")
    }

    /// Where the daemon looks for `<host>/hosts.toml`.
    pub fn certs_d(&self) -> PathBuf {
        self.slot.run_dir().join("certs.d")
    }

    fn lay_out(&self) {
        let plugins = self.plugins_dir();
        let of_plugins = ["conf.d", "bin", "cache/results", "netns"].map(|name| plugins.join(name));
        for dir in [self.state_dir(), self.root_dir(), self.certs_d()].iter().chain(&of_plugins) {
            fs::create_dir_all(dir).unwrap();
        }
        for (name, text) in &self.options.conf {
            self.add_conf(name, text);
        }
        if let Some(size) = &self.options.root_size {
            let mounted = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
                .arg(self.root_dir())
                .status();
            assert!(mounted.unwrap().success(), "mount a small root");
        }
        for (host, address) in &self.options.mirrors {
            registry::mirror(&self.certs_d(), &[host], address);
        }
        fs::write(self.slot.run_dir().join("config.toml"), self.config()).unwrap();
    }

    fn config(&self) -> String {
        let [default, foreign] = foreign_handler();
        let (network, prefix) = match self.options.range_prefix {
            0 => (self.slot.network(), 24),
            prefix @ 1..24 => ("10.216.0".to_owned(), prefix),
            prefix => (self.slot.network(), prefix),
        };
        format!(
            "[images]\ncerts_d = [\"{certs_d}\"]\n{images}\n\n\
             [network]\nmode = \"{mode}\"\nbridge = \"{bridge}\"\nranges = [\"{network}.0/{prefix}\"]\n\
             cni_conf_dir = \"{plugins}/conf.d\"\ncni_bin_dirs = [\"{plugins}/bin\", \"/usr/lib/cni\"]\n\
             cni_cache_dir = \"{plugins}/cache\"\ncni_netns_dir = \"{plugins}/netns\"\n{more}\n\
             [runtime]\ncgroup_parent = \"{cgroup}\"\nshim_cgroup = \"{cgroup}/shims\"\n{default}{extra}{foreign}",
            certs_d = self.certs_d().display(),
            images = self.options.images,
            mode = match self.options.network_mode {
                "" => "bridge",
                mode => mode,
            },
            plugins = self.plugins_dir().display(),
            more = self.options.network,
            bridge = self.slot.bridge(),
            cgroup = self.slot.cgroup(),
            default = default,
            extra = self.options.config,
            foreign = foreign,
        )
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.len().saturating_sub(LOG_TAIL_BYTES);
            println!("the daemon's log:\n{}", log.get(tail..).unwrap_or(&log));
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        self.scope.sweep();
    }
}

/// A built binary: from `LAPSTRAKE_BIN_DIR`, else where `make build` puts it.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("LAPSTRAKE_BIN_DIR").map(PathBuf::from);
    let dir =
        dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release"));
    let path = dir.join(name);
    assert!(path.exists(), "{} is not there: `make build`", path.display());
    path
}

/// `E2E_HANDLER=/usr/sbin/runc` lets another OCI runtime make the containers of all tests: a key of `[runtime]`, and a
/// section.
fn foreign_handler() -> [String; 2] {
    let Ok(path) = std::env::var("E2E_HANDLER") else { return Default::default() };
    let section = format!("\n[runtime.handlers.foreign]\npath = {path:?}\n");
    ["default_handler = \"foreign\"\n".to_owned(), section]
}
