//! Which AppArmor profile a container runs under, and the node's default one.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::spec::Spec;
use crate::error::Error;
use crate::sandbox::spec::AppArmor;

/// The name of the profile that is meant by «the runtime's default».
const DEFAULT_NAME: &str = "lapstrake-default";

/// Whether the kernel has AppArmor and it is on.
const SWITCH: &str = "/sys/module/apparmor/parameters/enabled";

/// What is loaded, as `NAME (MODE)` lines.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// Where distributions put the program that compiles and loads profiles.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];

/// What Docker's and containerd's defaults allow and deny: everything a container needs, and no
/// writing to the parts of /proc and /sys that are the node's.
const DEFAULT_PROFILE: &str = "\
#include <tunables/global>
profile lapstrake-default flags=(attach_disconnected,mediate_deleted) {
  #include <abstractions/base>
  network,
  capability,
  file,
  umount,
  signal (receive) peer=unconfined,
  signal (send,receive) peer=lapstrake-default,
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/kcore rwklx,
  deny mount,
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
  ptrace (trace,read,tracedby,readby) peer=lapstrake-default,
}
";

/// What is known about AppArmor on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) enabled: bool,
    pub(crate) parser: Option<PathBuf>,
}

impl Node {
    pub(crate) fn look() -> Self {
        Self {
            enabled: fs::read_to_string(SWITCH).is_ok_and(|text| text.trim() == "Y"),
            parser: PARSERS.iter().map(PathBuf::from).find(|parser| parser.exists()),
        }
    }
}

/// What to do about a process.
#[derive(Debug, PartialEq, Eq)]
enum Choice {
    None,
    /// The node's own, to be loaded when it is not.
    Default,
    Loaded(String),
    Refused(&'static str),
}

/// Pure. A profile that was asked for by name and cannot be had is refused, since its protection
/// would be missing; what asks for the node's default gets what the node has.
fn choose(wish: &AppArmor, privileged: bool, node: &Node) -> Choice {
    match (wish, node.enabled) {
        (AppArmor::Localhost(_), false) => Choice::Refused(
            "this kernel has no AppArmor (see /sys/module/apparmor/parameters/enabled)",
        ),
        (_, false) | (AppArmor::Unconfined, _) => Choice::None,
        (AppArmor::Localhost(name), true) => Choice::Loaded(name.clone()),
        (AppArmor::NotGiven | AppArmor::RuntimeDefault, true) if privileged => Choice::None,
        (AppArmor::NotGiven | AppArmor::RuntimeDefault, true) if node.parser.is_some() => {
            Choice::Default
        }
        (AppArmor::NotGiven, true) => Choice::None,
        (AppArmor::RuntimeDefault, true) => Choice::Refused(
            "the default profile cannot be loaded: apparmor_parser is not installed",
        ),
    }
}

/// The profile of a container; `None` for none.
pub(crate) fn profile(spec: &Spec, node: &Node) -> Result<Option<String>, Error> {
    decided(&spec.security.apparmor, spec.security.privileged, node)
}

/// The profile of a sandbox's own process, or of a container.
pub(crate) fn decided(
    wish: &AppArmor,
    privileged: bool,
    node: &Node,
) -> Result<Option<String>, Error> {
    let field = "config.linux.security_context.apparmor";
    match choose(wish, privileged, node) {
        Choice::None => Ok(None),
        Choice::Default => {
            if !is_loaded(DEFAULT_NAME)? {
                load(node.parser.as_deref().unwrap_or(Path::new(PARSERS[0])))?;
            }
            Ok(Some(DEFAULT_NAME.to_owned()))
        }
        Choice::Loaded(name) if is_loaded(&name)? => Ok(Some(name)),
        Choice::Loaded(name) => {
            let problem = format!("profile {name:?} is not loaded on this node (see {LOADED})");
            Err(Error::invalid(field, problem))
        }
        Choice::Refused(hint) => {
            let name = match wish {
                AppArmor::Localhost(name) => format!("profile {name:?}: "),
                _ => String::new(),
            };
            Err(Error::Unsupported { field: field.to_owned(), hint: format!("{name}{hint}") })
        }
    }
}

fn is_loaded(name: &str) -> Result<bool, Error> {
    let table = fs::read_to_string(LOADED)
        .map_err(|source| Error::io("read the loaded AppArmor profiles from", LOADED, source))?;
    Ok(table.lines().any(|line| line.rsplit_once(" (").is_some_and(|(known, _)| known == name)))
}

fn load(parser: &Path) -> Result<(), Error> {
    let run = || -> std::io::Result<()> {
        let mut child = Command::new(parser)
            .args(["--replace", "--skip-cache"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(DEFAULT_PROFILE.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        match output.status.success() {
            true => Ok(()),
            false => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                Err(std::io::Error::other(format!("{}: {said}", output.status)))
            }
        }
    };
    run().map_err(|source| Error::io("load the default AppArmor profile with", parser, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_follows_the_wish_and_what_the_node_has() {
        let none = Node::default();
        let bare = Node { enabled: true, parser: None };
        let full = Node { enabled: true, parser: Some("/sbin/apparmor_parser".into()) };
        let named = AppArmor::Localhost("web".into());
        for (wish, privileged, node, expect) in [
            (&AppArmor::NotGiven, false, &none, "None"),
            (&AppArmor::RuntimeDefault, false, &none, "None"),
            (&named, false, &none, "Refused"),
            (&named, true, &none, "Refused"),
            (&AppArmor::NotGiven, false, &bare, "None"),
            (&AppArmor::RuntimeDefault, false, &bare, "Refused"),
            (&AppArmor::RuntimeDefault, true, &bare, "None"),
            (&AppArmor::NotGiven, false, &full, "Default"),
            (&AppArmor::RuntimeDefault, false, &full, "Default"),
            (&AppArmor::NotGiven, true, &full, "None"),
            (&AppArmor::Unconfined, false, &full, "None"),
            (&named, true, &full, "Loaded"),
        ] {
            let choice = format!("{:?}", choose(wish, privileged, node));
            assert!(choice.starts_with(expect), "{wish:?} {privileged} {node:?}: {choice}");
        }
    }
}
