//! What the image service is told at start; every bound it works within has its default here.

use std::path::PathBuf;
use std::time::Duration;

use crate::observe::Observe;

/// Resolved configuration of an [`crate::ImageService`].
#[derive(Clone, Debug)]
pub struct Config {
    /// The daemon's root directory; `images/`, `content/`, `layers/` and `containers/` live below.
    pub root: PathBuf,
    /// containerd-style trees of `<host>/hosts.toml`, first match wins; read at every pull.
    pub certs_d: Vec<PathBuf>,
    /// Files in the form of containers-registries.conf; the first that exists is read at every
    /// pull, with the drop-ins beside it.
    pub registries_conf: Vec<PathBuf>,
    /// Files in the form of docker's `config.json`, asked in order where a pull brings no
    /// credentials that fit.
    pub auth_files: Vec<PathBuf>,
    /// Files in the form of containers-policy.json; the first that exists decides at every pull
    /// what may come in. None: everything may.
    pub policy: Vec<PathBuf>,
    /// A file of manifest digests, one a line: nothing else may come in.
    pub allowed_digests: Option<PathBuf>,
    /// Keep compressed layers in `content/` after they are unpacked.
    pub keep_blobs: bool,
    /// Names of images the kubelet must not collect; `*` matches any run of characters.
    pub pinned: Vec<String>,
    /// Layers downloaded and unpacked at the same time, over all pulls.
    pub max_concurrent_downloads: usize,
    /// A download that brings less than [`Config::progress_floor`] bytes in this time is given up.
    pub progress_timeout: Duration,
    /// Bytes that count as progress within [`Config::progress_timeout`].
    pub progress_floor: u64,
    /// A partial download older than this belongs to a pull that nobody repeats, and goes.
    pub partial_age_max: Duration,
    /// What a layer may ask of this node.
    pub limits: Limits,
    /// Tests only: the step at which the process kills itself.
    pub die_at: Option<String>,
    /// Told how long the stages of a pull took: `resolve`, `manifest`, `layers`, `commit`.
    pub observe: Observe,
}

/// Bounds on one layer; a layer beyond them is refused.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Uncompressed bytes of the archive and, separately, of the files it makes.
    pub layer_bytes: u64,
    /// Entries in the archive.
    pub layer_entries: u64,
}

impl Config {
    /// The defaults for a daemon with this root directory.
    pub fn new(root: PathBuf) -> Config {
        Config {
            root,
            certs_d: ["/etc/lapstrake/certs.d", "/etc/containerd/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .to_vec(),
            registries_conf: vec!["/etc/containers/registries.conf".into()],
            auth_files: vec!["/etc/lapstrake/auth.json".into()],
            policy: ["/etc/lapstrake/policy.json", "/etc/containers/policy.json"]
                .map(PathBuf::from)
                .to_vec(),
            allowed_digests: None,
            keep_blobs: false,
            pinned: Vec::new(),
            // Three is what registries expect of one client, and already fills a local disk.
            max_concurrent_downloads: 3,
            progress_timeout: Duration::from_secs(300),
            // About 1.7 kB/s: slower than any link that could ever finish a layer.
            progress_floor: 512 * 1024,
            // A kubelet repeats a failed pull every five minutes, people the next morning.
            partial_age_max: Duration::from_secs(24 * 3600),
            limits: Limits::default(),
            die_at: None,
            observe: Observe::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // The largest layers seen in practice (machine-learning models) are near 50 GiB.
            layer_bytes: 128 << 30,
            // A whole distribution with sources has about one million files. Each takes some 100
            // bytes of memory while its layer is made.
            layer_entries: 2_000_000,
        }
    }
}
