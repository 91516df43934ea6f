//! Capability names and sets, clipped to what this process may hand out.

use crate::error::Error;
use crate::spec;

/// In the kernel's numbering; the index is the capability's number.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub const SYS_RESOURCE: u64 = 1 << 24;
pub const SYS_ADMIN: u64 = 1 << 21;

/// Five bit sets, bit n = capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// The sets a specification asks for, less what is not in `available` (our own bounding set): "all capabilities"
/// means all that this node has. An unknown name is an error.
pub fn sets(wanted: &spec::Capabilities, available: u64) -> Result<Sets, Error> {
    let set = |names: &Option<Vec<String>>| -> Result<u64, Error> {
        let mut bits = 0;
        for name in names.iter().flatten() {
            bits |= bit(name)?;
        }
        Ok(bits & available)
    };
    let (permitted, inheritable) = (set(&wanted.permitted)?, set(&wanted.inheritable)?);
    Ok(Sets {
        bounding: set(&wanted.bounding)?,
        // The kernel refuses an effective set beyond the permitted one, and ambient beyond either of the others.
        effective: set(&wanted.effective)? & permitted,
        inheritable,
        permitted,
        ambient: set(&wanted.ambient)? & permitted & inheritable,
    })
}

/// The names in a set, as the specification writes them.
pub fn names(bits: u64) -> Vec<String> {
    let held = NAMES.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
    held.map(|(_, name)| format!("CAP_{name}")).collect()
}

/// How many capabilities this code knows.
pub const COUNT: usize = NAMES.len();

fn bit(name: &str) -> Result<u64, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    let found = NAMES.iter().position(|n| *n == short);
    found
        .map(|n| 1 << n)
        .ok_or_else(|| Error::new("process.capabilities", format!("unknown capability {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(name: &str) -> Option<Vec<String>> {
        Some(vec![name.to_owned()])
    }

    #[test]
    fn what_we_do_not_have_is_not_handed_out() {
        let all =
            spec::Capabilities { bounding: Some(names(u64::MAX >> 23)), ..Default::default() };
        let without = !SYS_RESOURCE;
        assert_eq!(sets(&all, without).expect("known names").bounding & SYS_RESOURCE, 0);
    }

    #[test]
    fn an_ambient_capability_needs_the_permitted_and_inheritable_ones() {
        let lone = spec::Capabilities {
            ambient: caps("CAP_KILL"),
            permitted: caps("CAP_KILL"),
            ..Default::default()
        };
        assert_eq!(sets(&lone, u64::MAX).expect("known").ambient, 0);
        let whole = spec::Capabilities { inheritable: caps("CAP_KILL"), ..lone };
        assert_eq!(sets(&whole, u64::MAX).expect("known").ambient, 1 << 5);
    }

    #[test]
    fn an_unknown_capability_is_refused_by_name() {
        let c = spec::Capabilities { bounding: caps("CAP_FLY"), ..Default::default() };
        assert!(sets(&c, 0).expect_err("unknown").message.contains("CAP_FLY"));
    }
}
