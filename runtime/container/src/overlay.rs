//! The root file system: an overlay (or a plain directory) as a detached mount, made with the host's credentials.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, open_tree,
};

use crate::create::Layers;
use crate::error::{At, Error};
use crate::mounts::move_onto;
use crate::sources::map_ids;
use crate::users::Users;
use crate::{aside, elsewhere};

pub(crate) const STAGE: &str = "mount the root file system";

/// An overlay of `layers`, attached nowhere yet. With a user namespace the lower layers are id-mapped by it (the
/// overlay itself cannot be), so that an image is on disk once for all; what is written belongs to its ids on disk,
/// because the kernel works in the upper directory as the host's root, who is nobody on a mapped mount.
///
/// `label`: of SELinux, which all its files show.
pub(crate) fn overlay(
    layers: &Layers,
    users: Option<&Users>,
    label: Option<&str>,
) -> Result<OwnedFd, Error> {
    let Some(users) = users else { return stack(layers, label) };
    let mut trees = mapped(layers, users)?;
    if let Some(Upper { upper, .. }) = &layers.upper {
        let [uid, gid] = users.root();
        std::os::unix::fs::chown(upper, Some(uid), Some(gid))
            .at(STAGE, format!("give {} to the container's root", upper.display()))?;
    }
    if trees.len() == 1 && layers.upper.is_none() {
        return trees.pop().ok_or_else(|| Error::new(STAGE, "an image without layers"));
    }
    let mut floating = layers.clone();
    for (lower, tree) in floating.lowers.iter_mut().zip(&trees) {
        *lower = format!("/proc/self/fd/{}", tree.as_raw_fd()).into();
    }
    // Kernels before 6.15 do not stack layers that are attached nowhere.
    assemble(&floating, label).or_else(|_| attached(layers, &trees, label))
}

/// The lower layers, id-mapped.
fn mapped(layers: &Layers, users: &Users) -> Result<Vec<OwnedFd>, Error> {
    let tree = |lower: &PathBuf| {
        let tree = plain(lower)?;
        let stage = format!("{STAGE}: layer {}", lower.display());
        map_ids(&tree, users.fd.as_fd(), false, &stage)?;
        Ok(tree)
    };
    layers.lowers.iter().map(tree).collect()
}

/// The overlay of these trees, each attached to a place in a copy of the host's mounts.
fn attached(layers: &Layers, trees: &[OwnedFd], label: Option<&str>) -> Result<OwnedFd, Error> {
    elsewhere::alone(STAGE, || {
        let holder = tmpfs(STAGE, &[("mode", "755")], None, MountAttrFlags::empty())?;
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place =
            rustix::fs::open(HOLDER, open, Mode::empty()).at(STAGE, format!("open {HOLDER}"))?;
        move_onto(&holder, &place).at(STAGE, "attach the layers' holder")?;
        let mut mapped = layers.clone();
        for (n, (lower, tree)) in mapped.lowers.iter_mut().zip(trees).enumerate() {
            let name = n.to_string();
            let at = || format!("attach layer {}", lower.display());
            rustix::fs::mkdirat(&holder, &name, Mode::from_raw_mode(0o755)).at(STAGE, at())?;
            let dir = rustix::fs::openat(&holder, &name, open, Mode::empty()).at(STAGE, at())?;
            move_onto(tree, &dir).at(STAGE, at())?;
            *lower = Path::new(HOLDER).join(name);
        }
        // The overlay has references of its own when it is made.
        stack(&mapped, label)
    })
}

/// A directory that every host has and no layer is in, to be covered where nobody else sees it.
const HOLDER: &str = "/sys";

fn stack(layers: &Layers, label: Option<&str>) -> Result<OwnedFd, Error> {
    // overlayfs wants two lowers when there is no upper; one lower alone is simply that directory.
    if let ([only], None) = (layers.lowers.as_slice(), &layers.upper) {
        return plain(only);
    }
    // Kernels before 6.7 do not know `lowerdir+`; some refuse the word, some only the whole.
    let made = match assemble(layers, label) {
        Err(Refusal { errno: Errno::INVAL, .. }) => return aside::overlay(layers, label),
        made => made,
    };
    made.map_err(|refusal| {
        let missing = layers.paths().find(|p| !p.exists());
        let hint =
            missing.map_or_else(String::new, |p| format!(" ({} does not exist)", p.display()));
        let words = crate::error::words(&refusal.errno.into());
        Error::new(STAGE, format!("{}: {words}{hint}", refusal.what))
    })
}

/// What the kernel did not take, and why.
struct Refusal {
    what: String,
    errno: Errno,
}

fn assemble(layers: &Layers, label: Option<&str>) -> Result<OwnedFd, Refusal> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |errno| Refusal { what, errno }
    };
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(refused("open an overlay"))?;
    let set = |key: &str, path: &Path| {
        fsconfig_set_string(&fs, key, path.as_os_str().as_bytes())
            .map_err(refused(&format!("{key} {}", path.display())))
    };
    layers.lowers.iter().try_for_each(|l| set("lowerdir+", l))?;
    if let Some(Upper { upper, work }) = &layers.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
        if layers.volatile {
            fsconfig_set_flag(&fs, "volatile").map_err(refused("volatile"))?;
        }
    }
    if let Some(label) = label {
        fsconfig_set_string(&fs, "context", label).map_err(refused("context"))?;
    }
    fsconfig_create(&fs).map_err(refused("create the overlay"))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(refused("mount the overlay"))
}

