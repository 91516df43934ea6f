//! The life and death of a shim: what it does not take with it, and what alone ends it.

use std::time::{Duration, Instant};

use runtime::{Event, Held, Phase};
use rustix::process::{Pid, Signal, kill_process};

use crate::node::{self, Node, Payload};

const LONG: Duration = Duration::from_secs(20);

async fn until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Kills the shim and starts another one that takes over what was held.
async fn replace_shim(mut node: Node, held: &[Held]) -> Node {
    let mut events = node.shim.events();
    let old = node.shim.pid();
    kill_process(Pid::from_raw(old).expect("pid"), Signal::KILL).expect("kill");
    while events.recv().await != Ok(Event::Lost) {}
    until("the shim is dead", || !node::is_alive(old)).await;
    tokio::time::sleep(Duration::from_millis(100)).await; // the workload goes on writing without a shim
    node.shim = node.shims.spawn(&node.sandbox_id(), &node.pod_dir()).await.expect("spawn");
    assert_ne!(node.shim.pid(), old);
    for it in held {
        node.shim.adopt(it).await.expect("adopt");
    }
    node
}

/// Before Linux 6.15 who is not a process' parent learns how it ended only when that is slow to reap it.
#[track_caller]
fn assert_ended_with(code: i32, exit: &runtime::Exit) {
    let release = rustix::system::uname().release().to_str().expect("text").to_owned();
    let mut numbers = release.split(['.', '-']).map_while(|it| it.parse::<u32>().ok());
    let kernel = (numbers.next(), numbers.next());
    let untold = exit.unknown && kernel < (Some(6), Some(15));
    assert!(exit.code == code || untold, "on Linux {release}: {exit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_is_replaced_and_nothing_of_the_workload_is_lost() {
    let Some(node) = Node::start("replace").await else { return };
    let script = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.001; done; \
        echo last $i; exit 7";
    let mut payload = Payload::sh(script);
    payload.stdin = true;
    let c = node.create("c1", payload).await.expect("create");
    c.start().await.expect("start");
    let killed = node.create("c2", Payload::sh("exec sleep 1000")).await.expect("create");
    killed.start().await.expect("start");
    until("it speaks", || c.log().lines().count() > 20).await;
    let (id, other) = (c.id.clone(), killed.id.clone());
    let mut held = vec![node.shim.hold(&node.sandbox_id()).await.expect("hold the sandbox")];
    held.push(node.shim.hold(&id).await.expect("hold"));
    held.push(node.shim.hold(&other).await.expect("hold"));
    let before = node.shim.inventory().await.expect("inventory");

    let node = replace_shim(node, &held).await;
    let after = node.shim.inventory().await.expect("inventory");
    assert_eq!(after.sandbox, before.sandbox);
    let alike = |a: &runtime::ContainerState, b: &runtime::ContainerState| {
        (&a.id, a.pid, &a.phase, a.started_at_ns) == (&b.id, b.pid, &b.phase, b.started_at_ns)
    };
    assert!(after.containers.iter().zip(&before.containers).all(|(a, b)| alike(a, b)), "{after:?}");
    assert_eq!(after.containers.len(), 2);

    let request = runtime::ExecSync {
        id: id.clone(),
        process_json: br#"{"args":["/bin/touch","/stop"],"cwd":"/"}"#.to_vec(),
        timeout: Some(LONG),
        output_cap: 100,
    };
    // The container may end by it so soon that it takes the exec along.
    let touched = node.shim.exec_sync(request).await.expect("exec").exit_code;
    assert!([0, 137].contains(&touched), "{touched}");
    let exit = node.shim.wait(&id, Some(LONG)).await.expect("wait").expect("in time");
    assert_ended_with(7, &exit);
    assert!(!exit.oom_killed);
    // What the dead shim had taken from the pipe and not written yet is a part of one read at most.
    let log = node.log("c1");
    let numbers: Vec<u64> =
        log.lines().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
    assert!(log.contains(" stdout F last "), "{log}");
    let missing = numbers.windows(2).filter(|w| w[1] != w[0] && w[1] != w[0] + 1).count();
    assert!(missing <= 1, "{missing} gaps");
    node.shim.signal(&other, 9).await.expect("signal");
    let exit = node.shim.wait(&other, Some(LONG)).await.expect("wait").expect("in time");
    assert_ended_with(137, &exit);
    // The successor of a successor finds what has ended meanwhile.
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_code_of_a_container_that_ends_without_any_shim_is_known() {
    let Some(node) = Node::start("orphan").await else { return };
    let c = node.create("c1", Payload::sh("sleep 0.2; echo bye; exit 9")).await.expect("create");
    c.start().await.expect("start");
    let id = c.id.clone();
    let mut held = vec![node.shim.hold(&node.sandbox_id()).await.expect("hold the sandbox")];
    held.push(node.shim.hold(&id).await.expect("hold"));
    let pid = node.shim.inventory().await.expect("inventory").containers[0].pid;
    kill_process(Pid::from_raw(node.shim.pid()).expect("pid"), Signal::KILL).expect("kill");
    until("it has ended", || !node::is_alive(pid)).await;
    let node = replace_shim_again(node, &held).await;
    let exit = node.shim.wait(&id, Some(LONG)).await.expect("wait").expect("in time");
    assert_ended_with(9, &exit);
    assert!(node.log("c1").contains(" stdout F bye\n"), "{}", node.log("c1"));
    let pause = node.shim.inventory().await.expect("inventory").sandbox.expect("sandbox");
    assert_eq!(pause.phase, Phase::Running);
    node.end().await;
}

async fn replace_shim_again(mut node: Node, held: &[Held]) -> Node {
    node.shim = node.shims.spawn(&node.sandbox_id(), &node.pod_dir()).await.expect("spawn");
    for it in held {
        node.shim.adopt(it).await.expect("adopt");
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_record_ends_nothing_and_a_tombstone_ends_all() {
    let Some(node) = Node::start("tombstone").await else { return };
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let (shim, pid) =
        (node.shim.pid(), node.shim.inventory().await.expect("inventory").containers[0].pid);
    for file in ["config.json", "shim.pid"] {
        std::fs::remove_file(node.pod_dir().join(file)).expect("remove");
    }
    let node = node.lose_connection().await.reconnect().await;
    assert_eq!(node.shim.inventory().await.expect("inventory").containers.len(), 1);
    assert!(node::is_alive(pid));
    std::fs::write(node.pod_dir().join("tombstone"), "").expect("tombstone");
    let node = node.lose_connection().await;
    until("the shim has ended", || !node::is_alive(shim)).await;
    assert!(!node::is_alive(pid), "and its pod before it");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shim_lives_in_a_group_of_its_own_outside_its_pod() {
    let Some(node) = Node::start("own-group").await else { return };
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", node.shim.pid()));
    let groups = groups.expect("alive");
    let own = format!("/lapstrake-test-{}/shims/{}", std::process::id(), node.sandbox_id());
    let mine = std::fs::read_to_string("/proc/self/cgroup").expect("ours");
    for line in groups.lines() {
        let path = line.splitn(3, ':').nth(2).expect("a path");
        assert_eq!(path, own, "{line}");
        assert!(!mine.contains(path), "not the daemon's");
    }
    // A kill of everything in the pod's group does not reach it.
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let group = node.group("c1");
    let (pod, _) = group.rsplit_once('/').expect("a parent");
    node.hierarchies().kill(pod).expect("kill");
    assert_eq!(c.exit().await.code, 137);
    assert!(node::is_alive(node.shim.pid()));
    node.end().await;
}

/// Or the next one finds the machine as no test has left it.
#[tokio::test(flavor = "multi_thread")]
async fn a_test_that_fails_takes_its_pod_along() {
    let Some(node) = Node::start("failed").await else { return };
    let c = node.create("c", Payload::args(&["/bin/sleep", "1000"])).await.expect("create");
    c.start().await.expect("start");
    let inside = node.shim.inventory().await.expect("inventory").containers[0].pid;
    let pids = [node.shim.pid(), node.sandbox.pause_pid, inside];
    let hierarchies = node.hierarchies().clone();
    let groups = [node.sandbox_group(), node.shim_group()];
    assert!(pids.iter().all(|pid| node::is_alive(*pid)));
    assert!(groups.iter().all(|group| hierarchies.exists(group)), "{groups:?}");
    let failed = tokio::spawn(async {
        let _node = node;
        std::panic::resume_unwind(Box::new("as a failed assertion does, without the noise"));
    });
    assert!(failed.await.is_err_and(|error| error.is_panic()));
    assert_eq!(pids.map(node::is_alive), [false; 3], "shim, pause, container");
    assert!(!groups.iter().any(|group| hierarchies.exists(group)), "of {groups:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_requests_than_the_socket_holds_wait_for_a_shim_that_stands_still() {
    let Some(node) = Node::start("flood").await else { return };
    let c = node.create("c1", Payload::sh("exec sleep 1000")).await.expect("create");
    c.start().await.expect("start");
    let pid = Pid::from_raw(node.shim.pid()).expect("pid");
    kill_process(pid, Signal::STOP).expect("stop");
    // Together several times what a socket takes (`net.core.wmem_default`).
    let long = [b"{}".as_slice(), &[b' '; 30_000]].concat();
    let ask = |_| {
        let (shim, id, long) = (node.shim.clone(), c.id.clone(), long.clone());
        tokio::spawn(async move { shim.update_container(&id, &long).await })
    };
    let asking: Vec<_> = (0..40).map(ask).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    kill_process(pid, Signal::CONT).expect("go on");
    for answer in asking {
        answer.await.expect("asked").expect("answered");
    }
    node.end().await;
}
