//! The images that are pulled: fourteen layers out of what Debian's packages have put on this
//! machine, the same for each pull but for a file in every layer, so that each pull brings all of it
//! and nothing has to be removed before; and one that shares twelve layers with another.

use std::fmt;
use std::fs;
use std::path::Path;

use e2e::Registry;
use e2e::image::Image;
use e2e::layer::{Layer, digest, gzip_as_builders_do};
use e2e::registry::{Form, Pushed};
use serde_json::json;

use crate::MIB;

const LAYERS: usize = 14;
const LAYER_BYTES: u64 = 50 << 20;
/// Of the first image's layers, in the second.
const SHARED: usize = 12;
/// A package larger than this is one program's data more than a part of an image.
const PACKAGE_BYTES_MAX: u64 = 64 << 20;
/// Two empty blocks.
const END_OF_ARCHIVE: usize = 1024;

/// What every image is made of.
pub(crate) struct Sample {
    layers: Vec<Base>,
    files: usize,
    plain: u64,
}

/// A layer without its end, twice.
struct Base {
    tar: Vec<u8>,
    compressed: Vec<u8>,
}

/// An image in the registry.
pub(crate) struct InRegistry {
    /// Lowest first, each with its diff id.
    layers: Vec<(String, Pushed)>,
    config: Pushed,
}

impl Sample {
    pub(crate) fn collect() -> Self {
        let mut packages = packages().into_iter();
        let mut sample = Self { layers: Vec::new(), files: 0, plain: 0 };
        for _ in 0..LAYERS {
            let mut tar = layer(&mut packages, &mut sample.files);
            sample.plain += tar.len() as u64;
            tar.truncate(tar.len() - END_OF_ARCHIVE);
            let compressed = gzip_as_builders_do(&tar);
            sample.layers.push(Base { tar, compressed });
        }
        sample
    }

    /// Pushes an image of its own by its name; `tags` of it.
    pub(crate) fn push(&self, registry: &Registry, name: &str, tags: &[String]) -> InRegistry {
        let of_base = |(number, base): (usize, &Base)| {
            let own = Layer::default().file(&format!("{name}-{number}"), 0o644, name).into_tar();
            // Archives and gzip streams go on where they end.
            let diff_id = digest(&[base.tar.as_slice(), &own].concat());
            let blob = [base.compressed.as_slice(), &gzip_as_builders_do(&own)].concat();
            (diff_id, registry.push_blob("bench", &blob))
        };
        let layers = self.layers.iter().enumerate().map(of_base).collect();
        InRegistry::push(registry, layers, tags)
    }
}

impl InRegistry {
    /// Another image that shares twelve layers with this one.
    pub(crate) fn push_other(&self, registry: &Registry, tag: &str) -> Self {
        let mut layers = self.layers[..SHARED].to_vec();
        for number in SHARED..LAYERS {
            let name = format!("other-{number}");
            let tar = Layer::default().file(&name, 0o644, noise(number as u64)).into_tar();
            let blob = registry.push_blob("bench", &gzip_as_builders_do(&tar));
            layers.push((digest(&tar), blob));
        }
        Self::push(registry, layers, &[tag.to_owned()])
    }

    fn push(registry: &Registry, layers: Vec<(String, Pushed)>, tags: &[String]) -> Self {
        let diff_ids = layers.iter().map(|(diff_id, _)| diff_id.clone()).collect();
        let config = Image::configuration(diff_ids, &json!({ "Cmd": ["true"] }));
        let config = registry.push_blob("bench", &config);
        let blobs: Vec<_> = layers.iter().map(|(_, blob)| blob.clone()).collect();
        for tag in tags {
            registry.push_parts("bench", tag, Form::Oci, (&config, &blobs));
        }
        Self { layers, config }
    }

    /// Of layers and configuration.
    pub(crate) fn bytes(&self) -> u64 {
        self.config.size + self.layers.iter().map(|(_, blob)| blob.size).sum::<u64>()
    }

    /// The same without what it shares.
    pub(crate) fn own_bytes(&self) -> u64 {
        self.config.size + self.layers[SHARED..].iter().map(|(_, blob)| blob.size).sum::<u64>()
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.layers.iter().map(|it| it.compressed.len()).sum();
        let (plain, bytes) = (self.plain as f64 / MIB, bytes as f64 / MIB);
        let files = self.files;
        write!(f, "{LAYERS} layers, {files} entries, {plain:.0} MiB, compressed {bytes:.0} MiB")
    }
}

/// Some megabytes that do not compress, beside which headers and manifests do not count.
fn noise(seed: u64) -> Vec<u8> {
    const WORDS: usize = 1 << 19;
    let mut state = seed + 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..WORDS).flat_map(|_| next()).collect()
}

/// The lists of files of the packages installed here, by the packages' names.
fn packages() -> Vec<Vec<String>> {
    let entries = fs::read_dir("/var/lib/dpkg/info").expect("a Debian machine").flatten();
    let mut lists: Vec<_> = entries
        .map(|it| it.path())
        .filter(|it| it.extension().is_some_and(|it| it == "list"))
        .collect();
    lists.sort();
    let text = lists.iter().filter_map(|it| fs::read_to_string(it).ok());
    let files = text.map(|it| it.lines().skip(1).map(str::to_owned).collect::<Vec<_>>());
    files.filter(|it| it.iter().map(|it| size(it)).sum::<u64>() < PACKAGE_BYTES_MAX).collect()
}

fn size(path: &str) -> u64 {
    fs::symlink_metadata(path).ok().filter(|it| it.is_file()).map_or(0, |it| it.len())
}

/// The next packages, as many as a layer holds.
fn layer(packages: &mut impl Iterator<Item = Vec<String>>, count: &mut usize) -> Vec<u8> {
    let mut layer = Layer::default();
    let mut bytes = 0;
    while bytes < LAYER_BYTES {
        let Some(files) = packages.next() else { break };
        for path in files {
            let name = path.trim_start_matches('/');
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            layer = if meta.is_dir() {
                layer.dir(name, 0o755)
            } else if meta.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                layer.symlink(name, &target.to_string_lossy())
            } else if meta.is_file() && Path::new(&path).exists() {
                layer.host_file(name, &path)
            } else {
                continue;
            };
            *count += 1;
            bytes += size(&path);
        }
    }
    layer.into_tar()
}
