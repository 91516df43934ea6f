//! From resources to (file, text) pairs: pure, one table per cgroup version.

mod v1;
mod v2;

use crate::resources::DeviceRule;
use crate::{Error, Hierarchies, Resources};

/// What to do when the controller of a setting is not mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The workload relies on it: fail.
    Refuse,
    /// Callers send it whether or not the node has it (the kubelet sends a limit for every huge page size).
    Ignore,
}

/// One file of one controller and the text to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    pub controller: &'static str,
    pub file: String,
    pub value: String,
    pub missing: Missing,
}

impl Setting {
    pub(crate) fn new(
        controller: &'static str,
        file: impl Into<String>,
        value: impl ToString,
    ) -> Self {
        Self { controller, file: file.into(), value: value.to_string(), missing: Missing::Refuse }
    }

    pub(crate) fn or_ignore(mut self) -> Self {
        self.missing = Missing::Ignore;
        self
    }
}

/// The settings for `resources` on the layout of `node`, in the order they must be written.
/// Device rules are separate (`devices`): updates do not repeat them.
pub fn settings(resources: &Resources, node: &Hierarchies) -> Result<Vec<Setting>, Error> {
    if node.is_v2() { v2::settings(resources) } else { v1::settings(resources) }
}

/// Device nodes every container may use, whatever its rules say: `mknod` of anything (it gives no access by
/// itself) and null, zero, full, random, urandom, tty, console, ptmx and the pty slaves.
const ALWAYS: [&str; 10] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// The v1 device controller's writes: the rules in their order, then what is always allowed.
pub fn devices(rules: &[DeviceRule]) -> Result<Vec<Setting>, Error> {
    let mut out = Vec::with_capacity(rules.len() + ALWAYS.len());
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        out.push(Setting::new("devices", file, device(rule)?).or_ignore());
    }
    out.extend(ALWAYS.iter().map(|r| Setting::new("devices", "devices.allow", r).or_ignore()));
    Ok(out)
}

fn device(rule: &DeviceRule) -> Result<String, Error> {
    let bad =
        |reason: String| Error::BadResource { field: "linux.resources.devices".into(), reason };
    let kind = rule.kind.as_deref().unwrap_or("a");
    if !["a", "b", "c"].contains(&kind) {
        return Err(bad(format!("type {kind:?} is none of a, b, c")));
    }
    let access = rule.access.as_deref().filter(|a| !a.is_empty()).unwrap_or("rwm");
    if access.chars().any(|c| !"rwm".contains(c)) {
        return Err(bad(format!("access {access:?} has letters other than r, w, m")));
    }
    let number =
        |n: Option<i64>| n.filter(|n| *n >= 0).map_or_else(|| "*".to_owned(), |n| n.to_string());
    Ok(format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deny_all_is_one_line_that_the_kernel_reads_as_everything() {
        let rules = [
            DeviceRule { allow: false, access: Some("rwm".into()), ..Default::default() },
            DeviceRule {
                allow: true,
                kind: Some("c".into()),
                major: Some(10),
                minor: Some(229),
                access: None,
            },
        ];
        let s = devices(&rules).expect("valid rules");
        assert_eq!((s[0].file.as_str(), s[0].value.as_str()), ("devices.deny", "a *:* rwm"));
        assert_eq!((s[1].file.as_str(), s[1].value.as_str()), ("devices.allow", "c 10:229 rwm"));
        assert_eq!(s.len(), 2 + ALWAYS.len());
    }

    #[test]
    fn a_device_rule_with_a_wrong_letter_is_refused() {
        let rule = DeviceRule { access: Some("rx".into()), ..Default::default() };
        assert!(devices(&[rule]).is_err());
    }
}
