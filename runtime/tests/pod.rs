//! The kernel ring: real shims, namespaces, groups and processes, driven through the daemon's side of the runtime.
//! Needs root and a statically linked busybox; says so loudly when it has not got them.

mod creators;
mod handler;
mod life;
mod logs;
mod node;
mod sessions;
mod versions;

use std::time::{Duration, Instant};

use node::{Node, Payload};
use runtime::{ErrorKind, Event, Phase};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_and_exits_with_its_code() {
    let Some(node) = Node::start("runs").await else { return };
    let mut events = node.shim.events();
    let c = node.create("c1", Payload::sh("echo out; echo err >&2; exit 7")).await.expect("create");
    c.start().await.expect("start");
    let exit = c.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (7, false));
    let log = c.log();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    assert!(matches!(events.recv().await, Ok(Event::Exited { id, .. }) if id == c.id));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_container_sees_itself_and_nothing_else() {
    let Some(node) = Node::start("sees").await else { return };
    let script = "echo pid=$$; hostname; cat /proc/self/oom_score_adj; ls /; mount | wc -l; \
        for n in null zero full random urandom tty; do test -c /dev/$n || echo missing $n; done; \
        readlink /dev/ptmx; ls /proc/self/fd | tr '\\n' ' '; echo; \
        touch /ok && echo writable; echo x > /proc/sys/kernel/panic || echo sys-ro; \
        cat /proc/kcore | wc -c; ls /sys/firmware | wc -l; grep Cap /proc/self/status; umask; \
        cat /proc/self/cgroup | head -3; ls /sys/fs/cgroup; df -h /dev/shm | tail -1";
    let c = node.create("c1", Payload::sh(script)).await.expect("create");
    c.start().await.expect("start");
    assert_eq!(c.exit().await.code, 0, "{}", c.log());
    let log = c.text();
    for want in [
        "pid=1\n",
        "the-pod\n",
        "writable\n",
        "sys-ro\n",
        "pts/ptmx\n",
        "CapBnd:\t00000000a80425fb",
        "0 1 2 3 \n",
    ] {
        assert!(log.contains(want), "{want:?} is not in:\n{log}");
    }
    assert!(!log.contains("missing"), "{log}");
    assert!(log.contains("lapstrake") || log.contains("shm"), "{log}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_shim_ignores_or_has_open_its_containers_do_not() {
    let Some(node) = Node::start("ignored").await else { return };
    for fd in 0..3 {
        let is = std::fs::read_link(format!("/proc/{}/fd/{fd}", node.shim.pid())).expect("open");
        assert_eq!(is.as_path(), "/dev/null", "{fd} of the shim, of which containers get a copy");
    }
    let c = node.create("c1", Payload::sh("exec cat /proc/self/status")).await.expect("create");
    c.start().await.expect("start");
    assert_eq!(c.exit().await.code, 0);
    let status = c.text();
    for of in ["Ign", "Blk"] {
        assert!(status.contains(&format!("Sig{of}:\t0000000000000000\n")), "{status}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn below_its_root_there_is_nothing() {
    let Some(node) = Node::start("below").await else { return };
    let script = "mkdir -p /jail/bin /jail/proc /mine /nested
        busybox unshare -Urmpf busybox mount -t proc proc /mine && echo a proc without masks
        cp /bin/busybox /jail/bin; mount -t proc proc /jail/proc
        chroot /jail /bin/busybox ls /proc/1/root/.. | grep jail
        busybox unshare -m busybox sh -c 'mount -t tmpfs none /nested && mkdir /nested/old && cd /nested &&
            /bin/busybox pivot_root . old && /old/bin/busybox ls / | /old/bin/busybox grep old'";
    let mut payload = Payload::sh(script);
    payload.caps = r#"["CAP_SYS_ADMIN","CAP_SYS_CHROOT","CAP_SETFCAP"]"#.into();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    c.exit().await;
    let log = c.text();
    assert!(log.contains("jail\n"), "up from the root is the root:\n{log}");
    assert!(log.contains("permission denied") && !log.contains("a proc without masks"), "{log}");
    assert!(log.ends_with("old\n"), "another runtime in it can pivot:\n{log}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_the_directories_that_none_of_them_can_change() {
    let Some(node) = Node::start("templates").await else { return };
    let script = "cat /proc/self/mountinfo; ls -A /sys/firmware | wc -l | sed s/^/firmware=/
        touch /sys/firmware/x; touch /sys/fs/cgroup/x; ls -l /sys/fs/cgroup";
    let mut shown = Vec::new();
    for (name, caps) in [("c1", None), ("c2", None), ("c3", Some(r#"["CAP_SYS_ADMIN"]"#))] {
        let mut payload = Payload::sh(script);
        payload.caps = caps.map_or(payload.caps, str::to_owned);
        let c = node.create(name, payload).await.expect("create");
        c.start().await.expect("start");
        c.exit().await;
        let text = c.text();
        assert!(text.contains("firmware=0\n"), "{text}");
        assert_eq!(text.matches("x: Read-only file system").count(), 2, "{text}");
        for h in &node.hierarchies().v1 {
            assert!(text.contains(&format!(" {}\n", h.label())), "{h:?}\n{text}");
        }
        let device = |at: &str| {
            let line = text.lines().find(|l| l.split(' ').nth(4) == Some(at)).expect("mounted");
            line.split(' ').nth(2).expect("device").to_owned()
        };
        shown.push([device("/sys/firmware"), device("/sys/fs/cgroup")]);
    }
    let [one, other, powerful] = shown.as_slice() else { panic!("three") };
    assert_eq!(one, other);
    assert_ne!(one[0], powerful[0], "who could write to it has its own");
    if !node.hierarchies().v1.is_empty() {
        assert_eq!(one[0], one[1]);
        assert_ne!(one[1], powerful[1]);
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_command_is_a_start_error_that_names_it() {
    let Some(node) = Node::start("missing").await else { return };
    let c = node.create("c1", Payload::args(&["no-such-command"])).await.expect("create");
    prepared(&node, "c1").await; // it knows by now, and says nothing before it is asked
    let error = c.start().await.expect_err("cannot start");
    assert_eq!((error.kind, error.stage.as_str()), (ErrorKind::Failed, "exec"));
    assert!(
        error.message.contains(r#""no-such-command": executable file not found in $PATH"#),
        "{error}"
    );
    let exit = c.exit().await;
    assert_eq!(exit.code, 128);
    assert!(exit.start_error.expect("why").contains("no-such-command"));
    node.end().await;
}

/// What can be done before the start is done without waiting for it.
async fn prepared(node: &Node, short: &str) {
    let pids = node.hierarchies().pids(&node.group(short)).expect("pids");
    let [pid] = pids.as_slice() else { panic!("one process: {pids:?}") };
    for _ in 0..500 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        if status.contains("NoNewPrivs:\t1\n") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{short} waits for its start first");
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_of_the_creation_run_and_those_the_shim_does_not_run_are_refused_by_name() {
    let Some(node) = Node::start("hooks").await else { return };
    let told = node.scratch("hook").join("told");
    let script = format!("cat > {}; echo from-hook > rootfs/hooked", told.display());
    let bundle = node.pod_dir().join("containers/hooks-c1");
    let mut payload = Payload::sh("cat /hooked");
    payload.hooks = serde_json::json!({
        "createContainer": [{ "path": "/bin/sh",
            "args": ["sh", "-c", format!("cd {}; {script}", bundle.display())] }],
        "createRuntime": [{ "path": "/bin/true", "timeout": 5 }],
    })
    .to_string();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    assert_eq!((c.exit().await.code, c.text()), (0, "from-hook\n".to_owned()));
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(told).expect("told")).expect("JSON");
    assert_eq!(state["bundle"], bundle.to_string_lossy().as_ref());
    for (name, stage) in [
        ("createRuntime", "error running createRuntime hook #0"),
        ("poststart", "hooks.poststart"),
        ("poststop", "hooks.poststop"),
    ] {
        let mut payload = Payload::sh("true");
        payload.hooks = serde_json::json!({ name: [{ "path": "/bin/false" }] }).to_string();
        let error = node.create("c2", payload).await.expect_err(name);
        assert_eq!(error.stage, stage, "{error}");
        assert!(!node.hierarchies().exists(&node.group("c2")), "{name}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_mount_source_fails_the_creation_with_its_path_and_leaves_nothing() {
    let Some(node) = Node::start("source").await else { return };
    let mut payload = Payload::sh("true");
    payload
        .mounts
        .push(r#"{"destination":"/data","source":"/no/such/dir","options":["rbind"]}"#.to_owned());
    let error = node.create("c1", payload).await.expect_err("no source");
    assert_eq!(error.stage, "mount /data");
    assert_eq!(error.message, "open /no/such/dir: No such file or directory");
    assert_eq!(node.shim.inventory().await.expect("inventory").containers, []);
    assert!(!node.hierarchies().exists(&node.group("c1")));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_reach_init_and_a_killed_container_is_137() {
    let Some(node) = Node::start("signals").await else { return };
    let term = node
        .create("c1", Payload::sh("trap 'exit 3' TERM; while :; do sleep 0.01; done"))
        .await
        .expect("create");
    term.start().await.expect("start");
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.shim.signal(&term.id, 15).await.expect("signal");
    assert_eq!(term.exit().await.code, 3);
    let kill = node.create("c2", Payload::sh("sleep 1000 & sleep 1000")).await.expect("create");
    kill.start().await.expect("start");
    node.shim.kill(&kill.id).await.expect("kill");
    let exit = kill.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (137, false));
    assert_eq!(
        node.shim.signal(&kill.id, 15).await.expect_err("exited").kind,
        ErrorKind::AlreadyExited
    );
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_out_of_memory_kill_is_told_from_a_plain_one() {
    let Some(node) = Node::start("oom").await else { return };
    let mut payload = Payload::sh("exec dd if=/dev/zero of=/dev/null bs=64M count=1");
    payload.resources = r#"{"memory":{"limit":16777216,"swap":16777216}}"#.to_owned();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    let exit = c.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    assert_eq!(exit.oom_scope, runtime::OomScope::Container);

    // The limit of the pod, which its container has none of its own to stay below.
    let group = node.group("c2");
    let (pod, _) = group.rsplit_once('/').expect("a parent");
    let limit = match node.hierarchies().dir("memory", pod) {
        Some(dir) => dir.join("memory.limit_in_bytes"),
        None => node.hierarchies().unified_dir(pod).expect("v2").join("memory.max"),
    };
    std::fs::write(limit, "16777216").expect("limit");
    let script = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let c = node.create("c2", Payload::sh(script)).await.expect("create");
    c.start().await.expect("start");
    let exit = c.exit().await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    assert_eq!(exit.oom_scope, runtime::OomScope::Pod);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_force_and_can_be_changed() {
    let Some(node) = Node::start("limits").await else { return };
    let mut payload = Payload::sh("sleep 1000");
    payload.resources =
        r#"{"memory":{"limit":33554432},"pids":{"limit":7},"cpu":{"shares":102}}"#.to_owned();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    let stats = node.hierarchies().stats(&node.group("c1"));
    assert_eq!((stats.memory_limit, stats.pids_limit), (Some(33_554_432), Some(7)));
    node.shim.update_container(&c.id, br#"{"pids":{"limit":9}}"#).await.expect("update");
    assert_eq!(node.hierarchies().stats(&node.group("c1")).pids_limit, Some(9));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_runs_inside_and_returns_code_and_output() {
    let Some(node) = Node::start("exec").await else { return };
    let c = node.create("c1", Payload::sh("touch /mark; exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    while c.exec("cat /proc/1/cmdline", None).await.expect("exec").stdout != b"sleep\x001000\0" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let out = c
        .exec(
            "echo $$ > /dev/stderr; ls /mark; cat /proc/1/cmdline | tr '\\0' ' '; \
        ls /proc/self/fd | tr '\\n' ' '; exit 5",
            None,
        )
        .await
        .expect("exec");
    assert_eq!(out.exit_code, 5);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "/mark\nsleep 1000 0 1 2 3 ");
    let big = c.exec("dd if=/dev/zero bs=1M count=3 2>/dev/null", None).await.expect("exec");
    assert_eq!(big.stdout.len(), 3 << 20);
    let missing = c.exec_args(&["/no/such"], None).await.expect_err("missing");
    assert_eq!(missing.stage, "exec");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_that_leaves_a_child_behind_returns_at_once() {
    let Some(node) = Node::start("leaves").await else { return };
    let c = node.create("c1", Payload::sh("sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let begun = Instant::now();
    let out =
        c.exec("sleep 300 & echo done; exit 0", Some(Duration::from_secs(10))).await.expect("exec");
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    assert_eq!(out.stdout, b"done\n");
    let ps = c.exec("ps | grep -c 'sleep [3]00'", None).await.expect("exec");
    assert_eq!(ps.stdout, b"1\n", "the child lives on");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exec_past_its_deadline_dies_with_its_children() {
    let Some(node) = Node::start("deadline").await else { return };
    let c = node.create("c1", Payload::sh("sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let begun = Instant::now();
    let error = c
        .exec("sleep 301 & sleep 302", Some(Duration::from_millis(300)))
        .await
        .expect_err("too long");
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(begun.elapsed() < Duration::from_millis(1300), "{:?}", begun.elapsed());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let ps = c.exec("ps | grep -c 'sleep 30[12]'", None).await.expect("exec");
    assert_eq!(ps.stdout, b"0\n");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_child_with_the_pipe_open_does_not_delay_the_exit() {
    // In the pod's pid namespace the child survives init for a moment only: the group is killed.
    let Some(node) = Node::start("holds").await else { return };
    let mut payload = Payload::sh("sleep 1000 & echo bye");
    payload.pod_pids = true;
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    let begun = Instant::now();
    assert_eq!(c.exit().await.code, 0);
    assert!(begun.elapsed() < Duration::from_millis(800), "{:?}", begun.elapsed());
    assert!(c.log().contains("bye"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_daemon_finds_everything_as_it_was() {
    let Some(node) = Node::start("daemon").await else { return };
    let runs = node.create("c1", Payload::sh("sleep 1000")).await.expect("create");
    runs.start().await.expect("start");
    let ends =
        node.create("c2", Payload::sh("sleep 0.2; echo late; exit 9")).await.expect("create");
    ends.start().await.expect("start");
    let before = node.shim.inventory().await.expect("inventory");
    let pid = node.shim.pid();
    let node = node.lose_connection().await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let node = node.reconnect().await;
    assert_eq!(node.shim.pid(), pid);
    let after = node.shim.inventory().await.expect("inventory");
    assert_eq!(after.sandbox, before.sandbox);
    assert_eq!(after.containers[0], before.containers[0]);
    assert!(matches!(&after.containers[1].phase, Phase::Exited(e) if e.code == 9), "{after:?}");
    assert!(node.log("c2").contains("late"));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_doubled_when_the_log_is_rotated() {
    let Some(node) = Node::start("rotate").await else { return };
    let c = node
        .create("c1", Payload::sh("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"))
        .await
        .expect("create");
    c.start().await.expect("start");
    let mut rotated = String::new();
    for n in 0..8 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let old = node.log_path("c1").with_extension(format!("{n}"));
        std::fs::rename(node.log_path("c1"), &old).expect("rename");
        if node.shim.reopen_log(&c.id).await.is_err() {
            std::fs::rename(&old, node.log_path("c1")).expect("rename back");
            break;
        }
        rotated += &std::fs::read_to_string(&old).expect("read");
    }
    c.exit().await;
    let all = rotated + &c.log();
    let numbers: Vec<u32> = all
        .lines()
        .map(|l| l.rsplit(' ').next().expect("field").parse().expect("number"))
        .collect();
    assert_eq!(numbers, (0..20_000).collect::<Vec<_>>());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_a_terminal() {
    let Some(node) = Node::start("tty").await else { return };
    let mut payload =
        Payload::sh("tty; test -t 0 && test -t 2 && echo yes; stat -c %t /dev/console");
    payload.tty = true;
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    assert_eq!(c.exit().await.code, 0, "{}", c.log());
    let log = c.text();
    assert!(log.contains("/dev/pts/0\r") && log.contains("yes\r") && log.contains("88\r"), "{log}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_non_root_user_has_no_capabilities_and_may_reopen_its_stdio() {
    let Some(node) = Node::start("user").await else { return };
    let mut payload = Payload::sh(
        "id -u; id -G; grep -E 'Cap(Eff|Prm)' /proc/self/status; echo again > /dev/stderr; pwd",
    );
    payload.user = r#"{"uid":1000,"gid":2000,"additionalGids":[3000],"umask":63}"#.to_owned();
    payload.cwd = "/made/by/runtime".to_owned();
    payload.caps = "[]".to_owned();
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    assert_eq!(c.exit().await.code, 0, "{}", c.log());
    let log = c.text();
    for want in
        ["1000\n", "2000 3000\n", "CapEff:\t0000000000000000", "again\n", "/made/by/runtime\n"]
    {
        assert!(log.contains(want), "{want:?} is not in:\n{log}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_share_memory_and_host_directories_obey_their_options() {
    let Some(node) = Node::start("mounts").await else { return };
    let host = node.scratch("volume");
    std::fs::write(host.join("file"), "hello\n").expect("write");
    let shm = node.pod_dir().join("shm");
    let mut writer =
        Payload::sh("echo shared > /dev/shm/x; cat /data/file; echo no > /data/new; sleep 1000");
    writer.mounts.push(format!(
        r#"{{"destination":"/dev/shm","source":"{}","options":["rbind"]}}"#,
        shm.display()
    ));
    writer.mounts.push(format!(
        r#"{{"destination":"/data","source":"{}","options":["rbind","ro"]}}"#,
        host.display()
    ));
    let mut reader = Payload::sh("cat /dev/shm/x; echo into > /vol/new; echo f > /etc/one-file");
    reader.mounts.push(format!(
        r#"{{"destination":"/dev/shm","source":"{}","options":["rbind"]}}"#,
        shm.display()
    ));
    reader.mounts.push(format!(
        r#"{{"destination":"/vol","source":"{}","options":["rbind"]}}"#,
        host.display()
    ));
    reader.mounts.push(format!(
        r#"{{"destination":"/etc/one-file","source":"{}","options":["bind"]}}"#,
        host.join("file").display()
    ));
    let w = node.create("c1", writer).await.expect("create");
    w.start().await.expect("start");
    tokio::time::sleep(Duration::from_millis(200)).await;
    let r = node.create("c2", reader).await.expect("create");
    r.start().await.expect("start");
    assert_eq!(r.exit().await.code, 0, "{}", r.log());
    assert!(r.log().contains("shared"), "{}", r.log());
    assert!(w.log().contains("hello") && w.log().contains("Read-only file system"), "{}", w.log());
    assert_eq!(std::fs::read_to_string(host.join("new")).expect("read"), "into\n");
    assert_eq!(std::fs::read_to_string(host.join("file")).expect("read"), "f\n");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_working_directory_through_a_descriptor_is_refused() {
    let Some(node) = Node::start("cwd").await else { return };
    for fd in [3, 5, 7, 9] {
        let mut payload = Payload::sh("pwd; ls");
        payload.cwd = format!("/proc/self/fd/{fd}");
        let id = format!("c{fd}");
        let error = match node.create(&id, payload).await {
            Err(error) => error,
            Ok(c) => c.start().await.expect_err("an escape"),
        };
        assert_eq!(error.stage, "working directory", "{error}");
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_built_in_pause_holds_the_pod_and_dies_with_it() {
    let Some(node) = Node::start("pause").await else { return };
    let pause = node.sandbox.pause_pid;
    // Its exec has succeeded, but the kernel may still be about to note the arguments.
    let cmdline = || std::fs::read(format!("/proc/{pause}/cmdline")).expect("alive");
    while cmdline().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(cmdline(), b"/pause\0");
    let exe = std::fs::read_link(format!("/proc/{pause}/exe")).expect("exe");
    assert!(exe.to_string_lossy().starts_with("/memfd:"), "{exe:?}");
    assert!(std::fs::write(format!("/proc/{pause}/exe"), "x").is_err(), "the image is sealed");
    node.shim.stop_sandbox().await.expect("stop");
    node.shim.stop_sandbox().await.expect("stop again");
    let inventory = node.shim.inventory().await.expect("inventory");
    assert!(matches!(inventory.sandbox.expect("kept").phase, Phase::Exited(_)));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_is_noticed_and_what_it_left_is_swept() {
    let Some(node) = Node::start("sweep").await else { return };
    let c =
        node.create("c1", Payload::sh("sleep 1000 & echo; exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let mut events = node.shim.events();
    let shim = rustix::process::Pid::from_raw(node.shim.pid()).expect("pid");
    while c.log().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await; // both processes are there when it has spoken
    }
    let workload = node.hierarchies().pids(&node.group("c1")).expect("pids");
    assert_eq!(workload.len(), 2);
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).expect("kill");
    assert_eq!(events.recv().await, Ok(Event::Lost));
    assert!(workload.iter().all(|pid| node::is_alive(*pid)), "the workload outlives its shim");
    assert_eq!(node.shim.inventory().await.expect_err("gone").kind, ErrorKind::Gone);
    let groups = [node.group("c1"), node.sandbox_group()];
    node.shims.sweep(&node.sandbox_id(), &groups).await.expect("sweep");
    node.shims.sweep(&node.sandbox_id(), &groups).await.expect("sweep again");
    assert!(!workload.iter().any(|pid| node::is_alive(*pid)));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_execs_leave_the_shim_as_it_was() {
    let Some(node) = Node::start("many").await else { return };
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let measure = || {
        let of = |dir: &str| {
            std::fs::read_dir(format!("/proc/{}/{dir}", node.shim.pid())).expect("alive").count()
        };
        (of("fd"), of("task"))
    };
    c.exec("true", None).await.expect("exec");
    creators::until_there_is_none(&node).await;
    let before = measure();
    let below = node.hierarchies().dirs(&node.group("c1")).into_iter().flat_map(|dir| {
        let entries = std::fs::read_dir(dir).expect("a group of a container that runs");
        entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_dir())
    });
    let below: Vec<_> = below.collect();
    assert!(below.is_empty(), "an exec leaves no group: {below:?}");
    for _ in 0..25 {
        let all = (0..8).map(|_| c.exec("sleep 0.01 & exit 0", Some(Duration::from_secs(10))));
        for out in futures_all(all).await {
            assert_eq!(out.expect("exec").exit_code, 0);
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(measure(), before);
    let left = node.hierarchies().pids(&node.group("c1")).expect("pids");
    assert!(left.len() <= 10, "{left:?}");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_never_stops_the_writer_and_is_counted() {
    let Some(node) = Node::start("full").await else { return };
    std::os::unix::fs::symlink("/dev/full", node.log_path("c1")).expect("link");
    let c = node
        .create("c1", Payload::sh("seq 1 50000; echo done > /mark; exec sleep 1000"))
        .await
        .expect("create");
    c.start().await.expect("start");
    let mut marked = false;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        marked = c.exec("cat /mark", None).await.expect("exec").stdout == b"done\n";
        if marked {
            break;
        }
    }
    assert!(marked, "the writer is blocked");
    let inventory = node.shim.inventory().await.expect("inventory");
    assert!(inventory.containers[0].log_dropped_bytes > 200_000, "{inventory:?}");
    node.end().await;
}

/// Runs the futures at the same time on this task.
async fn futures_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pinned: Vec<_> = futures.map(|f| (Box::pin(f), None)).collect();
    std::future::poll_fn(|cx| {
        for (future, output) in pinned.iter_mut().filter(|(_, o)| o.is_none()) {
            if let std::task::Poll::Ready(value) = future.as_mut().poll(cx) {
                *output = Some(value);
            }
        }
        if pinned.iter().all(|(_, o)| o.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    pinned.into_iter().filter_map(|(_, o)| o).collect()
}
