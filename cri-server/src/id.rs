//! Ids of sandboxes and containers: 64 hex digits, made here or parsed, never free strings.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Bytes of randomness in an id: 256 bits, so that no two nodes ever share one.
const ID_BYTES: usize = 32;

/// The id of a sandbox or of a container.
///
/// Both are drawn from one space: cgroup leaves and log messages name either. Shared, because each change of the world
/// copies a map of all of them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Id(Arc<str>);

impl Id {
    /// A new random id.
    pub(crate) fn random() -> std::io::Result<Self> {
        let mut bytes = [0; ID_BYTES];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()))
    }

    /// Accepts what `random` makes; anything else is not an id of ours.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let hex = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        (text.len() == 2 * ID_BYTES && hex).then(|| Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_parses_and_differs_from_the_next() {
        let (one, two) = (Id::random().unwrap(), Id::random().unwrap());
        assert_eq!(Id::parse(one.as_str()), Some(one.clone()));
        assert_ne!(one, two);
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "abc", "../../../../etc", &"G".repeat(64), &"a".repeat(63)] {
            assert_eq!(Id::parse(text), None, "{text}");
        }
    }
}
