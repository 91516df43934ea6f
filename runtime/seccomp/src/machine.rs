//! The two machines this runtime is built for, and the system call tables that each can run.

use libseccomp::ScmpArch;

/// Set in the number of an x32 call, which else shares its table with x86_64.
pub(crate) const X32_BIT: u32 = 0x4000_0000;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("seccomp profiles are written for x86_64 and aarch64");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    pub(crate) const fn here() -> Machine {
        if cfg!(target_arch = "aarch64") { Machine::Aarch64 } else { Machine::X86_64 }
    }

    /// The tables that a process on this machine can choose from, the native one first. All are
    /// in every filter by default: a table left out would kill its programs, a table filtered
    /// less would be a way around the filter.
    pub(crate) const fn arches(self) -> &'static [ScmpArch] {
        match self {
            Machine::X86_64 => &[ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32],
            Machine::Aarch64 => &[ScmpArch::Aarch64, ScmpArch::Arm],
        }
    }

    /// The machine's name in Docker's profiles (`includes.arches`).
    pub(crate) const fn profile_name(self) -> &'static str {
        match self {
            Machine::X86_64 => "amd64",
            Machine::Aarch64 => "arm64",
        }
    }
}

/// `seccomp_data.arch` as the kernel fills it in (`AUDIT_ARCH_*` of linux/audit.h).
pub(crate) const fn audit(arch: ScmpArch) -> Option<u32> {
    match arch {
        ScmpArch::X8664 | ScmpArch::X32 => Some(0xc000_003e),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xc000_00b7),
        ScmpArch::Arm => Some(0x4000_0028),
        _ => None,
    }
}
