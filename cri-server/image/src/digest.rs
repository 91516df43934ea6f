//! Content digests: the only names this crate trusts, parsed once and then carried as types.

use std::fmt;

use sha2::Digest as _;

/// `sha256:<64 hex>` or `sha512:<128 hex>`, always lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    text: String,
}

/// The id of an image: the sha256 digest of its configuration, `sha256:<64 hex>`.
pub type ImageId = Digest;

/// The id of a layer on top of all the layers below it (OCI image-spec, "Layer ChainID").
pub type ChainId = Digest;

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest of the form sha256:<64 hex digits> or sha512:<128 hex digits>")]
pub struct NotADigest {
    text: String,
}

/// Longest part of a bad digest that an error repeats: it may come from a stranger.
const QUOTED_MAX: usize = 160;

impl Digest {
    pub fn parse(text: &str) -> Result<Digest, NotADigest> {
        let good = text.split_once(':').is_some_and(|(algorithm, hex)| {
            let length = match algorithm {
                "sha256" => 64,
                "sha512" => 128,
                _ => return false,
            };
            hex.len() == length && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if good {
            Ok(Digest { text: text.to_owned() })
        } else {
            Err(NotADigest { text: text.chars().take(QUOTED_MAX).collect() })
        }
    }

    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The chain id of a layer with this `diff_id` on `parent` (none: the lowest layer).
    pub fn chain(parent: Option<&ChainId>, diff_id: &Digest) -> ChainId {
        match parent {
            None => diff_id.clone(),
            Some(parent) => Digest::of(format!("{parent} {diff_id}").as_bytes()),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.text.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The part after the colon; also the name of the object on disk.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    pub(crate) fn hasher(&self) -> Hasher {
        if self.algorithm() == "sha512" { Hasher::sha512() } else { Hasher::sha256() }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A digest in the making.
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub(crate) fn sha256() -> Hasher {
        Hasher::Sha256(sha2::Sha256::new())
    }

    pub(crate) fn sha512() -> Hasher {
        Hasher::Sha512(sha2::Sha512::new())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let text = match self {
            Hasher::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Hasher::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        Digest { text }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

/// 16 hex digits nobody else uses at this moment, for names of things not yet finished.
pub(crate) fn nonce() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut bytes = [0u8; 8];
    if getrandom::fill(&mut bytes).is_err() {
        bytes = (u64::from(std::process::id()) << 32).to_le_bytes();
    }
    format!("{:016x}", u64::from_le_bytes(bytes) ^ count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_algorithms_with_full_lower_case_hex_are_digests() {
        let good = format!("sha256:{}", "a".repeat(64));
        assert_eq!(Digest::parse(&good).unwrap().hex(), "a".repeat(64));
        for bad in [
            "".to_owned(),
            "sha256:".to_owned(),
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "a".repeat(63)),
            format!("md5:{}", "a".repeat(32)),
            format!("sha256:{}/..", "a".repeat(61)),
        ] {
            assert!(Digest::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_chain_id_names_every_layer_below() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(Digest::chain(None, &a), a);
        assert_eq!(Digest::chain(Some(&a), &b), Digest::of(format!("{a} {b}").as_bytes()),);
    }
}
