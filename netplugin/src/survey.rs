//! A look at a node from outside: what keeps pods from a network there, and what those lack that have
//! one. Changes nothing and takes no lock, so it works beside a daemon and without one.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::apply::{check_bridge, pod};
use crate::config::Config;
use crate::error::Error;
use crate::facts;
use crate::ipam::Range;
use crate::leases::{self, Lease};
use crate::netlink::{Route, addr, link};
use crate::network::{Network, pod_ranges};
use crate::nft::Nft;
use crate::plan::Names;

/// What was found.
#[derive(Debug, Default)]
pub struct Survey {
    /// What keeps pods from a network; nothing when they can have one.
    pub obstacles: Vec<Error>,
    /// How many addresses of each family there are, and how many are leased.
    pub pools: Vec<Pool>,
    /// Networks this node is in itself that share addresses with the ranges: the pods' range wins, and
    /// who lives at those addresses is not reached any more.
    pub overlaps: Vec<(IpNetwork, IpNetwork)>,
    /// What pods with a lease lack, one sentence each: a daemon that runs puts it back.
    pub lost: Vec<String>,
}

/// The addresses of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The ranges, separated by commas.
    pub ranges: String,
    /// Whether they are of IPv6.
    pub ipv6: bool,
    /// How many can be leased in all.
    pub usable: u128,
    /// How many are.
    pub leased: u128,
}

impl Network {
    /// Looks at the node as a daemon with this configuration would find it. An error when it cannot
    /// even be looked at.
    pub fn survey(config: &Config) -> Result<Survey, Error> {
        let mut ranges = config.parse()?;
        let (leases, pod_cidr) = leases::peek(&config.leases_dir)?;
        if !pod_cidr.is_empty() {
            ranges = pod_ranges(&pod_cidr, &config.exclude)?;
        }
        let names = Names::new(&config.bridge, &config.table);
        let (mut route, mut nft) = (Route::open()?, Nft::open(&config.table));
        let obstacles = obstacles(&config.bridge, &names, &ranges, &mut route, &mut nft);
        let own = addr::list(&mut route, None)?;
        Ok(Survey {
            pools: [false, true].iter().filter_map(|ipv6| pool(&ranges, *ipv6, &leases)).collect(),
            overlaps: overlaps(&ranges, &own),
            lost: lost(config, &names, &leases, &mut route, &mut nft)?,
            obstacles,
        })
    }
}

/// Everything that keeps pods from a network. Reads a little from the kernel.
pub(crate) fn obstacles(
    bridge: &str,
    names: &Names,
    ranges: &[Range],
    route: &mut Route,
    nft: &mut Nft,
) -> Vec<Error> {
    let ipv6 = ranges.iter().any(Range::is_ipv6);
    let has_range = if ranges.is_empty() { Err(Error::NoRange) } else { Ok(()) };
    let is_free = link::find(route, bridge)
        .and_then(|found| found.map_or(Ok(()), |link| check_bridge(names, &link)));
    let has_tables = nft.is_possible();
    let is_open = match has_tables {
        Ok(()) => nothing_drops(nft, bridge, ipv6),
        Err(_) => Ok(()),
    };
    let all = [has_range, is_free, has_tables, facts::forwarding_is_possible(ipv6), is_open];
    all.into_iter().filter_map(Result::err).collect()
}

fn nothing_drops(nft: &mut Nft, bridge: &str, ipv6: bool) -> Result<(), Error> {
    let chains: Vec<_> = nft.forward_drops(bridge, ipv6)?.iter().map(ToString::to_string).collect();
    if chains.is_empty() {
        return Ok(());
    }
    Err(Error::Blocked { chains: chains.join(", "), bridge: bridge.to_owned() })
}

fn pool(ranges: &[Range], ipv6: bool, leases: &[Lease]) -> Option<Pool> {
    let of_family: Vec<&Range> = ranges.iter().filter(|range| range.is_ipv6() == ipv6).collect();
    let within = |ip: IpAddr| of_family.iter().any(|range| range.network().contains(ip));
    let leased = leases.iter().flat_map(|lease| &lease.addresses).filter(|it| within(it.ip()));
    let names: Vec<_> = of_family.iter().map(|range| range.network().to_string()).collect();
    (!of_family.is_empty()).then(|| Pool {
        ranges: names.join(", "),
        ipv6,
        usable: of_family.iter().map(|range| range.capacity()).sum(),
        leased: leased.count() as u128,
    })
}

/// Ranges and networks of the node's own, the bridge's apart.
fn overlaps(ranges: &[Range], own: &[IpNetwork]) -> Vec<(IpNetwork, IpNetwork)> {
    let mut found = Vec::new();
    for range in ranges {
        let network = range.network();
        let others = own.iter().filter(|it| it.ip() != range.gateway());
        let shares =
            |it: &&IpNetwork| network.contains(it.network()) || it.contains(network.network());
        found.extend(others.filter(shares).map(|other| (network, *other)));
    }
    found
}

fn lost(
    config: &Config,
    names: &Names,
    leases: &[Lease],
    route: &mut Route,
    nft: &mut Nft,
) -> Result<Vec<String>, Error> {
    if leases.is_empty() {
        return Ok(Vec::new());
    }
    let links = link::list(route)?;
    let mut lost = Vec::new();
    let bridge = links.iter().find(|link| link.name == config.bridge);
    if bridge.is_none() {
        lost.push(format!("bridge {} is gone", config.bridge));
    }
    for lease in leases {
        let alias = names.link_alias(&lease.sandbox_id);
        match links.iter().find(|link| link.alias.as_ref() == Some(&alias)) {
            None => lost.push(format!("pod {} has no link", lease.owner)),
            Some(link) if bridge.is_some_and(|it| link.controller != Some(it.index)) => {
                lost.push(format!("link {} of pod {} is off the bridge", link.name, lease.owner));
            }
            Some(_) => {}
        }
    }
    // Where it cannot be asked for, that is among the obstacles.
    match nft.exists() {
        Ok(false) => lost.push(format!("nftables table {} is gone", config.table)),
        Ok(true) => {
            for lease in leases {
                if let Some(set) = nft.missing(&pod(lease))? {
                    lost.push(format!("pod {} is not in set {} {set}", lease.owner, config.table));
                }
            }
        }
        Err(_) => {}
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam;

    fn nets(text: &str) -> Vec<IpNetwork> {
        text.split_whitespace().map(|it| it.parse().unwrap()).collect()
    }

    #[test]
    fn a_range_may_not_hold_what_the_node_is_in_itself() {
        let ranges = ipam::parse_ranges(&nets("10.244.0.0/24 fd00:9::/64"), &[]).unwrap();
        let check = |own: &str, expected: &str| {
            let found = overlaps(&ranges, &nets(own));
            let found: Vec<_> = found.iter().map(|(a, b)| format!("{a}~{b}")).collect();
            assert_eq!(found.join(" "), expected, "{own}");
        };
        check("127.0.0.1/8 ::1/128 192.168.1.5/24 10.244.1.1/24 fe80::1/64", "");
        check("10.244.0.1/24 fd00:9::1/64", ""); // the bridge's own
        check("10.0.0.7/8", "10.244.0.0/24~10.0.0.7/8");
        check(
            "10.244.0.130/25 fd00:9::7/128",
            "10.244.0.0/24~10.244.0.130/25 fd00:9::/64~fd00:9::7/128",
        );
    }
}
