//! What others do to us: names taken, tables flushed, bridges deleted, neighbours on one machine.

use std::os::fd::AsFd;

use netplugin::{AttachRequest, Config, LinkOptions, Network, PortMapping, Protocol};
use nix::sched::{CloneFlags, unshare};

use crate::host::{
    address, ask_tcp, eventually, json, link_names, on_a_host, request, request_with, run,
    serve_tcp,
};

#[test]
fn a_flushed_table_is_put_back_with_all_its_pods() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let network = host.network(&["10.9.0.0/24"]);
        let one = network.attach(&request("one")).unwrap();
        run("nft flush ruleset");
        let _two = network.attach(&request("two")).unwrap();
        assert_eq!(
            json("nft -j list set inet test pods4")["nftables"][1]["set"]["elem"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        serve_tcp(&world, "0.0.0.0:80");
        assert_eq!(ask_tcp(&one.netns, "192.168.7.2:80").unwrap(), "192.168.7.1");
        run("nft flush ruleset");
        network.detach("one").unwrap();
        network.detach("two").unwrap();
    });
}

#[test]
fn a_deleted_bridge_is_made_again_for_the_next_pod() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let one = network.attach(&request("one")).unwrap();
        run("ip link del br-test");
        let two = network.attach(&request("two")).unwrap();
        let three = network.attach(&request("three")).unwrap();
        serve_tcp(&two.netns, "0.0.0.0:80");
        let to = format!("{}:80", address(&two, "0.0.0.0"));
        ask_tcp(&three.netns, &to).unwrap();
        ask_tcp(&one.netns, &to).unwrap();
    });
}

#[test]
fn repair_puts_back_what_others_removed_and_says_so() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        assert_eq!(network.repair().unwrap(), Vec::<String>::new());
        assert_eq!(link_names(), ["lo"], "nothing to do without pods");
        let one = network.attach(&request("one")).unwrap();
        let two = network.attach(&request("two")).unwrap();
        let verify = || network.verify("one", one.netns.as_fd(), "eth0").map_err(|e| e.to_string());
        assert_eq!(network.repair().unwrap(), Vec::<String>::new());
        verify().unwrap();

        run("nft delete table inet test");
        assert!(verify().unwrap_err().contains("set test pods4"));
        let done = network.repair().unwrap();
        assert_eq!(done, ["the nftables table was missing: table test written again"]);
        run("nft delete element inet test pods4 { 10.9.0.2 }");
        let done = network.repair().unwrap().join(" ");
        assert!(done.contains("pod default/one") && done.contains("pods4"), "{done}");
        run("ip link del br-test");
        assert!(verify().unwrap_err().contains("bridge br-test is missing"));
        let done = network.repair().unwrap();
        assert_eq!(done, ["bridge br-test was gone or down: set up again"]);
        verify().unwrap();
        assert_eq!(network.repair().unwrap(), Vec::<String>::new());
        serve_tcp(&two.netns, "0.0.0.0:80");
        ask_tcp(&one.netns, &format!("{}:80", address(&two, "0.0.0.0"))).unwrap();
    });
}

