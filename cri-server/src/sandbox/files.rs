//! The three files every pod has of its own: hosts, hostname, resolv.conf. Pure text.

use std::fmt::Write;
use std::net::IpAddr;

use super::spec::Dns;

/// `search`, `nameserver`, `options`, in this order, as the conformance suite reads it.
pub(crate) fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

/// What a pod with its own network needs when the kubelet mounts no hosts file of its own.
pub(crate) fn hosts(addresses: &[IpAddr], hostname: &str) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        let _ = writeln!(text, "{address}\t{hostname}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_the_order_that_resolvers_and_tests_expect() {
        let dns = Dns {
            servers: vec!["10.96.0.10".into(), "8.8.8.8".into()],
            searches: vec!["a.svc".into(), "svc".into()],
            options: vec!["ndots:5".into()],
        };
        let expect =
            "search a.svc svc\nnameserver 10.96.0.10\nnameserver 8.8.8.8\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expect);
        assert_eq!(resolv_conf(&Dns { servers: vec![], searches: vec![], options: vec![] }), "");
    }

    #[test]
    fn hosts_names_every_address_of_the_pod() {
        let text = hosts(&["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()], "web");
        assert!(text.ends_with("10.0.0.2\tweb\nfd00::2\tweb\n"), "{text}");
    }
}
