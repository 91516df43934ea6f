//! A pair of categories for each pod, which no other pod of the node has. Pure.

use std::collections::HashSet;

/// How many categories policies have; half a million pairs, far more than a node has pods.
const CATEGORIES: u32 = 1024;

/// A level with a pair of categories that is in none of `taken`, looked for from a place that follows from the id: what
/// a removed pod has left is unlikely to be the next one's.
pub(super) fn free<'a>(
    sensitivity: &str,
    id: &str,
    taken: impl Iterator<Item = &'a str>,
) -> String {
    let taken: HashSet<&str> = taken.collect();
    let start = crc32fast::hash(id.as_bytes());
    let pairs = (0..CATEGORIES * CATEGORIES).filter_map(|step| pair(start.wrapping_add(step)));
    let mut levels = pairs.map(|(low, high)| format!("{sensitivity}:c{low},c{high}"));
    let free = levels.find(|level| !taken.contains(level.as_str()));
    free.unwrap_or_else(|| sensitivity.to_owned())
}

/// The kernel writes the smaller one first, and so a label reads as it was written.
fn pair(n: u32) -> Option<(u32, u32)> {
    let (low, high) = (n / CATEGORIES % CATEGORIES, n % CATEGORIES);
    (low < high).then_some((low, high))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_has_a_pair_of_its_own_in_ascending_order() {
        let mut taken: Vec<String> = Vec::new();
        for _ in 0..500 {
            let level = free("s0", "the same id", taken.iter().map(String::as_str));
            let (low, high) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
            let [low, high] = [low, high].map(|n| n.parse::<u32>().unwrap());
            assert!(low < high && high < CATEGORIES, "{level}");
            assert!(!taken.contains(&level), "{level} twice");
            taken.push(level);
        }
        assert_ne!(free("s0", "a", [].into_iter()), free("s0", "b", [].into_iter()));
    }
}
