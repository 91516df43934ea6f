//! Which devices a group may use: the v1 controller where it is mounted, a BPF program on the v2 group elsewhere.

mod program;
mod rule;

use std::fs::File;
use std::os::fd::AsFd;

use crate::limits::Setting;
use crate::resources::DeviceRule;
use crate::{Error, Hierarchies, sys};
use rule::Rule;

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

/// More rules than this are a mistake; it keeps the program far below what the kernel's verifier takes.
const RULES_MAX: usize = 512;

impl Hierarchies {
    /// Puts the rules of `linux.resources.devices` in force for a group that was just made: in their order, the
    /// last one that matches decides; then what every container may use. What no rule speaks of stays as the
    /// groups above allow it.
    ///
    /// # Errors
    /// A malformed rule; a node with neither the v1 controller nor a v2 tree; the kernel's refusal.
    pub fn restrict_devices(&self, group: &str, rules: &[DeviceRule]) -> Result<(), Error> {
        let rules = with_defaults(rules)?;
        if self.dir("devices", group).is_some() {
            return self.apply(group, &v1(&rules));
        }
        let Some(program) = program::compile(&rules) else { return Ok(()) };
        let Some(dir) = self.unified_dir(group) else {
            let file = "linux.resources.devices".to_owned();
            return Err(Error::NoController { controller: "devices", file });
        };
        let fail = |attempt: &'static str| {
            move |e: rustix::io::Errno| Error::DeviceProgram {
                attempt,
                group: group.to_owned(),
                source: e.into(),
            }
        };
        let fd = File::open(&dir).map_err(|e| Error::file("open", &dir, e))?;
        let program =
            sys::load_device_program(&program).map_err(fail("load the BPF program of devices"))?;
        // The group holds the program from now on, until it is removed.
        sys::attach_device_program(fd.as_fd(), program.as_fd())
            .map_err(fail("attach the BPF program of devices"))
    }
}

fn with_defaults(rules: &[DeviceRule]) -> Result<Vec<Rule>, Error> {
    if rules.len() > RULES_MAX {
        let reason = format!("{} rules, at most {RULES_MAX} are taken", rules.len());
        return Err(Error::BadResource { field: rule::FIELD.into(), reason });
    }
    let always = ALWAYS.iter().map(|text| Rule::allow(text));
    rules.iter().map(Rule::read).chain(always).collect()
}

/// The v1 controller's writes.
fn v1(rules: &[Rule]) -> Vec<Setting> {
    let file = |allow: bool| if allow { "devices.allow" } else { "devices.deny" };
    rules.iter().map(|r| Setting::new("devices", file(r.allow), r)).collect()
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
        let s = v1(&with_defaults(&rules).expect("valid rules"));
        assert_eq!((s[0].file.as_str(), s[0].value.as_str()), ("devices.deny", "a *:* rwm"));
        assert_eq!((s[1].file.as_str(), s[1].value.as_str()), ("devices.allow", "c 10:229 rwm"));
        let always: Vec<&str> = s[2..].iter().map(|s| s.value.as_str()).collect();
        assert_eq!(always, ALWAYS);
    }

    #[test]
    fn a_node_without_any_way_to_restrict_devices_refuses_a_rule_instead_of_skipping_it() {
        let node = Hierarchies::default();
        let error = node.restrict_devices("/a", &[DeviceRule::default()]).expect_err("no way");
        assert!(error.to_string().contains("devices controller"), "{error}");
    }
}
