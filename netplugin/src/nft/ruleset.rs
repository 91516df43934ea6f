//! What stands in the table. Pure.
//!
//! For each family:
//! - set `pods`: the pods' addresses; set `local`: destinations their traffic reaches unchanged;
//! - map `ports`: protocol and port of the host → address and port of a pod; map `bound`: the same
//!   for one address of the host.
//!
//! Chains: `prerouting` and `output` send packets for addresses of this host to `ports`, which
//! rewrites their destination. 127.0.0.0/8 and ::1 are left alone: a packet from there must not leave
//! the loopback link. `postrouting` gives packets of pods the node's address: those that leave for
//! the world, and those that came to a host port and go back to a pod on the same bridge, whose
//! answer would otherwise not pass here and not be rewritten (also without masquerade).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::abi;
use super::encode::{Batch, Element, Expression, Set, interface_name};
use crate::ports::PortMapping;

/// A pod as the table knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pod<'a> {
    pub(crate) addresses: &'a [IpNetwork],
    pub(crate) ports: &'a [PortMapping],
}

/// What the rules depend on besides pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings<'a> {
    pub(crate) bridge: &'a str,
    pub(crate) masquerade: bool,
    /// Destinations that see the pods' own addresses.
    pub(crate) local: &'a [IpNetwork],
}

impl Settings<'_> {
    /// The comment of a table made for these settings; tells whether one must be made anew.
    pub(crate) fn comment(&self) -> String {
        let local: Vec<_> = self.local.iter().map(ToString::to_string).collect();
        let masquerade = if self.masquerade { "masquerade" } else { "routed" };
        format!("lapstrake v{VERSION} {} {masquerade} {}", self.bridge, local.join(","))
    }
}

/// Counts changes of the rules, so that an upgrade replaces the table.
const VERSION: u32 = 1;

/// The two halves of the table.
struct Family {
    number: u8,
    pods: &'static str,
    local: &'static str,
    ports: &'static str,
    bound: &'static str,
    address_type: u32,
    address_len: u32,
    source_offset: u32,
    destination_offset: u32,
}

const IPV4: Family = Family {
    number: abi::FAMILY_IPV4,
    pods: "pods4",
    local: "local4",
    ports: "ports4",
    bound: "bound4",
    address_type: abi::TYPE_IPV4_ADDR,
    address_len: 4,
    source_offset: 12,
    destination_offset: 16,
};

const IPV6: Family = Family {
    number: abi::FAMILY_IPV6,
    pods: "pods6",
    local: "local6",
    ports: "ports6",
    bound: "bound6",
    address_type: abi::TYPE_IPV6_ADDR,
    address_len: 16,
    source_offset: 8,
    destination_offset: 24,
};

const FAMILIES: [&Family; 2] = [&IPV4, &IPV6];

/// Writes the whole table anew, whatever stood there: in one transaction, so that no packet meets
/// half of it.
pub(crate) fn rebuild(batch: &mut Batch, settings: &Settings<'_>, pods: &[Pod<'_>]) {
    // Adding first makes deleting succeed when there is no table yet.
    let comment = settings.comment();
    batch.add_table(&comment);
    batch.delete_table();
    batch.add_table(&comment);
    for family in FAMILIES {
        sets(batch, family);
    }
    batch.add_chain("ports", None);
    batch.add_chain("prerouting", Some(("nat", abi::HOOK_PREROUTING, abi::PRIORITY_DSTNAT)));
    batch.add_chain("output", Some(("nat", abi::HOOK_OUTPUT, abi::PRIORITY_DSTNAT)));
    batch.add_chain("postrouting", Some(("nat", abi::HOOK_POSTROUTING, abi::PRIORITY_SRCNAT)));
    host_port_rules(batch);
    for family in FAMILIES {
        hairpin_rule(batch, family);
        if settings.masquerade {
            masquerade_rule(batch, family, settings.bridge);
        }
        let local = local_elements(family, settings.local);
        batch.add_elements(family.local, &local);
    }
    let elements: Vec<_> = pods.iter().flat_map(elements).collect();
    for family in FAMILIES {
        for set in [family.pods, family.ports, family.bound] {
            let of_set: Vec<Element> = elements
                .iter()
                .filter(|(name, _)| *name == set)
                .map(|(_, element)| element.clone())
                .collect();
            batch.add_elements(set, &of_set);
        }
    }
}

