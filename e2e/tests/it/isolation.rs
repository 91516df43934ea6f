//! The walls around a container: limits, capabilities, mounts, devices, what of the host shows.

use std::fs;

use e2e::{Container, ContainerSpec, Node, Pod, container, host, image, pod};
use k8s_cri::v1 as cri;

#[tokio::test]
async fn limits_are_in_the_containers_cgroup() {
    let (node, pod) = busybox_pod().await;
    let mut spec = sleeper();
    let resources = spec.resources();
    resources.memory_limit_in_bytes = 48 << 20;
    resources.cpu_period = 100_000;
    resources.cpu_quota = 25_000;
    resources.cpuset_cpus = "0".into();
    let pid = node.pid_of(&pod.start(&spec).await).await;
    assert_eq!(
        host::cgroup_value(pid, "memory", "memory.limit_in_bytes", "memory.max"),
        (48 << 20).to_string()
    );
    let quota = host::cgroup_value(pid, "cpu", "cpu.cfs_quota_us", "cpu.max");
    assert!(quota.starts_with("25000"), "{quota}");
    assert_eq!(host::cgroup_value(pid, "cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    node.finish().await;
}

#[tokio::test]
async fn a_container_over_its_memory_is_oom_killed_and_says_so() {
    let (node, pod) = busybox_pod().await;
    let mut spec = container("greedy", image::BUSYBOX).command(&["tail", "/dev/zero"]);
    spec.resources().memory_limit_in_bytes = 16 << 20;
    let status = pod.start(&spec).await.exited().await;
    assert_eq!((status.exit_code, &*status.reason), (137, "OOMKilled"));
    node.finish().await;
}

#[tokio::test]
async fn the_oom_score_is_set() {
    let (node, pod) = busybox_pod().await;
    let mut spec = sleeper();
    spec.resources().oom_score_adj = 500;
    let container = pod.start(&spec).await;
    assert_eq!(container.shell("cat /proc/1/oom_score_adj").await, "500");
    node.finish().await;
}

#[tokio::test]
async fn capabilities_are_those_asked_for() {
    let (node, pod) = busybox_pod().await;
    let bit = |number: u32| 1_u64 << number;
    let (chown, net_admin, sys_admin) = (bit(0), bit(12), bit(21));

    let plain = effective(&pod.start(&sleeper()).await).await;
    assert_eq!(plain & (chown | net_admin | sys_admin), chown, "{plain:x}");

    let mut spec = named("added");
    spec.security().capabilities = Some(cri::Capability {
        add_capabilities: vec!["NET_ADMIN".into()],
        drop_capabilities: vec!["CAP_CHOWN".into()],
        ..Default::default()
    });
    let changed = effective(&pod.start(&spec).await).await;
    assert_eq!(changed, plain & !chown | net_admin);

    let mut spec = named("none");
    spec.security().capabilities =
        Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    assert_eq!(effective(&pod.start(&spec).await).await, 0);

    let user = named("user").user(1000, None);
    assert_eq!(effective(&pod.start(&user).await).await, 0, "not for users other than root");
    node.finish().await;
}

#[tokio::test]
async fn a_privileged_container_has_what_the_daemon_has() {
    let node = Node::with_busybox().await;
    let mut spec = pod("privileged");
    spec.linux().security_context.get_or_insert_default().privileged = true;
    let pod = node.run_pod(spec).await;
    let mut spec = sleeper();
    spec.security().privileged = true;
    let container = pod.start(&spec).await;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|it| it.strip_prefix("CapBnd:\t")).unwrap().to_owned();
    assert_eq!(container.shell("grep CapEff /proc/1/status | cut -f2").await, own);
    container.shell("ip link add br9 type bridge && ip link del br9").await;
    container.shell("test -w /sys && test -c /dev/kmsg").await;
    node.finish().await;
}

#[tokio::test]
async fn no_new_privileges_is_honoured() {
    let (node, pod) = busybox_pod().await;
    let mut spec = sleeper();
    spec.security().no_new_privs = true;
    let container = pod.start(&spec).await;
    assert_eq!(container.shell("grep NoNewPrivs /proc/1/status | cut -f2").await, "1");
    node.finish().await;
}

#[tokio::test]
async fn the_root_is_writable_unless_it_is_asked_not_to_be() {
    let (node, pod) = busybox_pod().await;
    let container = pod.start(&sleeper()).await;
    container.shell("echo x > /file && rm /bin/ls && test ! -e /bin/ls").await;
    let mut spec = named("fixed");
    spec.security().readonly_rootfs = true;
    let fixed = pod.start(&spec).await;
    fixed.shell("test -e /bin/ls; ! echo x 2>/dev/null > /file").await;
    fixed.shell("echo x > /dev/shm/file").await;
    node.finish().await;
}

#[tokio::test]
async fn volumes_are_mounted_as_asked() {
    let (node, pod) = busybox_pod().await;
    let dir = node.scratch();
    fs::create_dir_all(dir.join("data/sub")).unwrap();
    fs::write(dir.join("data/file"), "from the host").unwrap();
    fs::write(dir.join("single"), "one file").unwrap();
    std::os::unix::fs::symlink("data", dir.join("link")).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    let spec = sleeper()
        .mount(&path("data"), "/rw", false)
        .mount(&path("data"), "/ro", true)
        .mount(&path("single"), "/etc/single", false)
        .mount(&path("link"), "/by/link", false)
        .mount(&path("data/sub"), "/rw/sub", true);
    let container = pod.start(&spec).await;
    assert_eq!(
        container
            .shell("cat /rw/file /ro/file /by/link/file /etc/single")
            .await
            .matches("from the host")
            .count(),
        3
    );
    container.shell("echo written > /rw/new && ! echo x 2>/dev/null > /ro/new").await;
    container.shell("! echo x 2>/dev/null > /rw/sub/new").await;
    assert_eq!(fs::read_to_string(dir.join("data/new")).unwrap(), "written\n");
    node.finish().await;
}

#[tokio::test]
async fn a_link_in_the_image_cannot_lead_a_mount_out() {
    let node = Node::start().await;
    let trap = e2e::layer::Layer::default().symlink("out", "/../../../../../../tmp");
    let name = "docker.io/library/trap:test";
    node.import(&image::busybox().with(trap, serde_json::json!({ "Cmd": ["sh"] })), name).await;
    let pod = node.run_pod(pod("pod")).await;
    let dir = node.scratch();
    let marker = format!("marker-{}", std::process::id());
    fs::create_dir_all(dir.join("volume")).unwrap();
    let spec = container("main", name).shell("sleep 1000").mount(
        &dir.join("volume").display().to_string(),
        &format!("/out/{marker}"),
        false,
    );
    let container = pod.start(&spec).await;
    container.shell(&format!("test -d /tmp/{marker}")).await;
    assert!(!std::path::Path::new("/tmp").join(&marker).exists(), "made on the host");
    node.finish().await;
}

#[tokio::test]
async fn masked_and_readonly_paths_are_exactly_those_given() {
    let (node, pod) = busybox_pod().await;
    let mut spec = sleeper();
    spec.security().masked_paths =
        vec!["/proc/version".into(), "/sys/kernel".into(), "/absent".into()];
    spec.security().readonly_paths = vec!["/proc/sys".into(), "/absent".into()];
    let container = pod.start(&spec).await;
    assert_eq!(container.shell("cat /proc/version; ls /sys/kernel").await, "");
    container.shell("! echo x 2>/dev/null > /proc/sys/kernel/domainname").await;
    container.shell("grep -q . /proc/uptime").await;
    node.finish().await;
}

#[tokio::test]
async fn the_usual_devices_are_there_and_no_others() {
    let (node, pod) = busybox_pod().await;
    let container = pod.start(&sleeper()).await;
    container
        .shell("for it in null zero full random urandom tty; do test -c /dev/$it || exit 1; done")
        .await;
    container.shell("test -d /dev/pts && test -d /dev/shm && test -d /dev/mqueue").await;
    container.shell("test -L /dev/fd && test -L /dev/stdin && test -e /dev/ptmx").await;
    container.shell("echo x > /dev/null && head -c 1 /dev/zero > /dev/null").await;
    container.shell("test ! -e /dev/kmsg && test ! -e /dev/mem").await;
    // The kernel's own disks: the node can be made by hand, and must not open.
    container.shell("mknod /tmp/kmsg c 1 11 && ! head -c 1 /tmp/kmsg 2>/dev/null").await;
    node.finish().await;
}

#[tokio::test]
async fn the_hosts_mount_table_shows_no_container() {
    let (node, pod) = busybox_pod().await;
    let before = node.scope.snapshot(node.pid()).of("mount");
    pod.start(&sleeper()).await;
    assert_eq!(node.scope.snapshot(node.pid()).of("mount"), before);
    node.finish().await;
}

#[tokio::test]
async fn containers_have_namespaces_of_their_own() {
    let (node, pod) = busybox_pod().await;
    let (one, two) = (pod.start(&named("one")).await, pod.start(&named("two")).await);
    for kind in ["pid", "mnt"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_ne!(one.shell(&link).await, two.shell(&link).await, "{kind}");
    }
    for kind in ["net", "ipc", "uts"] {
        let link = format!("readlink /proc/self/ns/{kind}");
        assert_eq!(one.shell(&link).await, two.shell(&link).await, "{kind}");
        let host = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(one.shell(&link).await, host.display().to_string(), "{kind}");
    }
    node.finish().await;
}

#[tokio::test]
async fn no_descriptor_of_the_host_reaches_a_container() {
    let (node, pod) = busybox_pod().await;
    let container = pod.start(&sleeper()).await;
    assert_eq!(container.shell("ls /proc/1/fd | tr '\\n' ' '").await.trim(), "0 1 2");
    node.finish().await;
}

async fn effective(container: &Container) -> u64 {
    let status = container.try_exec(&["cat", "/proc/1/status"], 10).await.unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("CapEff:\t")).unwrap();
    u64::from_str_radix(line, 16).unwrap()
}

async fn busybox_pod() -> (Node, Pod) {
    let node = Node::with_busybox().await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn sleeper() -> ContainerSpec {
    named("main")
}

fn named(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
