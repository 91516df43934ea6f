//! What the node has to have for a container's volumes, looked at before anything is made:
//! sources that exist, and mounts that let the asked propagation through.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::spec::{Mount, Propagation};
use crate::config::MissingSource;
use crate::error::Error;

pub(crate) fn check(mounts: &[Mount], missing: MissingSource) -> Result<(), Error> {
    let of_node = || mounts.iter().filter(|mount| mount.image.is_none());
    for mount in of_node() {
        exists(mount, missing)?;
    }
    if of_node().all(|mount| mount.propagation == Propagation::Private) {
        return Ok(());
    }
    let path = "/proc/self/mountinfo";
    let table = fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    of_node().try_for_each(|mount| lets_through(mount, &table))
}

fn field(mount: &Mount) -> String {
    format!("config.mounts[{}]", mount.container_path)
}

/// A path that is not there is a mistake of whoever wrote it, unless the node is told to make it
/// up, as other runtimes do.
fn exists(mount: &Mount, missing: MissingSource) -> Result<(), Error> {
    let path = &mount.host_path;
    match (fs::metadata(path), missing) {
        (Ok(_), _) => Ok(()),
        (Err(error), MissingSource::Error) if error.kind() == io::ErrorKind::NotFound => {
            let problem = format!(
                "host path {} does not exist (a directory would be made of it with \
                 runtime.missing_mount_source = \"create\")",
                path.display()
            );
            Err(Error::invalid(field(mount), problem))
        }
        (Err(error), MissingSource::Create) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path)
                .map_err(|source| Error::io("make the missing host path", path, source))
        }
        (Err(source), _) => Err(Error::io("look at the host path", path, source)),
    }
}

/// Propagation that the node's mounts cut off would be silently none.
fn lets_through(mount: &Mount, table: &str) -> Result<(), Error> {
    let path = &mount.host_path;
    let real = fs::canonicalize(path).map_err(|source| Error::io("resolve", path, source))?;
    let Some(below) = mount_of(&real, table) else { return Ok(()) };
    let problem = match (mount.propagation, below.shared, below.slave) {
        (Propagation::Private, ..)
        | (Propagation::Bidirectional, true, _)
        | (Propagation::HostToContainer, true, _)
        | (Propagation::HostToContainer, _, true) => return Ok(()),
        (Propagation::Bidirectional, ..) => "bidirectional propagation needs a shared mount",
        (Propagation::HostToContainer, ..) => {
            "propagation from the host needs a shared or slave mount"
        }
    };
    Err(Error::invalid(
        field(mount),
        format!(
            "{problem}, but {} is on {}, which is private (`mount --make-rshared {}`)",
            real.display(),
            below.point.display(),
            below.point.display(),
        ),
    ))
}

#[derive(Debug, PartialEq, Eq)]
struct Below {
    point: PathBuf,
    shared: bool,
    slave: bool,
}

/// The mount that a path is on: of those at the longest mount point, the last, which is on top.
fn mount_of(path: &Path, table: &str) -> Option<Below> {
    let mut best: Option<Below> = None;
    for line in table.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescaped) else { continue };
        let optional: Vec<_> = fields.skip(1).take_while(|field| *field != "-").collect();
        let deeper = best
            .as_ref()
            .is_none_or(|best| point.components().count() >= best.point.components().count());
        if path.starts_with(&point) && deeper {
            let has = |word: &str| optional.iter().any(|field| field.starts_with(word));
            best = Some(Below { point, shared: has("shared:"), slave: has("master:") });
        }
    }
    best
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let mut text = field.to_owned();
    for (code, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        text = text.replace(code, plain);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
22 21 0:5 / /srv rw - tmpfs tmpfs rw
23 22 0:6 / /srv/a\\040b rw master:7 - tmpfs tmpfs rw
24 21 0:7 / /top rw - tmpfs tmpfs rw
25 24 0:8 / /top rw shared:9 - tmpfs tmpfs rw
";

    #[test]
    fn the_mount_of_a_path_is_the_deepest_and_uppermost() {
        for (path, shared, slave) in [
            ("/etc", true, false),
            ("/srv/x", false, false),
            ("/srv/a b/c", false, true),
            ("/srvx", true, false),
            ("/top/x", true, false),
        ] {
            let found = mount_of(Path::new(path), TABLE).unwrap();
            assert_eq!((found.shared, found.slave), (shared, slave), "{path}");
        }
    }
}
