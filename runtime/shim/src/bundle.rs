//! What the daemon leaves in files for those who make containers: specifications and compiled filters.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use container::{Error, Seccomp, Spec};

/// The longest `config.json` that is read: a specification with every list at its limits stays below.
const CONFIG_MAX: u64 = 16 << 20;
/// The longest seccomp program: the kernel takes 4096 instructions of 8 bytes.
const SECCOMP_MAX: u64 = 4096 * 8;

pub(crate) fn specification(bundle: &Path) -> Result<Spec, Error> {
    const STAGE: &str = "read the specification";
    let text = read(&bundle.join("config.json"), CONFIG_MAX, STAGE)?;
    serde_json::from_slice(&text).map_err(|e| Error::new(STAGE, format!("config.json: {e}")))
}

/// An empty path means none.
pub(crate) fn filter(path: &str) -> Result<Option<Seccomp>, Error> {
    if path.is_empty() {
        return Ok(None);
    }
    let program = read(Path::new(path), SECCOMP_MAX, "seccomp")?;
    if program.is_empty() || program.len() % 8 != 0 {
        return Err(Error::new(
            "seccomp",
            format!("{path}: {} bytes are no BPF program", program.len()),
        ));
    }
    // Kernels before 5.16 (those of Debian 11 and Ubuntu 22.04) slow a filtered process down by mitigations that others
    // may choose by prctl; other runtimes do not ask for that either.
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32;
    Ok(Some(Seccomp { program, flags }))
}

fn read(path: &Path, max: u64, stage: &str) -> Result<Vec<u8>, Error> {
    let fail = |e: std::io::Error| {
        Error::new(stage, format!("open {}: {}", path.display(), container::error::words(&e)))
    };
    let file = File::open(path).map_err(fail)?;
    let length = file.metadata().map_err(fail)?.len().min(max);
    let mut bytes = Vec::with_capacity(length as usize + 1); // all of it, and its end, by one allocation
    file.take(max + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > max {
        return Err(Error::new(stage, format!("{} is longer than {max} bytes", path.display())));
    }
    Ok(bytes)
}
