//! The table as `nft` reads it: our encoder said to the kernel what we meant.

use netplugin::{Config, Network, PortMapping, Protocol};

use crate::host::{on_a_host, request_with, run};

const EXPECTED: &str = r#"
set pods4 { type ipv4_addr elements = { 10.9.0.2 } }
set local4 { type ipv4_addr flags interval elements = { 10.9.0.0/24, 224.0.0.0/4 } }
map ports4 { type inet_proto . inet_service : ipv4_addr . inet_service elements = { tcp . 8080 : 10.9.0.2 . 80 } }
map bound4 { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service elements = { 192.168.7.1 . sctp . 8081 : 10.9.0.2 . 81 } }
set pods6 { type ipv6_addr elements = { fd00:9::2 } }
set local6 { type ipv6_addr flags interval elements = { fd00:9::/64, ff00::/8 } }
map ports6 { type inet_proto . inet_service : ipv6_addr . inet_service elements = { tcp . 8080 : fd00:9::2 . 80 } }
map bound6 { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service elements = { fd00:7::1 . udp . 8082 : fd00:9::2 . 82 } }
chain ports {
 dnat ip to ip daddr . meta l4proto . th dport map @bound4
 meta nfproto ipv4 dnat ip to meta l4proto . th dport map @ports4
 dnat ip6 to ip6 daddr . meta l4proto . th dport map @bound6
 meta nfproto ipv6 dnat ip6 to meta l4proto . th dport map @ports6
}
chain prerouting {
 type nat hook prerouting priority dstnat; policy accept;
 fib daddr type local jump ports
}
chain output {
 type nat hook output priority -100; policy accept;
 ip daddr != 127.0.0.0/8 fib daddr type local jump ports
 ip6 daddr != ::1 fib daddr type local jump ports
}
chain postrouting {
 type nat hook postrouting priority srcnat; policy accept;
 ct status dnat ip saddr @pods4 ip daddr @pods4 masquerade
 ip saddr @pods4 ip daddr != @local4 oifname != "br-test" masquerade
 ct status dnat ip6 saddr @pods6 ip6 daddr @pods6 masquerade
 ip6 saddr @pods6 ip6 daddr != @local6 oifname != "br-test" masquerade
}
"#;

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn nft_reads_what_was_meant() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        let port = |protocol, n: u16, host_ip: Option<&str>| PortMapping {
            protocol,
            container_port: 80 + n,
            host_port: 8080 + n,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let ports = vec![
            port(Protocol::Tcp, 0, None),
            port(Protocol::Sctp, 1, Some("192.168.7.1")),
            port(Protocol::Udp, 2, Some("fd00:7::1")),
        ];
        let _pod = network.attach(&request_with("pod", ports)).unwrap();
        let listing = run("nft list table inet test");
        let (head, body) = listing.split_once("set pods4").unwrap();
        assert!(
            head.contains("comment \"lapstrake v1 br-test masquerade 10.9.0.0/24,fd00:9::/64\""),
            "{head}"
        );
        let body = format!("set pods4{}", body.trim_end().strip_suffix('}').unwrap());
        assert_eq!(words(&body), words(EXPECTED));
    });
}

#[test]
fn destinations_that_keep_the_pods_addresses_may_overlap_with_the_ranges() {
    on_a_host(|host| {
        let networks = ["10.9.0.0/16", "10.0.0.0/8", "192.168.7.0/24", "fd00::/16"];
        let no_masquerade = networks.map(|it| it.parse().unwrap()).to_vec();
        let config = Config { no_masquerade, ..host.config(&["10.9.0.0/24"]) };
        let network = Network::open(config).unwrap();
        let _pod = network.attach(&request_with("pod", vec![])).unwrap();
        let elements = |set: &str| {
            let listing = run(&format!("nft list set inet test {set}"));
            listing.split_once("elements").unwrap().1.to_owned()
        };
        let local = elements("local4");
        assert_eq!(
            words(&local)[1..],
            ["{", "10.0.0.0/8,", "192.168.7.0/24,", "224.0.0.0/4", "}", "}", "}"]
        );
        assert!(elements("local6").contains("fd00::/16"));
    });
}

#[test]
fn a_routed_network_keeps_the_addresses_of_its_pods() {
    on_a_host(|host| {
        let config = Config { masquerade: false, ..host.config(&["10.9.0.0/24"]) };
        let network = Network::open(config).unwrap();
        let _pod = network.attach(&request_with("pod", vec![])).unwrap();
        let rules = run("nft list chain inet test postrouting");
        assert!(rules.contains("ct status dnat ip saddr @pods4"), "hairpin stays: {rules}");
        assert!(!rules.contains("@local4"), "{rules}");
    });
}
