//! The bare kernel objects of a pod's network, for comparison: a namespace, a veth pair born in it and
//! on a bridge, an address and a route, in as few messages as the kernel takes. Nothing is recorded,
//! checked or published.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{
    AddressMessageBuilder, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
};

/// An open socket on the host.
pub(crate) struct Floor {
    socket: Socket,
    bridge: u32,
}

impl Floor {
    pub(crate) fn on(bridge: u32) -> Floor {
        Floor { socket: open(), bridge }
    }

    pub(crate) fn pod(&self, number: u32) -> OwnedFd {
        let pod = namespace();
        self.link(number, &pod);
        configure(number, &pod);
        pod.netns
    }

    /// A veth pair born on the bridge and in the namespace.
    pub(crate) fn link(&self, number: u32, pod: &Bare) {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name("eth0")
            .setns_by_fd(pod.netns.as_raw_fd())
            .append_extra_attribute(LinkAttribute::NumTxQueues(1))
            .append_extra_attribute(LinkAttribute::NumRxQueues(1))
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(format!("floor{number}"))
            .controller(self.bridge)
            .up()
            .append_extra_attribute(LinkAttribute::NumTxQueues(1))
            .append_extra_attribute(LinkAttribute::NumRxQueues(1))
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        send(&self.socket, &[RouteNetlinkMessage::NewLink(pair)]);
    }
}

/// A namespace, and a socket in it.
pub(crate) struct Bare {
    netns: OwnedFd,
    inside: Socket,
}

pub(crate) fn namespace() -> Bare {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let netns = File::open("/proc/thread-self/ns/net").unwrap().into();
        Bare { netns, inside: open() }
    });
    made.join().unwrap()
}

/// Sets the links up and gives the pod an address and a route.
pub(crate) fn configure(number: u32, pod: &Bare) {
    let up = |index| RouteNetlinkMessage::NewLink(LinkUnspec::new_with_index(index).up().build());
    let [_, _, third, fourth] = (0x0a58_0000 + number).to_be_bytes();
    let address = AddressMessageBuilder::<Ipv4Addr>::new()
        .index(2)
        .address(Ipv4Addr::new(10, 88, third, fourth), 16)
        .build();
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .output_interface(2)
        .gateway(Ipv4Addr::new(10, 88, 255, 1))
        .build();
    let configure = [
        up(1),
        up(2),
        RouteNetlinkMessage::NewAddress(address),
        RouteNetlinkMessage::NewRoute(route),
    ];
    send(&pod.inside, &configure);
}

fn open() -> Socket {
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket
}

/// One datagram, all its answers.
fn send(socket: &Socket, messages: &[RouteNetlinkMessage]) {
    let mut datagram = Vec::new();
    for message in messages {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        if matches!(message, RouteNetlinkMessage::NewLink(link) if link.header.index != 0) {
            header.flags = NLM_F_REQUEST | NLM_F_ACK;
        }
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
        packet.finalize();
        let start = datagram.len();
        datagram.resize(start + packet.buffer_len().next_multiple_of(4), 0);
        packet.serialize(&mut datagram[start..start + packet.buffer_len()]);
    }
    socket.send(&datagram, 0).unwrap();
    let mut answers = 0;
    while answers < messages.len() {
        let (bytes, _) = socket.recv_from_full().unwrap();
        let mut rest = &bytes[..];
        while rest.len() >= 20 {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            let errno = i32::from_ne_bytes(rest[16..20].try_into().unwrap());
            assert_eq!(errno, 0, "the kernel refused message {answers}");
            answers += 1;
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}
