//! Addresses of links.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::AddressMessageBuilder;

use super::{Request, Route};
use crate::error::Error;

/// Gives a link an address. IPv6 addresses are usable at once: leases make them unique, so the
/// kernel need not look for duplicates for a second.
pub(crate) fn add(index: u32, address: IpNetwork) -> Request {
    let message = match address {
        IpNetwork::V4(net) => AddressMessageBuilder::<std::net::Ipv4Addr>::new()
            .index(index)
            .address(net.ip(), net.prefix())
            .build(),
        IpNetwork::V6(net) => {
            let mut message = AddressMessageBuilder::<std::net::Ipv6Addr>::new()
                .index(index)
                .address(net.ip(), net.prefix())
                .build();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
        }
    };
    Request {
        stage: "add address",
        object: address.to_string(),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
        message: RouteNetlinkMessage::NewAddress(message),
    }
}

/// All addresses of one link, or of all links.
pub(crate) fn list(route: &mut Route, index: Option<u32>) -> Result<Vec<IpNetwork>, Error> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = route.dump("list addresses", question)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message)
                if index.is_none_or(|index| message.header.index == index) =>
            {
                Some(message)
            }
            _ => None,
        })
        .filter_map(|message| {
            let prefix = message.header.prefix_len;
            // Where both are given, `Local` is the link's own address (they differ on tunnels).
            let local = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            let ip: IpAddr = local.or(any)?;
            IpNetwork::new(ip, prefix).ok()
        })
        .collect())
}
