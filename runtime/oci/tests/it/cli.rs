//! The command line as an engine uses it: real bundles of busybox, as root.

use std::fs;
use std::path::PathBuf;

use crate::bundle::{Bundle, receive_fd, text};

#[test]
fn run_passes_output_and_exit_code_on_and_leaves_nothing() {
    let Some(b) = Bundle::new("run", "echo hello; hostname; exit 3") else { return };
    let out = b.oci(&["run", &b.id]);
    assert_eq!(
        (out.status.code(), text(&out.stdout)),
        (Some(3), "hello\nlapstrake\n".to_owned()),
        "{}",
        text(&out.stderr)
    );
    assert!(!b.oci(&["state", &b.id]).status.success(), "no record is left");
    assert_eq!(b.groups(), Vec::<PathBuf>::new());
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert!(!mounts.contains(b.dir.path().to_str().expect("utf8")), "{mounts}");
}

#[test]
fn create_waits_and_start_lets_go() {
    let Some(b) = Bundle::new("create", "echo started; sleep 1000") else { return };
    let pid_file = b.dir.path().join("pid");
    let (ok, out) =
        b.oci_to_file(&["create", "--pid-file", pid_file.to_str().expect("utf8"), &b.id]);
    assert!(ok, "{}", fs::read_to_string(&out).expect("out"));
    assert_eq!(b.status(), "created");
    assert_eq!(fs::read_to_string(&out).expect("out"), "");
    let pid: i32 = fs::read_to_string(&pid_file).expect("pid file").parse().expect("pid");
    assert!(b.oci_to_file(&["start", &b.id]).0);
    assert_eq!(b.status(), "running");
    assert!(!b.oci(&["start", &b.id]).status.success(), "a second start is refused");
    assert!(!b.oci(&["delete", &b.id]).status.success(), "a running container is not deleted");
    assert_eq!(text(&b.oci(&["list", "-q"]).stdout), format!("{}\n", b.id));
    assert_eq!(
        text(&b.oci(&["ps", "-f", "json", &b.id]).stdout).matches(&pid.to_string()).count(),
        1
    );
    assert!(b.oci(&["pause", &b.id]).status.success());
    assert_eq!(b.status(), "paused");
    assert!(b.oci(&["resume", &b.id]).status.success());
    assert!(b.oci(&["kill", &b.id, "KILL"]).status.success());
    b.ends();
    assert!(b.oci(&["delete", &b.id]).status.success());
    assert_eq!(b.groups(), Vec::<PathBuf>::new());
}

#[test]
fn exec_can_be_put_into_a_group_below_the_containers() {
    let Some(b) = Bundle::new("exec-below", "exec sleep 1000") else { return };
    let (made, _) = b.oci_to_file(&["run", "-d", &b.id]);
    assert!(made);
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let own = format!("/{}", b.id);
    let below = format!("{own}/below");
    match node.is_v2() {
        // Without controllers, which the group of the container cannot hand on while processes are in it.
        true => fs::create_dir(node.unified_dir(&below).expect("v2")).expect("make the group"),
        false => node.create(&below).expect("make the group"),
    }
    let group = |args: &[&str]| {
        let out = b.oci(&[&["exec"], args, &[&b.id, "cat", "/proc/self/cgroup"]].concat());
        (out.status.success(), text(&out.stdout), text(&out.stderr))
    };
    let (ran, groups, error) = group(&["--cgroup", "/below"]);
    assert!(ran && groups.lines().all(|line| line.ends_with("/below")), "{groups} {error}");
    let (ran, _, error) = group(&["--cgroup", "/absent"]);
    assert!(!ran && error.contains("absent"), "{error}");
    let (ran, _, error) = group(&["--cgroup", "../other"]);
    assert!(!ran && error.contains(".."), "{error}");
    if !node.is_v2() {
        let (ran, groups, error) = group(&["--cgroup", "pids:below"]);
        let below = groups.lines().filter(|line| line.ends_with("/below")).count();
        assert!(ran && below == 1, "{groups} {error}");
    }
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
    assert!(!node.exists(&own), "{own} is left");
}

