//! What plugins are told about a pod: `CNI_ARGS` as Kubernetes has them, and capability arguments.
//! Pure.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value, json};

use crate::sandbox::Sandbox;
use crate::sandbox::spec::{Protocol, Spec};

/// Pod annotation with the hardware address that plugins which can set one are asked for.
const MAC_ANNOTATION: &str = "lapstrake.io/mac";

/// Bits that may pass at once are what the rate gives in this fraction of a second …
const BURST_PER_SECOND: u64 = 20;
/// … but never less than the largest packet a link hands over in one piece.
const BURST_BITS_MIN: u64 = 64 * 1024 * 8;
/// The plugin's own limit.
const BURST_BITS_MAX: u64 = (1 << 32) - 1;

/// `CNI_ARGS`, in the order the peers have them.
pub(crate) fn arguments(sandbox: &Sandbox) -> Vec<(String, String)> {
    let metadata = &sandbox.spec.metadata;
    [
        // Plugins that know none of these names would refuse them.
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", metadata.namespace.as_str()),
        ("K8S_POD_NAME", metadata.name.as_str()),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.id.as_str()),
        ("K8S_POD_UID", metadata.uid.as_str()),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec()
}

/// Everything a plugin may declare that it wants; what the pod does not have is left out.
pub(crate) fn capabilities(sandbox: &Sandbox, pod_cidr: &[IpNetwork]) -> Map<String, Value> {
    let spec = &sandbox.spec;
    let mut told = Map::new();
    let mut tell = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
    if !spec.port_mappings.is_empty() {
        tell("portMappings", port_mappings(spec));
    }
    if let Some(limits) = bandwidth(spec) {
        tell("bandwidth", limits);
    }
    if !pod_cidr.is_empty() {
        let ranges = pod_cidr.iter().map(|range| json!([{ "subnet": range }]));
        tell("ipRanges", ranges.collect());
    }
    if let Some(dns) = &spec.dns {
        let (servers, searches, options) = (&dns.servers, &dns.searches, &dns.options);
        tell("dns", json!({ "servers": servers, "searches": searches, "options": options }));
    }
    if let Some(mac) = spec.annotations.get(MAC_ANNOTATION) {
        tell("mac", mac.as_str().into());
    }
    tell("aliases", json!([sandbox.hostname]));
    tell("cgroupPath", sandbox.cgroup_parent.as_str().into());
    tell("io.kubernetes.cri.pod-annotations", json!(spec.annotations));
    told
}

fn port_mappings(spec: &Spec) -> Value {
    let one = |port: &crate::sandbox::spec::PortMapping| {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        json!({
            "hostPort": port.host_port,
            "containerPort": port.container_port,
            "protocol": protocol,
            "hostIP": port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
        })
    };
    spec.port_mappings.iter().map(one).collect()
}

fn bandwidth(spec: &Spec) -> Option<Value> {
    let limits = &spec.bandwidth;
    let mut told = Map::new();
    for (direction, rate) in [("ingress", limits.ingress), ("egress", limits.egress)] {
        if let Some(rate) = rate {
            let burst = (rate / BURST_PER_SECOND).clamp(BURST_BITS_MIN, BURST_BITS_MAX);
            told.insert(format!("{direction}Rate"), rate.into());
            told.insert(format!("{direction}Burst"), burst.into());
        }
    }
    (!told.is_empty()).then_some(Value::Object(told))
}
