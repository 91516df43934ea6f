//! Turns seccomp profiles into the raw BPF programs that the init stage loads, once per profile.
//!
//! libseccomp is used as a compiler only, never by the shim: it needs 10–20 ms for a profile
//! of the usual size, which other runtimes pay at every start of a container. Here the program is
//! kept under the hash of what it was made from, and a container's start costs one look-up.
//!
//! ```text
//! RuntimeDefault ─── default.rs ─┐            ┌─ gate.rs: calls with simple answers ──┐
//! Localhost file ─── file.rs ────┼─► Filter ──┤                                       ├─► Program
//! OCI linux.seccomp  spec.rs ────┘            └─ libseccomp: rules about arguments ───┘
//! ```
//!
//! Everything left of the program is a pure decision; the cache (`store.rs`) is the only effect.

mod assembler;
mod compile;
mod default;
mod document;
mod error;
mod file;
mod filter;
mod gate;
mod machine;
#[cfg(test)]
mod simulate;
mod spec;
mod store;

pub use compile::Program;
pub use error::{CompileError, Error, FileError};
pub use spec::DEFAULT_FLAGS;
pub use store::{Compiler, Profile};

/// Compiles an OCI `linux.seccomp` object, without a cache.
///
/// # Errors
/// [`Error::Spec`] names the rule that cannot be expressed.
pub fn compile(spec: &oci_spec::runtime::LinuxSeccomp) -> Result<Program, Error> {
    let machine = machine::Machine::here();
    let wrap = |source| Error::Spec { source };
    let (filter, flags) = spec::filter(spec, machine).map_err(wrap)?;
    let code = compile::compile(&filter, machine).map_err(wrap)?;
    Ok(Program { code, flags })
}
