//! What the plugin answers, in the form of the version it was asked in.

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::config::NetConf;
use crate::network::{Attachment, Network};

/// Error codes: below 100 those of the specification (§5), from 100 ours.
pub(super) mod code {
    pub(crate) const VERSION: u32 = 1;
    pub(crate) const UNSUPPORTED: u32 = 2;
    pub(crate) const ENVIRONMENT: u32 = 4;
    pub(crate) const INPUT: u32 = 5;
    pub(crate) const DECODE: u32 = 6;
    pub(crate) const CONFIGURATION: u32 = 7;
    pub(crate) const TRY_AGAIN: u32 = 11;
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    pub(crate) const KERNEL: u32 = 100;
    pub(crate) const CHECK: u32 = 101;
    pub(crate) const EXHAUSTED: u32 = 102;
    pub(crate) const PORT_TAKEN: u32 = 103;
}

/// An operation that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }

    pub(super) fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.message })
    }
}

/// The result of an ADD.
pub(super) fn added(
    conf: &NetConf,
    network: &Network,
    attachment: &Attachment,
    netns: &str,
) -> Value {
    let mut interfaces = vec![
        json!({ "name": network.config.bridge, "mac": mac(network.names.bridge_mac()) }),
        json!({ "name": attachment.host_link }),
        json!({ "name": attachment.interface, "mac": mac(attachment.mac), "sandbox": netns }),
    ];
    // The MTU of an interface is in results since 1.1.0.
    if conf.is_at_least((1, 1)) {
        interfaces[2]["mtu"] = attachment.mtu.into();
    }
    let ips = attachment.addresses.iter().zip(&attachment.gateways).map(|(address, gateway)| {
        let mut ip = json!({ "interface": 2, "address": address, "gateway": gateway });
        // Before 1.0.0 every address said which family it is of.
        if !conf.is_at_least((1, 0)) {
            ip["version"] = if address.is_ipv4() { "4" } else { "6" }.into();
        }
        ip
    });
    let ips: Vec<Value> = ips.collect();
    let routes = attachment.addresses.iter().zip(&attachment.gateways);
    let routes: Vec<Value> = routes
        .map(|(address, gateway)| json!({ "dst": everywhere(address), "gw": gateway }))
        .collect();
    json!({
        "cniVersion": conf.cni_version,
        "interfaces": interfaces,
        "ips": ips,
        "routes": routes,
        "dns": conf.dns,
    })
}

fn everywhere(address: &IpNetwork) -> &'static str {
    if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
