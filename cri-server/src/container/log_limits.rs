//! How much a container may log: the configuration's word, over it its pod's, over that its own.

use std::collections::BTreeMap;

use crate::error::Error;

/// Bytes per second of output that reach the log; 0 is no limit. The same names serve pods and containers.
const RATE: &str = "lapstrake.io/log-rate";
/// Bytes of the log file until it is rotated.
const SIZE: &str = "lapstrake.io/log-size";
/// `drop` or `block`.
const POLICY: &str = "lapstrake.io/log-policy";

/// `configured` with what the annotations of the pod and then of the container say.
pub(crate) fn resolve<'a>(
    configured: runtime::LogLimits,
    annotations: impl IntoIterator<Item = &'a BTreeMap<String, String>>,
) -> Result<runtime::LogLimits, Error> {
    let mut limits = configured;
    for given in annotations {
        let number = |name: &str, old: u64| match given.get(name) {
            None => Ok(old),
            Some(text) => text.parse().map_err(|_| invalid(name, "is not a number of bytes")),
        };
        limits.rate = number(RATE, limits.rate)?;
        limits.size = number(SIZE, limits.size)?;
        if let Some(text) = given.get(POLICY) {
            limits.block = blocks(text).ok_or_else(|| invalid(POLICY, WORDS))?;
        }
    }
    Ok(limits)
}

pub(crate) const WORDS: &str = "is neither \"drop\" nor \"block\"";

/// Whether a container waits instead of losing output.
pub(crate) fn blocks(policy: &str) -> Option<bool> {
    match policy {
        "drop" => Some(false),
        "block" => Some(true),
        _ => None,
    }
}

fn invalid(name: &str, problem: &str) -> Error {
    Error::invalid(format!("annotation {name}"), problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
    }

    #[test]
    fn the_nearer_word_wins() {
        let configured = runtime::LogLimits { rate: 1, size: 2, block: true, ..Default::default() };
        let pod = map([(RATE, "10"), (POLICY, "drop"), ("other", "x")]);
        let own = map([(RATE, "100"), (SIZE, "0")]);
        let got = resolve(configured, [&pod, &own]).unwrap();
        assert_eq!((got.rate, got.size, got.block), (100, 0, false));
        assert_eq!(resolve(configured, [&map([])]).unwrap(), configured);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (name, value) in [(RATE, "-1"), (SIZE, "10M"), (POLICY, "maybe")] {
            let error = resolve(runtime::LogLimits::default(), [&map([(name, value)])]);
            assert!(error.unwrap_err().to_string().contains(name), "{name}");
        }
    }
}