/// The writable part of an overlay.
#[derive(Debug, Clone)]
pub struct Upper {
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// A directory and what is mounted below it, as a detached mount.
pub(crate) fn plain(path: &Path) -> Result<OwnedFd, Error> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(rustix::fs::CWD, path, flags).at(STAGE, format!("open {}", path.display()))
}

/// An empty tmpfs for a process that needs no files, owned by its root.
pub(crate) fn empty(users: Option<&Users>, label: Option<&str>) -> Result<OwnedFd, Error> {
    let [uid, gid] = users.map_or([0, 0], Users::root).map(|id| id.to_string());
    let parameters =
        [("mode", "555"), ("size", "4096"), ("nr_inodes", "8"), ("uid", &uid), ("gid", &gid)];
    tmpfs(STAGE, &parameters, label, MountAttrFlags::empty())
}

/// A fresh tmpfs, attached nowhere.
pub(crate) fn tmpfs(
    stage: &str,
    parameters: &[(&str, &str)],
    label: Option<&str>,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at(stage, "open a tmpfs")?;
    let context = label.map(|label| ("context", label));
    for (key, value) in parameters.iter().chain(&context) {
        fsconfig_set_string(&fs, *key, *value).at(stage, format!("tmpfs {key}={value}"))?;
    }
    fsconfig_create(&fs).at(stage, "create a tmpfs")?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).at(stage, "mount a tmpfs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn may_mount() -> bool {
        let root = rustix::process::geteuid().is_root();
        if !root {
            let why = "SKIPPED: needs root to mount";
            assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{why}");
            eprintln!("{why}");
        }
        root
    }

    fn below(dir: &tempfile::TempDir, name: &str) -> PathBuf {
        let path = dir.path().join(name);
        std::fs::create_dir(&path).expect("mkdir");
        path
    }

    #[test]
    fn new_and_old_kernels_ways_stack_the_layers_alike() {
        if !may_mount() {
            return;
        }
        // An overlay cannot be an upper: the scratch directory may be on one, /dev/shm is a tmpfs.
        let dir = tempfile::tempdir_in("/dev/shm").expect("tempdir");
        let sub = |name: &str| below(&dir, name);
        let lowers: Vec<_> = (0..100).map(|n| sub(&format!("a,name:of\\length {n}"))).collect();
        for (n, lower) in lowers.iter().enumerate() {
            std::fs::write(lower.join("who"), n.to_string()).expect("write");
            std::fs::write(lower.join(format!("only-{n}")), "").expect("write");
        }
        let here =
            || (std::env::current_dir().ok(), std::fs::read_link("/proc/thread-self/ns/mnt").ok());
        let before = here();
        for (n, way) in [stack, aside::overlay].into_iter().enumerate() {
            let upper = Upper { upper: sub(&format!("upper{n}")), work: sub(&format!("work{n}")) };
            let layers =
                Layers { lowers: lowers.clone(), upper: Some(upper.clone()), volatile: false };
            let tree = way(&layers, None).expect("an overlay");
            let root = PathBuf::from(format!("/proc/self/fd/{}", tree.as_raw_fd()));
            assert_eq!(std::fs::read_to_string(root.join("who")).expect("read"), "0");
            assert!(root.join("only-0").exists() && root.join("only-99").exists());
            std::fs::write(root.join("new"), "").expect("write");
            assert!(upper.upper.join("new").exists());
            assert_eq!(here(), before);
        }
    }

    #[test]
    fn id_mapped_layers_are_stacked_alike_with_and_without_a_place() {
        use crate::spec::IdMapping;
        use std::os::unix::fs::MetadataExt;

        if !may_mount() {
            return;
        }
        // On disk: a tmpfs has id-mapped mounts since Linux 6.3 only.
        let dir = tempfile::tempdir().expect("tempdir");
        let sub = |name: &str| below(&dir, name);
        let lowers: Vec<_> = (0..3).map(|n| sub(&format!("lower{n}"))).collect();
        lowers.iter().for_each(|lower| std::fs::write(lower.join("who"), "").expect("write"));
        let ids = vec![IdMapping { container_id: 0, host_id: 100_000, size: 65_536 }];
        let mappings = crate::plan::Mappings { uid: ids.clone(), gid: ids };
        let users = Users { fd: crate::users::pin(&mappings).expect("pin"), mappings };
        for way in ["new", "old"] {
            let upper =
                Upper { upper: sub(&format!("upper-{way}")), work: sub(&format!("work-{way}")) };
            let layers = Layers { lowers: lowers.clone(), upper: Some(upper), volatile: false };
            let trees = mapped(&layers, &users).expect("mapped");
            let tree = match way {
                "new" => overlay(&layers, Some(&users), None),
                _ => attached(&layers, &trees, None),
            };
            let tree = tree.expect("an overlay");
            let root = format!("/proc/self/fd/{}", tree.as_raw_fd());
            let owner = std::fs::metadata(Path::new(&root).join("who")).expect("who").uid();
            assert_eq!(owner, 100_000, "{way}");
        }
    }
}
