//! A node whose kernel has no nf_tables: one guest of the vm ring is booted so. Nothing there is to
//! fail in silence, and what needs no table is to work.

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::{Node, Options, container, host, image, pod};
use tonic::Code;

use crate::refused::refused;

const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";

/// A plugin of the cluster's that makes links and no rules.
const ROUTED: &str = r#"{"cniVersion":"1.0.0","name":"routed","plugins":[
  {"type":"bridge","bridge":"{bridge}","isGateway":true,
   "ipam":{"type":"host-local","dataDir":"{dir}/ipam","ranges":[[{"subnet":"{net}.0/24"}]]}}]}"#;

#[tokio::test]
async fn pods_of_the_built_in_network_are_refused_with_the_reason_and_others_run() {
    if host::has_nf_tables() {
        println!("SKIPPED: this kernel has nf_tables, `make test-vm` has one without");
        return;
    }
    says_so_and_runs_pods_on_the_nodes_network("look into table").await;

    // And where the kernel cannot even be asked.
    fs::write("/etc/modprobe.d/no-netfilter.conf", "install nfnetlink /bin/false\n").unwrap();
    let unloaded = Command::new("rmmod").arg("nfnetlink").status().unwrap();
    assert!(unloaded.success(), "rmmod nfnetlink");
    says_so_and_runs_pods_on_the_nodes_network("open socket netfilter netlink").await;
    fs::remove_file("/etc/modprobe.d/no-netfilter.conf").unwrap();
}

async fn says_so_and_runs_pods_on_the_nodes_network(stage: &str) {
    let forwarding = fs::read_to_string(FORWARDING).unwrap();
    let mut node = Node::cold(Options::default()).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let why = [stage, "this kernel has no nf_tables", "try modprobe nf_tables"];
    let reason = node.network_ready().await.unwrap_err();
    assert!(why.iter().all(|word| reason.contains(word)), "{reason}");
    let (is_well, text) = node.offline_verb(&["doctor"]);
    assert!(!is_well, "{text}");
    let mut lines = text.lines().skip_while(|line| !line.starts_with("BROKEN pod network"));
    let (says, fix) = (lines.next().unwrap_or(&text), lines.next().unwrap_or(&text));
    assert!(says.contains(stage) && fix.contains("network.mode = \"cni\""), "{text}");

    // Whatever runs its first pod opens the shim and fills caches; then the oracle can be strict.
    let host_pod = node.run_pod(pod("host").host_network()).await;
    let main = container("main", image::BUSYBOX).host_network().shell("sleep 1000");
    let main = host_pod.start(&main).await;
    let host = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
    assert_eq!(main.shell("readlink /proc/self/ns/net").await, host);
    let before = node.scope.snapshot(node.pid());
    for spec in [pod("plain"), pod("web").port(80, 8080)] {
        let name = format!("default/{}", spec.config.metadata.as_ref().unwrap().name);
        let refusal = node.try_run_pod(spec).await.map(drop);
        let words = [&[name.as_str()][..], &why].concat();
        refused(refusal, Code::Unavailable, &words);
    }
    node.scope.assert_same(&before, node.pid());
    assert!(!Path::new("/sys/class/net").join(&node.scope.bridge).exists());
    assert_eq!(fs::read_to_string(FORWARDING).unwrap(), forwarding, "nothing half-done");

    // The next daemon has no more to say, and the pod does not notice.
    node.kill9();
    node.spawn().await;
    assert_eq!(main.shell("echo here").await, "here");
    node.network_ready().await.unwrap_err();
    assert!(!node.log().contains("could not collect"), "{}", node.log());
    node.remove_pods().await;
    assert!(node.stop().success());
    let (done, text) = node.offline_verb(&["network", "reset"]);
    assert!(done, "{text}");
    assert!(!node.root_dir().join("network").exists());
    node.scope.assert_gone();
}

#[tokio::test]
async fn plugins_that_make_no_rules_give_pods_a_network() {
    if host::has_nf_tables() {
        println!("SKIPPED: this kernel has nf_tables, `make test-vm` has one without");
        return;
    }
    let conf = vec![("10-routed.conflist", ROUTED.to_owned())];
    let node = Node::start_with(Options { network_mode: "cni", conf, ..Options::default() }).await;
    node.import(&image::busybox(), image::BUSYBOX).await;
    let (_, text) = node.offline_verb(&["doctor"]);
    assert!(!text.contains("nf_tables") && text.contains("network routed"), "{text}");
    let pod = node.run_pod(pod("pod")).await;
    assert!(pod.address().await.starts_with(&node.network()));
    let main = pod.start(&container("main", image::BUSYBOX).shell("sleep 1000")).await;
    main.shell(&format!("ping -c 1 -W 5 {}1", node.network())).await;
    node.finish().await;
}
