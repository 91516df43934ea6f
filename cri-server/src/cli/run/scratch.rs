//! What a run keeps on the host beside the daemon: logs, emptyDir volumes, checked host paths.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::manifest::{HostPathKind, Medium, Pod, VolumeSource};

/// A directory in memory on every Linux system, for volumes with `medium: Memory`.
const MEMORY_DIRECTORY: &str = "/dev/shm";

/// Volumes are for every user a container may run as, as the kubelet makes them; the directory
/// around them is root's alone.
const VOLUME_MODE: u32 = 0o777;
const SCRATCH_MODE: u32 = 0o700;
const HOST_DIRECTORY_MODE: u32 = 0o755;
const HOST_FILE_MODE: u32 = 0o644;

/// The directories of one run.
#[derive(Debug)]
pub(crate) struct Scratch {
    directories: Vec<PathBuf>,
    pub(crate) log_directory: PathBuf,
    pub(crate) volumes: BTreeMap<String, PathBuf>,
}

/// What could not be made or found, and where.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("make {} for {what}: {source}", path.display())]
    Make { what: String, path: PathBuf, source: io::Error },
    #[error("remove {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("volume {volume}: look at host path {}: {source}", path.display())]
    Look { volume: String, path: PathBuf, source: io::Error },
    #[error("volume {volume}: host path {} is not {expected}", path.display())]
    Kind { volume: String, path: PathBuf, expected: &'static str },
}

impl Scratch {
    /// Makes what the pod needs; a failure leaves no directory behind.
    pub(crate) fn make(
        pod: &Pod,
        uid: &str,
        parent: &Path,
        log_directory: Option<&Path>,
    ) -> Result<Self, Error> {
        let directory = directory(parent, uid);
        let mut scratch = Self {
            log_directory: log_directory.map_or(directory.join("logs"), Path::to_path_buf),
            directories: Vec::new(),
            volumes: BTreeMap::new(),
        };
        match scratch.fill(pod, uid, directory) {
            Ok(()) => Ok(scratch),
            Err(error) => {
                // The first error is the one to tell; what is empty or new can be removed.
                let _ = scratch.remove();
                Err(error)
            }
        }
    }

    /// Removes everything that was made, but not a log directory that the user named.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        let mut result = Ok(());
        for path in &self.directories {
            if let Err(source) = fs::remove_dir_all(path)
                && source.kind() != io::ErrorKind::NotFound
            {
                result = Err(Error::Remove { path: path.clone(), source });
            }
        }
        result
    }

    fn fill(&mut self, pod: &Pod, uid: &str, directory: PathBuf) -> Result<(), Error> {
        self.make_own(directory.clone())?;
        for container in pod.init_containers.iter().chain(&pod.containers) {
            let path = self.log_directory.join(&container.name);
            make_all(&path, HOST_DIRECTORY_MODE, "the logs")?;
        }
        let memory = self::directory(Path::new(MEMORY_DIRECTORY), uid);
        for volume in &pod.volumes {
            let path = match &volume.source {
                VolumeSource::HostPath { path, kind } => {
                    host_path(&volume.name, Path::new(path), *kind)?;
                    PathBuf::from(path)
                }
                VolumeSource::EmptyDir { medium: Medium::Disk, .. } => {
                    empty_dir(&directory, &volume.name)?
                }
                VolumeSource::EmptyDir { medium: Medium::Memory, .. } => {
                    if !self.directories.contains(&memory) && memory != directory {
                        self.make_own(memory.clone())?;
                    }
                    empty_dir(&memory, &volume.name)?
                }
            };
            self.volumes.insert(volume.name.clone(), path);
        }
        Ok(())
    }

    /// One that is there already is not ours to use, and not ours to remove.
    fn make_own(&mut self, path: PathBuf) -> Result<(), Error> {
        match fs::DirBuilder::new().mode(SCRATCH_MODE).create(&path) {
            Ok(()) => {
                self.directories.push(path);
                Ok(())
            }
            Err(source) => Err(Error::Make { what: "this run".to_owned(), path, source }),
        }
    }
}

/// Removes what an earlier, detached run of the pod with this uid left.
pub(crate) fn remove_of_pod(parent: &Path, uid: &str) -> Result<(), Error> {
    let directories = vec![directory(parent, uid), directory(Path::new(MEMORY_DIRECTORY), uid)];
    Scratch { directories, log_directory: PathBuf::new(), volumes: BTreeMap::new() }.remove()
}

fn directory(parent: &Path, uid: &str) -> PathBuf {
    parent.join(format!("lapstrake-run-{uid}"))
}

fn empty_dir(directory: &Path, volume: &str) -> Result<PathBuf, Error> {
    let path = directory.join("volumes").join(volume);
    let what = format!("volume {volume}");
    make_all(&path, HOST_DIRECTORY_MODE, &what)?;
    // The umask does not count here.
    fs::set_permissions(&path, fs::Permissions::from_mode(VOLUME_MODE))
        .map_err(|source| Error::Make { what, path: path.clone(), source })?;
    Ok(path)
}

fn make_all(path: &Path, mode: u32, what: &str) -> Result<(), Error> {
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(|source| Error::Make {
        what: what.to_owned(),
        path: path.to_path_buf(),
        source,
    })
}

