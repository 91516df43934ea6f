//! A double of systemd for the tests of those that ask it for scopes: a real bus, and on it a service that answers the
//! manager's methods and makes the groups where systemd would.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use zbus::{Connection, MessageStream, OwnedVariant};

/// The bus and its only service, which end with the value.
#[derive(Debug)]
pub(crate) struct Double {
    daemon: Child,
    address: String,
    calls: Arc<Mutex<Vec<String>>>,
    _dir: tempfile::TempDir,
}

impl Double {
    pub(crate) fn start() -> Self {
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

    /// What `DBUS_SYSTEM_BUS_ADDRESS` is to be.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Each call in a line, oldest first.
    pub(crate) fn calls(&self) -> Vec<String> {
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
                removed(bus, &signal).await;
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
                removed(bus, &signal).await;
            }
            "ResetFailedUnit" => bus.reply(&header, &()).await.expect("reply"),
            _ => {}
        }
    }
}

async fn removed(bus: &Connection, body: &(u32, &zbus::ObjectPath<'_>, &str, &str)) {
    let (path, interface) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
    bus.emit_signal(None::<zbus::names::BusName<'_>>, path, interface, "JobRemoved", body)
        .await
        .expect("signal");
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
    let slice: String = value(properties, "Slice");
    let parts: Vec<&str> = slice.trim_end_matches(".slice").split('-').collect();
    let mut path = String::new();
    for n in 1..=parts.len() {
        path += &format!("/{}.slice", parts[..n].join("-"));
    }
    let path = format!("{path}/{unit}");
    hierarchy().join(path.trim_start_matches('/'))
}

/// The named one of old, else the unified one.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let find = |fits: &dyn Fn(&[&str]) -> bool| {
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        mounts.find(|fields| fits(fields)).map(|fields| PathBuf::from(fields[1]))
    };
    let named = find(&|fields| fields[3].split(',').any(|option| option == "name=systemd"));
    named.or_else(|| find(&|fields| fields[2] == "cgroup2")).expect("a hierarchy")
}
