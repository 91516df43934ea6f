//! A network configuration made from the kubelet's pod CIDR, for clusters without an add-on that
//! writes one.

use std::fs;
use std::path::Path;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use crate::error::Error;

/// Behind every configuration that an add-on brings, which have the numbers before it.
pub(crate) const FILE: &str = "99-lapstrake.conflist";

/// Replaces the places that the peers' templates have too: `{{.PodCIDR}}` (the first one),
/// `{{.PodCIDRRanges}}` and `{{.Routes}}` (both as lists in JSON).
pub(crate) fn render(template: &str, pod_cidr: &[IpNetwork]) -> String {
    let first = pod_cidr.first().map(ToString::to_string).unwrap_or_default();
    let ranges: Value = pod_cidr.iter().map(|range| json!([{ "subnet": range }])).collect();
    let family = |ipv6: bool| pod_cidr.iter().any(|range| range.is_ipv6() == ipv6);
    let routes: Value = [(false, "0.0.0.0/0"), (true, "::/0")]
        .into_iter()
        .filter(|(ipv6, _)| family(*ipv6))
        .map(|(_, everywhere)| json!({ "dst": everywhere }))
        .collect();
    template
        .replace("{{.PodCIDRRanges}}", &ranges.to_string())
        .replace("{{.PodCIDR}}", &first)
        .replace("{{.Routes}}", &routes.to_string())
}

/// Writes the rendered configuration, whole or not at all.
pub(crate) fn write(template: &Path, dir: &Path, pod_cidr: &[IpNetwork]) -> Result<(), Error> {
    let text = fs::read_to_string(template)
        .map_err(|source| Error::io("read the template of the network", template, source))?;
    let path = dir.join(FILE);
    let failed = |source| Error::io("write the network configuration", &path, source);
    fs::create_dir_all(dir).map_err(failed)?;
    // A name that is no configuration's.
    let aside = dir.join(".99-lapstrake.new");
    fs::write(&aside, render(&text, pod_cidr)).map_err(failed)?;
    fs::rename(&aside, &path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_knows_the_pod_cidr_of_both_families() {
        let cidr = ["10.1.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()];
        let text = r#"{"subnet":"{{.PodCIDR}}","ranges":{{.PodCIDRRanges}},"routes":{{.Routes}}}"#;
        let rendered: Value = serde_json::from_str(&render(text, &cidr)).unwrap();
        assert_eq!(
            rendered,
            json!({
                "subnet": "10.1.0.0/24",
                "ranges": [[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]],
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            })
        );
    }
}
