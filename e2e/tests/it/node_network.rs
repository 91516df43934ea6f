//! The built-in network on a host of its own: families, ranges, limits, conflicts, and what others do
//! to it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::{Host, Node, Options, container, image, pod, wait, wire};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

/// The daemon looks after its network every other second.
const SOON: Duration = Duration::from_secs(20);

fn on(host: &Host) -> Options {
    Options { netns: Some(host.name.clone()), ..Options::default() }
}

async fn set_pod_cidr(node: &Node, cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: cidr.to_owned() });
    let runtime_config = Some(cri::RuntimeConfig { network_config });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config };
    node.cri.runtime.clone().update_runtime_config(request).await.map(drop)
}

#[tokio::test]
async fn a_pod_has_an_address_and_a_host_port_of_each_family_of_the_kubelets_pod_cidr() {
    let (host, world) =
        Host::pair(&["198.18.1.1/24", "fd00:18::1/64"], &["198.18.1.2/24", "fd00:18::2/64"]);
    let mut node = Node::start_with(on(&host)).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    set_pod_cidr(&node, "10.99.0.0/24,fd00:99::/64").await.unwrap();
    let status = set_pod_cidr(&node, "10.99.0.0/33").await.unwrap_err();
    refused(Err::<(), _>(status), Code::InvalidArgument, &["pod_cidr", "10.99.0.0/33"]);
    // It outlives the daemon: the kubelet sends it once.
    node.kill9();
    node.spawn().await;
    let web = node.run_pod(pod("web").port(80, 8080)).await;
    let serve = "mkdir /www; echo here > /www/index.html; exec httpd -f -p [::]:80 -h /www";
    web.start(&container("httpd", image::BUSYBOX).shell(serve)).await;
    let network = web.status().await.network.unwrap();
    assert_eq!(network.ip, "10.99.0.2");
    assert_eq!(network.additional_ips[0].ip, "fd00:99::2");
    let open = |from: &Host, url: &str| from.fetch(url) == "here\n";
    let first = "http://10.99.0.2/";
    wait::until("the server listens", SOON, || open(&host, first).then_some(()));
    for place in ["198.18.1.1", "10.99.0.1", "127.0.0.1", "[fd00:18::1]", "[::1]"] {
        assert!(open(&host, &format!("http://{place}:8080/")), "from the host itself: {place}");
    }
    for place in ["198.18.1.1", "[fd00:18::1]"] {
        assert!(open(&world, &format!("http://{place}:8080/")), "from another host: {place}");
    }
    web.remove().await;
    assert!(!open(&host, "http://127.0.0.1:8080/"));
    node.rebase();
    node.finish().await;
}

#[tokio::test]
async fn limits_and_sysctls_of_a_pod_reach_the_kernel() {
    let host = Host::new();
    let node = Node::start_with(on(&host)).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let mut spec = pod("limited");
    for (direction, limit) in [("ingress", "8M"), ("egress", "16M")] {
        let key = format!("kubernetes.io/{direction}-bandwidth");
        spec.config.annotations.insert(key, limit.to_owned());
    }
    let sysctls = &mut spec.linux().sysctls;
    sysctls.insert("net.ipv4.ip_local_port_range".to_owned(), "20000 30000".to_owned());
    sysctls.insert("net.core.somaxconn".to_owned(), "77".to_owned());
    let pod = node.run_pod(spec).await;
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let read = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/net/core/somaxconn";
    assert_eq!(
        main.shell(read).await.split_whitespace().collect::<Vec<_>>(),
        ["20000", "30000", "77"]
    );
    let pid = node.pid_of(&main).await;
    let inside = wire::run_in(Path::new(&format!("/proc/{pid}/ns/net")), "tc qdisc show dev eth0");
    assert!(inside.contains("tbf") && inside.contains("rate 16Mbit"), "sends: {inside}");
    let outside = host.run("tc qdisc");
    assert!(outside.contains("tbf") && outside.contains("rate 8Mbit"), "receives: {outside}");
    let mut bad = e2e::pod("bad");
    bad.config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "fast".into());
    let refusal = node.try_run_pod(bad).await.map(drop);
    refused(refusal, Code::InvalidArgument, &["kubernetes.io/ingress-bandwidth", "fast"]);
    node.finish().await;
}

