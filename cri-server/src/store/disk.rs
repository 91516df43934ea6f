//! One small file per object: written whole or not at all, checked when read.
//!
//! A record is a header line (`lapstrake-record 1 KIND crc32=…`) and a JSON body. Fields that
//! this version does not know are kept when it writes the record again.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the layout below; a reader refuses what is newer.
const VERSION: u32 = 1;

/// Largest record that is read: far above the largest CRI message that could have made it.
const RECORD_MAX: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("{attempt} {}: {source}", path.display())]
    Io { attempt: &'static str, path: PathBuf, source: io::Error },
    #[error("the record {} is damaged: {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
}

fn io_error(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
    move |source| DiskError::Io { attempt, path: path.to_owned(), source }
}

/// The body with what other versions wrote beside it.
#[derive(Serialize, Deserialize)]
struct Body<T> {
    #[serde(flatten)]
    known: T,
    #[serde(flatten)]
    unknown: serde_json::Map<String, serde_json::Value>,
}

/// Replaces the record; the old one stays whole until the new one is.
pub(crate) fn write_record<T>(path: &Path, kind: &str, value: &T) -> Result<(), DiskError>
where
    T: Serialize + DeserializeOwned,
{
    let damaged = |error: serde_json::Error| DiskError::Damaged {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let mut body = serde_json::to_value(value).map_err(damaged)?;
    let unknown = unknown_fields::<T>(path, kind);
    if let Some(fields) = body.as_object_mut() {
        for (key, value) in unknown {
            fields.entry(key).or_insert(value);
        }
    }
    let body = serde_json::to_vec(&body).map_err(damaged)?;
    let mut bytes = header(kind, &body).into_bytes();
    bytes.extend_from_slice(&body);
    replace(path, &bytes)
}

/// A record as it is on disk, for a shim to keep.
pub(crate) fn raw_record(path: &Path) -> Result<Vec<u8>, DiskError> {
    fs::read(path).map_err(io_error("read", path))
}

/// Puts a record back that a shim has kept.
pub(crate) fn restore_record<T: DeserializeOwned>(
    path: &Path,
    kind: &str,
    bytes: &[u8],
) -> Result<T, DiskError> {
    let value = parse(path, kind, bytes)?;
    replace(path, bytes)?;
    Ok(value)
}

fn unknown_fields<T: DeserializeOwned + Serialize>(
    path: &Path,
    kind: &str,
) -> serde_json::Map<String, serde_json::Value> {
    // A damaged or missing old record has nothing that could be kept.
    read_body::<Body<T>>(path, kind).map(|body| body.unknown).unwrap_or_default()
}

pub(crate) fn read_record<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<T, DiskError> {
    read_body(path, kind)
}

fn read_body<T: DeserializeOwned>(path: &Path, kind: &str) -> Result<T, DiskError> {
    let damaged = |problem: String| DiskError::Damaged { path: path.to_owned(), problem };
    let size = fs::metadata(path).map_err(io_error("read", path))?.len();
    if size > RECORD_MAX {
        return Err(damaged(format!("it has {size} bytes, at most {RECORD_MAX} are read")));
    }
    parse(path, kind, &fs::read(path).map_err(io_error("read", path))?)
}

fn parse<T: DeserializeOwned>(path: &Path, kind: &str, bytes: &[u8]) -> Result<T, DiskError> {
    let damaged = |problem: String| DiskError::Damaged { path: path.to_owned(), problem };
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let end = end.ok_or_else(|| damaged("it has no header line".into()))?;
    let (head, body) = (&bytes[..end], &bytes[end + 1..]);
    if head != header(kind, body).trim_end().as_bytes() {
        return Err(damaged(format!(
            "its header {:?} does not fit its {} bytes of body, or is of another version",
            String::from_utf8_lossy(head),
            body.len()
        )));
    }
    serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))
}

fn header(kind: &str, body: &[u8]) -> String {
    format!("lapstrake-record {VERSION} {kind} crc32={:08x}\n", crc32fast::hash(body))
}

fn replace(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    let aside = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        match path.parent() {
            Some(dir) => fs::File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    };
    write().map_err(io_error("write the record", path))
}

/// A private directory in one that exists.
pub(crate) fn create_leaf_dir(path: &Path) -> Result<(), DiskError> {
    fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("create the directory", path))
}

/// A private directory and its parents.
pub(crate) fn create_dir(path: &Path) -> Result<(), DiskError> {
    make_dir(path, 0o700)
}

/// A directory that others may look into: the kubelet's log directories.
pub(crate) fn create_dir_shared(path: &Path) -> Result<(), DiskError> {
    make_dir(path, 0o755)
}

fn make_dir(path: &Path, mode: u32) -> Result<(), DiskError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(io_error("create the directory", path))
}

/// A file that only the daemon and the shim read, and that is made again after a crash.
pub(crate) fn write_plain(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    write_with_mode(path, bytes, 0o600)
}

/// A file that containers read.
pub(crate) fn write_shared(path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
    write_with_mode(path, bytes, 0o644)
}

fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DiskError> {
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        // The daemon's umask may be stricter than what containers need.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)
    };
    write().map_err(io_error("write", path))
}

/// «Already gone» is done.
pub(crate) fn remove_dir(path: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(io_error("remove the directory", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Small {
        name: String,
    }

    fn small(name: &str) -> Small {
        Small { name: name.into() }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_record(&path, "small", &small("one")).unwrap();
        write_record(&path, "small", &small("two")).unwrap();
        assert_eq!(read_record::<Small>(&path, "small").unwrap(), small("two"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn fields_of_another_version_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let newer = serde_json::json!({ "name": "one", "added_later": 7 });
        write_record(&path, "small", &newer).unwrap();
        write_record(&path, "small", &small("two")).unwrap();
        let kept: serde_json::Value = read_record(&path, "small").unwrap();
        assert_eq!(kept, serde_json::json!({ "name": "two", "added_later": 7 }));
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_record(&path, "small", &small("one")).unwrap();
        let good = fs::read(&path).unwrap();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x20;
            fs::write(&path, &bad).unwrap();
            assert!(read_record::<Small>(&path, "small").is_err(), "byte {index}");
        }
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(read_record::<Small>(&path, "small").is_err(), "cut at {length}");
        }
    }

    #[test]
    fn a_record_of_another_kind_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_record(&path, "small", &small("one")).unwrap();
        assert!(read_record::<Small>(&path, "large").is_err());
    }
}