#[test]
fn exec_runs_under_the_containers_confinement() {
    let Some(b) = Bundle::new("exec", "exec sleep 1000") else { return };
    // mkdir is answered with errno 99 by the profile of the container; an exec'd process must feel it too.
    b.change(|c| {
        c["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99 }]
        });
        c["root"]["readonly"] = false.into();
    });
    let (ok, out) = b.oci_to_file(&["run", "-d", &b.id]);
    assert!(ok, "{}", fs::read_to_string(out).expect("out"));
    let out = b.oci(&[
        "exec",
        "-e",
        "A=b",
        &b.id,
        "sh",
        "-c",
        "cat /proc/1/cmdline; echo $A; grep Seccomp: /proc/self/status",
    ]);
    assert!(text(&out.stdout).starts_with("sleep\u{0}1000\u{0}b\nSeccomp:\t2"), "{out:?}");
    let out = b.oci(&["exec", &b.id, "mkdir", "/x"]);
    assert!(text(&out.stderr).contains("Cannot assign requested address"), "{out:?}");
    assert_eq!(
        b.oci(&["exec", "-u", "5:6", &b.id, "sh", "-c", "id -u; exit 4"]).status.code(),
        Some(4)
    );
    let missing = b.oci(&["exec", &b.id, "nope"]);
    assert!(text(&missing.stderr).contains("executable file not found in $PATH"), "{missing:?}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn limits_are_updated_and_told() {
    let Some(b) = Bundle::new("update", "sleep 1000") else { return };
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    assert!(
        b.oci(&["update", "--pids-limit", "33", "--memory", "67108864", &b.id]).status.success()
    );
    let out = b.oci(&["events", "--stats", &b.id]);
    let stats: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    assert_eq!(stats["data"]["pids"]["limit"], 33);
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 67_108_864);
    assert!(b.oci(&["delete", "--force", &b.id]).status.success());
    assert!(
        b.oci(&["delete", "--force", &b.id]).status.success(),
        "force does not mind a missing container"
    );
}

#[test]
fn a_failed_creation_says_why_and_leaves_nothing() {
    let Some(b) = Bundle::new("fails", "true") else { return };
    b.change(|c| {
        let mounts = c["mounts"].as_array_mut().expect("mounts");
        mounts.push(
            serde_json::json!({ "destination": "/d", "source": "/no/such", "options": ["bind"] }),
        );
    });
    let log = b.dir.path().join("log.json");
    let out = b.oci(&["--log", log.to_str().expect("utf8"), "--log-format", "json", "run", &b.id]);
    assert_eq!(out.status.code(), Some(1));
    let want = "mount /d: open /no/such: No such file or directory";
    assert!(text(&out.stderr).contains(want), "{out:?}");
    let line: serde_json::Value =
        serde_json::from_slice(&fs::read(log).expect("log")).expect("JSON");
    assert_eq!((line["level"].as_str(), line["msg"].as_str()), (Some("error"), Some(want)));
    assert!(!b.dir.path().join("root").join(&b.id).exists());
    assert_eq!(b.groups(), Vec::<PathBuf>::new());
}

