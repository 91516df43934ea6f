//! A Localhost profile: the JSON of Docker and containers/common, which contains the OCI form.

use crate::error::{CompileError, Error, FileError};
use crate::filter::{Filter, action, arches, known, rules};
use crate::machine::Machine;
use libseccomp::ScmpAction;
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag};
use rustix::fs::OFlags;
use serde::Deserialize;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Docker's own profile has 13 KiB; whatever is a hundred times as long is not a profile.
const LARGEST: u64 = 1 << 20;

/// What `includes` and `excludes` ask about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) machine: Machine,
    /// Major and minor.
    pub(crate) kernel: (u32, u32),
    /// Without `CAP_`.
    pub(crate) capabilities: &'a [&'a str],
}

/// Symbolic links are followed: a profile that comes by a ConfigMap is one.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    // Without NONBLOCK the open of a FIFO would wait for its writer.
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC).bits() as i32;
    let opened = File::options().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => FileError::Missing,
        _ => FileError::Read(error),
    })?;
    if !file.metadata().map_err(FileError::Read)?.is_file() {
        return Err(FileError::NotRegular);
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(FileError::Read)?;
    if bytes.len() as u64 > LARGEST {
        return Err(FileError::TooLarge { limit: LARGEST });
    }
    Ok(bytes)
}

/// `path` is for the messages.
pub(crate) fn filter(path: &Path, bytes: &[u8], facts: Facts<'_>) -> Result<Filter, Error> {
    let unusable = |source| Error::File { path: path.to_owned(), source };
    let profile = parse(bytes).map_err(unusable)?;
    let mut chosen = Vec::new();
    let mut inapplicable = Vec::new();
    for (index, syscall) in profile.syscalls.iter().enumerate() {
        let names = syscall.names(index).map_err(unusable)?;
        if syscall.applies(facts).map_err(unusable)? {
            chosen.push((names, syscall));
        } else {
            inapplicable.extend_from_slice(names);
        }
    }
    let errno = errno(profile.default_errno_ret, profile.default_errno.as_deref());
    let default_errno = errno.map_err(unusable)?;
    let mut list = Vec::new();
    let uncompilable = |source| Error::Profile { path: path.to_owned(), source };
    let default = action(profile.default_action, default_errno).map_err(uncompilable)?;
    for (names, syscall) in chosen {
        let errno = self::errno(syscall.errno_ret, syscall.errno.as_deref()).map_err(unusable)?;
        let made = (|| -> Result<(), CompileError> {
            let action = action(syscall.action, errno)?;
            for name in names {
                list.extend(rules(name, action, syscall.args.as_deref().unwrap_or_default())?);
            }
            Ok(())
        })();
        made.map_err(uncompilable)?;
    }
    if default == ScmpAction::Notify || list.iter().any(|rule| rule.action == ScmpAction::Notify) {
        return Err(unusable(FileError::Refused {
            field: "SCMP_ACT_NOTIFY",
            why: "a Localhost profile has no process that would answer the notifications",
        }));
    }
    let arches = arches(&profile.tables(facts.machine), facts.machine.arches());
    Ok(Filter { default, arches, rules: list, known: known(default, inapplicable) })
}

fn parse(bytes: &[u8]) -> Result<ProfileFile, FileError> {
    let profile: ProfileFile = serde_json::from_slice(bytes).map_err(FileError::Syntax)?;
    let refuse = |field, why| Err(FileError::Refused { field, why });
    if profile.listener_path.is_some() {
        return refuse("listenerPath", "notifications of a Localhost profile are not forwarded");
    }
    // TSYNC asks for what is the case: the init stage has one thread when it loads the program.
    let idle =
        |flag: &LinuxSeccompFilterFlag| *flag == LinuxSeccompFilterFlag::SeccompFilterFlagTsync;
    if !profile.flags.iter().flatten().all(idle) {
        return refuse("flags", "a Localhost profile is loaded without flags other than TSYNC");
    }
    if profile.architectures.is_some() && profile.arch_map.is_some() {
        return Err(FileError::Both { one: "architectures", other: "archMap" });
    }
    Ok(profile)
}

