//! The bytes of elements and messages, and their bounds. What the kernel makes of them is for the
//! kernel tests, with `nft` as the witness.

use super::*;
use crate::netlink::socket::attributes_of;
use crate::ports::Protocol;

fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn port(host_ip: Option<&str>) -> PortMapping {
    let host_ip = host_ip.map(|text| text.parse().unwrap());
    PortMapping { protocol: Protocol::Udp, container_port: 53, host_port: 5353, host_ip }
}

#[test]
fn a_pod_has_one_element_for_each_address_and_host_port() {
    let addresses = nets(&["10.9.0.2/24", "fd00::2/64"]);
    for (ports, expected) in [
        (vec![], vec!["pods4", "pods6"]),
        (vec![port(None)], vec!["pods4", "ports4", "pods6", "ports6"]),
        (vec![port(Some("192.168.0.1"))], vec!["pods4", "bound4", "pods6"]),
        (vec![port(Some("0.0.0.0"))], vec!["pods4", "ports4", "pods6"]),
        (vec![port(Some("::"))], vec!["pods4", "pods6", "ports6"]),
        (vec![PortMapping { host_port: 0, ..port(None) }], vec!["pods4", "pods6"]),
    ] {
        let pod = Pod { addresses: &addresses, ports: &ports };
        let sets: Vec<_> = elements(&pod).into_iter().map(|(set, _)| set).collect();
        assert_eq!(sets, expected, "{ports:?}");
    }
}

#[test]
fn the_parts_of_a_key_fill_whole_words() {
    let (addresses, ports) = (nets(&["10.9.0.2/24"]), [port(Some("192.168.0.1"))]);
    let all = elements(&Pod { addresses: &addresses, ports: &ports });
    let (_, element) = &all[1];
    assert_eq!(element.key, [192, 168, 0, 1, 17, 0, 0, 0, 0x14, 0xe9, 0, 0]);
    assert_eq!(element.data.as_deref(), Some(&[10, 9, 0, 2, 0, 53, 0, 0][..]));
}

#[test]
fn intervals_end_before_the_first_address_behind_them() {
    let keys = |family, networks: &[&str]| -> Vec<(Vec<u8>, bool)> {
        let elements = local_elements(family, &nets(networks));
        elements.into_iter().map(|element| (element.key, element.interval_end)).collect()
    };
    assert_eq!(
        keys(&IPV4, &["10.9.0.0/24", "fd00::/64"]),
        [
            (vec![10, 9, 0, 0], false),
            (vec![10, 9, 1, 0], true),
            (vec![224, 0, 0, 0], false),
            (vec![240, 0, 0, 0], true),
        ]
    );
    let six = keys(&IPV6, &["fd00::/64"]);
    assert_eq!(six.len(), 3, "the last interval has no end: nothing is behind it");
    assert_eq!(six[1].0[..8], [0xfd, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn a_table_of_two_thousand_pods_stays_within_what_an_attribute_holds() {
    let addresses: Vec<Vec<IpNetwork>> = (0..2000_u32)
        .map(|n| {
            nets(&[&format!("10.9.{}.{}/16", n / 250, n % 250 + 2), &format!("fd00::{n:x}/64")])
        })
        .collect();
    let ports: Vec<Vec<PortMapping>> =
        (0..2000_u16).map(|n| vec![PortMapping { host_port: n + 1, ..port(None) }]).collect();
    let pods: Vec<Pod<'_>> =
        addresses.iter().zip(&ports).map(|(addresses, ports)| Pod { addresses, ports }).collect();
    let settings = Settings { bridge: "br0", masquerade: true, local: &nets(&["10.9.0.0/16"]) };
    let mut batch = Batch::new("t", 1);
    rebuild(&mut batch, &settings, &pods);
    let (bytes, steps) = batch.finish();
    // Walk the messages: every length must be that of its content.
    let (mut at, mut messages) = (0, 0);
    while at < bytes.len() {
        let length = u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let inner: usize = attributes_of(&bytes[at + 20..at + length])
            .map(|(_, value)| (value.len() + 4).next_multiple_of(4))
            .sum();
        assert_eq!(inner + 20, length, "message {messages}");
        at += length;
        messages += 1;
    }
    assert_eq!(messages, steps.len() + 2, "all steps and the frame");
}
