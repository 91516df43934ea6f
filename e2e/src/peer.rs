//! Another runtime to be measured beside ours: Debian's containerd with runc, in directories of its
//! own, without its pause image from the network.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use k8s_cri::v1 as cri;
use serde_json::json;
use tempfile::TempDir;

use crate::client::Cri;
use crate::image::{self, Image};
use crate::{archive, wait};

/// A containerd of the test's own; ends with this value.
#[derive(Debug)]
pub struct Containerd {
    pub cri: Cri,
    pub version: String,
    process: Child,
    dir: TempDir,
}

const START_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: &str = "registry.k8s.io/pause:bench";
const BRIDGE: &str = "lse2epeer";

impl Containerd {
    /// `None` when it is not installed.
    pub async fn start() -> Option<Self> {
        let version = Command::new("containerd").arg("--version").output().ok()?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.split_whitespace().nth(2).unwrap_or("?").to_owned();
        let dir = TempDir::with_prefix("lapstrake-peer-").unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(dir.path().join("net.d")).unwrap();
        fs::write(
            dir.path().join("net.d/10-bridge.conflist"),
            network(&path("leases")).to_string(),
        )
        .unwrap();
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\noom_score = 0\n\
             [grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = {PAUSE:?}\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = {:?}\nbin_dir = \"/usr/lib/cni\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n",
            path("root"),
            path("state"),
            path("containerd.sock"),
            path("net.d"),
            path("opt"),
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let process = Command::new("containerd")
            .args(["--config", &path("config.toml")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let cri = Cri::new(&dir.path().join("containerd.sock"));
        let peer = Self { cri, version, process, dir };
        wait::until_async("containerd answers", START_LIMIT, || async {
            peer.cri.runtime.clone().version(cri::VersionRequest::default()).await.ok()
        })
        .await;
        let pause =
            Image::new(vec![image::busybox_layer()], json!({ "Cmd": ["/bin/sleep", "1000000"] }));
        let archive = archive::docker_save(&[(&image::busybox(), image::BUSYBOX), (&pause, PAUSE)]);
        fs::write(peer.dir.path().join("images.tar"), archive).unwrap();
        let imported = Command::new("ctr")
            .args(["--address", &peer.socket(), "--namespace", "k8s.io", "images", "import"])
            .arg(peer.dir.path().join("images.tar"))
            .output()
            .unwrap();
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        Some(peer)
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.process.id()).unwrap()
    }

    /// The shims name its socket on their command line.
    pub fn shims(&self) -> Vec<i32> {
        crate::host::processes(|command| {
            command.contains("containerd-shim") && command.contains(&self.socket())
        })
    }

    fn socket(&self) -> String {
        self.dir.path().join("containerd.sock").display().to_string()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            println!("containerd's log:\n{}", &log[log.len().saturating_sub(8000)..]);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        for shim in self.shims() {
            let pid = rustix::process::Pid::from_raw(shim).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let _ = Command::new("ip").args(["link", "delete", BRIDGE]).output();
    }
}

fn network(leases: &str) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "bench",
        "plugins": [{
            "type": "bridge",
            "bridge": BRIDGE,
            "isGateway": true,
            "ipMasq": false,
            "ipam": { "type": "host-local", "dataDir": leases, "ranges": [[{ "subnet": "10.214.0.0/24" }]], "routes": [{ "dst": "0.0.0.0/0" }] },
        }],
    })
}
