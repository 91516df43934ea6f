//! One layer of an image: a tar made in memory from a list of entries.

use std::fs;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// Entries in the order they are added; owners are root unless said otherwise, times are 0, so
/// equal layers have equal digests.
pub struct Layer {
    tar: Builder<Vec<u8>>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer of {} bytes", self.tar.get_ref().len())
    }
}

impl Default for Layer {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }
}

impl Layer {
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Directory, mode, Body::Bytes(&[]))
    }

    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(path, EntryType::Regular, mode, Body::Bytes(content.as_ref()))
    }

    /// A file of this machine, with its mode, links followed.
    pub fn host_file(self, path: &str, from: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let mode =
            fs::metadata(from).unwrap_or_else(|it| panic!("{from}: {it}")).permissions().mode();
        let content = fs::read(from).unwrap();
        self.file(path, mode & 0o7777, content)
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(path, EntryType::Symlink, 0o777, Body::Target(target))
    }

    /// `mode` is that of the target: both are one file.
    pub fn hard_link(self, path: &str, target: &str, mode: u32) -> Self {
        self.entry(path, EntryType::Link, mode, Body::Target(target))
    }

    /// Removes `path` of the layers below.
    pub fn whiteout(self, path: &str) -> Self {
        let path = Path::new(path);
        let marker = format!(".wh.{}", path.file_name().unwrap().to_str().unwrap());
        let marker = path.with_file_name(marker);
        self.file(marker.to_str().unwrap(), 0o644, "")
    }

    /// Removes what the layers below have in the directory `path`.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, "")
    }

    /// The tar, complete.
    pub fn into_tar(self) -> Vec<u8> {
        self.tar.into_inner().unwrap()
    }

    fn entry(mut self, path: &str, kind: EntryType, mode: u32, body: Body<'_>) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        match body {
            Body::Target(target) => self.tar.append_link(&mut header, path, target).unwrap(),
            Body::Bytes(bytes) => {
                header.set_size(bytes.len() as u64);
                self.tar.append_data(&mut header, path, bytes).unwrap();
            }
        }
        self
    }
}

/// What an entry has besides its header.
enum Body<'a> {
    Bytes(&'a [u8]),
    /// Of a link.
    Target(&'a str),
}

/// As registries keep layers.
pub fn gzip(tar: &[u8]) -> Vec<u8> {
    compressed(tar, Compression::fast())
}

/// The same at the level that builders of images use: smaller, and slower to make.
pub fn gzip_as_builders_do(tar: &[u8]) -> Vec<u8> {
    compressed(tar, Compression::default())
}

fn compressed(tar: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    std::io::Write::write_all(&mut encoder, tar).unwrap();
    encoder.finish().unwrap()
}

/// `sha256:…`
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|it| format!("{it:02x}")).collect();
    format!("sha256:{hex}")
}