#[test]
fn a_pod_whose_link_was_deleted_gets_the_same_one_again() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        let one = network.attach(&request("one")).unwrap();
        let two = network.attach(&request("two")).unwrap();
        let none = Vec::<String>::new();
        assert_eq!((network.repair().unwrap(), network.lost_links()), (none.clone(), none.clone()));
        run(&format!("ip link set {} nomaster", one.host_link));
        run(&format!("ip link set {} down", two.host_link));
        let done = network.repair().unwrap().join(" ");
        let off = |link: &str, pod: &str| {
            done.contains(&format!("link {link} of pod default/{pod} was off the bridge"))
        };
        assert!(off(&one.host_link, "one") && off(&two.host_link, "two"), "{done}");
        assert_eq!(network.repair().unwrap(), none);
        serve_tcp(&two.netns, "[::]:80");
        let reach = |pod: &netplugin::Attachment| {
            ask_tcp(&pod.netns, &format!("{}:80", address(&two, "0.0.0.0"))).unwrap();
            ask_tcp(&pod.netns, &format!("[{}]:80", address(&two, "::"))).unwrap();
        };
        reach(&one);

        run(&format!("ip link del {}", one.host_link));
        network.repair().unwrap();
        assert_eq!(network.lost_links(), ["one"]);
        let options = LinkOptions::default();
        let done = network.restore_link("one", one.netns.as_fd(), &options).unwrap();
        assert!(done.contains("of pod default/one was gone: made again"), "{done}");
        network.verify("one", one.netns.as_fd(), "eth0").unwrap();
        reach(&one);
        network.repair().unwrap();
        assert_eq!(network.lost_links(), none);
        let error = network.restore_link("nobody", one.netns.as_fd(), &options).unwrap_err();
        assert!(error.to_string().contains("its lease is missing"), "{error}");
    });
}

#[test]
fn a_bridge_name_taken_by_another_link_is_refused() {
    on_a_host(|host| {
        run("ip link add br-test type veth peer name other");
        let before = link_names();
        let network = host.network(&["10.9.0.0/24"]);
        let reason = "link br-test cannot be the pod bridge: it is a veth link; \
                      set network.bridge to another name";
        assert_eq!(network.ready().unwrap_err(), reason);
        assert_eq!(network.attach(&request("pod")).unwrap_err().to_string(), reason);
        assert_eq!(link_names(), before);
        assert_eq!(run("nft list ruleset"), "");
        run("ip link del br-test");
        network.attach(&request("pod")).unwrap();
    });
}

#[test]
fn forwarding_that_is_forbidden_is_said() {
    on_a_host(|host| {
        run("sysctl -qw net.ipv4.ip_forward=0");
        // Settings of the kernel that cannot be written, for this thread alone.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        run("mount --make-rprivate /");
        run("mount --bind /proc/sys /proc/sys");
        run("mount -o remount,bind,ro /proc/sys");
        let network = host.network(&["10.9.0.0/24"]);
        let expected = "enable forwarding in /proc/sys/net/ipv4/ip_forward: Read-only file system";
        let reason = network.ready().unwrap_err();
        assert!(reason.starts_with(expected), "{reason}");
        let error = network.attach(&request("pod")).unwrap_err().to_string();
        assert!(error.contains("ip_forward") && error.contains("Read-only"), "{error}");
        assert_eq!(link_names(), ["lo"]);
        assert!(network.addresses("pod").is_empty());
    });
}

#[test]
fn a_host_port_without_an_address_of_its_family_is_refused() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let port = PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: Some("fd00::1".parse().unwrap()),
        };
        let error = network.attach(&request_with("pod", vec![port])).unwrap_err().to_string();
        let expected = "port mapping [fd00::1]:8080/tcp: the pod has no address of its family";
        assert_eq!(error, expected);
        assert!(network.addresses("pod").is_empty());
    });
}

#[test]
fn daemons_on_one_machine_leave_each_other_alone() {
    on_a_host(|host| {
        let config = |n: u8| Config {
            bridge: format!("br{n}"),
            table: format!("table{n}"),
            leases_dir: host.dir.path().join(format!("{n}")),
            ..host.config(&[&format!("10.{n}.0.0/24")])
        };
        let networks: Vec<_> = (1..4).map(|n| Network::open(config(n)).unwrap()).collect();
        let pods: Vec<_> =
            networks.iter().map(|n| n.attach(&request("same-id")).unwrap()).collect();
        assert_eq!(networks[0].gc(&[]).unwrap(), ["same-id"]);
        let links = link_names();
        assert!(!links.contains(&pods[0].host_link));
        assert!(links.contains(&pods[1].host_link) && links.contains(&pods[2].host_link));
        drop(networks);
        Network::reset(&config(2)).unwrap();
        let links = link_names();
        assert!(!links.contains(&"br2".to_owned()) && links.contains(&"br3".to_owned()));
        assert!(run("nft list tables").contains("table3"));
        let theirs = Network::open(Config { bridge: "br3".into(), ..config(1) }).unwrap();
        let error = theirs.attach(&request("pod")).unwrap_err().to_string();
        assert!(error.contains("belongs to another daemon"), "{error}");
    });
}

