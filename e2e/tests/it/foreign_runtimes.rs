//! A runtime handler that names another OCI runtime: its containers have the same logs, exits and
//! limits as our own.

use e2e::{Node, Options, container, guest, host, image, pod};

/// Debian's; crun of Debian 12 needs pure cgroup v2.
const RUNTIMES: &[(&str, &str, bool)] =
    &[("runc", "/usr/sbin/runc", false), ("crun", "/usr/bin/crun", true)];

#[tokio::test]
async fn containers_of_other_runtimes_log_exit_and_are_limited_alike() {
    let config: String = RUNTIMES
        .iter()
        .map(|(name, path, _)| format!("[runtime.handlers.{name}]\npath = \"{path}\"\n"))
        .collect();
    let node = Node::start_with(Options { config, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    for (name, path, pure) in RUNTIMES {
        if *pure && !guest::inside() {
            println!("SKIPPED: {name} needs pure cgroup v2, `make test-vm` has it");
            continue;
        }
        assert!(std::path::Path::new(path).exists(), "{path} is missing");
        let pod = node.run_pod(pod(name).handler(name)).await;
        let spec = container("short", image::BUSYBOX).shell("echo out; echo err >&2; exit 3");
        let short = pod.start(&spec).await;
        assert_eq!(short.exited().await.exit_code, 3, "{name}");
        let said = |stream: &str| {
            let lines = short.log_lines().into_iter().filter(|it| it.stream == stream);
            lines.map(|it| it.text).collect::<Vec<_>>()
        };
        assert_eq!((said("stdout"), said("stderr")), (vec!["out".into()], vec!["err".into()]));

        let mut spec = container("long", image::BUSYBOX).command(&["sleep", "1000"]);
        spec.resources().memory_limit_in_bytes = 48 << 20;
        let long = pod.start(&spec).await;
        let pid = node.pid_of(&long).await;
        let limit = host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, (48 << 20).to_string(), "{name}");
        assert_eq!(long.shell("echo inside").await, "inside", "{name}");
        long.stop(0).await;
        assert_eq!(long.exited().await.exit_code, 137, "{name}");
        pod.remove().await;
    }
    node.finish().await;
}