fn host_path(volume: &str, path: &Path, kind: HostPathKind) -> Result<(), Error> {
    let look = || {
        fs::metadata(path).map(|found| found.file_type()).map_err(|source| Error::Look {
            volume: volume.to_owned(),
            path: path.to_path_buf(),
            source,
        })
    };
    let made =
        |source| Error::Make { what: format!("volume {volume}"), path: path.to_path_buf(), source };
    let (fine, expected) = match kind {
        // The daemon refuses a mount whose source is missing.
        HostPathKind::Unchecked => return Ok(()),
        HostPathKind::DirectoryOrCreate => {
            if !path.exists() {
                make_all(path, HOST_DIRECTORY_MODE, &format!("volume {volume}"))?;
            }
            (look()?.is_dir(), "a directory")
        }
        HostPathKind::FileOrCreate => {
            if !path.exists() {
                let mut options = fs::OpenOptions::new();
                options.write(true).create_new(true).mode(HOST_FILE_MODE);
                options.open(path).map_err(made)?;
            }
            (look()?.is_file(), "a file")
        }
        HostPathKind::Directory => (look()?.is_dir(), "a directory"),
        HostPathKind::File => (look()?.is_file(), "a file"),
        HostPathKind::Socket => (look()?.is_socket(), "a socket"),
        HostPathKind::CharDevice => (look()?.is_char_device(), "a character device"),
        HostPathKind::BlockDevice => (look()?.is_block_device(), "a block device"),
    };
    let wrong = || Error::Kind { volume: volume.to_owned(), path: path.to_path_buf(), expected };
    if fine { Ok(()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::{super::manifest, *};

    /// A directory of this test's own, removed at its end.
    struct Home(PathBuf);

    impl Home {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("scratch-test-{name}-{}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Home {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pod(volumes: &str) -> Pod {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n\
             spec: {{containers: [{{name: c, image: i}}], volumes: {volumes}}}\n"
        );
        manifest::parse(&text, None).unwrap()
    }

    #[test]
    fn volumes_and_logs_are_made_and_removed_together() {
        let home = Home::new("whole");
        let uid = format!("whole-{}", std::process::id());
        let pod = pod("[{name: d, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}]");
        let scratch = Scratch::make(&pod, &uid, &home.0, None).unwrap();
        assert!(scratch.log_directory.join("c").is_dir());
        for name in ["d", "m"] {
            let found = fs::metadata(&scratch.volumes[name]).unwrap();
            assert_eq!(found.permissions().mode() & 0o7777, VOLUME_MODE, "{name}");
        }
        assert!(scratch.volumes["m"].starts_with(MEMORY_DIRECTORY));
        scratch.remove().unwrap();
        assert_eq!(fs::read_dir(&home.0).unwrap().count(), 0);
        assert!(!scratch.volumes["m"].exists());
    }

    #[test]
    fn a_directory_of_the_users_is_kept() {
        let home = Home::new("kept");
        let logs = home.0.join("logs");
        let scratch = Scratch::make(&pod("[]"), "kept", &home.0, Some(&logs)).unwrap();
        scratch.remove().unwrap();
        assert!(logs.join("c").is_dir());
    }

    #[test]
    fn a_failure_leaves_no_directory_behind() {
        let home = Home::new("failure");
        let pod =
            pod("[{name: a, emptyDir: {}}, {name: b, hostPath: {path: /nowhere, type: File}}]");
        let error = Scratch::make(&pod, "failure", &home.0, None).unwrap_err().to_string();
        assert!(error.starts_with("volume b: look at host path /nowhere: No such file"), "{error}");
        assert_eq!(fs::read_dir(&home.0).unwrap().count(), 0);
    }

    #[test]
    fn what_was_there_before_is_not_taken_over() {
        let home = Home::new("before");
        fs::create_dir(directory(&home.0, "before")).unwrap();
        Scratch::make(&pod("[]"), "before", &home.0, None).unwrap_err();
        assert!(directory(&home.0, "before").exists());
    }

    #[test]
    fn a_host_path_is_checked_for_its_kind() {
        let home = Home::new("kinds");
        let path = |name: &str| home.0.join(name);
        fs::write(path("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for (name, kind, fine) in [
            ("file", HostPathKind::File, true),
            ("file", HostPathKind::Directory, false),
            ("file", HostPathKind::DirectoryOrCreate, false),
            ("absent", HostPathKind::Unchecked, true),
            ("absent", HostPathKind::File, false),
            ("new/directory", HostPathKind::DirectoryOrCreate, true),
            ("new/directory", HostPathKind::Directory, true),
            ("new/file", HostPathKind::FileOrCreate, true),
            ("new/file", HostPathKind::FileOrCreate, true),
            ("socket", HostPathKind::Socket, true),
            ("socket", HostPathKind::CharDevice, false),
        ] {
            let result = host_path("v", &path(name), kind);
            assert_eq!(result.is_ok(), fine, "{name} as {kind:?}: {result:?}");
        }
        host_path("v", Path::new("/dev/null"), HostPathKind::CharDevice).unwrap();
    }
}
