//! Links: the veth pair, the bridge, and finding both again.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute,
    LinkInfo, LinkMessage,
};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth};

use super::{Request, Route};
use crate::error::Error;

/// The loopback link has this index in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

/// A veth pair whose peer is born inside another namespace.
pub(crate) struct Veth<'a> {
    /// Name of the end on the host.
    pub(crate) host: &'a str,
    /// Name of the end in the pod.
    pub(crate) peer: &'a str,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    pub(crate) netns: BorrowedFd<'a>,
}

/// What is known about a link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) kind: Option<InfoKind>,
    pub(crate) alias: Option<String>,
    pub(crate) mtu: u32,
    pub(crate) controller: Option<u32>,
    pub(crate) up: bool,
}

/// Creates the pair, the host end up and on the bridge. The pod end cannot be set up in the same
/// message: the kernel refuses that while its peer does not exist.
pub(crate) fn create_veth(veth: &Veth<'_>) -> Request {
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(veth.peer)
        .mtu(veth.mtu)
        .address(veth.mac.to_vec())
        .setns_by_fd(veth.netns.as_raw_fd());
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(veth.host)
        .mtu(veth.mtu)
        .controller(veth.bridge)
        .up()
        .set_info_data(InfoData::Veth(InfoVeth::Peer(single_queue(peer).build())));
    Request {
        stage: "create veth pair",
        object: format!("{} and {}", veth.host, veth.peer),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(single_queue(pair).build()),
    }
}

/// One queue each way instead of one per processor of the host: a veth uses one anyway, and the
/// others cost memory.
fn single_queue<T>(link: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    link.append_extra_attribute(LinkAttribute::NumTxQueues(1))
        .append_extra_attribute(LinkAttribute::NumRxQueues(1))
}

/// Marks a bridge port as ours and lets it send frames back where they came from: a pod that reaches
/// itself through a service address needs that where bridged packets pass the IP hooks.
///
/// A port needs no IPv6 address of its own; looking for one would flood every other port. It must be
/// told before its peer is up, and only by a kernel that has IPv6.
pub(crate) fn set_up_port(name: &str, alias: &str, ipv6: bool) -> Request {
    let mut port = LinkBridgePort::new(0).name(name).alias(alias).hairpin(true);
    if ipv6 {
        port = port.append_extra_attribute(no_own_address());
    }
    change("set up bridge port", name, port.build())
}

/// Puts a link on a bridge; its settings as a port come after, with [`set_up_port`].
pub(crate) fn join_bridge(port: &Link, bridge: u32) -> Request {
    let message = LinkUnspec::new_with_index(port.index).controller(bridge).build();
    change("put on the bridge", &port.name, message)
}

/// Keeps the kernel from giving a link an IPv6 address of its own making, and from all the discovery
/// traffic that goes with one. To be sent before the link is set up.
pub(crate) fn without_ipv6(index: u32, name: &str) -> Request {
    let link = LinkUnspec::new_with_index(index).append_extra_attribute(no_own_address());
    change("switch off IPv6 addresses of", name, link.build())
}

fn no_own_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// Creates a bridge with a fixed address, up. A bridge without one takes the lowest of its ports and
/// changes it when pods come and go, which breaks the neighbour tables of all pods.
pub(crate) fn create_bridge(name: &str, mac: [u8; 6], mtu: u32) -> Request {
    let bridge = LinkBridge::new(name).address(mac.to_vec()).mtu(mtu);
    Request {
        stage: "create bridge",
        object: name.to_owned(),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewLink(bridge.build()),
    }
}

pub(crate) fn set_alias(name: &str, alias: &str) -> Request {
    change("set alias of", name, LinkUnspec::new_with_name(name).alias(alias).build())
}

pub(crate) fn set_up(index: u32, name: &str) -> Request {
    change("set up", name, LinkUnspec::new_with_index(index).up().build())
}

/// Deletes a link. Slow (the kernel waits for grace periods): never on the way of a pod.
pub(crate) fn delete(link: &Link) -> Request {
    let message = LinkUnspec::new_with_index(link.index).build();
    Request {
        stage: "delete link",
        object: link.name.clone(),
        flags: 0,
        message: RouteNetlinkMessage::DelLink(message),
    }
}

/// Finds a link by name.
pub(crate) fn find(route: &mut Route, name: &str) -> Result<Option<Link>, Error> {
    let question = RouteNetlinkMessage::GetLink(LinkUnspec::new_with_name(name).build());
    match route.get("look up link", name, question) {
        Ok(answer) => Ok(answer.and_then(read)),
        Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All links of the namespace.
pub(crate) fn list(route: &mut Route) -> Result<Vec<Link>, Error> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(route.dump("list links", question)?.into_iter().filter_map(read).collect())
}

fn change(stage: &'static str, object: &str, message: LinkMessage) -> Request {
    Request {
        stage,
        object: object.to_owned(),
        flags: 0,
        message: RouteNetlinkMessage::NewLink(message),
    }
}

fn read(message: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let up = message.header.flags.contains(netlink_packet_route::link::LinkFlags::Up);
    let mut link = Link { index: message.header.index, up, ..Link::default() };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
