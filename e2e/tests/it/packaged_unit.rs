//! `deploy/lapstrake.service` as it is shipped, under a real systemd: only in the vm ring's guest,
//! for it has the unit's own paths and no other daemon.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::pod::SOON;
use e2e::{Container, Cri, Pod, archive, container, guest, image, pod, wait};
use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState::ContainerRunning;

const UNIT: &str = "lapstrake.service";
const SOCKET: &str = "/run/lapstrake/lapstrake.sock";

#[tokio::test]
async fn the_packaged_unit_comes_and_goes_without_its_pods() {
    if !guest::inside() {
        println!("SKIPPED: the packaged unit needs a machine of its own, `make test-vm` has one");
        return;
    }
    systemctl(&["start", UNIT]);
    let cri = Cri::new(Path::new(SOCKET));
    answers_at_once().await;
    assert_eq!(property("NotifyAccess"), "main");
    let busybox = archive::docker_save(&[(&image::busybox(), image::BUSYBOX)]);
    cri.import(busybox, "").await.expect("ImportImages");
    let (pod, container) = run_pod(&cri).await;
    let process = pid(&container).await;
    let outside = |pid: &str| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(!cgroup.contains(UNIT), "{pid} is in the unit's cgroup: {cgroup}");
    };
    outside(&process);
    let shim = fs::read_to_string(format!("/run/lapstrake/pods/{}/shim.pid", pod.id)).unwrap();
    let shim = shim.trim();
    outside(shim);

    // The journal has the fields of a line, not only its text.
    let serving = wait::until("a line of the daemon in the journal", SOON, || {
        let arguments = ["-u", UNIT, "-o", "json", "--no-pager"];
        let lines = Command::new("journalctl").args(arguments).output().unwrap().stdout;
        let lines = String::from_utf8(lines).unwrap();
        let mut lines =
            lines.lines().map(|it| serde_json::from_str::<serde_json::Value>(it).unwrap());
        lines.find(|line| line["MESSAGE"] == "serving")
    });
    assert!(serving["F_SOCKET"].as_str().unwrap().contains(SOCKET), "{serving}");
    assert_eq!(serving["TARGET"], "lapstrake::app", "{serving}");

    let first = property("MainPID");
    systemctl(&["restart", UNIT]);
    assert_ne!(property("MainPID"), first);
    answers_at_once().await;
    reconnected(&cri).await;
    runs_on(&container, &process).await;

    let killed = property("MainPID");
    systemctl(&["kill", "--signal=KILL", "--kill-whom=main", UNIT]);
    wait::until("systemd starts the killed daemon again", SOON, || {
        (property("ActiveState") == "active" && property("MainPID") != killed).then_some(())
    });
    reconnected(&cri).await;
    runs_on(&container, &process).await;

    systemctl(&["stop", UNIT]);
    assert_eq!(property("Result"), "success", "SIGTERM is a clean end");
    assert!(lives(&process) && lives(shim), "the pod outlives the unit's stop");
    systemctl(&["start", UNIT]);
    reconnected(&cri).await;
    runs_on(&container, &process).await;
    let lines = container.shell("cat /proc/1/cmdline | tr '\\0' ' '").await;
    assert_eq!(lines.trim(), "sleep 1000");

    pod.remove().await;
    wait::until("pod and shim are gone", SOON, || (!lives(&process) && !lives(shim)).then_some(()));
    systemctl(&["stop", UNIT]);
    let group = "/sys/fs/cgroup/system.slice/lapstrake.service";
    assert!(!Path::new(group).exists(), "systemd could take the unit's cgroup away");
}

async fn run_pod(cri: &Cri) -> (Pod, Container) {
    let mut spec = pod("unit");
    let logs = "/var/log/pods/unit";
    fs::create_dir_all(logs).unwrap();
    spec.config.log_directory = logs.into();
    let pod = Pod::run(cri, spec).await.expect("RunPodSandbox");
    let spec = container("main", image::BUSYBOX).command(&["sleep", "1000"]);
    let container = pod.start(&spec).await;
    (pod, container)
}

/// READY=1 is what `systemctl start` waited for, so the first call must be answered.
async fn answers_at_once() {
    let mut runtime = Cri::new(Path::new(SOCKET)).runtime;
    runtime.version(cri::VersionRequest::default()).await.expect("Version");
}

/// A client that was connected to the daemon before this one notices at its next call.
async fn reconnected(cri: &Cri) {
    wait::until_async("the client connects again", SOON, || async {
        cri.runtime.clone().version(cri::VersionRequest::default()).await.ok()
    })
    .await;
}

/// Nothing happened to the container, as far as kernel and daemon know.
async fn runs_on(container: &Container, process: &str) {
    assert_eq!(container.state().await, ContainerRunning);
    assert_eq!(pid(container).await, process);
}

async fn pid(container: &Container) -> String {
    let info = container.try_response(true).await.expect("ContainerStatus").info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    info["pid"].as_i64().expect("info has a pid").to_string()
}

fn lives(process: &str) -> bool {
    Path::new("/proc").join(process).exists()
}

fn systemctl(arguments: &[&str]) {
    let done = Command::new("systemctl").args(arguments).output().unwrap();
    if !done.status.success() {
        let journal = Command::new("journalctl").args(["-u", UNIT, "--no-pager"]).output().unwrap();
        panic!(
            "systemctl {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&done.stderr),
            String::from_utf8_lossy(&journal.stdout)
        );
    }
}

fn property(name: &str) -> String {
    let shown = Command::new("systemctl").args(["show", "--value", "-p", name, UNIT]).output();
    String::from_utf8(shown.unwrap().stdout).unwrap().trim().to_owned()
}
