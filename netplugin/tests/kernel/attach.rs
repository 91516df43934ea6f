//! Attach and detach: what a pod gets, and that nothing stays behind.

use netplugin::{Error, Network};

use crate::host::{
    address, ask_tcp, eventually, json, link_names, on_a_host, own_netns, request, run, run_in,
    serve_tcp,
};

#[test]
fn a_pod_has_a_link_an_address_and_a_default_route() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        network.ready().unwrap();
        let pod = network.attach(&request("pod")).unwrap();
        assert_eq!(pod.interface, "eth0");
        assert_eq!(pod.addresses[0].to_string(), "10.9.0.2/24");
        assert_eq!(pod.gateways[0].to_string(), "10.9.0.1");

        let links: serde_json::Value =
            serde_json::from_str(&run_in(&pod.netns, "ip -j addr show eth0")).unwrap();
        let mac: Vec<String> = pod.mac.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(links[0]["address"], mac.join(":"));
        assert_eq!(links[0]["operstate"], "UP");
        let addresses = links[0]["addr_info"].as_array().unwrap();
        assert_eq!(addresses.len(), 1, "only IPv4 on a pod without an IPv6 range: {addresses:?}");
        assert_eq!(addresses[0]["local"], "10.9.0.2");
        assert_eq!(addresses[0]["prefixlen"], 24);
        assert!(run_in(&pod.netns, "ip route").contains("default via 10.9.0.1 dev eth0"));
        assert!(run_in(&pod.netns, "ip -br addr show lo").contains("127.0.0.1"));

        let port = json(&format!("ip -d -j link show {}", pod.host_link));
        assert_eq!(port[0]["master"], "br-test");
        assert_eq!(port[0]["linkinfo"]["info_slave_data"]["hairpin"], true);
        assert_eq!(port[0]["promiscuity"].as_i64(), Some(1), "what a bridge asks of its ports");
        assert_eq!(run("cat /proc/sys/net/ipv4/ip_forward").trim(), "1");
        run_in(&pod.netns, "busybox ping -c 1 -W 2 10.9.0.1");
    });
}

#[test]
fn pods_reach_each_other_and_the_world_sees_the_node() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let network = host.network(&["10.9.0.0/24"]);
        let one = network.attach(&request("one")).unwrap();
        let two = network.attach(&request("two")).unwrap();
        serve_tcp(&two.netns, "0.0.0.0:80");
        serve_tcp(&world, "0.0.0.0:80");
        let to = format!("{}:80", address(&two, "0.0.0.0"));
        assert_eq!(ask_tcp(&one.netns, &to).unwrap(), "10.9.0.2", "no masquerade between pods");
        assert_eq!(ask_tcp(&own_netns(), &to).unwrap(), "10.9.0.1");
        assert_eq!(ask_tcp(&one.netns, "192.168.7.2:80").unwrap(), "192.168.7.1");
    });
}

#[test]
fn a_detached_pod_leaves_nothing() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let before = network.attach(&request("first")).unwrap();
        let pod = network.attach(&request("pod")).unwrap();
        let pods = || json("nft -j list set inet test pods4")["nftables"][1]["set"]["elem"].clone();
        assert_eq!(pods().as_array().unwrap().len(), 2);
        network.detach("pod").unwrap();
        network.detach("pod").unwrap();
        network.detach("never-seen").unwrap();
        assert_eq!(pods(), serde_json::json!(["10.9.0.2"]));
        let link = pod.host_link.clone();
        drop(pod);
        eventually("removal of the host link", || !link_names().contains(&link));
        assert!(link_names().contains(&before.host_link));
    });
}

#[test]
fn addresses_end_with_a_clear_error() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/29"]);
        let pods: Vec<_> =
            (0..5).map(|n| network.attach(&request(&format!("p{n}"))).unwrap()).collect();
        let links = link_names();
        let error = network.attach(&request("one-too-many")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no free address in 10.9.0.0/29: all 5 usable addresses are leased"
        );
        assert_eq!(link_names(), links);
        network.detach("p1").unwrap();
        let again = network.attach(&request("another")).unwrap();
        assert_eq!(again.addresses, pods[1].addresses);
    });
}

#[test]
fn leases_survive_the_daemon() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let pod = network.attach(&request("pod")).unwrap();
        drop(network);
        let network = host.network(&["10.9.0.0/24"]);
        assert!(matches!(network.attach(&request("pod")), Err(Error::Attached(_))));
        let other = network.attach(&request("other")).unwrap();
        assert_ne!(pod.addresses, other.addresses);
        serve_tcp(&pod.netns, "0.0.0.0:80");
        ask_tcp(&other.netns, &format!("{}:80", address(&pod, "0.0.0.0"))).unwrap();
    });
}

#[test]
fn garbage_is_what_is_not_live() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let live = network.attach(&request("live")).unwrap();
        let dead = network.attach(&request("dead")).unwrap();
        drop(network);
        // The namespace of the dead pod is still held, here by this test.
        let network = host.network(&["10.9.0.0/24"]);
        assert_eq!(network.gc(&["live".to_owned()]).unwrap(), ["dead"]);
        assert!(!link_names().contains(&dead.host_link));
        assert!(link_names().contains(&live.host_link));
        assert_eq!(
            json("nft -j list set inet test pods4")["nftables"][1]["set"]["elem"],
            serde_json::json!(["10.9.0.2"])
        );
        assert_eq!(network.gc(&["live".to_owned()]).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn reset_removes_everything() {
    on_a_host(|host| {
        let config = host.config(&["10.9.0.0/24"]);
        let network = Network::open(config.clone()).unwrap();
        let _pod = network.attach(&request("pod")).unwrap();
        drop(network);
        Network::reset(&config).unwrap();
        assert_eq!(link_names(), ["lo"]);
        assert_eq!(run("nft list ruleset"), "");
        assert!(!config.leases_dir.exists());
        Network::reset(&config).unwrap();
    });
}
