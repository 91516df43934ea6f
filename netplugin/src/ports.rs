//! Host ports: what a pod may ask for, and which requests cannot live side by side. Pure.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number of the protocol in an IP header.
    pub(crate) fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// One port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Which protocol.
    pub protocol: Protocol,
    /// The port the pod listens on, 1 to 65535.
    pub container_port: u16,
    /// The port on the host; 0 asks for no mapping and is ignored.
    pub host_port: u16,
    /// Only this address of the host; `None`, `0.0.0.0` and `::` mean every address of it
    /// (`0.0.0.0` IPv4 only, `::` IPv6 only).
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// The host address this mapping is bound to, if it is bound to one.
    pub(crate) fn bound_to(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether the mapping applies to the address family of `ip`.
    pub(crate) fn serves(&self, ip: IpAddr) -> bool {
        self.host_ip.is_none_or(|host| host.is_ipv4() == ip.is_ipv4())
    }

    /// Whether both mappings would claim the same packets.
    pub(crate) fn conflicts(&self, other: &PortMapping) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && match (self.host_ip, other.host_ip) {
                (None, _) | (_, None) => true,
                (Some(a), Some(b)) => {
                    a == b
                        || (a.is_ipv4() == b.is_ipv4()
                            && (a.is_unspecified() || b.is_unspecified()))
                }
            }
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => write!(f, "*:{}/{}", self.host_port, self.protocol),
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}/{}", self.host_port, self.protocol),
            Some(ip) => write!(f, "{ip}:{}/{}", self.host_port, self.protocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: &str, host_port: u16, protocol: Protocol) -> PortMapping {
        let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
        PortMapping { protocol, container_port: 80, host_port, host_ip }
    }

    #[test]
    fn two_mappings_conflict_when_a_packet_could_match_both() {
        use Protocol::{Tcp, Udp};
        for (a, b, expected) in [
            (port("", 80, Tcp), port("", 80, Tcp), true),
            (port("", 80, Tcp), port("", 81, Tcp), false),
            (port("", 80, Tcp), port("", 80, Udp), false),
            (port("", 80, Tcp), port("10.0.0.1", 80, Tcp), true),
            (port("10.0.0.1", 80, Tcp), port("10.0.0.2", 80, Tcp), false),
            (port("10.0.0.1", 80, Tcp), port("0.0.0.0", 80, Tcp), true),
            (port("::", 80, Tcp), port("0.0.0.0", 80, Tcp), false),
            (port("::", 80, Tcp), port("fd00::1", 80, Tcp), true),
            (port("10.0.0.1", 80, Tcp), port("fd00::1", 80, Tcp), false),
        ] {
            assert_eq!(a.conflicts(&b), expected, "{a} with {b}");
            assert_eq!(b.conflicts(&a), expected, "{b} with {a}");
        }
    }

    #[test]
    fn a_mapping_reads_as_address_port_and_protocol() {
        assert_eq!(port("", 53, Protocol::Udp).to_string(), "*:53/udp");
        assert_eq!(port("10.0.0.1", 53, Protocol::Tcp).to_string(), "10.0.0.1:53/tcp");
        assert_eq!(port("fd00::1", 53, Protocol::Sctp).to_string(), "[fd00::1]:53/sctp");
    }
}
