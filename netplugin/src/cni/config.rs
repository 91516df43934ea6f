//! The network configuration on standard input: what the administrator wrote and the runtime added.
//! Pure.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Failure, code};
use crate::bandwidth::{Bandwidth, Rate};
use crate::config::Config;
use crate::ports::{PortMapping, Protocol};

/// The versions of the specification this plugin speaks.
pub(super) const VERSIONS: [&str; 4] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of errors about input that names none.
pub(super) const VERSION_DEFAULT: &str = "1.1.0";

/// Where leases are unless the configuration says otherwise: a directory for each network.
const DATA_DIR: &str = "/var/lib/cni/lapstrake";

/// A network configuration. Keys it does not have belong to other plugins of the chain or to newer
/// versions of the specification.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetConf {
    #[serde(default)]
    pub(super) cni_version: String,
    #[serde(default)]
    name: String,
    #[serde(default = "default_bridge")]
    bridge: String,
    #[serde(default)]
    ranges: Vec<IpNetwork>,
    #[serde(default)]
    exclude: Vec<IpNetwork>,
    mtu: Option<u32>,
    #[serde(default = "default_masquerade", alias = "ipMasq")]
    masquerade: bool,
    #[serde(default)]
    no_masquerade: Vec<IpNetwork>,
    table: Option<String>,
    data_dir: Option<PathBuf>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    pub(super) prev_result: Option<Value>,
    #[serde(default = "no_dns")]
    pub(super) dns: Value,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(super) valid_attachments: Vec<ValidAttachment>,
}

/// An attachment that garbage collection must spare.
#[derive(Debug, Deserialize)]
pub(super) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(super) container_id: String,
    pub(super) ifname: String,
}

/// What the runtime fills in for the capabilities the configuration declares.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RuntimeConfig {
    port_mappings: Vec<CniPort>,
    bandwidth: CniBandwidth,
    ip_ranges: Vec<Vec<CniRange>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CniPort {
    host_port: u16,
    container_port: u16,
    #[serde(default)]
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// Rates and bursts in bits, 0 for no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CniBandwidth {
    ingress_rate: u64,
    ingress_burst: u64,
    egress_rate: u64,
    egress_burst: u64,
}

#[derive(Debug, Deserialize)]
struct CniRange {
    subnet: IpNetwork,
}

/// The version a configuration is written in.
pub(super) fn version_of(text: &[u8]) -> Result<String, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        #[serde(default = "oldest")]
        cni_version: String,
    }
    /// What a configuration without a version is written in (specification 0.1.0).
    fn oldest() -> String {
        "0.1.0".to_owned()
    }
    let version: Version = serde_json::from_slice(text).map_err(|error| decode(&error))?;
    Ok(version.cni_version)
}

impl NetConf {
    pub(super) fn parse(text: &[u8]) -> Result<NetConf, Failure> {
        let version = version_of(text)?;
        if !VERSIONS.contains(&version.as_str()) {
            let message = format!("cniVersion {version} is not one of {}", VERSIONS.join(", "));
            return Err(Failure::new(code::VERSION, message));
        }
        let conf: NetConf = serde_json::from_slice(text).map_err(|error| decode(&error))?;
        let begins_well = conf.name.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !begins_well || !conf.name.bytes().all(is_name_byte) {
            let message = format!("name {:?} is not a network name", conf.name);
            return Err(Failure::new(code::CONFIGURATION, message));
        }
        Ok(conf)
    }

    /// The settings of the network. Its table is named after the bridge, which no two networks share.
    pub(super) fn network_config(&self) -> Result<Config, Failure> {
        let from_runtime = self.runtime_config.ip_ranges.iter().flatten();
        let mut ranges: Vec<IpNetwork> = from_runtime.map(|range| range.subnet).collect();
        if ranges.is_empty() {
            ranges.clone_from(&self.ranges);
        }
        let table = self.table.clone().unwrap_or_else(|| table_of(&self.bridge));
        let data_dir = self.data_dir.clone().unwrap_or_else(|| DATA_DIR.into());
        Ok(Config {
            bridge: self.bridge.clone(),
            ranges,
            exclude: self.exclude.clone(),
            mtu: self.mtu,
            masquerade: self.masquerade,
            no_masquerade: self.no_masquerade.clone(),
            table,
            leases_dir: data_dir.join(&self.name),
        })
    }

