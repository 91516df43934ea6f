//! Which address a pod gets. Pure: the addresses in use and the place of the last choice come in as
//! arguments.
//!
//! The usable addresses of all ranges of a family form one ring. The search goes on behind the last
//! choice, so that an address just released is the last one to be used again: packets, ARP entries
//! and connection tracking of its former owner have died by then.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// A range of addresses with what is not leased in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    network: IpNetwork,
    first: u128,
    last: u128,
    /// Excluded spans inside `first..=last`, ascending, not overlapping.
    holes: Vec<(u128, u128)>,
}

impl Range {
    pub(crate) fn network(&self) -> IpNetwork {
        self.network
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.network.is_ipv6()
    }

    /// The address of the bridge in this range: the first one behind the network address.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.address(number(self.network.network()) + 1)
    }

    /// How many addresses can be leased.
    pub(crate) fn capacity(&self) -> u128 {
        let holes: u128 = self.holes.iter().map(|(from, to)| to - from + 1).sum();
        self.last - self.first + 1 - holes
    }

    fn address(&self, number: u128) -> IpAddr {
        if self.is_ipv6() {
            IpAddr::V6(Ipv6Addr::from(number))
        } else {
            // A number of an IPv4 range is below 2^32: it comes from an IPv4 address.
            IpAddr::V4(Ipv4Addr::from(number as u32))
        }
    }

    /// The first leasable number at or behind `from` that is not in `taken`.
    fn free_from(&self, from: u128, taken: &HashSet<IpAddr>) -> Option<u128> {
        let mut candidate = from.max(self.first);
        while candidate <= self.last {
            if let Some((_, to)) =
                self.holes.iter().find(|(from, to)| (*from..=*to).contains(&candidate))
            {
                candidate = to.checked_add(1)?;
            } else if taken.contains(&self.address(candidate)) {
                candidate = candidate.checked_add(1)?;
            } else {
                return Some(candidate);
            }
        }
        None
    }
}

/// Turns configured networks into ranges, or tells everything that is wrong with them.
pub(crate) fn parse_ranges(
    networks: &[IpNetwork],
    exclude: &[IpNetwork],
) -> Result<Vec<Range>, Vec<String>> {
    let mut mistakes = Vec::new();
    let mut ranges: Vec<Range> = Vec::new();
    for network in networks {
        match parse_range(*network, exclude) {
            Ok(range) => {
                if let Some(other) = ranges.iter().find(|other| overlap(other, &range)) {
                    mistakes.push(format!("range {network} overlaps with {}", other.network));
                }
                ranges.push(range);
            }
            Err(reason) => mistakes.push(format!("range {network}: {reason}")),
        }
    }
    for hole in exclude {
        if !networks.iter().any(|network| contains(*network, *hole)) {
            mistakes.push(format!("excluded {hole} is in no range"));
        }
    }
    if mistakes.is_empty() { Ok(ranges) } else { Err(mistakes) }
}

/// Chooses an address of one family, searching behind `cursor`, the last address chosen.
/// `None` when every address is taken.
pub(crate) fn choose(
    ranges: &[&Range],
    taken: &HashSet<IpAddr>,
    cursor: Option<IpAddr>,
) -> Option<IpNetwork> {
    let start = cursor.and_then(|cursor| {
        let index = ranges.iter().position(|range| range.network.contains(cursor))?;
        Some((index, number(cursor).checked_add(1)?))
    });
    let (index, from) = start.unwrap_or((0, 0));
    // The cursor's range is visited twice: behind the cursor first, from its start at the end.
    (0..=ranges.len()).find_map(|step| {
        let range = ranges.get((index + step) % ranges.len().max(1))?;
        let from = if step == 0 { from } else { 0 };
        let address = range.address(range.free_from(from, taken)?);
        IpNetwork::new(address, range.network.prefix()).ok()
    })
}

fn parse_range(network: IpNetwork, exclude: &[IpNetwork]) -> Result<Range, String> {
    let bits = if network.is_ipv6() { 128 } else { 32 };
    if network.ip() != network.network() {
        return Err(format!(
            "has bits behind its prefix; did you mean {}/{}?",
            network.network(),
            network.prefix()
        ));
    }
    if network.prefix() > bits - 2 {
        return Err(format!("is too small for a gateway and a pod; use /{} or larger", bits - 2));
    }
    let unusable = match network.ip() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_multicast() || ip.is_unspecified(),
    };
    if unusable {
        return Err("is not for unicast between hosts".to_owned());
    }
    let start = number(network.network());
    let end = start | ((1_u128 << (bits - network.prefix())) - 1);
    // Behind the gateway, and for IPv4 before the broadcast address.
    let (first, last) = (start + 2, if network.is_ipv6() { end } else { end - 1 });
    let holes = merge(
        exclude
            .iter()
            .filter(|hole| contains(network, **hole))
            .map(|hole| {
                let from = number(hole.network());
                let size = (1_u128 << (bits - hole.prefix())) - 1;
                (from.max(first), (from | size).min(last))
            })
            .filter(|(from, to)| from <= to)
            .collect(),
    );
    let range = Range { network, first, last, holes };
    if range.capacity() == 0 {
        return Err("has no address left after the exclusions".to_owned());
    }
    Ok(range)
}

/// Sorts spans and joins those that overlap.
fn merge(mut spans: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    spans.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (from, to) in spans {
        match merged.last_mut() {
            Some((_, end)) if from <= end.saturating_add(1) => *end = to.max(*end),
            _ => merged.push((from, to)),
        }
    }
    merged
}

fn overlap(a: &Range, b: &Range) -> bool {
    contains(a.network, b.network) || contains(b.network, a.network)
}

fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.is_ipv6() == inner.is_ipv6()
        && outer.prefix() <= inner.prefix()
        && outer.contains(inner.network())
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
mod tests;
