//! Project quotas, where the file system has them: each container's writable layer is a project of
//! its own, so that the kernel knows at any time what it takes, and stops it at its limit.

mod sys;

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crate::layer::{Usage, open_directory_path};

/// A file system that counts by project.
pub(crate) struct Quota {
    directory: OwnedFd,
    enforces: bool,
}

/// Ids of ours: above those that the kubelet (from 1048577 on) and people take.
const PROJECT_MIN: u32 = 1 << 30;
/// Attempts to find one that nobody uses; among 2^30, the first nearly always is.
const TRIES: usize = 16;
/// The kernel's unit of limits.
const KIB: u64 = 1024;

impl Quota {
    /// `None`: the file system that `directory` is on does not count by project.
    pub(crate) fn find(directory: &Path) -> io::Result<Option<Quota>> {
        let directory = open_directory_path(directory)?;
        match sys::state(directory.as_fd()) {
            Ok((true, enforces)) => Ok(Some(Quota { directory, enforces })),
            // No quotas, or a kernel without them.
            Ok((false, _)) | Err(_) => Ok(None),
        }
    }

    /// Makes directories that are empty, and all that will be in them, one project.
    pub(crate) fn begin(&self, directories: [&Path; 2]) -> io::Result<()> {
        let project = match self.project_of(directories[0])? {
            0 => self.unused()?,
            known => known,
        };
        for directory in directories {
            let directory = open_directory_path(directory)?;
            let mut attributes = sys::attributes(directory.as_fd())?;
            attributes.project = project;
            attributes.flags |= sys::INHERIT;
            sys::set_attributes(directory.as_fd(), &attributes)?;
        }
        Ok(())
    }

    /// Whether the kernel keeps the project to the limit from now on.
    pub(crate) fn limit(&self, directory: &Path, bytes: u64) -> io::Result<bool> {
        let project = self.project_of(directory)?;
        if !self.enforces || project == 0 {
            return Ok(false);
        }
        sys::set_limit(self.directory.as_fd(), project, bytes.div_ceil(KIB))?;
        Ok(true)
    }

    /// What the project of a directory takes. `None`: it was made before there were projects.
    pub(crate) fn usage(&self, directory: &Path) -> io::Result<Option<Usage>> {
        let project = self.project_of(directory)?;
        if project == 0 {
            return Ok(None);
        }
        let quota = sys::quota(self.directory.as_fd(), project)?;
        Ok(Some(Usage { bytes: quota.dqb_curspace, inodes: quota.dqb_curinodes }))
    }

    /// 0: none.
    pub(crate) fn project_of(&self, directory: &Path) -> io::Result<u32> {
        let directory = open_directory_path(directory)?;
        Ok(sys::attributes(directory.as_fd())?.project)
    }

    /// Forgets the limit of a project whose files are gone.
    pub(crate) fn end(&self, project: u32) {
        // Without files it costs nothing but an entry in the kernel's table.
        let _ = sys::set_limit(self.directory.as_fd(), project, 0);
    }

    fn unused(&self) -> io::Result<u32> {
        for _ in 0..TRIES {
            let project = PROJECT_MIN | (getrandom::u32().map_err(io::Error::other)? >> 2);
            match sys::quota(self.directory.as_fd(), project) {
                Ok(quota) if quota.dqb_curinodes > 0 || quota.dqb_bhardlimit > 0 => {}
                // Some file systems know nothing of a project before it has files.
                Ok(_) => return Ok(project),
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(project),
                Err(e) => return Err(e),
            }
        }
        Err(io::Error::other("no project id is free"))
    }
}
