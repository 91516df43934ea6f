//! The directory of network configurations: which of its files count, and noticing changes.

use std::fs;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

use crate::conf::{Form, Network};
use crate::error::Error;
use crate::sys;

/// A configuration has a few KiB.
const FILE_MAX: u64 = 1 << 20;
/// Room for some dozen events; what does not fit is read the next time.
const EVENTS: usize = 4096;

/// The first `count` configurations of a directory in the order of their file names. A broken file
/// among them is an error: going on with the next one would bring pods into another network.
pub fn load(dir: &Path, count: usize) -> Result<Vec<Network>, Error> {
    let files = files(dir, &["conf", "conflist", "json"])?;
    if files.is_empty() {
        return Err(Error::NoConfiguration { dir: dir.to_owned() });
    }
    files.iter().take(count.max(1)).map(|file| load_file(dir, file)).collect()
}

fn load_file(dir: &Path, file: &Path) -> Result<Network, Error> {
    let is_list = file.extension().is_some_and(|it| it == "conflist");
    let form = if is_list { Form::List } else { Form::Single };
    let mut network = Network::parse(file, form, &read(file)?)?;
    if is_list && network.may_have_plugin_files() {
        for part in files(&dir.join(network.name()), &["conf"])? {
            network.append(&part, &read(&part)?)?;
        }
    }
    network.check(file)
}

/// Files of a directory with one of these extensions, by name. No directory has none.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(Error::File { attempt: "read", path: dir.to_owned(), source }),
    };
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            let extension = path.extension().and_then(|it| it.to_str());
            extension.is_some_and(|it| extensions.contains(&it)) && !path.is_dir()
        })
        .collect();
    files.sort_unstable();
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::File { attempt: "read", path: file.to_owned(), source };
    let mut text = Vec::new();
    let opened = fs::File::open(file).map_err(failed)?;
    opened.take(FILE_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_MAX {
        let problem = format!("has more than {FILE_MAX} bytes");
        return Err(Error::Configuration { file: file.to_owned(), problem });
    }
    Ok(text)
}

/// Notices changes in several directories by one inotify instance; a directory that is not there yet
/// is waited for.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
    dirs: Vec<PathBuf>,
}

impl Watch {
    /// Must be called inside a tokio runtime.
    pub fn open(dirs: Vec<PathBuf>) -> io::Result<Watch> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let watch = Watch { inotify: sys::register(inotify)?, dirs };
        watch.look();
        Ok(watch)
    }

    /// Returns when something may have changed since the last return.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.inotify.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); EVENTS];
        let mut events = inotify::Reader::new(guard.get_inner(), &mut buffer);
        // What happened does not matter: the directories are read anew.
        loop {
            match events.next() {
                Ok(_) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        guard.clear_ready();
        drop(guard);
        self.look();
        Ok(())
    }

    /// Looks at every directory, or at the nearest one above it that exists. Doing so again changes
    /// nothing for those that are looked at already.
    fn look(&self) {
        let content = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        // One that cannot be watched is seen by the regular look at the directories.
        let watch = |dir: &&Path| inotify::add_watch(self.inotify.get_ref(), *dir, content).is_ok();
        for dir in &self.dirs {
            let mut nearest = dir.ancestors().find(watch);
            // What was made below it just before nobody would tell of.
            while let Some(nearer) = dir.ancestors().find(watch).filter(|it| Some(*it) != nearest) {
                nearest = Some(nearer);
            }
        }
    }
}