/// Everything a pod has in the table: (set, element).
pub(crate) fn elements(pod: &Pod<'_>) -> Vec<(&'static str, Element)> {
    let mut elements = Vec::new();
    for address in pod.addresses.iter().map(IpNetwork::ip) {
        let family = if address.is_ipv4() { &IPV4 } else { &IPV6 };
        elements.push((family.pods, Element::key(octets(address))));
        for port in pod.ports.iter().filter(|port| port.host_port != 0 && port.serves(address)) {
            let mut key = Vec::new();
            let set = match port.bound_to() {
                Some(host) => {
                    key.extend(octets(host));
                    family.bound
                }
                None => family.ports,
            };
            key.extend(word(&[port.protocol.number()]));
            key.extend(word(&port.host_port.to_be_bytes()));
            let mut data = octets(address);
            data.extend(word(&port.container_port.to_be_bytes()));
            elements.push((set, Element { key, data: Some(data), interval_end: false }));
        }
    }
    elements
}

fn sets(batch: &mut Batch, family: &Family) {
    let concat = |parts: &[u32]| parts.iter().fold(0, |all, part| (all << abi::TYPE_BITS) | part);
    let (address, len) = (family.address_type, family.address_len);
    let target = (concat(&[address, abi::TYPE_INET_SERVICE]), len + 4);
    let set =
        |name, key_type, key_len, data, interval| Set { name, key_type, key_len, data, interval };
    let port = [abi::TYPE_INET_PROTO, abi::TYPE_INET_SERVICE];
    batch.add_set(&set(family.pods, address, len, None, false));
    batch.add_set(&set(family.local, address, len, None, true));
    batch.add_set(&set(family.ports, concat(&port), 8, Some(target), false));
    let bound = concat(&[address, port[0], port[1]]);
    batch.add_set(&set(family.bound, bound, len + 8, Some(target), false));
}

fn host_port_rules(batch: &mut Batch) {
    let local = abi::ADDRTYPE_LOCAL.to_ne_bytes();
    let to_ports = || {
        [
            Expression::DestinationType { to: 0 },
            Expression::Compare { register: 0, equal: true, value: &local },
            Expression::Jump { chain: "ports" },
        ]
    };
    batch.add_rule("prerouting", &to_ports());
    for family in FAMILIES {
        let loopback: &[u8] = match family.number {
            abi::FAMILY_IPV4 => &[127],
            _ => &std::net::Ipv6Addr::LOCALHOST.octets(),
        };
        let [meta, is_family] = of_family(&family.number);
        let load = Expression::Payload {
            base: abi::PAYLOAD_NETWORK,
            offset: family.destination_offset,
            len: loopback.len() as u32,
            to: 0,
        };
        let not_loopback = Expression::Compare { register: 0, equal: false, value: loopback };
        let mut rule = vec![meta, is_family, load, not_loopback];
        rule.extend(to_ports());
        batch.add_rule("output", &rule);
    }
    for family in FAMILIES {
        // Registers in units of four bytes: address, protocol, port.
        let words = family.address_len / 4;
        for (map, bound) in [(family.bound, true), (family.ports, false)] {
            let at = if bound { words } else { 0 };
            let [meta, is_family] = of_family(&family.number);
            let mut rule = vec![meta, is_family];
            if bound {
                rule.push(address(family.destination_offset, family));
            }
            rule.extend([
                Expression::Meta { key: abi::META_L4PROTO, to: at },
                Expression::Payload { base: abi::PAYLOAD_TRANSPORT, offset: 2, len: 2, to: at + 1 },
                Expression::Map { map, register: 0 },
                Expression::Dnat { family: family.number, address: 0, port: words },
            ]);
            batch.add_rule("ports", &rule);
        }
    }
}

