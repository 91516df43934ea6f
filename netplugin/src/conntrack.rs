//! Ends UDP flows that connection tracking would keep sending to where a host port led before.
//!
//! The kernel looks at the table of host ports only for the first packet of a flow. A UDP client that
//! keeps its port never starts a new one, so its old flow must be forgotten when the port moves.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::Error;
use crate::netlink::netfilter::{Header, Writer};
use crate::netlink::socket::{Netfilter, attributes_of};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 5;
const NLM_F_REQUEST_DUMP: u16 = 0x301;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const FILTER: u16 = 25;
const FILTER_ORIGINAL: u16 = 1;
const FILTER_REPLY: u16 = 2;
/// Filter on the protocol and the destination port (bits 3 and 5 of the kernel's list).
const FILTER_PROTOCOL_AND_DESTINATION_PORT: u32 = 1 << 3 | 1 << 5;
const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A socket to the connection tracking of one network namespace.
pub(crate) struct Conntrack(Netfilter);

/// A flow, as far as host ports care.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    /// Where its first packet was sent to.
    pub(crate) destination: IpAddr,
    /// Who answers.
    pub(crate) answered_by: IpAddr,
    protocol: u8,
    destination_port: u16,
    original: Vec<u8>,
    id: Vec<u8>,
}

impl Conntrack {
    pub(crate) fn open() -> Conntrack {
        Conntrack(Netfilter::open())
    }

    /// Ends the UDP flows to these host ports that `stale` picks.
    pub(crate) fn forget_udp(
        &mut self,
        ports: &HashSet<u16>,
        stale: impl Fn(&Flow) -> bool,
    ) -> Result<(), Error> {
        for port in ports {
            for family in [AF_INET, AF_INET6] {
                for flow in self.udp_flows(family, *port)? {
                    if stale(&flow) {
                        self.forget(family, &flow)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn udp_flows(&mut self, family: u8, port: u16) -> Result<Vec<Flow>, Error> {
        let channel = self.0.channel()?;
        let sequence = channel.sequence(1);
        let question = message(GET, NLM_F_REQUEST_DUMP, sequence, family, |m| {
            m.nest(TUPLE_ORIGINAL, |m| {
                m.nest(TUPLE_PROTOCOL, |m| {
                    m.bytes(PROTOCOL_NUMBER, &[UDP]);
                    m.bytes(DESTINATION_PORT, &port.to_be_bytes());
                });
            });
            m.nest(FILTER, |m| {
                // These two are the only numbers here in the byte order of the machine.
                m.bytes(FILTER_ORIGINAL, &FILTER_PROTOCOL_AND_DESTINATION_PORT.to_ne_bytes());
                m.bytes(FILTER_REPLY, &0_u32.to_ne_bytes());
            });
        });
        let mut flows = Vec::new();
        let refusal = channel.question(&question, sequence, |_, payload| {
            // Kernels before 5.8 know no filter and send everything.
            let wanted = |flow: &Flow| flow.protocol == UDP && flow.destination_port == port;
            flows.extend(read(payload).filter(wanted));
        })?;
        match refusal {
            Some(refusal) => {
                Err(refusal.into_error("list connections to", format!("udp port {port}")))
            }
            None => Ok(flows),
        }
    }

    fn forget(&mut self, family: u8, flow: &Flow) -> Result<(), Error> {
        let channel = self.0.channel()?;
        let sequence = channel.sequence(1);
        let request = message(DELETE, NLM_F_REQUEST_ACK, sequence, family, |m| {
            m.nest(TUPLE_ORIGINAL, |m| m.raw(&flow.original));
            m.bytes(ID, &flow.id);
        });
        match channel.exchange(&request, sequence, 1)?.pop() {
            // It ended by itself meanwhile.
            Some(refusal) if refusal.errno != libc::ENOENT => Err(refusal.into_error(
                "end connection to",
                format!("udp {} port {}", flow.destination, flow.destination_port),
            )),
            _ => Ok(()),
        }
    }
}

fn message(
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    body: impl FnOnce(&mut Writer<'_>),
) -> Vec<u8> {
    let header = Header { kind: (SUBSYSTEM << 8) | kind, flags, sequence, family, resource: 0 };
    let mut bytes = Vec::new();
    header.write(&mut bytes, body);
    bytes
}

fn read(payload: &[u8]) -> Option<Flow> {
    /// The header of a netfilter message inside its netlink message.
    const HEADER: usize = 4;
    let attributes = payload.get(HEADER..)?;
    let original = find(attributes, TUPLE_ORIGINAL)?;
    let protocol = find(original, TUPLE_PROTOCOL)?;
    Some(Flow {
        destination: address(original, Side::Destination)?,
        answered_by: address(find(attributes, TUPLE_REPLY)?, Side::Source)?,
        protocol: *find(protocol, PROTOCOL_NUMBER)?.first()?,
        destination_port: u16::from_be_bytes(find(protocol, DESTINATION_PORT)?.try_into().ok()?),
        original: original.to_vec(),
        id: find(attributes, ID)?.to_vec(),
    })
    .filter(|_| find(protocol, SOURCE_PORT).is_some())
}

/// Which address of a tuple; the number of its IPv4 attribute, that of IPv6 is two more.
#[derive(Clone, Copy)]
enum Side {
    Source = 1,
    Destination = 2,
}

fn address(tuple: &[u8], side: Side) -> Option<IpAddr> {
    let addresses = find(tuple, TUPLE_ADDRESSES)?;
    let kind = side as u16;
    if let Some(bytes) = find(addresses, kind) {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into());
    }
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(find(addresses, kind + 2)?).ok()?).into())
}

fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes_of(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}
