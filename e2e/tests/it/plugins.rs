//! The pod network made by the cluster's own plugins: Debian's, and some that misbehave. Each node
//! has a host of its own, for plugins leave their base chains on it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use e2e::{Host, Node, Options, Pod, container, guest, image, pod, wait, wire};
use k8s_cri::v1 as cri;
use tonic::Code;

use crate::refused::refused;

/// A plugin may be asked how it is, and a debt be paid, in its own time.
const SOON: Duration = Duration::from_secs(30);

/// What a cluster has.
const CLUSTER: &str = r#"{"cniVersion":"1.0.0","name":"cluster","plugins":[
  {"type":"bridge","bridge":"{bridge}","isGateway":true,"ipMasq":true,"hairpinMode":true,
   "ipam":{"type":"host-local","dataDir":"{dir}/ipam","ranges":[[{"subnet":"{net}.0/24"}]],
           "routes":[{"dst":"0.0.0.0/0"}]}},
  {"type":"portmap","capabilities":{"portMappings":true}},
  {"type":"bandwidth","capabilities":{"bandwidth":true}},
  {"type":"firewall"},
  {"type":"tuning","sysctl":{"net.core.somaxconn":"500"}},
  {"type":"loopback"}{more}]}"#;

/// Needs nothing: one address for all.
const SIMPLE: &str = r#"{"cniVersion":"1.0.0","name":"simple","plugins":[{"type":"simple"}]}"#;
const SIMPLE_PLUGIN: &str = r#"
dir=$(dirname $(dirname $0))
echo $CNI_COMMAND $CNI_CONTAINERID "$CNI_NETNS" >> $dir/calls
[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}'
exit 0
"#;

fn options(host: &Host, mode: &'static str, conf: &[(&'static str, &str)]) -> Options {
    Options {
        network_mode: mode,
        netns: Some(host.name.clone()),
        conf: conf.iter().map(|(name, text)| (*name, (*text).to_owned())).collect(),
        ..Options::default()
    }
}

/// A node whose only plugin is a script.
async fn simple_node(host: &Host, network: &str) -> Node {
    let conf = [("10-simple.conflist", SIMPLE)];
    let options = Options { network: network.to_owned(), ..options(host, "cni", &conf) };
    let node = Node::prepared(options, |node| node.add_plugin("simple", SIMPLE_PLUGIN)).await;
    until_ready(&node, true).await;
    node
}

fn calls(node: &Node) -> String {
    fs::read_to_string(node.plugins_dir().join("calls")).unwrap_or_default()
}

/// The file stays, for the oracle.
fn forget_calls(node: &Node) {
    fs::write(node.plugins_dir().join("calls"), "").unwrap();
}

fn pin(node: &Node, pod: &Pod) -> PathBuf {
    node.plugins_dir().join("netns").join(format!("lapstrake-{}", pod.id))
}

