//! Capability names and sets, clipped to what this process may hand out.

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
/// means all that this node has. What is not granted for another reason is added to the warnings, as the
/// specification of the runtime wants it for a name that the kernel does not have.
pub fn sets(wanted: &spec::Capabilities, available: u64, warnings: &mut Vec<String>) -> Sets {
    let mut set = |list: &Option<Vec<String>>| {
        let mut bits = 0;
        for name in list.iter().flatten() {
            match bit(name) {
                Some(bit) => bits |= bit,
                None => {
                    let warning = format!("unknown capability {name:?} is not granted");
                    if !warnings.contains(&warning) {
                        warnings.push(warning);
                    }
                }
            }
        }
        bits & available
    };
    let (permitted, inheritable) = (set(&wanted.permitted), set(&wanted.inheritable));
    let (bounding, effective, ambient) =
        (set(&wanted.bounding), set(&wanted.effective), set(&wanted.ambient));
    for name in names(ambient & !(permitted & inheritable)) {
        warnings.push(format!(
            "can't raise ambient capability {name}: it is not permitted and inheritable"
        ));
    }
    // The kernel refuses an effective set beyond the permitted one, and ambient beyond either of the others.
    let (effective, ambient) = (effective & permitted, ambient & permitted & inheritable);
    Sets { bounding, effective, inheritable, permitted, ambient }
}

/// The names in a set, as the specification writes them.
pub fn names(bits: u64) -> Vec<String> {
    let held = NAMES.iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0);
    held.map(|(_, name)| format!("CAP_{name}")).collect()
}

/// How many capabilities this code knows.
pub const COUNT: usize = NAMES.len();

fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|n| *n == short).map(|n| 1 << n)
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
        assert_eq!(sets(&all, without, &mut Vec::new()).bounding & SYS_RESOURCE, 0);
    }

    #[test]
    fn an_ambient_capability_needs_the_permitted_and_inheritable_ones() {
        let lone = spec::Capabilities {
            ambient: caps("CAP_KILL"),
            permitted: caps("CAP_KILL"),
            ..Default::default()
        };
        let mut warnings = Vec::new();
        assert_eq!(sets(&lone, u64::MAX, &mut warnings).ambient, 0);
        assert!(warnings[0].contains("CAP_KILL"), "{warnings:?}");
        let whole = spec::Capabilities { inheritable: caps("CAP_KILL"), ..lone };
        assert_eq!(sets(&whole, u64::MAX, &mut Vec::new()).ambient, 1 << 5);
    }

    #[test]
    fn an_unknown_capability_is_warned_of_by_name() {
        let c = spec::Capabilities { bounding: caps("CAP_FLY"), ..Default::default() };
        let mut warnings = Vec::new();
        assert_eq!(sets(&c, 0, &mut warnings), Sets::default());
        assert!(warnings[0].contains("CAP_FLY"), "{warnings:?}");
    }
}
