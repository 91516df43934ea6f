//! The address allocation against its promises.

use super::*;

fn ranges(networks: &[&str], exclude: &[&str]) -> Vec<Range> {
    parse_ranges(&nets(networks), &nets(exclude)).unwrap()
}

fn nets(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pick(ranges: &[Range], taken: &[&str], cursor: Option<&str>) -> Option<String> {
    let taken = taken.iter().map(|text| ip(text)).collect();
    choose(&ranges.iter().collect::<Vec<_>>(), &taken, cursor.map(ip)).map(|net| net.to_string())
}

#[test]
fn the_first_address_is_behind_the_gateway() {
    let ranges = ranges(&["10.244.0.0/24"], &[]);
    assert_eq!(ranges[0].gateway(), ip("10.244.0.1"));
    assert_eq!(pick(&ranges, &[], None).as_deref(), Some("10.244.0.2/24"));
    let ranges = self::ranges(&["fd00:1::/64"], &[]);
    assert_eq!(ranges[0].gateway(), ip("fd00:1::1"));
    assert_eq!(pick(&ranges, &[], None).as_deref(), Some("fd00:1::2/64"));
}

#[test]
fn a_released_address_is_not_reused_at_once() {
    let ranges = ranges(&["10.0.0.0/29"], &[]);
    // .2 was leased last and is free again: the search goes on behind it.
    assert_eq!(pick(&ranges, &[], Some("10.0.0.2")).as_deref(), Some("10.0.0.3/29"));
    // It comes back only after all the others.
    let taken = ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
    assert_eq!(pick(&ranges, &taken, Some("10.0.0.6")).as_deref(), Some("10.0.0.2/29"));
}

#[test]
fn a_full_range_gives_nothing() {
    let ranges = ranges(&["10.0.0.0/30"], &[]);
    assert_eq!(ranges[0].capacity(), 1);
    assert_eq!(pick(&ranges, &["10.0.0.2"], None), None);
    assert_eq!(pick(&ranges, &["10.0.0.2"], Some("10.0.0.2")), None);
}

#[test]
fn several_ranges_are_one_ring() {
    let ranges = ranges(&["10.0.0.0/30", "10.0.1.0/30"], &[]);
    assert_eq!(pick(&ranges, &["10.0.0.2"], Some("10.0.0.2")).as_deref(), Some("10.0.1.2/30"));
    assert_eq!(pick(&ranges, &["10.0.1.2"], Some("10.0.1.2")).as_deref(), Some("10.0.0.2/30"));
}

#[test]
fn excluded_addresses_are_never_chosen() {
    let ranges = ranges(&["10.0.0.0/29"], &["10.0.0.2/32", "10.0.0.4/31"]);
    assert_eq!(ranges[0].capacity(), 2);
    assert_eq!(pick(&ranges, &[], None).as_deref(), Some("10.0.0.3/29"));
    assert_eq!(pick(&ranges, &[], Some("10.0.0.3")).as_deref(), Some("10.0.0.6/29"));
    assert_eq!(pick(&ranges, &["10.0.0.3", "10.0.0.6"], None), None);
}

#[test]
fn a_cursor_outside_the_ranges_starts_at_the_beginning() {
    let ranges = ranges(&["10.0.0.0/29"], &[]);
    assert_eq!(pick(&ranges, &[], Some("192.168.0.9")).as_deref(), Some("10.0.0.2/29"));
}

#[test]
fn ranges_that_cannot_work_are_refused_with_the_reason() {
    for (networks, exclude, part) in [
        (vec!["10.0.0.0/31"], vec![], "too small"),
        (vec!["10.0.0.5/24"], vec![], "did you mean 10.0.0.0/24"),
        (vec!["10.0.0.0/16", "10.0.3.0/24"], vec![], "overlaps with 10.0.0.0/16"),
        (vec!["10.0.0.0/24"], vec!["10.1.0.0/32"], "is in no range"),
        (vec!["10.0.0.0/30"], vec!["10.0.0.2/32"], "no address left"),
        (vec!["224.0.0.0/24"], vec![], "not for unicast"),
        (vec!["fd00::/127"], vec![], "use /126"),
    ] {
        let mistakes = parse_ranges(&nets(&networks), &nets(&exclude)).unwrap_err();
        assert!(mistakes.iter().any(|m| m.contains(part)), "{part} is not in {mistakes:?}");
    }
}

mod properties {
    use std::collections::{HashSet, VecDeque};

    use proptest::prelude::*;

    use super::super::*;

    /// Two ranges with an exclusion: 13 + 5 usable addresses.
    fn ring() -> Vec<Range> {
        let nets =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let networks = nets(&["10.0.0.0/28", "10.0.1.0/29"]);
        parse_ranges(&networks, &nets(&["10.0.0.7/32"])).unwrap()
    }

    proptest! {
        /// Whatever order pods come and go in: no address twice, none outside, exhaustion only when
        /// all are taken, and a released address comes back after all others that were free.
        #[test]
        fn addresses_come_round(releases in prop::collection::vec(prop::option::of(0_usize..20), 1..300)) {
            let ranges = ring();
            let ranges: Vec<&Range> = ranges.iter().collect();
            let capacity: u128 = ranges.iter().map(|range| range.capacity()).sum();
            let (mut taken, mut cursor) = (HashSet::new(), None);
            let mut held: VecDeque<IpAddr> = VecDeque::new();
            let mut last_released = None;
            for step in releases {
                if let Some(index) = step {
                    if !held.is_empty() {
                        let gone = held.remove(index % held.len()).unwrap();
                        taken.remove(&gone);
                        last_released = Some(gone);
                    }
                    continue;
                }
                let free = capacity - taken.len() as u128;
                match choose(&ranges, &taken, cursor) {
                    None => prop_assert_eq!(free, 0),
                    Some(network) => {
                        let ip = network.ip();
                        prop_assert!(taken.insert(ip), "{} twice", ip);
                        prop_assert_ne!(ip.to_string(), "10.0.0.7");
                        prop_assert!(ranges.iter().any(|range| range.network().contains(ip) && range.gateway() != ip));
                        if free > 1 && cursor == last_released {
                            prop_assert_ne!(Some(ip), last_released, "reused at once");
                        }
                        cursor = Some(ip);
                        held.push_back(ip);
                    }
                }
            }
        }
    }
}
