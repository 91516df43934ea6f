//! `--systemd-cgroup` against a double of systemd: a real bus, and on it a service that answers the manager's methods
//! and makes the groups where systemd would. (The real one is asked in the vm ring.)

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use serde_json::json;
use zbus::{Connection, MessageStream, OwnedVariant};

use crate::bundle::{Bundle, text};

/// The bus and its only service, which end with the value.
struct Double {
    daemon: Child,
    address: String,
    calls: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl Double {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let config = dir.path().join("bus.conf");
        let policy = r#"<allow user="*"/><allow own="*"/><allow send_destination="*"/>
            <allow receive_sender="*"/>"#;
        let listen = dir.path().join("bus");
        let text = format!(
            r#"<busconfig><type>system</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>
            <policy context="default">{policy}</policy></busconfig>"#,
            listen.display()
        );
        fs::write(&config, text).expect("write");
        let mut daemon = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", config.display()))
            .args(["--nofork", "--print-address=1"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("dbus-daemon (package dbus-daemon)");
        let mut address = String::new();
        let out = daemon.stdout.take().expect("stdout");
        BufReader::new(out).read_line(&mut address).expect("address");
        let address = address.trim().to_owned();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (at, heard) = (address.clone(), calls.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("runtime").block_on(async {
                let bus =
                    zbus::connection::Builder::address(at.as_str()).build().await.expect("bus");
                let messages = MessageStream::from(&bus);
                bus.request_name("org.freedesktop.systemd1").await.expect("name");
                ready.send(()).expect("ready");
                serve(&bus, messages, &heard).await;
            });
        });
        is_ready.recv().expect("the double serves");
        Self { daemon, address, calls, _dir: dir }
    }

    fn oci(&self, b: &Bundle, args: &[&str]) -> Output {
        let out = b.dir.path().join("printed");
        let file = fs::File::create(&out).expect("create");
        let status = Command::new(env!("CARGO_BIN_EXE_lapstrake-oci"))
            .arg("--root")
            .arg(b.dir.path().join("root"))
            .arg("--systemd-cgroup")
            .args(args)
            .env("DBUS_SYSTEM_BUS_ADDRESS", &self.address)
            .current_dir(b.dir.path())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("dup"))
            .stderr(file)
            .status()
            .expect("run lapstrake-oci");
        Output { status, stdout: fs::read(out).expect("out"), stderr: Vec::new() }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("lock").clone()
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

type Properties = Vec<(String, OwnedVariant)>;

async fn serve(bus: &Connection, mut messages: MessageStream, heard: &Mutex<Vec<String>>) {
    let mut units: Vec<(String, PathBuf)> = Vec::new();
    while let Some(Ok(message)) = messages.next().await {
        let header = message.header();
        let Some(member) = header.member().map(|m| m.to_string()) else { continue };
        let body = message.body();
        let job = zbus::ObjectPath::try_from("/org/freedesktop/systemd1/job/7").expect("path");
        let say = |line: String| heard.lock().expect("lock").push(line);
        match member.as_str() {
            "StartTransientUnit" => {
                let (unit, mode, properties, _aux): (
                    String,
                    String,
                    Properties,
                    Vec<(String, Properties)>,
                ) = body.deserialize().expect("arguments");
                say(format!("start {unit} {mode} {}", told(&properties)));
                if unit.contains("refused") {
                    let name = "org.freedesktop.systemd1.UnitMasked";
                    bus.reply_error(&header, name, &("it is masked",)).await.expect("reply");
                    continue;
                }
                let group = group(&unit, &properties);
                fs::create_dir_all(&group).expect("make the group");
                let pids: Vec<u32> = value(&properties, "PIDs");
                fs::write(group.join("cgroup.procs"), pids[0].to_string()).expect("move");
                units.push((unit.clone(), group));
                let result = if unit.contains("fails") { "failed" } else { "done" };
                // The signal may well be there before the answer.
                let signal = (7u32, &job, unit.as_str(), result);
                removed(bus, &header, &signal).await;
                bus.reply(&header, &(&job,)).await.expect("reply");
            }
            "SetUnitProperties" => {
                let (unit, runtime, properties): (String, bool, Properties) =
                    body.deserialize().expect("arguments");
                say(format!("set {unit} {runtime} {}", told(&properties)));
                bus.reply(&header, &()).await.expect("reply");
            }
            "StopUnit" => {
                let (unit, _mode): (String, String) = body.deserialize().expect("arguments");
                say(format!("stop {unit}"));
                let Some(at) = units.iter().position(|(name, _)| *name == unit) else {
                    let name = "org.freedesktop.systemd1.NoSuchUnit";
                    bus.reply_error(&header, name, &("not loaded",)).await.expect("reply");
                    continue;
                };
                let (_, group) = units.remove(at);
                let _ = fs::remove_dir(group); // systemd, too, finds it gone
                bus.reply(&header, &(&job,)).await.expect("reply");
                let signal = (7u32, &job, unit.as_str(), "done");
                removed(bus, &header, &signal).await;
            }
            "ResetFailedUnit" => bus.reply(&header, &()).await.expect("reply"),
            _ => {}
        }
    }
}

async fn removed(
    bus: &Connection,
    call: &zbus::message::Header<'_>,
    body: &(u32, &zbus::ObjectPath<'_>, &str, &str),
) {
    let to = call.sender().expect("sender").to_owned();
    let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    bus.emit_signal(Some(to), path, interface, "JobRemoved", body).await.expect("signal");
}

fn value<T: TryFrom<OwnedVariant>>(properties: &Properties, name: &str) -> T {
    let found = properties.iter().find(|(n, _)| n == name);
    let (_, value) = found.unwrap_or_else(|| panic!("no {name}"));
    T::try_from(value.try_clone().expect("clone")).unwrap_or_else(|_| panic!("{name}: {value:?}"))
}

fn told(properties: &Properties) -> String {
    properties.iter().map(|(name, value)| format!("{name}={value:?};")).collect()
}

/// As systemd nests slices, in the hierarchy that it keeps for itself.
fn group(unit: &str, properties: &Properties) -> PathBuf {
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let slice: String = value(properties, "Slice");
    let parts: Vec<&str> = slice.trim_end_matches(".slice").split('-').collect();
    let mut path = String::new();
    for n in 1..=parts.len() {
        path += &format!("/{}.slice", parts[..n].join("-"));
    }
    let path = format!("{path}/{unit}");
    node.dir("name=systemd", &path).or_else(|| node.unified_dir(&path)).expect("a hierarchy")
}

fn gone(path: &Path) {
    for _ in 0..500 {
        if !path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} is left", path.display());
}

#[test]
fn a_container_is_a_scope_made_by_one_call_with_its_limits_and_ends_with_it() {
    let Some(b) = Bundle::new("scope", "exec sleep 1000") else { return };
    let double = Double::start();
    let slice = format!("lapstraketest-a{}.slice", std::process::id());
    b.change(|c| {
        c["linux"]["cgroupsPath"] = format!("{slice}:oci:{}", b.id).into();
        c["linux"]["resources"]["pids"] = json!({ "limit": 44 });
        c["linux"]["resources"]["cpu"] = json!({ "quota": 50_000, "period": 100_000 });
    });
    let out = double.oci(&b, &["run", "-d", &b.id]);
    assert!(out.status.success(), "{}", text(&out.stdout));
    let scope = format!("oci-{}.scope", b.id);
    let path = format!("/lapstraketest.slice/{slice}/{scope}");
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let pid = b.pid();
    assert_eq!(node.pids(&path).expect("pids"), [pid], "the holder is gone, the container is in");
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    assert!(groups.lines().all(|l| l.ends_with(&path)), "in every hierarchy: {groups}");
    let calls = double.calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert!(calls[0].starts_with(&format!("start {scope} replace ")), "{calls:?}");
    for want in ["Delegate", "TasksMax", "44", "CPUQuotaPerSecUSec", "500000", &slice] {
        assert!(calls[0].contains(want), "{want}: {calls:?}");
    }

    assert!(double.oci(&b, &["update", "--pids-limit", "55", &b.id]).status.success());
    assert!(
        double.calls()[1].starts_with(&format!("set {scope} true TasksMax=")),
        "{:?}",
        double.calls()
    );
    assert!(double.oci(&b, &["delete", "-f", &b.id]).status.success());
    assert_eq!(double.calls()[2], format!("stop {scope}"));
    for dir in node.dirs(&path) {
        gone(&dir);
    }
    node.prune(&format!("/lapstraketest.slice/{slice}"));
}

#[test]
fn systemds_refusal_is_told_in_its_words_and_leaves_nothing() {
    let Some(b) = Bundle::new("scope-no", "true") else { return };
    let double = Double::start();
    let slice = format!("lapstraketest-b{}.slice", std::process::id());
    for (prefix, want) in [("refused", "it is masked"), ("fails", "\"failed\"")] {
        b.change(|c| c["linux"]["cgroupsPath"] = format!("{slice}:{prefix}:{}", b.id).into());
        let out = double.oci(&b, &["run", &b.id]);
        assert_eq!(out.status.code(), Some(1));
        let said = text(&out.stdout);
        assert!(said.contains("make the scope") && said.contains(want), "{said}");
        assert!(!b.dir.path().join("root").join(&b.id).exists());
    }
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    node.prune(&format!("/lapstraketest.slice/{slice}"));
    assert!(!node.exists(&format!("/lapstraketest.slice/{slice}")));
}

#[test]
fn a_unit_without_the_flag_and_a_path_with_it_are_refused() {
    let Some(b) = Bundle::new("scope-form", "true") else { return };
    b.change(|c| c["linux"]["cgroupsPath"] = "a.slice:b:c".into());
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("--systemd-cgroup is needed"), "{out:?}");
    b.change(|c| c["linux"]["cgroupsPath"] = "/a/b".into());
    let out = b.oci(&["--systemd-cgroup", "run", &b.id]);
    assert!(text(&out.stderr).contains("slice:prefix:name"), "{out:?}");
}
