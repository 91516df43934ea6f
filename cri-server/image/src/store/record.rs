//! The form of every record: one line that names kind, version and checksum, then JSON. A reader
//! can tell a record that was cut or flipped from one that is whole, and keeps fields it does not know.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::digest::{ChainId, Digest, ImageId};

/// One image: `images/<hex of its id>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub(crate) id: ImageId,
    /// `name:tag`, whole.
    pub(crate) tags: Vec<String>,
    /// `name@digest`, whole; of manifests and of indexes.
    pub(crate) digests: Vec<String>,
    /// Manifests and indexes in `content/` that led to this image.
    pub(crate) manifests: Vec<Digest>,
    pub(crate) layers: Vec<LayerOfImage>,
    /// Somebody asked that it stays.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) pinned: bool,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

/// A layer as its image names it, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerOfImage {
    pub(crate) chain: ChainId,
    pub(crate) diff_id: Digest,
    /// The compressed blob; absent for an image imported without a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) blob: Option<Digest>,
    #[serde(default)]
    pub(crate) blob_bytes: u64,
    /// The name of the file that the blob is, when it is no archive: of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
}

/// One layer directory: `layers/<hex of its chain id>.layer` beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) chain: ChainId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<ChainId>,
    pub(crate) diff_id: Digest,
    /// Disk space, counted while unpacking.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Of the file `<hex of the chain id>.files` beside it; none in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) inventory: Option<Digest>,
    /// Fields of a newer version.
    #[serde(flatten)]
    pub(crate) unknown: serde_json::Map<String, serde_json::Value>,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    #[error("cannot be read: {0}")]
    Read(#[from] std::io::Error),
    #[error("is larger than {RECORD_MAX} bytes")]
    TooLarge,
    #[error("has no heading of a {0} record")]
    Heading(&'static str),
    #[error("has a wrong checksum")]
    Checksum,
    #[error("has unusable content: {0}")]
    Content(String),
}

/// An image of 127 layers with a thousand names takes a fifth of this.
const RECORD_MAX: u64 = 1 << 20;
const FORMAT: &str = "lapstrake";
const VERSION: u32 = 1;

/// The bytes of a record.
pub(crate) fn seal<T: Serialize>(kind: &'static str, content: &T) -> Result<Vec<u8>, Damage> {
    let body = serde_json::to_vec(content).map_err(|e| Damage::Content(e.to_string()))?;
    let sum = crc32fast::hash(&body);
    let mut bytes = format!("{FORMAT} {kind} {VERSION} {sum:08x}\n").into_bytes();
    bytes.extend_from_slice(&body);
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a record back. A higher version is read too: versions only ever add fields.
pub(crate) fn read<T: for<'de> Deserialize<'de>>(
    kind: &'static str,
    path: &Path,
) -> Result<T, Damage> {
    let mut bytes = Vec::new();
    File::open(path)?.take(RECORD_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > RECORD_MAX {
        return Err(Damage::TooLarge);
    }
    unseal(kind, &bytes)
}

fn unseal<T: for<'de> Deserialize<'de>>(kind: &'static str, bytes: &[u8]) -> Result<T, Damage> {
    let newline = bytes.iter().position(|b| *b == b'\n').ok_or(Damage::Heading(kind))?;
    let heading = std::str::from_utf8(&bytes[..newline]).map_err(|_| Damage::Heading(kind))?;
    let words: Vec<&str> = heading.split(' ').collect();
    let [format, its_kind, version, sum] = words[..] else { return Err(Damage::Heading(kind)) };
    if format != FORMAT || its_kind != kind || version.parse::<u32>().is_err() {
        return Err(Damage::Heading(kind));
    }
    let body = bytes[newline + 1..].strip_suffix(b"\n").ok_or(Damage::Checksum)?;
    if u32::from_str_radix(sum, 16).ok() != Some(crc32fast::hash(body)) {
        return Err(Damage::Checksum);
    }
    serde_json::from_slice(body).map_err(|e| Damage::Content(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer() -> LayerRecord {
        LayerRecord {
            chain: Digest::of(b"chain"),
            parent: None,
            diff_id: Digest::of(b"diff"),
            bytes: 4096,
            inodes: 2,
            inventory: None,
            unknown: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_record_comes_back_and_keeps_unknown_fields() {
        let mut record = layer();
        record.unknown.insert("since_2031".into(), serde_json::json!({"a": [1]}));
        let bytes = seal("layer", &record).unwrap();
        assert_eq!(unseal::<LayerRecord>("layer", &bytes).unwrap(), record);
        assert!(matches!(unseal::<LayerRecord>("image", &bytes), Err(Damage::Heading("image"))));
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let bytes = seal("layer", &layer()).unwrap();
        for at in 0..bytes.len() {
            assert!(unseal::<LayerRecord>("layer", &bytes[..at]).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                match unseal::<LayerRecord>("layer", &flipped) {
                    Err(_) => {}
                    // The version and the case of the checksum are free.
                    Ok(same) => assert_eq!(same, layer(), "bit {bit} at {at}"),
                }
            }
        }
    }
}
