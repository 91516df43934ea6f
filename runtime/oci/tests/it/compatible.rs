//! What callers of other runtimes rely on, found by their own test suites.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::bundle::{Bundle, receive_fd, text};
use crate::views::Holder;

/// Puts what a node has of v1 hierarchies out of sight.
const V2_ONLY: &str = "umount -l /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup";

#[test]
fn a_filter_that_notifies_hands_its_listener_to_the_agent_and_waits_for_its_word() {
    let Some(b) = Bundle::new("notify", "mkdir /dev/shm/x; echo after") else { return };
    let agent = b.dir.path().join("agent");
    b.change(|c| {
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent, "listenerMetadata": "who",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    let listener = UnixListener::bind(&agent).expect("bind");
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let (fd, mut said) = crate::bundle::receive_fd_and_text(&stream);
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("read");
        said.push_str(&rest);
        drop(fd); // an agent that goes: the call is answered ENOSYS
        said
    });
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("Function not implemented"), "{out:?}");
    assert_eq!(text(&out.stdout), "after\n");
    let said: serde_json::Value =
        serde_json::from_str(&answer.join().expect("agent")).expect("JSON");
    assert_eq!((&said["fds"][0], &said["metadata"]), (&json!("seccompFd"), &json!("who")));
    assert_eq!(said["state"]["id"], b.id.as_str());
}

#[test]
fn a_capability_the_kernel_does_not_have_is_warned_of() {
    let Some(b) = Bundle::new("unknown-cap", "echo runs") else { return };
    b.change(|c| c["process"]["capabilities"]["bounding"] = json!(["CAP_FLY", "CAP_KILL"]));
    let out = b.oci(&["run", &b.id]);
    assert_eq!(text(&out.stdout), "runs\n");
    assert!(text(&out.stderr).contains("CAP_FLY"), "{out:?}");
}

