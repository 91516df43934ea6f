//! What the links and addresses of a pod are to be called and to be. Pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// The names of links that belong to one daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    bridge: String,
    table: String,
}

impl Names {
    pub(crate) fn new(bridge: &str, table: &str) -> Names {
        Names { bridge: bridge.to_owned(), table: table.to_owned() }
    }

    /// The alias of the bridge: tells it from a bridge somebody else made.
    pub(crate) fn bridge_alias(&self) -> String {
        format!("lapstrake:{}", self.table)
    }

    /// The alias of a pod's host link: whose it is and which sandbox's.
    pub(crate) fn link_alias(&self, sandbox_id: &str) -> String {
        format!("{}{sandbox_id}", self.link_prefix())
    }

    /// The sandbox a host link of this daemon belongs to; `None` for any other link.
    pub(crate) fn sandbox_of<'a>(&self, alias: &'a str) -> Option<&'a str> {
        alias.strip_prefix(&self.link_prefix())
    }

    /// The name of a pod's host link: 15 characters, the most the kernel takes. The first half tells
    /// daemons apart, the second pods. `attempt` gives another name when one is in use.
    pub(crate) fn host_link(&self, sandbox_id: &str, attempt: u32) -> String {
        let daemon = hash(&[self.bridge.as_bytes(), self.table.as_bytes()]) & 0xffff;
        let pod = hash(&[sandbox_id.as_bytes(), &attempt.to_be_bytes()]) & 0xffff_ffff;
        format!("lap{daemon:04x}{pod:08x}")
    }

    /// The address of the bridge, the same every time it is made.
    pub(crate) fn bridge_mac(&self) -> [u8; 6] {
        let bytes = hash(&[self.bridge.as_bytes(), self.table.as_bytes()]).to_be_bytes();
        local_mac([bytes[2], bytes[3], bytes[4], bytes[5], bytes[6]])
    }

    fn link_prefix(&self) -> String {
        format!("lapstrake:{}:", self.table)
    }
}

/// The hardware address of a pod. It follows from the pod's first address, so that a neighbour that
/// remembers the former owner of an address still reaches the new one.
pub(crate) fn pod_mac(addresses: &[IpNetwork]) -> [u8; 6] {
    match addresses.first().map(IpNetwork::ip) {
        Some(IpAddr::V4(ip)) => {
            let [a, b, c, d] = ip.octets();
            local_mac([0x58, a, b, c, d])
        }
        Some(IpAddr::V6(ip)) => {
            let bytes = hash(&[&ip.octets()]).to_be_bytes();
            local_mac([bytes[3], bytes[4], bytes[5], bytes[6], bytes[7]])
        }
        None => local_mac([0; 5]),
    }
}

/// A unicast address from the space that no vendor assigns.
fn local_mac([a, b, c, d, e]: [u8; 5]) -> [u8; 6] {
    [0x0a, a, b, c, d, e]
}

/// FNV-1a. Names must be the same after an upgrade, which the hasher of the standard library does not
/// promise.
fn hash(parts: &[&[u8]]) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let hashed = parts.iter().fold(BASIS, |state, part| {
        // A separator keeps ("a", "bc") from ("ab", "c").
        part.iter()
            .chain(&[0xff])
            .fold(state, |state, byte| (state ^ u64::from(*byte)).wrapping_mul(PRIME))
    });
    // The low bits of FNV alone mix poorly for short inputs.
    hashed ^ (hashed >> 32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn host_links_fit_the_kernel_and_do_not_meet_between_daemons() {
        let mut seen = HashSet::new();
        for daemon in 0..20 {
            let names = Names::new(&format!("br{daemon}"), &format!("table{daemon}"));
            for pod in 0..200 {
                let name = names.host_link(&format!("pod{pod}"), 0);
                assert!(name.len() <= 15, "{name}");
                assert!(seen.insert(name));
            }
        }
    }

    #[test]
    fn a_name_in_use_has_an_alternative() {
        let names = Names::new("br0", "t");
        assert_ne!(names.host_link("pod", 0), names.host_link("pod", 1));
        assert_eq!(names.host_link("pod", 0), names.host_link("pod", 0));
    }

    #[test]
    fn an_alias_names_only_sandboxes_of_its_own_daemon() {
        let ours = Names::new("br0", "t");
        let theirs = Names::new("br0", "t2");
        assert_eq!(ours.sandbox_of(&ours.link_alias("pod")), Some("pod"));
        assert_eq!(ours.sandbox_of(&theirs.link_alias("pod")), None);
        assert_eq!(ours.sandbox_of(&ours.bridge_alias()), None);
    }

    #[test]
    fn a_pod_address_decides_its_mac() {
        let mac = pod_mac(&["10.244.0.7/24".parse().unwrap()]);
        assert_eq!(mac, [0x0a, 0x58, 10, 244, 0, 7]);
        let six = pod_mac(&["fd00::7/64".parse().unwrap()]);
        assert_eq!(six[0], 0x0a);
        assert_ne!(six, pod_mac(&["fd00::8/64".parse().unwrap()]));
    }
}
