//! The processes that make a pod's containers: how long they stay, and what stays with them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::node::{Node, Payload};

const LONG: Duration = Duration::from_secs(10);

/// What one holds that has nothing to do: stdio, its orders, the shim's image, and where it comes back to.
const OWN_DESCRIPTORS: usize = 9;

/// Children of the shim that are the shim's program, too, and no init that waits for its start.
fn creators(node: &Node) -> Vec<i32> {
    let shim = node.shim.pid();
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
    let children = children.expect("children");
    let same = |pid: &i32, of: &str| {
        let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/{of}")).ok();
        of(*pid) == of(shim)
    };
    let children = children.split_whitespace().map(|pid| pid.parse().expect("pid"));
    children.filter(|pid| same(pid, "exe") && same(pid, "ns/pid")).collect()
}

/// The only one, when it has nothing to do.
async fn the_creator(node: &Node) -> i32 {
    let begun = Instant::now();
    loop {
        let all = creators(node);
        match all.as_slice() {
            [one] if state(*one).2 == OWN_DESCRIPTORS => return *one,
            _ => assert!(begun.elapsed() < LONG, "{all:?}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) async fn until_there_is_none(node: &Node) {
    let begun = Instant::now();
    while !creators(node).is_empty() {
        assert!(begun.elapsed() < LONG, "{:?}", creators(node));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The namespaces, score and descriptors of a process, and those that its children are born in.
fn state(pid: i32) -> (Vec<PathBuf>, String, usize) {
    let dir = PathBuf::from(format!("/proc/{pid}"));
    let names = ["net", "ipc", "uts", "mnt", "user", "cgroup", "pid", "pid_for_children"];
    let namespaces = names.map(|ns| dir.join("ns").join(ns).read_link().expect("link"));
    let score = std::fs::read_to_string(dir.join("oom_score_adj")).expect("score");
    let descriptors = std::fs::read_dir(dir.join("fd")).expect("fds").count();
    (namespaces.to_vec(), score, descriptors)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_creator_makes_the_containers_of_a_pod_and_none_is_left_in_a_pod_at_rest() {
    let Some(node) = Node::start("one-creator").await else { return };
    let first = the_creator(&node).await;
    for name in ["c1", "c2", "c3"] {
        let c = node.create(name, Payload::sh("exit 3")).await.expect("create");
        c.start().await.expect("start");
        assert_eq!(c.exit().await.code, 3);
        assert_eq!(the_creator(&node).await, first, "that of the sandbox");
    }
    until_there_is_none(&node).await;
    let late = node.create("c4", Payload::sh("exit 4")).await.expect("create");
    late.start().await.expect("start");
    assert_ne!(the_creator(&node).await, first);
    assert_eq!(late.exit().await.code, 4);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_that_are_not_started_keep_no_creator() {
    let Some(node) = Node::start("not-started").await else { return };
    let first = the_creator(&node).await;
    let waiting = node.create("c1", Payload::sh("exit 3")).await.expect("create");
    assert_eq!(creators(&node), [first], "it stands still: init has its memory");
    let beside = node.create("c2", Payload::sh("exit 4")).await.expect("create");
    assert!(creators(&node).iter().any(|pid| *pid != first), "by another one");
    until_there_is_none(&node).await;
    // What they lent is still there.
    for (c, code) in [(&waiting, 3), (&beside, 4)] {
        c.start().await.expect("start");
        assert_eq!(c.exit().await.code, code);
    }
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creator_whose_init_did_not_become_its_program_makes_no_other() {
    let Some(node) = Node::start("unsound").await else { return };
    let run = async |name: &str| {
        let c = node.create(name, Payload::sh("true")).await.expect("create");
        c.start().await.expect("start");
        assert_eq!(c.exit().await.code, 0, "{name}");
    };
    // Killed anywhere, perhaps within its allocator.
    let first = the_creator(&node).await;
    let killed = node.create("c1", Payload::sh("true")).await.expect("create");
    node.shim.delete_container(&killed.id).await.expect("delete");
    run("c2").await;
    let second = the_creator(&node).await;
    assert_ne!(second, first);
    let mut missing = Payload::sh("true");
    missing.args = vec!["/no/such".into()];
    let missing = node.create("c3", missing).await.expect("create");
    missing.start().await.expect_err("no program");
    run("c4").await;
    assert_ne!(the_creator(&node).await, second);
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_one_container_stays_with_the_creator_of_the_next() {
    let Some(node) = Node::start("next").await else { return };
    let before = state(the_creator(&node).await);
    assert_eq!(before.0, state(node.shim.pid()).0);
    // Joins the namespaces of the pod, that of its processes included, and has a score of its own.
    let mut payload = Payload::sh("echo pid=$$; cat /proc/self/oom_score_adj");
    payload.pod_pids = true;
    let joined = node.create("c1", payload).await.expect("create");
    joined.start().await.expect("start");
    assert_eq!(state(the_creator(&node).await), before);
    let own = node.create("c2", Payload::sh("echo pid=$$; hostname")).await.expect("create");
    own.start().await.expect("start");
    assert_eq!(state(the_creator(&node).await), before);
    for c in [&joined, &own] {
        assert_eq!(c.exit().await.code, 0);
    }
    let text = joined.text();
    assert!(text.ends_with("\n100\n") && !text.starts_with("pid=1\n"), "{text}");
    assert_eq!(own.text(), "pid=1\nthe-pod\n");
    node.end().await;
}

/// Resident, in kilobytes.
fn memory(pid: i32) -> u64 {
    // By the page tables: the counters of `status` may be some pages behind.
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creators_memory_does_not_grow_with_what_it_makes() {
    let Some(node) = Node::start("memory").await else { return };
    let run = async |from: u32, to: u32| {
        for n in from..to {
            let c = node.create(&format!("c{n}"), Payload::sh("true")).await.expect("create");
            c.start().await.expect("start");
            assert_eq!(c.exit().await.code, 0);
            node.shim.delete_container(&c.id).await.expect("delete");
        }
        let creator = the_creator(&node).await;
        (creator, memory(creator))
    };
    let (first, before) = run(0, 4).await;
    let (second, after) = run(4, 30).await;
    assert_eq!(first, second);
    assert!(after <= before + 16, "{before} kB after 4 containers, {after} kB after 30");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creator_that_cannot_go_on_is_followed_by_another() {
    let Some(node) = Node::start("another").await else { return };
    let killed = the_creator(&node).await;
    kill_process(Pid::from_raw(killed).expect("pid"), Signal::KILL).expect("kill");
    until_there_is_none(&node).await;
    let run = async |name: &str, payload: Payload| {
        let c = node.create(name, payload).await.expect("create");
        c.start().await.expect("start");
        assert_eq!(c.exit().await.code, 0, "{name}");
    };
    run("c1", Payload::sh("true")).await;
    let second = the_creator(&node).await;
    assert_ne!(second, killed);
    // What fails may leave anything behind.
    let mut broken = Payload::sh("true");
    broken.mounts.push(r#"{"destination":"/d","source":"/no/such","options":["bind"]}"#.into());
    node.create("c2", broken).await.expect_err("no source");
    run("plain", Payload::sh("true")).await;
    assert_ne!(the_creator(&node).await, second);
    // The keeper of hooks is its child.
    let mut hooked = Payload::sh("true");
    hooked.hooks = r#"{"createRuntime":[{"path":"/bin/true"}]}"#.into();
    run("c3", hooked).await;
    until_there_is_none(&node).await;
    // Some at once, each by its own.
    let both = tokio::join!(run("c4", Payload::sh("true")), run("c5", Payload::sh("true")));
    assert_eq!(both, ((), ()));
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_killed_at_any_moment_the_pod_goes_on() {
    let Some(node) = Node::start("any-moment").await else { return };
    let shim = node.shim.pid();
    let children = move || {
        let list = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
        let list = list.unwrap_or_default();
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<i32>>()
    };
    let begun = Instant::now();
    let first = node.create("first", Payload::sh("true")).await.expect("create");
    let took = begun.elapsed();
    node.shim.delete_container(&first.id).await.expect("delete");
    until_there_is_none(&node).await;
    let pause = children();
    let mut made = 0;
    for n in 0..60u32 {
        // Its creator or its init, in steps over the time that both take.
        let (pause, at) = (pause.clone(), took * n / 50);
        let killer = std::thread::spawn(move || {
            let begun = Instant::now();
            while begun.elapsed() < at {}
            let others = children().into_iter().filter(|pid| !pause.contains(pid));
            let pid = if n % 2 == 0 { others.max() } else { others.min() };
            pid.and_then(Pid::from_raw).map(|pid| kill_process(pid, Signal::KILL))
        });
        let name = format!("c{n}");
        let created =
            tokio::time::timeout(LONG, node.create_and_look_away(&name, Payload::sh("true"))).await;
        killer.join().expect("no panic");
        if let Ok((c, _)) = created.expect("an answer in time") {
            made += 1;
            let started = tokio::time::timeout(LONG, c.start()).await.expect("an answer in time");
            if started.is_ok() {
                c.exit().await;
            }
            let deleted = node.shim.delete_container(&c.id);
            tokio::time::timeout(LONG, deleted).await.expect("in time").expect("delete");
        }
    }
    assert!((5..60).contains(&made), "{made} of 60 were made");
    until_there_is_none(&node).await;
    let begun = Instant::now();
    while children() != pause {
        assert!(begun.elapsed() < LONG, "{:?} beside {pause:?}", children());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.end().await;
}
