//! Keeps compiled programs: in memory by the question that was asked, on disk by their content.

use crate::compile::{INSTRUCTION, MOST_INSTRUCTIONS, Program, compile, library_version};
use crate::error::{CompileError, Error};
use crate::file::{self, Facts};
use crate::filter::Filter;
use crate::machine::Machine;
use crate::{default, spec};
use oci_spec::runtime::LinuxSeccomp;
use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Part of every key: raise it when the same filter is to give another program.
const REVISION: &str = "2";
/// A node sees a handful of profiles times a few sets of capabilities. Beyond this the memory
/// starts anew, which costs one comparison with the file for each.
const MOST_REMEMBERED: usize = 1024;

/// Which profile a container asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile<'a> {
    /// The built-in one.
    RuntimeDefault,
    /// Localhost: the path of a file of this node.
    File(&'a Path),
}

/// Compiles profiles and keeps the programs.
///
/// In its directory `<sha256 of the program>.bpf` is what seccomp(2) takes, and a symbolic link
/// named by the sha256 of a decided filter points at the program made from it. So a program says
/// itself whether it is whole, and one that is not is made again. Files are not removed: the shim
/// of a running container reads its program again for each exec.
#[derive(Debug)]
pub struct Compiler {
    dir: PathBuf,
    kernel: (u32, u32),
    remembered: Mutex<HashMap<Question, Kept>>,
    /// Held while libseccomp works, so that a start of many pods compiles once.
    compiling: Mutex<()>,
}

/// What decides a program, cheaper to find out than the program.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Question {
    Default { relevant: Vec<&'static str> },
    File { sha256: [u8; 32], capabilities: Vec<String> },
}

#[derive(Debug, Clone)]
struct Kept {
    path: PathBuf,
    size: u64,
}

