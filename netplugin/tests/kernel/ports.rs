//! Host ports: from another machine, from the host, from pods, and who may have them.

use std::net::UdpSocket;
use std::time::Duration;

use netplugin::{PortMapping, Protocol};

use crate::host::{
    ask_tcp, inside, json, on_a_host, own_netns, request, request_with, run, serve_tcp,
};

fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { protocol: Protocol::Tcp, container_port, host_port, host_ip: None }
}

#[test]
fn a_host_port_leads_to_the_pod_from_everywhere() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let network = host.network(&["10.9.0.0/24"]);
        let pod = network.attach(&request_with("pod", vec![tcp(8080, 80)])).unwrap();
        let other = network.attach(&request("other")).unwrap();
        serve_tcp(&pod.netns, "0.0.0.0:80");
        let port = "192.168.7.1:8080";
        assert_eq!(ask_tcp(&world, port).unwrap(), "192.168.7.2", "the client's own address");
        assert_eq!(ask_tcp(&own_netns(), port).unwrap(), "192.168.7.1");
        assert_eq!(ask_tcp(&own_netns(), "10.9.0.1:8080").unwrap(), "10.9.0.1");
        assert_eq!(ask_tcp(&other.netns, port).unwrap(), "10.9.0.1");
        assert_eq!(ask_tcp(&pod.netns, port).unwrap(), "10.9.0.1", "hairpin");
        ask_tcp(&world, "192.168.7.1:80").unwrap_err();
        network.detach("pod").unwrap();
        ask_tcp(&world, port).unwrap_err();
    });
}

#[test]
fn a_host_port_with_an_address_is_only_there() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        run("ip addr add 192.168.7.3/24 dev uplink");
        let network = host.network(&["10.9.0.0/24"]);
        let bound = PortMapping { host_ip: Some("192.168.7.3".parse().unwrap()), ..tcp(8080, 80) };
        let pod = network.attach(&request_with("pod", vec![bound])).unwrap();
        serve_tcp(&pod.netns, "0.0.0.0:80");
        assert_eq!(ask_tcp(&world, "192.168.7.3:8080").unwrap(), "192.168.7.2");
        ask_tcp(&world, "192.168.7.1:8080").unwrap_err();
    });
}

#[test]
fn a_conflict_names_the_owner_and_leaves_nothing() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let _first = network.attach(&request_with("first", vec![tcp(8080, 80)])).unwrap();
        let error = network
            .attach(&request_with("second", vec![tcp(8081, 80), tcp(8080, 81)]))
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port *:8080/tcp is already taken by default/first (sandbox first)"
        );
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(8080, 53) };
        let _third = network.attach(&request_with("third", vec![udp])).unwrap();
        assert_eq!(
            json("nft -j list map inet test ports4")["nftables"][1]["map"]["elem"]
                .as_array()
                .unwrap()
                .len(),
            2
        );
        network.detach("first").unwrap();
        network.attach(&request_with("second", vec![tcp(8080, 81)])).unwrap();
    });
}

#[test]
fn udp_follows_the_port_from_one_pod_to_the_next() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let network = host.network(&["10.9.0.0/24"]);
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(5353, 53) };
        let client = inside(&world, || {
            let socket = UdpSocket::bind("192.168.7.2:40000").unwrap();
            socket.connect("192.168.7.1:5353").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket
        });
        for id in ["first", "second"] {
            let pod = network.attach(&request_with(id, vec![udp.clone()])).unwrap();
            let server = inside(&pod.netns, || UdpSocket::bind("0.0.0.0:53").unwrap());
            server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            client.send(id.as_bytes()).unwrap();
            let mut buffer = [0; 64];
            let (length, from) = server
                .recv_from(&mut buffer)
                .unwrap_or_else(|error| panic!("the datagram for {id} went elsewhere: {error}"));
            assert_eq!(&buffer[..length], id.as_bytes());
            server.send_to(b"answer", from).unwrap();
            assert_eq!(client.recv(&mut buffer).unwrap(), 6);
            network.detach(id).unwrap();
        }
    });
}

#[test]
fn datagrams_of_sockets_that_are_not_connected_find_the_loopback_host_ports() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        let udp = PortMapping { protocol: Protocol::Udp, ..tcp(5353, 53) };
        let pod = network.attach(&request_with("pod", vec![udp])).unwrap();
        assert_eq!(network.shortcomings(), Vec::<String>::new());
        let server = inside(&pod.netns, || UdpSocket::bind("[::]:53").unwrap());
        let patience = Some(Duration::from_secs(2));
        server.set_read_timeout(patience).unwrap();
        let pod4 = pod.addresses[0].ip();
        for (bind, to, from) in [
            ("0.0.0.0:0", "127.0.0.1:5353", "127.0.0.1:5353"),
            ("[::]:0", "[::1]:5353", "[::1]:5353"),
            ("[::]:0", "[::ffff:127.0.0.1]:5353", "[::ffff:127.0.0.1]:5353"),
            // Who speaks to the pod itself hears the pod itself.
            ("0.0.0.0:0", &format!("{pod4}:53"), &format!("{pod4}:53")),
        ] {
            let (answer, said) = inside(&own_netns(), || {
                let client = UdpSocket::bind(bind).unwrap();
                client.set_read_timeout(patience).unwrap();
                client.send_to(b"question", to).unwrap();
                let mut buffer = [0; 64];
                let (_, asked_by) = server
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|error| panic!("{to} leads elsewhere: {error}"));
                server.send_to(b"answer", asked_by).unwrap();
                let (length, from) = client.recv_from(&mut buffer).unwrap();
                (buffer[..length].to_vec(), from.to_string())
            });
            assert_eq!((answer.as_slice(), said.as_str()), (&b"answer"[..], from), "{to}");
        }
    });
}

#[test]
fn the_loopback_address_has_the_host_ports_too_and_only_on_the_host() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        let pod = network.attach(&request_with("pod", vec![tcp(8080, 80)])).unwrap();
        assert_eq!(network.shortcomings(), Vec::<String>::new());
        serve_tcp(&pod.netns, "[::]:80");
        assert_eq!(ask_tcp(&own_netns(), "127.0.0.1:8080").unwrap(), "::ffff:10.9.0.1");
        assert_eq!(ask_tcp(&own_netns(), "[::1]:8080").unwrap(), "fd00:9::1");
        assert_eq!(ask_tcp(&own_netns(), "[::ffff:127.0.0.1]:8080").unwrap(), "::ffff:10.9.0.1");
        ask_tcp(&own_netns(), "127.0.0.1:8081").unwrap_err();
        let other = network.attach(&request("other")).unwrap();
        ask_tcp(&other.netns, "127.0.0.1:8080").unwrap_err();
        ask_tcp(&other.netns, "[::1]:8080").unwrap_err();

        // Another daemon on the same host takes over.
        drop(network);
        ask_tcp(&own_netns(), "127.0.0.1:8080").unwrap_err();
        let network = host.network(&["10.9.0.0/24", "fd00:9::/64"]);
        network.gc(&["pod".to_owned(), "other".to_owned()]).unwrap();
        ask_tcp(&own_netns(), "127.0.0.1:8080").unwrap();
        network.detach("pod").unwrap();
        ask_tcp(&own_netns(), "127.0.0.1:8080").unwrap_err();
        ask_tcp(&own_netns(), "[::1]:8080").unwrap_err();
    });
}