#[tokio::test]
async fn a_host_port_has_one_owner_and_the_refusal_names_it() {
    let host = Host::new();
    let node = Node::start_with(on(&host)).await;
    let first = node.run_pod(pod("first").port(80, 8080)).await;
    let before = node.scope.snapshot(node.pid());
    let second = node.try_run_pod(pod("second").port(81, 8080)).await.map(drop);
    refused(second, Code::AlreadyExists, &["default/second", "8080/tcp", "taken by default/first"]);
    let mut spec = pod("third").port(80, 8081);
    spec.config.port_mappings[0].host_ip = "fd00::1".into();
    let third = node.try_run_pod(spec).await.map(drop);
    refused(third, Code::InvalidArgument, &["[fd00::1]:8081/tcp", "no address of its family"]);
    node.scope.assert_same(&before, node.pid());
    let address = first.address().await;
    first.remove().await;
    let second = node.run_pod(pod("second").port(81, 8080)).await;
    assert_ne!(second.address().await, address, "a released address rests");
    node.finish().await;
}

#[tokio::test]
async fn what_others_take_away_is_put_back_and_counted() {
    let (host, world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let node = Node::start_with(on(&host)).await;
    node.import(&image::nginx(), image::NGINX).await;
    let web = node.run_pod(pod("web").port(80, 8080)).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let open = || (world.fetch("http://198.18.1.1:8080/") == "served by nginx\n").then_some(());
    wait::until("the port answers", SOON, open);
    let repairs = || node.metric("lapstrake_network_repairs_total ").unwrap();
    assert_eq!(repairs(), "0");
    let mut watching = Command::new(e2e::node::binary("lapstrake"))
        .args(["events", "--count", "3", "--endpoint", &node.endpoint()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(watching.stdout.take().unwrap());
    told.read_line(&mut String::new()).unwrap(); // it watches: the pod is there
    host.run("nft flush ruleset");
    wait::until("the table is written again", SOON, || (repairs() == "1").then_some(()));
    wait::until("the port answers again", SOON, open);
    host.run(&format!("ip link delete {}", node.scope.bridge));
    wait::until("the bridge is made again", SOON, || (repairs() == "2").then_some(()));
    wait::until("the port answers again", SOON, open);
    let links = host.run(&format!("ip -br link show master {}", node.scope.bridge));
    let link = links.split('@').next().unwrap();
    host.run(&format!("ip link delete {link}"));
    wait::until("the pod's link is made again", SOON, || (repairs() == "3").then_some(()));
    wait::until("the port answers again", SOON, open);
    let mut events = String::new();
    told.read_to_string(&mut events).unwrap(); // it ends after three
    assert!(watching.wait().unwrap().success());
    for told in [
        "network repaired: the nftables table was missing",
        &format!("network repaired: bridge {} was gone", node.scope.bridge),
        "of pod default/web was gone: made again",
    ] {
        assert!(events.contains(told), "the events tell {told}:\n{events}");
        let told = told.trim_start_matches("network repaired: ");
        assert!(node.log().contains(told), "the log tells {told}");
    }
    node.finish().await;
}

#[tokio::test]
async fn another_firewall_that_drops_is_named_and_opened_where_that_is_wanted() {
    let (host, world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    host.run("nft add table inet firewall");
    let chain = "{ type filter hook forward priority 0 ; policy drop ; }";
    let drop_all = format!("nft add chain inet firewall guard {chain}");
    host.run(&drop_all);
    let node = Node::start_with(on(&host)).await;
    let reason = node.network_ready().await.unwrap_err();
    assert!(reason.contains("inet firewall guard"), "{reason}");
    node.finish().await;

    let network = "admit_forwarding = true".to_owned();
    let node = Node::start_with(Options { network, ..on(&host) }).await;
    node.import(&image::nginx(), image::NGINX).await;
    let web = node.run_pod(pod("web").port(80, 8080)).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let open = || (world.fetch("http://198.18.1.1:8080/") == "served by nginx\n").then_some(());
    wait::until("the port answers through the other firewall", SOON, open);
    wait::until_async("the node is ready", SOON, || async { node.network_ready().await.ok() })
        .await;
    // Loaded again, as firewalls are.
    host.run("nft flush table inet firewall");
    wait::until("the port answers again", SOON, open);
    node.finish().await;
}

#[tokio::test]
async fn a_bridge_name_that_is_taken_and_forwarding_that_is_forbidden_are_said() {
    let host = Host::new();
    let mut node = Node::start_with(on(&host)).await;
    let bridge = node.scope.bridge.clone();
    node.stop();
    host.run(&format!("ip link delete {bridge}"));
    host.run(&format!("ip link add {bridge} type veth peer name other"));
    node.spawn().await;
    let reason = node.network_ready().await.unwrap_err();
    assert!(reason.contains(&bridge) && reason.contains("it is a veth link"), "{reason}");
    let refusal = node.try_run_pod(pod("pod")).await.map(drop);
    refused(refusal, Code::Unavailable, &["default/pod", &bridge, "network.bridge"]);
    let (is_well, told) = node.offline_verb(&["doctor"]);
    assert!(!is_well && told.contains("BROKEN pod network"), "{told}");
    assert!(told.contains("it is a veth link") && told.contains("ip link delete"), "{told}");
    host.run(&format!("ip link delete {bridge}"));
    wait::until_async("the node is ready again", SOON, || async {
        node.network_ready().await.ok()
    })
    .await;
    node.run_pod(pod("pod")).await;
    node.finish().await;
}

#[tokio::test]
async fn ipv6_that_the_host_forbids_does_not_keep_a_dual_stack_pod_from_its_address() {
    let host = Host::new();
    host.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
    let node = Node::start_with(on(&host)).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    set_pod_cidr(&node, "10.99.0.0/24,fd00:99::/64").await.unwrap();
    let one = node.run_pod(pod("one")).await;
    let main = one.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let links = main.shell("ip -6 addr show eth0").await;
    assert!(links.contains("fd00:99::2"), "{links}");
    main.shell("ping -6 -c 1 -W 5 fd00:99::1").await;
    let (_, told) = node.offline_verb(&["doctor"]);
    assert!(told.contains("lacks  IPv6"), "{told}");
    assert!(told.contains("sysctl -w net.ipv6.conf.all.disable_ipv6=0"), "{told}");
    one.remove().await;
    set_pod_cidr(&node, &format!("{}0/24", node.network())).await.unwrap();
    drop(node);
}

#[tokio::test]
async fn reset_takes_everything_away_but_not_from_under_a_daemon() {
    let host = Host::new();
    let mut node = Node::start_with(on(&host)).await;
    node.run_pod(pod("pod").port(80, 8080)).await;
    let reset = |node: &Node| node.offline_verb(&["network", "reset"]);
    let (done, text) = reset(&node);
    assert!(!done && text.contains("another lapstrake daemon"), "{text}");
    node.remove_pods().await;
    node.stop();
    let (done, text) = reset(&node);
    assert!(done, "{text}");
    assert!(text.contains(&format!("bridge {}", node.scope.bridge)), "{text}");
    assert_eq!(host.run("ip -br link").lines().count(), 1, "lo");
    assert_eq!(host.run("nft list ruleset"), "");
    assert!(!node.root_dir().join("network").exists());
    node.spawn().await;
    node.finish().await;
}