#[test]
fn the_same_sandbox_can_come_back_before_its_old_link_is_gone() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let old = network.attach(&request("pod")).unwrap();
        network.detach("pod").unwrap();
        let new = network.attach(&request("pod")).unwrap();
        assert_ne!(old.host_link, new.host_link);
        assert_ne!(old.addresses, new.addresses);
    });
}

#[test]
fn a_foreign_firewall_that_drops_is_noticed_and_can_be_opened() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        serve_tcp(&world, "0.0.0.0:80");
        let config = host.config(&["10.9.0.0/24"]);
        let network = Network::open(config.clone()).unwrap();
        let pod = network.attach(&request("pod")).unwrap();
        let reach = || ask_tcp(&pod.netns, "192.168.7.2:80");
        network.ready().unwrap();
        reach().unwrap();

        run("nft add table inet firewall");
        run(
            "nft add chain inet firewall guard { type filter hook forward priority 0; policy drop; }",
        );
        run("iptables -P FORWARD DROP");
        reach().unwrap_err();
        let reason = network.ready().unwrap_err();
        assert!(reason.contains("inet firewall guard, ip filter FORWARD"), "{reason}");

        let mut opened = network.admit_forwarding().unwrap();
        opened.sort_unstable();
        assert_eq!(opened, ["inet firewall guard", "ip filter FORWARD"]);
        network.ready().unwrap();
        assert_eq!(network.admit_forwarding().unwrap(), Vec::<String>::new());
        reach().unwrap();
        let rules = run("iptables -S FORWARD");
        assert!(rules.contains("-A FORWARD -i br-test") && rules.contains("-j ACCEPT"), "{rules}");

        drop(network);
        Network::reset(&config).unwrap();
        assert_eq!(run("iptables -S FORWARD").trim(), "-P FORWARD DROP");
        assert!(!run("nft list table inet firewall").contains("br-test"));
        // Rules an administrator wrote count as well.
        let network = Network::open(config).unwrap();
        run("nft flush ruleset");
        run("iptables -P FORWARD DROP");
        network.ready().unwrap_err();
        run("iptables -I FORWARD -i br-test -j ACCEPT");
        network.ready().unwrap_err();
        run("iptables -I FORWARD -o br-test -j ACCEPT");
        network.ready().unwrap();
    });
}

#[test]
fn a_failed_attach_leaves_nothing() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        network.attach(&request("first")).unwrap();
        eventually("the end of the first pod's link", || link_names().len() == 2);
        let before = run("nft list table inet test");
        // Refused by the kernel with the pair, and after the pair is made.
        let netns = Network::loopback_only(None).unwrap();
        for (interface, stage) in [("a-name-that-is-too-long", "create veth pair"), ("lo", "veth")]
        {
            let request = AttachRequest {
                netns: Some(netns.try_clone().unwrap()),
                ..request_with("pod", vec![])
            };
            let options =
                LinkOptions { interface: Some(interface.to_owned()), ..LinkOptions::default() };
            let error = network.attach_with(&request, &options).unwrap_err().to_string();
            assert!(error.contains(stage) && error.contains(interface), "{error}");
        }
        let port = PortMapping {
            protocol: Protocol::Tcp,
            container_port: 0,
            host_port: 80,
            host_ip: None,
        };
        network.attach(&request_with("pod", vec![port])).unwrap_err();
        assert_eq!(link_names().len(), 2);
        assert_eq!(run("nft list table inet test"), before);
        assert!(network.addresses("pod").is_empty());
        network.attach(&request("pod")).unwrap();
    });
}
