//! Capability names and sets, clipped to what this process may hand out.

use rustix::thread::CapabilitySet;

use crate::spec;

/// Numbers that the kernel's sets have room for. More than have names: what a newer kernel has added is to be dropped
/// as well.
pub const NUMBERS: std::ops::Range<u32> = 0..u64::BITS;

/// Five bit sets, bit n = capability n.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub permitted: u64,
    pub ambient: u64,
}

impl Sets {
    /// What a process can come to have: root gets what it may inherit back at exec, whatever bounds it.
    pub fn attainable(&self) -> u64 {
        self.bounding | self.effective | self.inheritable | self.permitted | self.ambient
    }
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
    let named = CapabilitySet::from_bits_retain(bits);
    named.iter_names().map(|(name, _)| format!("CAP_{name}")).collect()
}

fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CapabilitySet::from_name(short).map(|capability| capability.bits())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(name: &str) -> Option<Vec<String>> {
        Some(vec![name.to_owned()])
    }

    const SYS_RESOURCE: u64 = CapabilitySet::SYS_RESOURCE.bits();

    #[test]
    fn names_are_those_of_the_kernel_in_its_order() {
        let all = names(u64::MAX);
        assert_eq!((&*all[0], &*all[40]), ("CAP_CHOWN", "CAP_CHECKPOINT_RESTORE"));
        assert_eq!(names(1 << 21 | 1 << 63), ["CAP_SYS_ADMIN"]);
        assert_eq!(
            (bit("cap_kill"), bit("KILL"), bit("FLY"), bit("")),
            (Some(1 << 5), Some(1 << 5), None, None)
        );
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