#[test]
fn a_terminal_goes_through_the_console_socket() {
    let Some(b) = Bundle::new("console", "tty; exit 0") else { return };
    b.change(|c| c["process"]["terminal"] = true.into());
    let path = b.dir.path().join("console.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let (ok, out) =
        b.oci_to_file(&["create", "--console-socket", path.to_str().expect("utf8"), &b.id]);
    assert!(ok, "{}", fs::read_to_string(out).expect("out"));
    let (stream, _) = listener.accept().expect("accept");
    let master = receive_fd(&stream);
    assert!(b.oci(&["start", &b.id]).status.success());
    let mut got = Vec::new();
    let mut buffer = [0u8; 256];
    while let Ok(n) = rustix::io::read(&master, &mut buffer) {
        if n == 0 {
            break;
        }
        got.extend_from_slice(&buffer[..n]);
    }
    assert_eq!(text(&got), "/dev/pts/0\r\n");
    b.ends();
    assert!(b.oci(&["delete", &b.id]).status.success());
}

#[test]
fn hooks_run_in_their_order_each_in_its_place() {
    let Some(b) = Bundle::new("hooks", "cat /made-by-hook; grep Cap /proc/self/status") else {
        return;
    };
    let told = b.dir.path().join("told");
    let tell = |name: &str| {
        let script =
            format!("echo {name} $(cat /proc/sys/kernel/hostname) $(cat) >> {}", told.display());
        serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    // In the container: its files, its confinement.
    let inside =
        "echo inside $(cat) > /made-by-hook; grep CapEff /proc/self/status >> /made-by-hook";
    b.change(|c| {
        c["root"]["readonly"] = false.into();
        c["hooks"] = serde_json::json!({
            "prestart": tell("prestart"),
            "createRuntime": tell("createRuntime"),
            "createContainer": tell("createContainer"),
            "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", inside],
                "env": ["PATH=/bin"] }],
            "poststart": tell("poststart"),
            "poststop": tell("poststop"),
        });
    });
    let out = b.oci(&["run", &b.id]);
    assert!(out.status.success(), "{out:?}");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname");
    let host = host.trim();
    let text_told = fs::read_to_string(&told).expect("told");
    let lines: Vec<(String, serde_json::Value)> = text_told
        .lines()
        .map(|l| {
            let (who, state) = l.split_at(l.find('{').expect("a state"));
            (who.trim().to_owned(), serde_json::from_str(state).expect("JSON"))
        })
        .collect();
    let who: Vec<&str> = lines.iter().map(|(w, _)| w.as_str()).collect();
    let want =
        ["prestart", "createRuntime", "createContainer", "poststart", "poststop"].map(|name| {
            format!("{name} {}", if name == "createContainer" { "lapstrake" } else { host })
        });
    assert_eq!(who, want);
    let statuses: Vec<&str> = lines.iter().filter_map(|(_, s)| s["status"].as_str()).collect();
    assert_eq!(statuses, ["creating", "creating", "creating", "running", "stopped"]);
    assert!(lines[0].1["pid"].as_i64().expect("pid") > 1);
    assert_eq!(lines[4].1["pid"], serde_json::Value::Null);
    assert!(lines.iter().all(|(_, s)| s["id"] == b.id.as_str()), "{lines:?}");
    let printed = text(&out.stdout);
    assert!(printed.contains("inside {") && printed.contains(r#""status":"created""#), "{printed}");
    let effective: Vec<&str> = printed.lines().filter(|l| l.starts_with("CapEff")).collect();
    assert_eq!(effective.len(), 2, "{printed}");
    assert_eq!(effective[0], effective[1], "the hook has no more than the program");
    assert_eq!(b.groups(), Vec::<PathBuf>::new());
}

#[test]
fn a_hook_that_fails_fails_what_it_belongs_to_and_leaves_nothing() {
    let Some(b) = Bundle::new("hook-fails", "exec sleep 1000") else { return };
    let fails =
        serde_json::json!([{ "path": "/bin/sh", "args": ["sh", "-c", "echo why >&2; exit 3"] }]);
    for name in ["createRuntime", "createContainer", "startContainer", "poststart"] {
        b.change(|c| c["hooks"] = serde_json::json!({ name: fails }));
        let (ok, out) = b.oci_to_file(&["run", "-d", &b.id]);
        let said = fs::read_to_string(&out).expect("out");
        fs::remove_file(&out).expect("remove");
        assert!(!ok, "{name}: {said}");
        let want = format!("error running {name} hook #0: /bin/sh: exit status: 3: why");
        assert!(said.contains(&want), "{name}: {said}");
        assert!(b.oci(&["delete", "--force", &b.id]).status.success());
        assert_eq!(b.groups(), Vec::<PathBuf>::new(), "{name}");
    }
}
