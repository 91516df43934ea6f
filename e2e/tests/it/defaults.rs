//! What a container has that asks for nothing: limits, keyring, sysctls, profiles.

use std::fs;

use e2e::{ContainerSpec, Node, Options, Pod, container, image, pod};
use k8s_cri::v1 as cri;
use k8s_cri::v1::security_profile::ProfileType;
use tonic::Code;

use crate::refused::refused;

#[tokio::test]
async fn an_ordinary_pod_may_ping_and_use_low_ports_and_open_files() {
    let (node, pod) = busybox_pod("").await;
    let main = pod.start(&sleeper("main").user(1000, None)).await;
    assert_eq!(main.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start").await, "0");
    assert_eq!(main.shell("cat /proc/sys/net/ipv4/ping_group_range").await, "0\t2147483647");
    assert_eq!(main.shell("ulimit -Sn").await, "1024");
    let hard: u64 = main.shell("ulimit -Hn").await.parse().unwrap();
    assert!(hard >= 1024, "{hard}");
    main.shell("nc -l -p 80 & sleep 0.1; kill $!").await;
    node.finish().await;
}

#[tokio::test]
async fn limits_and_sysctls_are_the_nodes_to_choose_and_the_pods_to_override() {
    let config = "[runtime.rlimits]\nnofile = \"512:600\"\ncore = \"0\"\n\
                  [runtime.sysctls]\n\"net.ipv4.ip_unprivileged_port_start\" = \"\"\n\
                  \"net.ipv4.ip_forward\" = \"1\"\n";
    let (node, pod) = busybox_pod(config).await;
    let main = pod.start(&sleeper("main")).await;
    assert_eq!(main.shell("ulimit -Sn; ulimit -Hn; ulimit -c").await, "512\n600\n0");
    let read = "cd /proc/sys/net/ipv4; cat ip_forward ip_unprivileged_port_start";
    assert_eq!(main.shell(read).await, "1\n1024");
    let mut own = e2e::pod("own").sysctl("net.ipv4.ip_forward", "0");
    own.metadata().attempt = 1;
    let own = node.run_pod(own).await;
    let main = own.start(&sleeper("main")).await;
    assert_eq!(main.shell("cat /proc/sys/net/ipv4/ip_forward").await, "0");
    node.finish().await;
}

#[tokio::test]
async fn every_container_has_a_session_keyring_of_its_own() {
    let (node, pod) = busybox_pod("").await;
    let mut keyrings = Vec::new();
    for name in ["one", "two"] {
        // Of root's keyrings a user sees those only that it possesses.
        let script = "grep ' _ses' /proc/keys; sleep 1000";
        let one = pod.start(&container(name, image::BUSYBOX).shell(script).user(1000, None)).await;
        one.wait_for_log("keyring");
        let [line] = &*one.log_lines() else { panic!("{:?}", one.log_lines()) };
        keyrings.push(line.text.split(' ').next().unwrap().to_owned());
    }
    assert_ne!(keyrings[0], keyrings[1]);
    node.finish().await;
}

#[tokio::test]
async fn a_profile_that_this_kernel_cannot_load_is_refused_by_name() {
    if fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|it| it.trim() == "Y")
    {
        println!("SKIPPED: this kernel has AppArmor; the vm ring and the unit tests decide");
        return;
    }
    let (node, pod) = busybox_pod("").await;
    let profile = |kind: ProfileType, name: &str| {
        Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: name.into() })
    };
    for (name, wish) in [
        ("default", profile(ProfileType::RuntimeDefault, "")),
        ("unconfined", profile(ProfileType::Unconfined, "")),
    ] {
        let mut spec = sleeper(name);
        spec.security().apparmor = wish;
        pod.start(&spec).await;
    }
    let mut spec = sleeper("named");
    spec.security().apparmor = profile(ProfileType::Localhost, "web");
    let words = ["apparmor", "\"web\"", "no apparmor"];
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &words);
    // The deprecated field says the same, and only where the new one is absent.
    #[expect(deprecated)]
    let old = |spec: &mut ContainerSpec| spec.security().apparmor_profile = "localhost/web".into();
    let mut spec = sleeper("deprecated");
    old(&mut spec);
    refused(pod.try_create(&spec).await, Code::InvalidArgument, &words);
    spec.security().apparmor = profile(ProfileType::Unconfined, "");
    pod.start(&spec).await;
    node.finish().await;
}

#[tokio::test]
async fn labels_of_selinux_are_no_obstacle_where_it_is_off() {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        println!("SKIPPED: this kernel enforces SELinux");
        return;
    }
    let (node, pod) = busybox_pod("").await;
    let mut spec = sleeper("main").mount(&node.scratch().display().to_string(), "/data", false);
    spec.security().selinux_options =
        Some(cri::SeLinuxOption { level: "s0:c1,c2".into(), ..Default::default() });
    spec.config.mounts[0].selinux_relabel = true;
    pod.start(&spec).await;
    let mut bad = sleeper("bad");
    bad.security().selinux_options =
        Some(cri::SeLinuxOption { r#type: "container t".into(), ..Default::default() });
    refused(pod.try_create(&bad).await, Code::InvalidArgument, &["selinux_options.type"]);
    node.finish().await;
}

#[tokio::test]
async fn a_containers_word_about_shared_namespaces_has_to_be_true() {
    let (node, pod) = busybox_pod("").await;
    for kind in ["network", "ipc"] {
        let mut spec = sleeper("main");
        let namespaces = spec.security().namespace_options.get_or_insert_default();
        let mode = match kind {
            "network" => &mut namespaces.network,
            _ => &mut namespaces.ipc,
        };
        *mode = cri::NamespaceMode::Node.into();
        refused(pod.try_create(&spec).await, Code::InvalidArgument, &[kind, "node"]);
    }
    node.finish().await;
}

/// `config` is the rest of the runtime's table and what follows it.
async fn busybox_pod(config: &str) -> (Node, Pod) {
    let node = Node::start_with(Options { config: config.into(), ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let pod = node.run_pod(pod("pod")).await;
    (node, pod)
}

fn sleeper(name: &str) -> ContainerSpec {
    container(name, image::BUSYBOX).command(&["sleep", "1000"])
}