impl Compiler {
    /// `dir` is created with mode 0700 when it is absent; its parent must exist.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Exposed`] when somebody else could write into it.
    pub fn open(dir: PathBuf) -> Result<Compiler, Error> {
        let failed =
            |what| move |path: &Path, source| Error::Store { path: path.to_owned(), what, source };
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("create the directory")(&dir, error));
            }
            _ => {}
        }
        let found = fs::symlink_metadata(&dir);
        let found = found.map_err(|error| failed("look at the directory")(&dir, error))?;
        let others_write = found.mode() & 0o022 != 0;
        if !found.is_dir() || others_write || found.uid() != geteuid().as_raw() {
            return Err(Error::Exposed { path: dir });
        }
        let release = rustix::system::uname();
        // A release that is no number has every `minKernel` refuse rather than permit.
        let kernel = release.release().to_str().ok().and_then(file::version).unwrap_or((0, 0));
        let remembered = Mutex::default();
        Ok(Compiler { dir, kernel, remembered, compiling: Mutex::default() })
    }

    /// The file of the compiled program for a profile and the granted capabilities (names without
    /// `CAP_`, upper case; the bounding set). Compiles at most once; after that the built-in
    /// profile costs a look-up in memory, a file is read and hashed besides.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::Profile`] for a profile that cannot be used, with its path;
    /// [`Error::Store`] when the directory fails.
    pub fn program(&self, profile: Profile<'_>, capabilities: &[&str]) -> Result<PathBuf, Error> {
        let (question, bytes) = match profile {
            Profile::RuntimeDefault => {
                (Question::Default { relevant: default::relevant(capabilities) }, Vec::new())
            }
            Profile::File(path) => {
                let unusable = |source| Error::File { path: path.to_owned(), source };
                let bytes = file::read(path).map_err(unusable)?;
                let mut names: Vec<String> = capabilities.iter().map(|&n| n.to_owned()).collect();
                names.sort_unstable();
                names.dedup();
                let sha256 = Sha256::digest(&bytes).into();
                (Question::File { sha256, capabilities: names }, bytes)
            }
        };
        if let Some(kept) = lock(&self.remembered).get(&question).filter(|kept| kept.is_there()) {
            return Ok(kept.path.clone());
        }
        let machine = Machine::here();
        let kept = match profile {
            Profile::RuntimeDefault => {
                let filter = default::filter(machine, capabilities);
                self.keep(&filter, |source| Error::Default { source })?
            }
            Profile::File(path) => {
                let facts = Facts { machine, kernel: self.kernel, capabilities };
                let filter = file::filter(path, &bytes, facts)?;
                self.keep(&filter, |source| Error::Profile { path: path.to_owned(), source })?
            }
        };
        let mut remembered = lock(&self.remembered);
        if remembered.len() >= MOST_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(question, kept.clone());
        Ok(kept.path)
    }

    /// The same profile as an OCI `linux.seccomp` object, for a runtime that compiles by itself.
    ///
    /// # Errors
    /// As [`Compiler::program`], without those of the directory.
    pub fn document(
        &self,
        profile: Profile<'_>,
        capabilities: &[&str],
    ) -> Result<serde_json::Value, Error> {
        let machine = Machine::here();
        Ok(crate::document::document(&match profile {
            Profile::RuntimeDefault => default::filter(machine, capabilities),
            Profile::File(path) => {
                let unusable = |source| Error::File { path: path.to_owned(), source };
                let bytes = file::read(path).map_err(unusable)?;
                file::filter(path, &bytes, Facts { machine, kernel: self.kernel, capabilities })?
            }
        }))
    }

    /// The program of an OCI `linux.seccomp` object and its file: what a command that starts one
    /// container needs, to which memory is of no use.
    ///
    /// # Errors
    /// [`Error::Spec`] names the rule; [`Error::Store`] when the directory fails.
    pub fn spec(&self, spec: &LinuxSeccomp) -> Result<(Program, PathBuf), Error> {
        let wrap = |source| Error::Spec { source };
        let (filter, flags) = spec::filter(spec, Machine::here()).map_err(wrap)?;
        let Kept { path, .. } = self.keep(&filter, wrap)?;
        let failed = |source| self.failed("read a program", &path, source);
        Ok((Program { code: fs::read(&path).map_err(failed)?, flags }, path))
    }

    /// The program that [`Compiler::know`] was told of for this text, and its file: without reading the text,
    /// which takes longer than all the rest.
    pub fn known(&self, text: &str) -> Option<(Vec<u8>, PathBuf)> {
        let (Kept { path, .. }, code) = self.whole(&self.link_of(text))?;
        Some((code, path))
    }

    /// Notes that the text of an OCI `linux.seccomp` object gave the program in this file, with the default flags.
    ///
    /// # Errors
    /// [`Error::Store`] when the directory fails.
    pub fn know(&self, text: &str, program: &Path) -> Result<(), Error> {
        let Some(name) = program.file_name() else { return Ok(()) };
        self.replace("link a program", &self.link_of(text), |temporary| symlink(name, temporary))
    }

    /// Where the program of a text or of a filter's form is found.
    fn link_of(&self, made_from: &str) -> PathBuf {
        let whole = format!("{REVISION} {} {made_from}", library_version());
        self.dir.join(hex(&Sha256::digest(whole)))
    }

    fn keep(
        &self,
        filter: &Filter,
        wrap: impl FnOnce(CompileError) -> Error,
    ) -> Result<Kept, Error> {
        let link = self.link_of(&format!("{filter:?}"));
        let _compiling = lock(&self.compiling);
        if let Some((kept, _)) = self.whole(&link) {
            return Ok(kept);
        }
        let code = compile(filter, Machine::here()).map_err(wrap)?;
        let name = format!("{}.bpf", hex(&Sha256::digest(&code)));
        let path = self.dir.join(&name);
        self.replace("write a program", &path, |temporary| {
            let mut file =
                File::options().write(true).create_new(true).mode(0o600).open(temporary)?;
            file.write_all(&code)
        })?;
        self.replace("link a program", &link, |temporary| symlink(&name, temporary))?;
        Ok(Kept { path, size: code.len() as u64 })
    }

    /// The program a link leads to, when its content is what its name says.
    fn whole(&self, link: &Path) -> Option<(Kept, Vec<u8>)> {
        let name = fs::read_link(link).ok()?;
        let name = name.to_str()?;
        let digest = name.strip_suffix(".bpf")?;
        if digest.len() != 64 || !digest.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        let path = self.dir.join(name);
        let largest = (MOST_INSTRUCTIONS * INSTRUCTION) as u64;
        let mut code = Vec::with_capacity(16 << 10); // mostly more than enough
        File::open(&path).ok()?.take(largest + 1).read_to_end(&mut code).ok()?;
        let size = code.len() as u64;
        (hex(&Sha256::digest(&code)) == digest).then_some((Kept { path, size }, code))
    }

    /// Makes a file under a name of its own and puts it in place at once, for readers of any time.
    fn replace(
        &self,
        what: &'static str,
        path: &Path,
        make: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(format!(".{}-{number}", std::process::id()));
        // Left by a process of this number that was killed here.
        let _ = fs::remove_file(&temporary);
        make(&temporary).and_then(|()| fs::rename(&temporary, path)).map_err(|source| {
            let _ = fs::remove_file(&temporary);
            self.failed(what, path, source)
        })
    }

    fn failed(&self, what: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Store { path: path.to_owned(), what, source }
    }
}

impl Kept {
    /// A glance, not a proof: somebody may have emptied the directory under a running daemon.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.is_file() && found.len() == self.size)
    }
}

/// What these locks guard is never left half changed, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