fn hairpin_rule(batch: &mut Batch, family: &Family) {
    let [meta, is_family] = of_family(&family.number);
    let mask = abi::CT_STATUS_DNAT.to_ne_bytes();
    batch.add_rule(
        "postrouting",
        &[
            meta,
            is_family,
            Expression::ConnectionStatus { to: 0 },
            Expression::Mask { register: 0, mask },
            Expression::Compare { register: 0, equal: false, value: &[0; 4] },
            address(family.source_offset, family),
            Expression::Lookup { set: family.pods, register: 0, inverted: false },
            address(family.destination_offset, family),
            Expression::Lookup { set: family.pods, register: 0, inverted: false },
            Expression::Masquerade,
        ],
    );
}

fn masquerade_rule(batch: &mut Batch, family: &Family, bridge: &str) {
    let name = interface_name(bridge);
    let [meta, is_family] = of_family(&family.number);
    batch.add_rule(
        "postrouting",
        &[
            meta,
            is_family,
            address(family.source_offset, family),
            Expression::Lookup { set: family.pods, register: 0, inverted: false },
            address(family.destination_offset, family),
            Expression::Lookup { set: family.local, register: 0, inverted: true },
            Expression::Meta { key: abi::META_OIFNAME, to: 0 },
            Expression::Compare { register: 0, equal: false, value: &name },
            Expression::Masquerade,
        ],
    );
}

/// Goes on only with packets of one family.
fn of_family(number: &u8) -> [Expression<'_>; 2] {
    [
        Expression::Meta { key: abi::META_NFPROTO, to: 0 },
        Expression::Compare { register: 0, equal: true, value: std::slice::from_ref(number) },
    ]
}

/// Loads a source or destination address.
fn address(offset: u32, family: &Family) -> Expression<'static> {
    Expression::Payload { base: abi::PAYLOAD_NETWORK, offset, len: family.address_len, to: 0 }
}

/// Networks of a family as interval elements: each begins with its first address and ends before the
/// first one behind it. Multicast is always local.
fn local_elements(family: &Family, networks: &[IpNetwork]) -> Vec<Element> {
    let bits = family.address_len * 8;
    let multicast = match family.number {
        abi::FAMILY_IPV4 => (0xe000_0000, 0xefff_ffff),
        _ => (0xff << 120, u128::MAX),
    };
    let mut spans: Vec<(u128, u128)> = networks
        .iter()
        .filter(|network| network.is_ipv4() == (family.number == abi::FAMILY_IPV4))
        .map(|network| {
            let first = match network.network() {
                IpAddr::V4(ip) => u32::from(ip).into(),
                IpAddr::V6(ip) => ip.into(),
            };
            let size = (u128::MAX >> (128 - bits)).checked_shr(network.prefix().into());
            (first, first | size.unwrap_or(0))
        })
        .chain([multicast])
        .collect();
    spans.sort_unstable();
    // The kernel takes no spans that overlap.
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some((_, end)) if from <= *end => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    let write = |number: u128| number.to_be_bytes()[16 - family.address_len as usize..].to_vec();
    let mut elements = Vec::new();
    for (from, to) in merged {
        elements.push(Element::key(write(from)));
        // The end of an interval that goes to the last address of all is left open.
        if to != u128::MAX >> (128 - bits) {
            elements.push(Element { interval_end: true, ..Element::key(write(to + 1)) });
        }
    }
    elements
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// A part of a concatenation fills whole words of four bytes.
fn word(part: &[u8]) -> [u8; 4] {
    let mut word = [0; 4];
    word[..part.len()].copy_from_slice(part);
    word
}

#[cfg(test)]
mod tests;
