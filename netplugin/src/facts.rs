//! What this node is like: read once, so that decisions need not.

use std::path::Path;

use crate::error::Error;
use crate::netlink::{Route, link, route};

/// What a pod link gets when the node has no default route.
const DEFAULT_MTU: u32 = 1500;

/// The MTU of the link that the default route leaves by; of several, the smallest.
pub(crate) fn uplink_mtu(socket: &mut Route) -> Result<u32, Error> {
    let uplinks = route::uplinks(socket)?;
    if uplinks.is_empty() {
        return Ok(DEFAULT_MTU);
    }
    let links = link::list(socket)?;
    Ok(links
        .iter()
        .filter(|link| uplinks.contains(&link.index))
        .map(|link| link.mtu)
        .min()
        .unwrap_or(DEFAULT_MTU))
}

/// Whether this kernel runs IPv6 at all (it does not with `ipv6.disable=1`).
pub(crate) fn kernel_has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}
