//! The settings of one network and what makes them usable. Pure: all mistakes are reported together.

use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::error::Error;
use crate::ipam::{self, Range};

/// Longest name the kernel takes for a link: IFNAMSIZ without its final zero byte.
const LINK_NAME_MAX: usize = 15;
/// Longest name nf_tables takes for a table (NFT_NAME_MAXLEN is 256; nft itself lists at most this).
const TABLE_NAME_MAX: usize = 128;
/// IPv6 needs links of 1280 bytes, IPv4 of 68 (RFC 8200 §5, RFC 791); nothing real uses less.
const MTU_MIN: u32 = 1280;
/// The largest MTU a veth can have.
const MTU_MAX: u32 = 65535;

/// The settings of one network: one bridge, one nftables table, one directory of leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the bridge, 1 to 15 characters; created on demand.
    pub bridge: String,
    /// Where pod addresses come from. The first usable address of each range is the gateway's. A pod
    /// gets one address of each family that has a range. Empty: wait for [`crate::Network::set_pod_cidr`].
    pub ranges: Vec<IpNetwork>,
    /// Addresses inside the ranges that are never leased.
    pub exclude: Vec<IpNetwork>,
    /// MTU of pod links in bytes; `None` takes that of the link of the default route.
    pub mtu: Option<u32>,
    /// Whether traffic of pods to anywhere outside the ranges gets the address of the node.
    pub masquerade: bool,
    /// Destinations that see the pods' own addresses, besides the ranges: the rest of the cluster.
    pub no_masquerade: Vec<IpNetwork>,
    /// Name of the nftables table (family inet); must not be shared between daemons.
    pub table: String,
    /// Directory of the lease files; must not be shared between daemons.
    pub leases_dir: PathBuf,
}

impl Config {
    /// Tells everything that is wrong with it, one sentence each.
    pub fn mistakes(&self) -> Vec<String> {
        match self.parse() {
            Err(Error::Config(mistakes)) => mistakes,
            Err(error) => vec![error.to_string()],
            Ok(_) => Vec::new(),
        }
    }

    /// Checks everything and gives the ranges in the form the address allocation works on.
    pub(crate) fn parse(&self) -> Result<Vec<Range>, Error> {
        let mut mistakes = Vec::new();
        if !is_link_name(&self.bridge) {
            mistakes.push(format!(
                "bridge {:?}: expected 1 to {LINK_NAME_MAX} characters without '/', ':' or spaces",
                self.bridge
            ));
        }
        if !is_table_name(&self.table) {
            mistakes.push(format!(
                "table {:?}: expected a letter, then at most {} letters, digits, '.', '_' or '-'",
                self.table,
                TABLE_NAME_MAX - 1
            ));
        }
        if let Some(mtu) = self.mtu.filter(|mtu| !(MTU_MIN..=MTU_MAX).contains(mtu)) {
            mistakes.push(format!("mtu {mtu}: expected {MTU_MIN} to {MTU_MAX}"));
        }
        if !self.leases_dir.is_absolute() {
            mistakes.push(format!(
                "lease directory {}: expected an absolute path",
                self.leases_dir.display()
            ));
        }
        for network in &self.no_masquerade {
            if network.ip() != network.network() {
                mistakes.push(format!("no_masquerade {network}: has bits behind its prefix"));
            }
        }
        let ranges = match ipam::parse_ranges(&self.ranges, &self.exclude) {
            Ok(ranges) => ranges,
            Err(more) => {
                mistakes.extend(more);
                Vec::new()
            }
        };
        if mistakes.is_empty() { Ok(ranges) } else { Err(Error::Config(mistakes)) }
    }
}

fn is_link_name(name: &str) -> bool {
    (1..=LINK_NAME_MAX).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
}

fn is_table_name(name: &str) -> bool {
    name.len() <= TABLE_NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            bridge: "lapstrake0".into(),
            ranges: vec!["10.244.0.0/24".parse().unwrap()],
            exclude: vec![],
            mtu: None,
            masquerade: true,
            no_masquerade: vec![],
            table: "lapstrake".into(),
            leases_dir: "/var/lib/lapstrake/network".into(),
        }
    }

    #[test]
    fn a_sound_configuration_is_taken() {
        assert_eq!(config().parse().unwrap().len(), 1);
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let broken = Config {
            bridge: "a-name-that-is-too-long".into(),
            table: "1; flush ruleset".into(),
            mtu: Some(10),
            leases_dir: "relative".into(),
            ranges: vec!["10.0.0.0/31".parse().unwrap()],
            ..config()
        };
        let text = broken.parse().unwrap_err().to_string();
        for part in ["bridge \"a-name", "table \"1;", "mtu 10", "relative", "10.0.0.0/31"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
}
