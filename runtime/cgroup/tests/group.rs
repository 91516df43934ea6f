//! The life of a group beside others that come and go.

use std::sync::atomic::{AtomicBool, Ordering};

use cgroup::Hierarchies;

#[test]
fn groups_are_made_while_their_empty_parents_are_removed() {
    let Ok(node) = Hierarchies::detect() else { panic!("no mountinfo") };
    if !rustix::process::geteuid().is_root() || node.dirs("/").is_empty() {
        let why = "SKIPPED: needs root and mounted cgroups";
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
        eprintln!("{why}");
        return;
    }
    let parent = format!("/lapstrake-test-tidy-{}/a", std::process::id());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                node.prune(&parent);
            }
        });
        let made = (0..300).try_for_each(|n| {
            let group = format!("{parent}/{n}");
            node.create(&group)?;
            node.remove(&group).map(drop)
        });
        done.store(true, Ordering::Relaxed);
        made.expect("each is made");
    });
    node.prune(&parent);
    assert!(!node.exists(&parent));
}
