//! An image service in a directory of its own, and what must be true of that directory afterwards.

use std::path::{Path, PathBuf};

use image::{Config, ImageService};

/// One node's images.
pub(crate) struct Node {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) service: ImageService,
    pub(crate) config: Config,
}

impl Node {
    pub(crate) async fn new() -> Node {
        Node::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Node {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::new(directory.path().join("root"));
        config.certs_d = vec![directory.path().join("certs.d")];
        // Nothing of the machine that the tests run on.
        (config.registries_conf, config.policy, config.auth_files) = Default::default();
        change(&mut config);
        let service = ImageService::open(config.clone()).await.unwrap();
        Node { directory, service, config }
    }

    /// The same directory with a new service, as after a restart of the daemon.
    pub(crate) async fn restart(self) -> Node {
        let Node { directory, service, config } = self;
        drop(service);
        let service = ImageService::open(config.clone()).await.unwrap();
        Node { directory, service, config }
    }

    /// Writes `certs.d/<host>/hosts.toml`.
    pub(crate) fn hosts(&self, host: &str, text: &str) {
        let directory = self.directory.path().join("certs.d").join(host);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("hosts.toml"), text).unwrap();
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.config.root.clone()
    }

    /// Every file below the root, directories excluded, relative.
    pub(crate) fn files(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.root(), &self.root(), &mut found);
        found.retain(|name| name != "boot"); // a note about the machine, not about an image
        found.sort();
        found
    }

    /// Nothing is left of any image, within the time that background removals may take.
    #[track_caller]
    pub(crate) fn assert_empty(&self) {
        let mut left = Vec::new();
        for _ in 0..100 {
            left = self.files();
            let layers = names(&self.root().join("layers"));
            left.extend(layers.into_iter().filter(|name| name != "empty"));
            if left.is_empty() {
                assert_eq!(self.service.fs_info().used_bytes, 0);
                assert!(self.service.list().is_empty());
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("left behind: {left:?}");
    }
}

pub(crate) fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn walk(root: &Path, directory: &Path, found: &mut Vec<String>) {
    // What goes while we look is not left behind: staging is removed in the background.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let Ok(metadata) = path.symlink_metadata() else { continue };
        if metadata.is_dir() {
            walk(root, &path, found);
        } else {
            found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
        }
    }
}