async fn until_ready(node: &Node, wanted: bool) {
    wait::until_async(&format!("NetworkReady={wanted}"), SOON, || async {
        (node.network_ready().await.is_ok() == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn pods_live_on_a_chain_of_debians_plugins() {
    let (host, world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let conf = CLUSTER.replace("{more}", "");
    let node = Node::start_with(options(&host, "cni", &[("10-cluster.conflist", &conf)])).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    node.import(&image::nginx(), image::NGINX).await;
    until_ready(&node, true).await;

    let mut spec = pod("web").port(80, 8080);
    let limit = |key: &str| (format!("kubernetes.io/{key}-bandwidth"), "10M".to_owned());
    spec.config.annotations.extend([limit("ingress"), limit("egress")]);
    let web = node.run_pod(spec).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let other = node.run_pod(pod("other")).await;
    let other = other.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    let address = web.address().await;
    assert!(address.starts_with(&node.network()), "{address}");

    let page = |url: &str| (world.fetch(url) == "served by nginx\n").then_some(());
    wait::until("the host port answers", SOON, || page("http://198.18.1.1:8080/"));
    let fetch = format!("wget -qO- http://{address}/");
    assert_eq!(other.shell(&fetch).await, "served by nginx");
    // What other processes of a cluster need: a path to the namespace, and the standard cache.
    let links = wire::run_in(&pin(&node, &web), "ip -j addr show eth0");
    assert!(links.contains(&address), "{links}");
    let backlog = wire::run_in(&pin(&node, &web), "cat /proc/sys/net/core/somaxconn");
    assert_eq!(backlog.trim(), "500", "tuning");
    assert!(host.run("tc qdisc").contains("tbf"), "bandwidth");
    assert!(host.run("iptables -S CNI-FORWARD").contains(&address), "firewall");
    let results = node.plugins_dir().join("cache/results");
    let cached = fs::read_to_string(results.join(format!("cluster-{}-eth0", web.id))).unwrap();
    let cached: serde_json::Value = serde_json::from_str(&cached).unwrap();
    assert_eq!(cached["kind"], "cniCacheV1");
    assert_eq!(cached["result"]["ips"][0]["address"], format!("{address}/24"));

    web.remove().await;
    assert_eq!(world.fetch("http://198.18.1.1:8080/"), "", "the port is closed again");
    node.finish().await;
}

#[tokio::test]
async fn a_pod_can_be_in_several_networks_of_other_kinds() {
    let (host, _world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let ptp = r#"{"cniVersion":"0.3.1","name":"routed","type":"ptp","ipam":{"type":"host-local",
                  "dataDir":"{dir}/ipam","subnet":"{net}.0/24","routes":[{"dst":"0.0.0.0/0"}]}}"#;
    let macvlan = r#"{"cniVersion":"0.4.0","name":"wire","type":"macvlan","master":"uplink","ipam":
                      {"type":"static","addresses":[{"address":"198.18.1.77/24"}]}}"#;
    let node = Node::start_with(Options {
        network: "cni_networks_max = 2".to_owned(),
        ..options(&host, "cni", &[("10-ptp.conf", ptp), ("20-macvlan.conf", macvlan)])
    })
    .await;
    let pod = node.run_pod(pod("pod")).await;
    let address = pod.address().await;
    assert!(address.starts_with(&node.network()), "eth0's: {address}");
    let inside = |line: &str| wire::run_in(&pin(&node, &pod), line);
    assert!(inside("ip addr show eth0").contains(&address));
    assert!(inside("ip -d addr show eth1").contains("macvlan"));
    inside("busybox ping -c 1 -W 5 198.18.1.2");
    host.run(&format!("busybox ping -c 1 -W 5 {address}"));
    node.finish().await;
}

#[tokio::test]
async fn ipvlan_and_vrf_are_plugins_like_any_other() {
    if !guest::inside() {
        println!("SKIPPED: the kernel may lack ipvlan and vrf, that of `make test-vm` has them");
        return;
    }
    let (host, _world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let conf = r#"{"cniVersion":"1.0.0","name":"wire","plugins":[
        {"type":"ipvlan","master":"uplink","mode":"l2","ipam":
         {"type":"static","addresses":[{"address":"198.18.1.78/24"}]}},
        {"type":"vrf","vrfname":"blue"}]}"#;
    let node = Node::start_with(options(&host, "cni", &[("10-wire.conflist", conf)])).await;
    let pod = node.run_pod(pod("pod")).await;
    assert_eq!(pod.address().await, "198.18.1.78");
    let inside = |line: &str| wire::run_in(&pin(&node, &pod), line);
    let link = inside("ip -d link show eth0");
    assert!(link.contains("ipvlan") && link.contains("master blue"), "{link}");
    inside("busybox ping -I blue -c 1 -W 5 198.18.1.2");
    node.finish().await;
}

#[tokio::test]
async fn plugins_are_told_whose_link_they_make() {
    let host = Host::new();
    let node = simple_node(&host, "").await;
    node.add_plugin(
        "simple",
        &format!("echo \"$CNI_ARGS\" > $(dirname $0)/../args; {SIMPLE_PLUGIN}"),
    );
    let pod = node.run_pod(pod("web")).await;
    assert_eq!(pod.address().await, "10.9.9.9");
    let metadata = pod.status().await.metadata.unwrap();
    let args = fs::read_to_string(node.plugins_dir().join("args")).unwrap();
    assert_eq!(
        args.trim(),
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;\
             K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            pod.id, metadata.uid
        )
    );
    // The witness goes first: it notes whatever is asked of it.
    node.add_plugin("simple", SIMPLE_PLUGIN);
    pod.remove().await;
    let expected = format!("DEL {} {}", pod.id, pin(&node, &pod).display());
    assert!(calls(&node).trim_end().ends_with(&expected), "{}", calls(&node));
    fs::remove_file(node.plugins_dir().join("args")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_node_without_a_configuration_says_so_and_pods_wait_for_one() {
    let host = Host::new();
    let options =
        Options { network: "cni_wait_seconds = 20".to_owned(), ..options(&host, "cni", &[]) };
    let mut node = Node::cold(options).await;
    forget_calls(&node);
    let reason = node.network_ready().await.unwrap_err();
    let expected = "Network plugin returns error: no network configuration in";
    assert!(reason.starts_with(expected), "{reason}");
    // A network add-on's own pods run on the node's network.
    node.run_pod(pod("add-on").host_network()).await.remove().await;
    node.rebase();
    node.add_plugin("simple", SIMPLE_PLUGIN);
    let waiting = node.run_pod(pod("waiting"));
    let conf = async {
        // Broken at first, as a file that is being written.
        node.add_conf("10-simple.conflist", "{");
        wait::until_async("the broken file is noticed", SOON, || async {
            let reason = node.network_ready().await.unwrap_err();
            reason.contains("10-simple.conflist").then_some(())
        })
        .await;
        node.add_conf("10-simple.conflist", SIMPLE);
    };
    let (pod, ()) = tokio::join!(waiting, conf);
    until_ready(&node, true).await;
    // A pod leaves by what it came with, whatever the directory holds then.
    fs::remove_file(node.plugins_dir().join("conf.d/10-simple.conflist")).unwrap();
    until_ready(&node, false).await;
    pod.remove().await;
    assert!(calls(&node).contains("DEL"), "{}", calls(&node));
    forget_calls(&node);
    fs::remove_file(node.plugins_dir().join("bin/simple")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_pod_does_not_wait_for_ever_and_a_plugin_that_hangs_is_named() {
    let host = Host::new();
    let network = "cni_wait_seconds = 0\ncni_timeout_seconds = 1";
    let node = simple_node(&host, network).await;
    let before = node.scope.snapshot(node.pid());
    node.add_plugin("simple", "[ $CNI_COMMAND = DEL ] || sleep 1000");
    let error = node.try_run_pod(pod("stuck")).await.map(|_| ());
    let texts = ["default/stuck", "ADD of plugin simple", "did not end within 1 s"];
    refused(error, Code::Unavailable, &texts);
    node.scope.assert_same(&before, node.pid());
    fs::remove_file(node.plugins_dir().join("conf.d/10-simple.conflist")).unwrap();
    until_ready(&node, false).await;
    let error = node.try_run_pod(pod("lost")).await.map(|_| ());
    refused(
        error,
        Code::Unavailable,
        &["default/lost", "no network configuration in", "waited 0 s"],
    );
    node.add_conf("10-simple.conflist", SIMPLE);
    node.add_plugin("simple", SIMPLE_PLUGIN);
    until_ready(&node, true).await;
    forget_calls(&node);
    node.finish().await;
}

#[tokio::test]
async fn a_network_that_is_not_taken_back_keeps_no_pod_and_is_owed() {
    let host = Host::new();
    let conf = CLUSTER.replace("{more}", r#",{"type":"fragile"}"#);
    let fragile = "[ $CNI_COMMAND != ADD ] || exec /usr/lib/cni/tuning";
    let options = options(&host, "cni", &[("10-cluster.conflist", &conf)]);
    let mut node = Node::prepared(options, |node| node.add_plugin("fragile", fragile)).await;
    let leased = |node: &Node| {
        let files = fs::read_dir(node.plugins_dir().join("ipam/cluster")).unwrap().flatten();
        files.filter(|it| it.file_name().to_string_lossy().starts_with("10.")).count()
    };
    let debt = |node: &Node| node.metric("lapstrake_network_debt ").unwrap();
    let pod = node.run_pod(pod("pod")).await;
    fs::remove_file(node.plugins_dir().join("bin/fragile")).unwrap();
    until_ready(&node, false).await;
    pod.stop().await;
    pod.remove().await;
    assert_eq!((debt(&node).as_str(), leased(&node)), ("1", 1));
    let info = node.cri.runtime.clone().status(cri::StatusRequest { verbose: true }).await.unwrap();
    let info = &info.into_inner().info["config"];
    assert!(info.contains("default/pod") && info.contains("there is no such program"), "{info}");
    let why = node.verb(&["why", "default/pod"]);
    let why = String::from_utf8_lossy(&why.stdout);
    assert!(why.contains("network not given back: default/pod"), "{why}");

    node.kill9();
    node.spawn().await;
    wait::until("the debt is remembered", SOON, || (debt(&node) == "1").then_some(()));
    node.add_plugin("fragile", fragile);
    wait::until("the debt is paid", SOON, || (debt(&node) == "0").then_some(()));
    assert_eq!(leased(&node), 0);
    node.finish().await;
}

#[tokio::test]
async fn what_a_crash_left_of_an_add_is_taken_back() {
    let host = Host::new();
    let mut node = simple_node(&host, "").await;
    forget_calls(&node);
    // The daemon dies while the plugin works.
    node.add_plugin(
        "simple",
        "dir=$(dirname $(dirname $0)); echo $CNI_COMMAND >> $dir/calls; \
         [ $CNI_COMMAND = ADD ] || exit 0; while [ ! -e $dir/go ]; do sleep 0.05; done",
    );
    let attempt = node.try_run_pod(pod("pod"));
    let crash = async {
        wait::until_async("the plugin is called", SOON, || async {
            calls(&node).contains("ADD").then_some(())
        })
        .await;
    };
    tokio::select! {
        _ = attempt => panic!("the plugin does not answer"),
        () = crash => {}
    }
    node.kill9();
    fs::write(node.plugins_dir().join("go"), "").unwrap();
    node.spawn().await;
    wait::until("DEL after the start", SOON, || calls(&node).contains("DEL").then_some(()));
    let book = node.root_dir().join("cni");
    let records = || fs::read_dir(&book).unwrap().count();
    wait::until("the record is gone", SOON, || (records() == 0).then_some(()));
    node.add_plugin("simple", SIMPLE_PLUGIN);
    fs::remove_file(node.plugins_dir().join("go")).unwrap();
    // As after the loss of the state directory, which a reboot brings.
    let pod = node.run_pod(pod("pod")).await;
    let shim = node.shim_of(&pod);
    node.kill9();
    let kill = |pid: i32| {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    };
    node.scope.pids(None).into_iter().chain([shim]).for_each(kill);
    fs::remove_dir_all(node.state_dir().join("pods")).unwrap();
    forget_calls(&node);
    node.spawn().await;
    let expected = format!("DEL {}", pod.id);
    wait::until("DEL after the reboot", SOON, || calls(&node).contains(&expected).then_some(()));
    wait::until("the record is gone", SOON, || (records() == 0).then_some(()));
    // The cgroups stay here; a reboot would take them.
    node.rebase();
    forget_calls(&node);
    node.run_pod(e2e::pod("after")).await;
    node.finish().await;
}

#[tokio::test]
async fn auto_decides_at_the_first_pod_and_again_when_none_is_left() {
    let host = Host::new();
    let mut node = Node::prepared(options(&host, "auto", &[]), forget_calls).await;
    node.add_plugin("simple", SIMPLE_PLUGIN);
    node.network_ready().await.unwrap();
    let built_in = node.run_pod(pod("built-in")).await;
    assert!(built_in.address().await.starts_with(&node.network()));
    node.add_conf("10-simple.conflist", SIMPLE);
    node.kill9();
    node.spawn().await;
    let second = node.run_pod(pod("second")).await;
    assert!(second.address().await.starts_with(&node.network()), "beside the first");
    second.remove().await;
    built_in.remove().await;
    let plugged = node.run_pod(pod("plugged")).await;
    assert_eq!(plugged.address().await, "10.9.9.9");
    fs::remove_file(node.plugins_dir().join("conf.d/10-simple.conflist")).unwrap();
    until_ready(&node, false).await;
    plugged.remove().await;
    assert!(calls(&node).contains("DEL"));
    until_ready(&node, true).await;
    let built_in = node.run_pod(pod("again")).await;
    assert!(built_in.address().await.starts_with(&node.network()));
    forget_calls(&node);
    fs::remove_file(node.plugins_dir().join("bin/simple")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_template_becomes_the_network_when_the_kubelet_sends_its_pod_cidr() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("template");
    let text = r#"{"cniVersion":"1.0.0","name":"templated","plugins":[{"type":"bridge",
        "bridge":"lst0","isGateway":true,"ipam":{"type":"host-local","dataDir":"DIR/ipam",
        "ranges":{{.PodCIDRRanges}},"routes":{{.Routes}}}}]}"#;
    fs::write(&template, text.replace("DIR", &dir.path().display().to_string())).unwrap();
    let network = format!("cni_conf_template = \"{}\"", template.display());
    let mut node = Node::cold(Options { network, ..options(&host, "cni", &[]) }).await;
    node.run_pod(pod("first").host_network()).await.remove().await;
    node.rebase();
    let runtime_config = cri::RuntimeConfig {
        network_config: Some(cri::NetworkConfig { pod_cidr: "10.77.0.0/24,fd00:77::/64".into() }),
    };
    let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(runtime_config) };
    node.cri.runtime.clone().update_runtime_config(request).await.unwrap();
    let pod = node.run_pod(pod("pod")).await;
    let network = pod.status().await.network.unwrap();
    assert_eq!(network.ip, "10.77.0.2");
    assert_eq!(network.additional_ips[0].ip, "fd00:77::2");
    pod.remove().await;
    fs::remove_file(node.plugins_dir().join("conf.d/99-lapstrake.conflist")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_plugin_of_the_newest_version_is_asked_how_it_is_and_collects_garbage() {
    let host = Host::new();
    let conf = SIMPLE.replace("1.0.0", "1.1.0");
    let options = options(&host, "cni", &[("10-simple.conflist", &conf)]);
    let mut node = Node::prepared(options, |node| {
        node.add_plugin("simple", SIMPLE_PLUGIN);
        forget_calls(node);
    })
    .await;
    until_ready(&node, true).await;
    let pod = node.run_pod(pod("pod")).await;
    let why = r#"[ $CNI_COMMAND = STATUS ] || exit 0
        echo '{"cniVersion":"1.1.0","code":50,"msg":"the agent is not there"}'; exit 1"#;
    node.add_plugin("simple", why);
    until_ready(&node, false).await;
    let reason = node.network_ready().await.unwrap_err();
    let expected = "STATUS of plugin simple in network simple: the agent is not there (code 50)";
    assert!(reason.contains(expected), "{reason}");
    node.kill9();
    forget_calls(&node);
    let input = "[ $CNI_COMMAND != GC ] || cat > $(dirname $0)/../gc";
    node.add_plugin("simple", &format!("{input}; {SIMPLE_PLUGIN}"));
    node.spawn().await;
    wait::until("CHECK after the start", SOON, || {
        calls(&node).contains(&format!("CHECK {}", pod.id)).then_some(())
    });
    let gc = fs::read_to_string(node.plugins_dir().join("gc")).unwrap();
    let gc: serde_json::Value = serde_json::from_str(&gc).unwrap();
    let valid = serde_json::json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    assert_eq!(gc["cni.dev/valid-attachments"], valid);
    fs::remove_file(node.plugins_dir().join("gc")).unwrap();
    node.finish().await;
}

#[tokio::test]
async fn a_handler_may_have_a_network_of_its_own() {
    let host = Host::new();
    let other = tempfile::tempdir().unwrap();
    let conf = SIMPLE.replace("simple", "other");
    fs::write(other.path().join("10-other.conflist"), conf).unwrap();
    let handler = format!(
        "[runtime.handlers.special]\npath = \"/usr/sbin/runc\"\ncni_conf_dir = \"{}\"\n",
        other.path().display()
    );
    let conf = [("10-simple.conflist", SIMPLE)];
    let options = Options { config: handler, ..options(&host, "cni", &conf) };
    let node = Node::prepared(options, |node| {
        node.add_plugin("simple", SIMPLE_PLUGIN);
        node.add_plugin("other", &SIMPLE_PLUGIN.replace("10.9.9.9", "10.8.8.8"));
    })
    .await;
    let mut spec = pod("special");
    spec.handler = "special".to_owned();
    assert_eq!(node.run_pod(spec).await.address().await, "10.8.8.8");
    assert_eq!(node.run_pod(pod("usual")).await.address().await, "10.9.9.9");
    node.finish().await;
}

/// Writes down what it is told.
const TOLD: &str = r#"{"cniVersion":"1.0.0","name":"told","plugins":[{"type":"told","capabilities":{
  "ipRanges":true,"dns":true,"aliases":true,"mac":true,"cgroupPath":true,"bandwidth":false}}]}"#;
const TOLD_PLUGIN: &str = r#"
input=$(cat)
[ $CNI_COMMAND = ADD ] || exit 0
echo "$input" > $(dirname $(dirname $0))/told
echo '{"cniVersion":"1.0.0","ips":[{"address":"10.9.9.9/24"}]}'
"#;

#[tokio::test]
async fn a_plugin_is_told_of_the_pod_what_it_declares_and_no_more() {
    let host = Host::new();
    let options = options(&host, "cni", &[("10-told.conflist", TOLD)]);
    let node = Node::prepared(options, |node| node.add_plugin("told", TOLD_PLUGIN)).await;
    let network_config = Some(cri::NetworkConfig { pod_cidr: "10.77.0.0/24".into() });
    let runtime_config = Some(cri::RuntimeConfig { network_config });
    let request = cri::UpdateRuntimeConfigRequest { runtime_config };
    node.cri.runtime.clone().update_runtime_config(request).await.unwrap();
    let spec = pod("pod")
        .hostname("alias")
        .dns(&["10.0.0.10"], &["svc.cluster.local"], &["ndots:5"])
        .annotation("lapstrake.io/mac", "02:00:00:00:00:07")
        .annotation("kubernetes.io/ingress-bandwidth", "1M");
    let pod = node.run_pod(spec).await;
    let told = fs::read_to_string(node.plugins_dir().join("told")).unwrap();
    let mut told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let cgroup = told["runtimeConfig"]["cgroupPath"].take();
    assert_eq!(
        told["runtimeConfig"],
        serde_json::json!({
            "ipRanges": [[{ "subnet": "10.77.0.0/24" }]],
            "dns": {
                "servers": ["10.0.0.10"],
                "searches": ["svc.cluster.local"],
                "options": ["ndots:5"],
            },
            "aliases": ["alias"],
            "mac": "02:00:00:00:00:07",
            "cgroupPath": null,
        })
    );
    assert_eq!(told.get("capabilities"), None, "they are for the runtime");
    let cgroup = cgroup.as_str().unwrap();
    assert!(cgroup.contains(&pod.id), "{cgroup}");
    assert!(!e2e::host::cgroup_dirs(cgroup).is_empty(), "{cgroup} is the pod's");
    node.finish().await;
}

#[tokio::test]
async fn our_own_bridge_is_a_plugin_like_any_other() {
    let (host, world) = Host::pair(&["198.18.1.1/24"], &["198.18.1.2/24"]);
    let conf = r#"{"cniVersion":"1.1.0","name":"ours","plugins":[
        {"type":"lapstrake-bridge","bridge":"{bridge}","ranges":["{net}.0/24"],"dataDir":"{dir}/ipam",
         "capabilities":{"portMappings":true,"bandwidth":true}}]}"#;
    let options = options(&host, "cni", &[("10-ours.conflist", conf)]);
    let node = Node::prepared(options, |node| {
        let plugin = node.plugins_dir().join("bin/lapstrake-bridge");
        let _ = std::os::unix::fs::symlink(e2e::node::binary("lapstrake-bridge"), plugin);
    })
    .await;
    node.import(&image::nginx(), image::NGINX).await;
    until_ready(&node, true).await;
    let web = node.run_pod(pod("web").port(80, 8080)).await;
    let _nginx = web.start(&container("nginx", image::NGINX)).await;
    let page = |url: &str| (world.fetch(url) == "served by nginx\n").then_some(());
    wait::until("the host port answers", SOON, || page("http://198.18.1.1:8080/"));
    let taken = node.try_run_pod(pod("rival").port(80, 8080)).await.map(|_| ());
    refused(taken, Code::Unavailable, &["default/rival", "taken by default/web"]);
    node.finish().await;
}