    pub(super) fn port_mappings(&self) -> Result<Vec<PortMapping>, Failure> {
        self.runtime_config.port_mappings.iter().map(CniPort::parse).collect()
    }

    pub(super) fn bandwidth(&self) -> Bandwidth {
        let rate = |bits_per_second, burst| {
            let burst_bits = (burst != 0).then_some(burst);
            (bits_per_second != 0).then_some(Rate { bits_per_second, burst_bits })
        };
        let limits = &self.runtime_config.bandwidth;
        Bandwidth {
            ingress: rate(limits.ingress_rate, limits.ingress_burst),
            egress: rate(limits.egress_rate, limits.egress_burst),
        }
    }

    /// Whether the configuration is of this version (major, minor) or a later one.
    pub(super) fn is_at_least(&self, version: (u32, u32)) -> bool {
        let mut parts = self.cni_version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= version
    }
}

impl CniPort {
    fn parse(&self) -> Result<PortMapping, Failure> {
        let wrong = |what: String| Failure::new(code::UNSUPPORTED, format!("portMappings: {what}"));
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "" | "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(wrong(format!("protocol {other} is none of tcp, udp, sctp"))),
        };
        let host_ip = match self.host_ip.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(|e| wrong(format!("hostIP {text}: {e}")))?),
        };
        let (host_port, container_port) = (self.host_port, self.container_port);
        Ok(PortMapping { protocol, container_port, host_port, host_ip })
    }
}

fn default_bridge() -> String {
    "lapstrake-cni".to_owned()
}

fn default_masquerade() -> bool {
    true
}

fn no_dns() -> Value {
    json!({})
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// A table name for a bridge: table names have fewer characters to choose from.
fn table_of(bridge: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    format!("cni-{}", bridge.chars().map(safe).collect::<String>())
}

fn decode(error: &serde_json::Error) -> Failure {
    Failure::new(code::DECODE, format!("network configuration: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NetConf, Failure> {
        NetConf::parse(text.as_bytes())
    }

    #[test]
    fn capabilities_become_ports_bandwidth_and_ranges() {
        let conf = parse(
            r#"{"cniVersion":"1.0.0","name":"net","type":"lapstrake-bridge","ranges":["10.1.0.0/24"],
                "runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"UDP","hostIP":"10.0.0.1"}],
                "bandwidth":{"ingressRate":1000000,"ingressBurst":0},"ipRanges":[[{"subnet":"10.2.0.0/24"}]]}}"#,
        )
        .unwrap();
        assert_eq!(
            conf.port_mappings().unwrap(),
            [PortMapping {
                protocol: Protocol::Udp,
                container_port: 8080,
                host_port: 80,
                host_ip: Some("10.0.0.1".parse().unwrap()),
            }]
        );
        let ingress = Some(Rate { bits_per_second: 1_000_000, burst_bits: None });
        assert_eq!(conf.bandwidth(), Bandwidth { ingress, egress: None });
        let config = conf.network_config().unwrap();
        assert_eq!(config.ranges, ["10.2.0.0/24".parse().unwrap()]);
        assert_eq!(config.leases_dir.to_str(), Some("/var/lib/cni/lapstrake/net"));
        assert!(config.parse().is_ok());
    }

    #[test]
    fn what_cannot_be_understood_has_the_code_of_the_specification() {
        for (text, expected) in [
            ("{", code::DECODE),
            (r#"{"name":"n"}"#, code::VERSION),
            (r#"{"cniVersion":"9.9.9","name":"n"}"#, code::VERSION),
            (r#"{"cniVersion":"1.0.0"}"#, code::CONFIGURATION),
            (r#"{"cniVersion":"1.0.0","name":"../../etc"}"#, code::CONFIGURATION),
            (r#"{"cniVersion":"1.0.0","name":".."}"#, code::CONFIGURATION),
            (r#"{"cniVersion":"1.0.0","name":"n","ranges":["nonsense"]}"#, code::DECODE),
        ] {
            assert_eq!(parse(text).unwrap_err().code, expected, "{text}");
        }
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        let conf = |v: &str| parse(&format!(r#"{{"cniVersion":"{v}","name":"n"}}"#)).unwrap();
        assert!(conf("1.1.0").is_at_least((1, 1)) && conf("1.0.0").is_at_least((1, 0)));
        assert!(!conf("0.4.0").is_at_least((1, 0)) && !conf("1.0.0").is_at_least((1, 1)));
    }
}