/// Unknown keys beside `syscalls` are let be, as everywhere (`$schema`, notes); within a rule they
/// are errors, because there a misspelt condition would silently widen the profile.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfileFile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    default_errno: Option<String>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Family>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Vec<Syscall>,
}

/// A native table and those that come with it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Family {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscall {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    /// containers/common writes the name of the errno as well.
    errno: Option<String>,
    args: Option<Vec<LinuxSeccompArg>>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl ProfileFile {
    fn tables(&self, machine: Machine) -> Vec<Arch> {
        let native = match machine {
            Machine::X86_64 => Arch::ScmpArchX86_64,
            Machine::Aarch64 => Arch::ScmpArchAarch64,
        };
        let families = self.arch_map.iter().flatten();
        let ours = families.filter(|family| family.architecture == native);
        let subs = ours.flat_map(|family| family.sub_architectures.iter().flatten());
        self.architectures.iter().flatten().chain(subs).copied().collect()
    }
}

impl Syscall {
    /// All of `includes` must hold and nothing of `excludes`.
    fn applies(&self, facts: Facts<'_>) -> Result<bool, FileError> {
        let included = match &self.includes {
            Some(of) => {
                of.caps().all(|cap| facts.has(cap))
                    && of.arches.as_ref().is_none_or(|list| list.is_empty() || facts.is_one(list))
                    && of.since(facts)?.unwrap_or(true)
            }
            None => true,
        };
        let excluded = match &self.excludes {
            Some(of) => {
                of.caps().any(|cap| facts.has(cap))
                    || of.arches.as_ref().is_some_and(|list| facts.is_one(list))
                    || of.since(facts)?.unwrap_or(false)
            }
            None => false,
        };
        Ok(included && !excluded)
    }

    fn names(&self, index: usize) -> Result<&[String], FileError> {
        match (&self.name, &self.names) {
            (Some(_), Some(names)) if !names.is_empty() => {
                Err(FileError::Both { one: "name", other: "names" })
            }
            (Some(name), _) if !name.is_empty() => Ok(std::slice::from_ref(name)),
            (_, Some(names)) if !names.is_empty() => Ok(names),
            _ => Err(FileError::Nameless { index }),
        }
    }
}

impl Condition {
    fn caps(&self) -> impl Iterator<Item = &str> {
        self.caps.iter().flatten().map(|cap| cap.strip_prefix("CAP_").unwrap_or(cap))
    }

    /// Whether the kernel is at least `minKernel`.
    fn since(&self, facts: Facts<'_>) -> Result<Option<bool>, FileError> {
        let Some(text) = &self.min_kernel else { return Ok(None) };
        let version = version(text).ok_or_else(|| FileError::Kernel { text: text.clone() })?;
        Ok(Some(facts.kernel >= version))
    }
}

impl Facts<'_> {
    fn has(&self, cap: &str) -> bool {
        self.capabilities.contains(&cap)
    }

    fn is_one(&self, arches: &[String]) -> bool {
        arches.iter().any(|name| name == self.machine.profile_name())
    }
}

/// The first two numbers of a kernel's release: `6.1.0-13-amd64` is (6, 1).
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    let major = parts.next()?.parse().ok()?;
    let minor = parts.next()?;
    let digits = minor.find(|c: char| !c.is_ascii_digit()).unwrap_or(minor.len());
    Some((major, minor[..digits].parse().ok()?))
}

/// The number wins: the name beside it is for readers.
fn errno(number: Option<u32>, name: Option<&str>) -> Result<Option<u32>, FileError> {
    if number.is_some() {
        return Ok(number);
    }
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let found = ERRNOS.iter().find(|(known, _)| *known == name);
    let (_, number) = found.ok_or_else(|| FileError::Errno { text: name.to_owned() })?;
    Ok(Some(*number))
}

/// The names that make sense as a refusal (asm-generic/errno.h).
const ERRNOS: &[(&str, u32)] = &[
    ("EPERM", 1),
    ("ENOENT", 2),
    ("EAGAIN", 11),
    ("ENOMEM", 12),
    ("EACCES", 13),
    ("EINVAL", 22),
    ("ENOSYS", 38),
    ("EPROTONOSUPPORT", 93),
    ("EOPNOTSUPP", 95),
    ("EAFNOSUPPORT", 97),
];

#[cfg(test)]
mod tests;