#[test]
fn what_the_caller_ignores_its_containers_do_not() {
    let Some(b) = Bundle::new("ignored", "cat /proc/self/status; exec sleep 1000") else { return };
    let ignoring = |args: &[&str]| {
        let trap = ["-c", "trap '' HUP USR2 PIPE TERM; exec \"$@\"", "sh"];
        let inner = b.command(args);
        let mut command = std::process::Command::new("sh");
        command.args(trap).arg(inner.get_program()).args(inner.get_args());
        command.current_dir(b.dir.path());
        command
    };
    let (out, file) = b.output_file();
    let mut run = ignoring(&["run", "--detach", &b.id]);
    assert!(run.stdin(std::process::Stdio::null()).stdout(file).status().expect("run").success());
    let exec = ignoring(&["exec", &b.id, "cat", "/proc/self/status"]).output().expect("exec");
    let begun = std::time::Instant::now();
    while !fs::read_to_string(&out).expect("read").contains("SigIgn") {
        assert!(begun.elapsed().as_secs() < 10, "it says nothing");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    for status in [fs::read_to_string(&out).expect("read"), text(&exec.stdout)] {
        for of in ["Ign", "Blk"] {
            assert!(status.contains(&format!("Sig{of}:\t0000000000000000\n")), "{status}");
        }
    }
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn exec_works_before_start_and_its_own_failures_have_their_code() {
    let Some(b) = Bundle::new("exec-early", "exec sleep 1000") else { return };
    assert!(b.oci_to_file(&["create", &b.id]).0);
    assert_eq!(text(&b.oci(&["exec", &b.id, "echo", "early"]).stdout), "early\n");
    assert_eq!(b.oci(&["exec", &b.id, "no-such-program"]).status.code(), Some(255));
    assert_eq!(b.status(), "created");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn a_container_that_is_not_started_ends_by_the_signals_that_end_programs() {
    let Some(b) = Bundle::new("created-term", "true") else { return };
    for signal in ["TERM", "INT", "HUP"] {
        assert!(b.oci_to_file(&["create", &b.id]).0);
        assert!(b.oci(&["kill", &b.id, "WINCH"]).status.success());
        assert_eq!(b.status(), "created");
        assert!(b.oci(&["kill", &b.id, signal]).status.success());
        b.ends();
        assert!(b.oci(&["delete", &b.id]).status.success());
    }
    // The program has its own say.
    b.change(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    b.waits_for_sleep(b.pid());
    let status = fs::read_to_string(format!("/proc/{}/status", b.pid())).expect("status");
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).map(str::to_owned);
    assert_eq!(line("SigCgt"), Some("SigCgt:\t0000000000000000".into()), "{status}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn sockets_of_a_service_manager_and_descriptors_of_the_caller_are_the_containers() {
    let script = "echo $LISTEN_FDS $LISTEN_PID; for fd in 3 4 5; do readlink /proc/self/fd/$fd || echo none; done";
    let Some(b) = Bundle::new("handed", script) else { return };
    for name in ["first", "second"] {
        fs::write(b.dir.path().join(name), "").expect("write");
    }
    let run = |fds: &str, pid: &str, preserve: &str| {
        // A shell opens them, and becomes the command line with its own pid.
        let script = format!(
            "export LISTEN_FDS={fds} LISTEN_PID={pid}; exec \"$0\" \"$@\" 3<first 4<second"
        );
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).arg(crate::bundle::program()).arg("--root");
        command.arg(b.dir.path().join("root")).args(["run", "--preserve-fds", preserve, &b.id]);
        command.current_dir(b.dir.path()).output().expect("run")
    };
    let out = run("1", "$$", "1");
    let lines: Vec<String> = text(&out.stdout).lines().map(str::to_owned).collect();
    assert!(lines[0] == "1 1" && lines[1].ends_with("/first"), "{out:?}");
    assert!(lines[2].ends_with("/second") && lines[3] == "none", "{out:?}");
    // Meant for another process: not even told of.
    let out = run("1", "1", "0");
    assert_eq!(text(&out.stdout), "\nnone\nnone\nnone\n", "{out:?}");
    let out = run("2", "$$", "1");
    assert!(text(&out.stderr).contains("descriptor 5 of 3"), "{out:?}");
}

#[test]
fn on_v2_exec_follows_init_out_of_a_group_that_hands_controllers_on() {
    let Some(b) = Bundle::new("exec-follows", "exec sleep 1000") else { return };
    // A namespace of its own, as on a node with v2, would show its group as the root.
    b.change(|c| {
        let all = c["linux"]["namespaces"].as_array_mut().expect("namespaces");
        all.retain(|it| it["type"] != "cgroup");
    });
    let v2 = Holder::new(V2_ONLY);
    let bundle = b.dir.path().to_string_lossy().into_owned();
    let (code, said) = v2.oci(&b, &["run", "-d", "--bundle", &bundle, &b.id]);
    assert_eq!(code, 0, "{said}");
    let group = |args: &[&str]| {
        v2.oci(&b, &[&["exec"], args, &[&b.id, "grep", "^0::", "/proc/self/cgroup"]].concat())
    };
    let own = format!("/{}", b.id);
    assert!(group(&[]).1.trim_end().ends_with(&own), "{:?}", group(&[]));
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let dir = node.unified_dir(&own).expect("a v2 tree");
    fs::create_dir(dir.join("below")).expect("mkdir");
    fs::write(dir.join("below/cgroup.procs"), b.pid().to_string()).expect("move init");
    let all = fs::read_to_string(dir.join("cgroup.controllers")).expect("controllers");
    let some = all.split_whitespace().next().expect("a controller");
    fs::write(dir.join("cgroup.subtree_control"), format!("+{some}")).expect("hand on");
    let (code, said) = group(&[]);
    assert!(code == 0 && said.trim_end().ends_with("/below"), "{said}");
    let (code, said) = group(&["--cgroup", "/"]);
    assert!(code == 255 && said.contains("adding pid"), "not where it was asked for: {said}");
    assert_eq!(v2.oci(&b, &["delete", "-f", &b.id]).0, 0);
    assert!(!dir.exists());
}

#[test]
fn limits_of_huge_pages_are_in_force_or_refused() {
    let Some(b) = Bundle::new("hugepages", "exec sleep 1000") else { return };
    b.change(|c| {
        c["linux"]["resources"]["hugepageLimits"] =
            json!([{ "pageSize": "2MB", "limit": 4 << 20 }]);
    });
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let v2 = cgroup::Hierarchies { v1: Vec::new(), unified: node.unified.clone() };
    if !node.has("hugetlb") {
        let out = b.oci(&["run", &b.id]);
        assert!(text(&out.stderr).contains("linux.resources.hugepageLimits"), "{out:?}");
        assert_eq!(b.groups(), Vec::<std::path::PathBuf>::new());
    }
    if v2.has("hugetlb") {
        let caller = Holder::new(V2_ONLY);
        let bundle = b.dir.path().to_string_lossy().into_owned();
        let (code, said) = caller.oci(&b, &["run", "-d", "--bundle", &bundle, &b.id]);
        assert_eq!(code, 0, "{said}");
        let group = v2.unified_dir(&format!("/{}", b.id)).expect("a v2 tree");
        let limit = fs::read_to_string(group.join("hugetlb.2MB.max")).expect("limit");
        assert_eq!(limit.trim(), "4194304");
        assert_eq!(caller.oci(&b, &["delete", "-f", &b.id]).0, 0);
    }
}

#[test]
fn a_group_that_is_in_use_is_not_shared() {
    let Some(a) = Bundle::new("group-a", "exec sleep 1000") else { return };
    let Some(b) = Bundle::new("group-b", "true") else { return };
    let group = format!("/{}", a.id);
    a.change(|c| c["linux"]["cgroupsPath"] = group.clone().into());
    b.change(|c| c["linux"]["cgroupsPath"] = group.into());
    assert!(a.oci_to_file(&["run", "-d", &a.id]).0);
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("holds processes"), "{out:?}");
    assert_eq!(a.status(), "running", "the failure does not touch the other's");
    assert!(a.oci(&["delete", "-f", &a.id]).status.success());
}

#[test]
fn a_group_that_is_frozen_is_refused_instead_of_waited_for() {
    let Some(b) = Bundle::new("frozen", "true") else { return };
    let node = cgroup::Hierarchies::detect().expect("cgroups");
    let parent = format!("/{}", b.id);
    for group in [parent.clone(), format!("{parent}/below")] {
        node.create(&parent).expect("create");
        node.freeze(&parent).expect("freeze");
        b.change(|c| c["linux"]["cgroupsPath"] = group.clone().into());
        let out = b.oci(&["run", &b.id]);
        node.thaw(&parent).expect("thaw");
        assert!(text(&out.stderr).contains("frozen"), "{group}: {out:?}");
        node.remove(&parent).expect("remove");
    }
}

#[test]
fn kill_ends_all_of_a_container_that_shares_the_hosts_pids() {
    let Some(b) = Bundle::new("host-pids", "sleep 1000 & sleep 1000 & exec sleep 1000") else {
        return;
    };
    b.change(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("list").retain(|n| n["type"] != "pid");
        c["mounts"].as_array_mut().expect("list").retain(|m| m["type"] != "proc");
        c["linux"]["maskedPaths"] = json!(null);
        c["linux"]["readonlyPaths"] = json!(null);
    });
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    b.waits_for_sleep(b.pid());
    assert!(b.oci(&["kill", &b.id, "KILL"]).status.success());
    b.ends();
    for _ in 0..500 {
        if text(&b.oci(&["ps", "-f", "json", &b.id]).stdout) == "[]\n" {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(text(&b.oci(&["ps", "-f", "json", &b.id]).stdout), "[]\n");
    let out = b.oci(&["kill", &b.id, "TERM"]);
    assert!(text(&out.stderr).contains("container not running"), "{out:?}");
    assert!(b.oci(&["delete", &b.id]).status.success());
}

#[test]
fn a_read_only_tmpfs_takes_the_mounts_and_devices_that_belong_into_it() {
    let Some(b) = Bundle::new("ro-dev", "echo x > /dev/null && touch /dev/x") else { return };
    b.change(|c| {
        for mount in c["mounts"].as_array_mut().expect("mounts") {
            if mount["destination"] == "/dev" {
                mount["options"].as_array_mut().expect("options").push("ro".into());
            }
        }
    });
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("/dev/x: Read-only file system"), "{out:?}");
}

#[test]
fn limits_that_depend_on_each_other_are_set_in_the_order_that_works() {
    let Some(b) = Bundle::new("pair", "exec sleep 1000") else { return };
    b.change(|c| c["linux"]["resources"]["cpu"] = json!({ "period": 100_000, "quota": 50_000 }));
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    for (period, quota) in [("10000", "1000"), ("1000000", "900000"), ("2000", "1000")] {
        let out = b.oci(&["update", "--cpu-period", period, "--cpu-quota", quota, &b.id]);
        assert!(out.status.success(), "{period}: {out:?}");
    }
    assert!(b.oci(&["update", "--memory", "64M", "--memory-swap", "64M", &b.id]).status.success());
    assert!(b.oci(&["update", "--memory", "96M", "--memory-swap", "96M", &b.id]).status.success());
    assert!(b.oci(&["update", "--memory", "32M", "--memory-swap", "32M", &b.id]).status.success());
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn where_the_caller_was_bound_to_does_not_bind_the_container() {
    let Some(b) = Bundle::new("affinity", "grep Cpus_allowed_list /proc/self/status") else {
        return;
    };
    let allowed = fs::read_to_string("/proc/self/status").expect("status");
    let line = allowed.lines().find(|l| l.starts_with("Cpus_allowed_list")).expect("line");
    let mut command = std::process::Command::new("taskset");
    command.args(["-c", "0"]).arg(crate::bundle::program()).arg("--root");
    command.arg(b.dir.path().join("root")).args(["run", &b.id]).current_dir(b.dir.path());
    let out = command.output().expect("taskset");
    assert_eq!(text(&out.stdout).trim(), line, "{out:?}");
}

#[test]
fn scheduling_personality_and_memory_policy_reach_the_process_and_those_exec_d() {
    let script = "uname -m; exec sleep 1000";
    let Some(b) = Bundle::new("schedule", script) else { return };
    b.change(|c| {
        c["linux"]["personality"] = json!({ "domain": "LINUX32" });
        c["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
        c["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
        c["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 6 });
        c["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    });
    let (ok, out) = b.oci_to_file(&["run", "-d", &b.id]);
    assert!(ok, "{}", fs::read_to_string(out).expect("out"));
    let pid = b.pid();
    b.waits_for_sleep(pid);
    let machine = if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" };
    assert_eq!(fs::read_to_string(b.dir.path().join("out")).expect("out").trim(), machine);
    // Field 41 is the policy, 3 is SCHED_BATCH; field 19 is nice.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<&str> = stat.rsplit_once(") ").expect("name").1.split(' ').collect();
    assert_eq!((fields[38], fields[16]), ("3", "5"), "{stat}");
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps")).expect("numa_maps");
    assert!(maps.lines().any(|l| l.contains("bind:0")), "{maps}");
    let io = text(
        &std::process::Command::new("ionice")
            .args(["-p", &pid.to_string()])
            .output()
            .expect("ionice")
            .stdout,
    );
    assert_eq!(io.trim(), "best-effort: prio 6");
    let script =
        "uname -m; grep Cpus_allowed_list /proc/self/status; head -n 1 /proc/self/numa_maps";
    let out = text(&b.oci(&["exec", &b.id, "sh", "-c", script]).stdout);
    let want = format!("{machine}\nCpus_allowed_list:\t0\n");
    assert!(out.starts_with(&want) && out.contains("bind:0"), "{out}");
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn clocks_are_shifted_in_a_time_namespace_and_exec_sees_them() {
    let Some(b) = Bundle::new("clocks", "cat /proc/self/timens_offsets; exec sleep 1000") else {
        return;
    };
    b.change(|c| {
        c["linux"]["namespaces"].as_array_mut().expect("list").push(json!({ "type": "time" }));
        c["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 86_400, "nanosecs": 5 } });
    });
    assert!(b.oci_to_file(&["run", "-d", &b.id]).0);
    let pid = b.pid();
    b.waits_for_sleep(pid);
    let out = fs::read_to_string(b.dir.path().join("out")).expect("out");
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["monotonic", "0", "0", "boottime", "86400", "5"]);
    let inside = text(&b.oci(&["exec", &b.id, "readlink", "/proc/self/ns/time"]).stdout);
    let its = fs::read_link(format!("/proc/{pid}/ns/time")).expect("link");
    assert_eq!(inside.trim(), its.to_string_lossy());
    assert!(b.oci(&["delete", "-f", &b.id]).status.success());
}

#[test]
fn a_pidfd_of_init_goes_to_who_asks_for_it() {
    let Some(b) = Bundle::new("pidfd", "exec sleep 1000") else { return };
    let path = b.dir.path().join("pidfd.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    assert!(b.oci_to_file(&["create", "--pidfd-socket", path.to_str().expect("utf8"), &b.id]).0);
    let (stream, _) = listener.accept().expect("accept");
    let pidfd = receive_fd(&stream);
    rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL).expect("kill");
    b.ends();
    assert!(b.oci(&["delete", &b.id]).status.success());
}

#[test]
fn a_device_of_the_host_becomes_the_containers_with_its_address_and_another_name() {
    let script = "busybox ip -4 addr show inner0; cat /sys/class/net/inner0/flags";
    let Some(b) = Bundle::new("netdev", script) else { return };
    let ip = |args: &str| {
        let out = std::process::Command::new("ip").args(args.split(' ')).output().expect("ip");
        (out.status.success(), text(&out.stdout))
    };
    let name = format!("lo{}a", std::process::id() % 1_000_000);
    let peer = format!("{}b", &name[..name.len() - 1]);
    assert!(ip(&format!("link add {name} type veth peer name {peer}")).0);
    assert!(ip(&format!("addr add 10.213.7.9/29 dev {name}")).0);
    b.change(|c| {
        c["linux"]["netDevices"] = json!({ &name: { "name": "inner0" } });
        c["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
    });
    let out = b.oci(&["run", &b.id]);
    let said = text(&out.stdout);
    let (left, _) = ip(&format!("link show {name}"));
    let _ = ip(&format!("link del {peer}")); // mostly gone with the container's namespace
    assert!(said.contains("inet 10.213.7.9/29"), "{out:?}");
    assert!(said.contains("UP"), "{out:?}");
    assert!(!left, "it is not the host's any more");
    b.change(|c| c["linux"]["netDevices"] = json!({ "no-such-dev": {} }));
    let out = b.oci(&["run", &b.id]);
    assert!(text(&out.stderr).contains("network device no-such-dev"), "{out:?}");
    assert_eq!(b.groups(), Vec::<std::path::PathBuf>::new());
}
