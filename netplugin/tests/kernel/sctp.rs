//! Host ports of SCTP, with packets made by hand: not every kernel has sockets for it, and none are
//! needed to pass it on.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::Duration;

use netplugin::{PortMapping, Protocol};
use rustix::net::{AddressFamily, Protocol as Number, RecvFlags, SendFlags, SocketType};
use rustix::net::{recv, sendto, socket, sockopt};

use crate::host::{address, inside, on_a_host, request_with};

const SCTP: u32 = 132;

#[test]
fn the_first_packet_to_an_sctp_host_port_arrives_at_the_pods_port() {
    on_a_host(|host| {
        let world = host.neighbour("192.168.7.1/24", "192.168.7.2/24");
        let network = host.network(&["10.9.0.0/24"]);
        let port = PortMapping {
            protocol: Protocol::Sctp,
            container_port: 3868,
            host_port: 9999,
            host_ip: None,
        };
        let pod = network.attach(&request_with("pod", vec![port])).unwrap();
        let ear = inside(&pod.netns, raw);
        let mouth = inside(&world, raw);
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 168, 7, 1), 0);
        sendto(&mouth, &init(40_000, 9999), SendFlags::empty(), &to).unwrap();
        let mut packet = [0; 256];
        let (length, _) = recv(&ear, &mut packet[..], RecvFlags::empty())
            .unwrap_or_else(|errno| panic!("no packet reached the pod: {errno}"));
        let header = usize::from(packet[0] & 0xf) * 4;
        let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&packet[16..20]).unwrap());
        assert_eq!(std::net::IpAddr::from(ip), address(&pod, "0.0.0.0"));
        let sctp = &packet[header..length];
        assert_eq!(u16::from_be_bytes([sctp[0], sctp[1]]), 40_000, "from the client's own port");
        assert_eq!(u16::from_be_bytes([sctp[2], sctp[3]]), 3868);
        // The kernel has written the checksum anew.
        assert_eq!(sctp[8..12], checksum(sctp));
    });
}

fn raw() -> OwnedFd {
    let number = Number::from_raw(SCTP.try_into().unwrap());
    let socket = socket(AddressFamily::INET, SocketType::RAW, Some(number)).unwrap();
    let patience = Some(Duration::from_secs(3));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience).unwrap();
    socket
}

/// A packet with one chunk that asks for an association (RFC 9260 §3.3.2).
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 4]); // the tag of the first packet is 0
    packet.extend([0; 4]); // the checksum, below
    packet.extend([1, 0, 0, 20]); // INIT and its length
    packet.extend(0x1234_5678_u32.to_be_bytes()); // the tag of the others
    packet.extend(65_536_u32.to_be_bytes()); // window
    packet.extend([0, 1, 0, 1]); // streams out and in
    packet.extend(1_u32.to_be_bytes()); // first number
    let sum = checksum(&packet);
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// CRC32c with the place of the checksum taken as zero (RFC 9260 appendix A).
fn checksum(packet: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (place, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&place) { 0 } else { *byte });
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).to_le_bytes()
}
