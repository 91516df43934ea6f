//! Both families, several ranges, exclusions, and the kubelet's pod CIDR.

use netplugin::{Error, Network, PortMapping, Protocol};

use crate::host::{
    address, ask_tcp, on_a_host, own_netns, request, request_with, run, run_in, serve_tcp,
};

#[test]
fn a_dual_stack_pod_is_reached_by_both_families_at_once() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        let one = network.attach(&request("one")).unwrap();
        let two = network.attach(&request("two")).unwrap();
        let addresses: Vec<_> = two.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.9.0.3/24", "fd00:9::3/64"]);
        serve_tcp(&two.netns, "[::]:80");
        // Without waiting: nothing is tentative.
        assert_eq!(ask_tcp(&one.netns, "[fd00:9::3]:80").unwrap(), "fd00:9::2");
        assert_eq!(ask_tcp(&own_netns(), "[fd00:9::3]:80").unwrap(), "fd00:9::1");
        assert_eq!(ask_tcp(&one.netns, "10.9.0.3:80").unwrap(), "::ffff:10.9.0.2");
        let routes = run_in(&one.netns, "ip -6 route");
        assert!(routes.contains("default via fd00:9::1 dev eth0"), "{routes}");
    });
}

#[test]
fn ipv6_pods_are_masqueraded_and_have_host_ports() {
    on_a_host(|host| {
        let world = host.neighbour("fd00:7::1/64", "fd00:7::2/64");
        let network = host.network(&["fd00:9::/64"]);
        let port = PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: None,
        };
        let pod = network.attach(&request_with("pod", vec![port])).unwrap();
        assert_eq!(pod.addresses.len(), 1);
        serve_tcp(&pod.netns, "[::]:80");
        serve_tcp(&world, "[::]:80");
        assert_eq!(ask_tcp(&pod.netns, "[fd00:7::2]:80").unwrap(), "fd00:7::1");
        assert_eq!(ask_tcp(&world, "[fd00:7::1]:8080").unwrap(), "fd00:7::2");
        assert_eq!(ask_tcp(&own_netns(), "[fd00:7::1]:8080").unwrap(), "fd00:7::1");
        assert_eq!(ask_tcp(&pod.netns, "[fd00:7::1]:8080").unwrap(), "fd00:9::1", "hairpin");
    });
}

#[test]
fn a_node_that_listens_to_its_router_goes_on_doing_so() {
    on_a_host(|host| {
        let _world = host.neighbour("fd00:7::1/64", "fd00:7::2/64");
        let setting = || run("cat /proc/sys/net/ipv6/conf/uplink/accept_ra").trim().to_owned();
        assert_eq!(setting(), "1");
        host.network(&["fd00:9::/64"]).attach(&request("pod")).unwrap();
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/all/forwarding").trim(), "1");
        assert_eq!(setting(), "2");
    });
}

#[test]
fn the_pod_cidr_of_the_kubelet_takes_over_and_is_remembered() {
    on_a_host(|host| {
        let network = host.network(&[]);
        assert!(network.ready().unwrap_err().contains("no pod address range"));
        assert!(matches!(network.attach(&request("early")), Err(Error::NoRange)));
        network.set_pod_cidr("10.5.0.0/24, fd00:5::/64").unwrap();
        network.ready().unwrap();
        let one = network.attach(&request("one")).unwrap();
        assert_eq!(one.addresses[0].to_string(), "10.5.0.2/24");
        drop(network);
        let network = host.network(&[]);
        let two = network.attach(&request("two")).unwrap();
        serve_tcp(&two.netns, "[::]:80");
        ask_tcp(&one.netns, &format!("{}:80", address(&two, "0.0.0.0"))).unwrap();
        network.set_pod_cidr("10.6.0.0/24").unwrap();
        let three = network.attach(&request("three")).unwrap();
        assert_eq!(three.addresses[0].to_string(), "10.6.0.2/24");
        ask_tcp(&three.netns, &format!("{}:80", address(&two, "0.0.0.0"))).unwrap();
        assert!(network.set_pod_cidr("not-a-cidr").unwrap_err().to_string().contains("not-a-cidr"));
    });
}

#[test]
fn the_mtu_is_that_of_the_uplink_unless_set() {
    on_a_host(|host| {
        let _world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        run("ip link set uplink mtu 1400");
        run("ip route add default via 192.168.7.2");
        let network = host.network(&["10.9.0.0/24"]);
        let pod = network.attach(&request("pod")).unwrap();
        assert_eq!(pod.mtu, 1400);
        assert!(run_in(&pod.netns, "ip link show eth0").contains("mtu 1400"));
        drop(network);
        let config = netplugin::Config {
            mtu: Some(1300),
            bridge: "br-2".into(),
            table: "test2".into(),
            leases_dir: host.dir.path().join("2"),
            ..host.config(&["10.8.0.0/24"])
        };
        let pod = Network::open(config).unwrap().attach(&request("pod")).unwrap();
        assert!(run_in(&pod.netns, "ip link show eth0").contains("mtu 1300"));
    });
}
