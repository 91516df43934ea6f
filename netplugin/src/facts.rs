//! What this node is like: read once, so that decisions need not.

use std::fs;
use std::path::Path;

use rustix::fs::{Access, access};

use crate::error::Error;
use crate::netlink::{Route, link, route};
use crate::netns;

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

/// The settings that let this node pass packets on.
const FORWARDING_IPV4: &str = "ipv4/ip_forward";
const FORWARDING_IPV6: &str = "ipv6/conf/all/forwarding";

/// Lets this node pass packets on between its links.
pub(crate) fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    for name in forwarding(ipv6) {
        if netns::read_sysctl(name)?.as_deref() != Some("1") {
            if name == FORWARDING_IPV6 {
                keep_router_advertisements()?;
            }
            netns::write_sysctl(name, "1")?;
        }
    }
    Ok(())
}

/// A node that forwards IPv6 stops listening to its router, and loses its own default route, unless
/// told to go on (the value 2).
fn keep_router_advertisements() -> Result<(), Error> {
    const LINKS: &str = "/proc/sys/net/ipv6/conf";
    let entries = fs::read_dir(LINKS).map_err(|source| Error::file("read", LINKS, source))?;
    for entry in entries.flatten() {
        let name = format!("ipv6/conf/{}/accept_ra", entry.file_name().display());
        // A link may be gone since the directory was read.
        if netns::read_sysctl(&name)?.as_deref() == Some("1") {
            netns::write_sysctl(&name, "2")?;
        }
    }
    Ok(())
}

/// Whether this node passes packets on, or could be told to.
pub(crate) fn forwarding_is_possible(ipv6: bool) -> Result<(), Error> {
    for name in forwarding(ipv6) {
        if netns::read_sysctl(name)?.as_deref() != Some("1") {
            let path = format!("/proc/sys/net/{name}");
            access(&path, Access::WRITE_OK)
                .map_err(|errno| Error::file("enable forwarding in", path, errno))?;
        }
    }
    Ok(())
}

fn forwarding(ipv6: bool) -> impl Iterator<Item = &'static str> {
    [Some(FORWARDING_IPV4), ipv6.then_some(FORWARDING_IPV6)].into_iter().flatten()
}
