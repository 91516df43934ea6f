//! The versions of the specification, and what each of them can say. Pure.

/// The versions this crate speaks, oldest first.
pub(crate) const SPOKEN: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Since when plugins check what they made.
pub(crate) const CHECK: Version = Version(0, 4);
/// Since when a DEL is told what the ADD answered.
pub(crate) const DEL_WITH_RESULT: Version = Version(0, 4);
/// Since when addresses no longer carry their family.
pub(crate) const NO_FAMILY: Version = Version(1, 0);
/// Since when plugins collect garbage and tell their status.
pub(crate) const GC_AND_STATUS: Version = Version(1, 1);

/// Major and minor number: patch releases of the specification change no field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// Anything that is no version is older than all.
    pub(crate) fn of(text: &str) -> Version {
        let mut parts = text.split('.').map(|part| part.parse().unwrap_or(0));
        Version(parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }
}

/// The newest version that is spoken here, of those a configuration offers.
pub(crate) fn newest<'a>(offered: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    offered.filter(|version| SPOKEN.contains(version)).max_by_key(|version| Version::of(version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version::of("1.10.0") > Version::of("1.9.0"));
        assert!(Version::of("1.1.0") >= GC_AND_STATUS && Version::of("1.0.0") < GC_AND_STATUS);
        assert!(Version::of("nonsense") < Version::of("0.1.0"));
    }

    #[test]
    fn the_newest_spoken_version_is_chosen() {
        assert_eq!(newest(["0.4.0", "1.1.0", "7.0.0", "1.0.0"].into_iter()), Some("1.1.0"));
        assert_eq!(newest(["0.1.0"].into_iter()), None);
    }
}
