//! What a look from outside sees, beside a daemon that has the leases open.

use netplugin::{Config, Network, Survey};

use crate::host::{Host, on_a_host, request, run};

fn survey(config: &Config) -> Survey {
    Network::survey(config).unwrap()
}

/// The obstacles in words.
fn obstacles(host: &Host, ranges: &[&str]) -> Vec<String> {
    survey(&host.config(ranges)).obstacles.iter().map(ToString::to_string).collect()
}

#[test]
fn a_bare_host_has_no_obstacle_and_is_left_as_it_is() {
    on_a_host(|host| {
        let seen = survey(&host.config(&["10.9.0.0/24", "fd00:9::/64"]));
        assert!(seen.obstacles.is_empty() && seen.lost.is_empty(), "{seen:?}");
        assert!(seen.overlaps.is_empty(), "{seen:?}");
        let pools: Vec<_> = seen.pools.iter().map(|it| (&*it.ranges, it.ipv6, it.leased)).collect();
        assert_eq!(pools, [("10.9.0.0/24", false, 0), ("fd00:9::/64", true, 0)]);
        assert!(!host.dir.path().join("leases").exists());
        assert_eq!(run("ip -br link").lines().count(), 1, "lo");
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn every_obstacle_is_told_at_once() {
    on_a_host(|host| {
        run("ip link add br-test type veth peer name other");
        run("nft add table inet firewall");
        run(
            "nft add chain inet firewall guard { type filter hook forward priority 0; policy drop; }",
        );
        let told = obstacles(host, &[]);
        let expected = ["no pod address range", "it is a veth link", "inet firewall guard"];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected), "{told}");
        }
    });
}

#[test]
fn pods_that_lost_something_and_a_pool_that_ends_are_seen_beside_the_daemon() {
    on_a_host(|host| {
        let config = host.config(&["10.9.0.0/29"]);
        let network = Network::open(config.clone()).unwrap();
        let pods: Vec<_> =
            (0..5).map(|n| network.attach(&request(&format!("pod{n}"))).unwrap()).collect();
        let seen = survey(&config);
        assert!(seen.obstacles.is_empty() && seen.lost.is_empty(), "{seen:?}");
        assert_eq!((seen.pools[0].leased, seen.pools[0].usable), (5, 5));

        run("nft delete element inet test pods4 { 10.9.0.2 }");
        run(&format!("ip link del {}", pods[1].host_link));
        run(&format!("ip link set {} nomaster", pods[2].host_link));
        let lost = survey(&config).lost;
        let expected = [
            "pod default/pod0 is not in set test pods4",
            "pod default/pod1 has no link",
            "of pod default/pod2 is off the bridge",
        ];
        assert_eq!(lost.len(), expected.len(), "{lost:?}");
        for part in expected {
            assert!(lost.iter().any(|it| it.contains(part)), "{part}: {lost:?}");
        }
        run("nft flush ruleset");
        run("ip link del br-test");
        let lost = survey(&config).lost.join(", ");
        for part in ["nftables table test is gone", "bridge br-test is gone"] {
            assert!(lost.contains(part), "{part}: {lost}");
        }
        network.repair().unwrap();
        assert_eq!(survey(&config).lost, ["pod default/pod1 has no link"]);
    });
}

#[test]
fn a_range_that_the_node_lives_in_is_seen() {
    on_a_host(|host| {
        let _world = host.neighbour("10.9.0.130/25", "10.9.0.131/25");
        let seen = survey(&host.config(&["10.9.0.0/24"]));
        let overlap = ("10.9.0.0/24".parse().unwrap(), "10.9.0.130/25".parse().unwrap());
        assert_eq!(seen.overlaps, [overlap]);
    });
}
