//! Routes: the pod's default route, and the link behind the host's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::RouteMessageBuilder;

use super::{Request, Route};
use crate::error::Error;

/// Sends everything that has no better route to `gateway`.
pub(crate) fn add_default(index: u32, gateway: IpAddr) -> Request {
    let message = match gateway {
        IpAddr::V4(ip) => {
            RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(ip).build()
        }
        IpAddr::V6(ip) => {
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(ip).build()
        }
    };
    Request {
        stage: "add default route by",
        object: gateway.to_string(),
        flags: NLM_F_CREATE | NLM_F_EXCL,
        message: RouteNetlinkMessage::NewRoute(message),
    }
}

/// Indices of the links that default routes of the main table leave by.
pub(crate) fn uplinks(route: &mut Route) -> Result<Vec<u32>, Error> {
    const MAIN_TABLE: u8 = 254;
    let question = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    let answers = route.dump("list routes", question)?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(message)
                if message.header.destination_prefix_length == 0
                    && message.header.table == MAIN_TABLE =>
            {
                message.attributes.into_iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(index),
                    _ => None,
                })
            }
            _ => None,
        })
        .collect())
}
