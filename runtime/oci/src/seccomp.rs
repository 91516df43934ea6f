//! `linux.seccomp` to a BPF program, compiled by libseccomp, which is loaded only when a profile asks for it.

use std::path::{Path, PathBuf};

use container::Spec;
use serde::Deserialize;

use crate::error::Error;
use crate::sys::Compiler;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Option<Vec<Rule>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// One comparison as libseccomp takes it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Comparison {
    pub(crate) index: u32,
    pub(crate) operator: u32,
    pub(crate) a: u64,
    pub(crate) b: u64,
}

/// Compiles the profile of a specification into `dir`, for this start and for later execs.
pub(crate) fn compile(spec: &Spec, dir: &Path) -> Result<Option<(PathBuf, Vec<u8>)>, Error> {
    let Some(profile) = spec.linux.as_ref().and_then(|l| l.seccomp.as_ref()) else {
        return Ok(None);
    };
    let profile: Profile = serde_json::from_value(profile.clone())
        .map_err(|e| Error::Seccomp(format!("linux.seccomp: {e}")))?;
    let program = program(&profile)?;
    let path = dir.join("seccomp.bpf");
    std::fs::write(&path, &program).map_err(Error::file("write", &path))?;
    Ok(Some((path, program)))
}

fn program(profile: &Profile) -> Result<Vec<u8>, Error> {
    if profile.listener_path.as_ref().is_some_and(|p| !p.is_empty()) {
        return Err(Error::Unsupported(
            "linux.seccomp.listenerPath is not supported by this runtime",
        ));
    }
    if let Some(flag) = profile.flags.iter().flatten().next() {
        return Err(Error::Seccomp(format!(
            "linux.seccomp.flags: {flag} is not supported by this runtime"
        )));
    }
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut compiler = Compiler::new(default)?;
    for name in profile.architectures.iter().flatten() {
        let short = name.strip_prefix("SCMP_ARCH_").unwrap_or(name).to_ascii_lowercase();
        compiler.add_architecture(&short)?;
    }
    for rule in profile.syscalls.iter().flatten() {
        let action = action(&rule.action, rule.errno_ret)?;
        if action == default {
            continue; // libseccomp refuses what changes nothing
        }
        let comparisons =
            rule.args.iter().flatten().map(comparison).collect::<Result<Vec<_>, _>>()?;
        for name in &rule.names {
            compiler.add_rule(action, name, &comparisons)?;
        }
    }
    compiler.export()
}

/// SECCOMP_RET_* value of an action, with its data.
fn action(name: &str, errno: Option<u32>) -> Result<u32, Error> {
    const EPERM: u32 = 1;
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => 0,
        "SCMP_ACT_KILL_PROCESS" => 0x8000_0000,
        "SCMP_ACT_TRAP" => 0x0003_0000,
        "SCMP_ACT_ERRNO" => 0x0005_0000 | data,
        "SCMP_ACT_TRACE" => 0x7ff0_0000 | data,
        "SCMP_ACT_LOG" => 0x7ffc_0000,
        "SCMP_ACT_ALLOW" => 0x7fff_0000,
        _ => {
            return Err(Error::Seccomp(format!(
                "action {name:?} is not supported by this runtime"
            )));
        }
    })
}

fn comparison(arg: &Arg) -> Result<Comparison, Error> {
    let operator = match arg.op.as_str() {
        "SCMP_CMP_NE" => 1,
        "SCMP_CMP_LT" => 2,
        "SCMP_CMP_LE" => 3,
        "SCMP_CMP_EQ" => 4,
        "SCMP_CMP_GE" => 5,
        "SCMP_CMP_GT" => 6,
        "SCMP_CMP_MASKED_EQ" => 7,
        other => return Err(Error::Seccomp(format!("unknown operator {other:?}"))),
    };
    Ok(Comparison { index: arg.index, operator, a: arg.value, b: arg.value_two })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_carries_its_errno() {
        assert_eq!(action("SCMP_ACT_ERRNO", Some(38)).expect("known"), 0x0005_0026);
        assert_eq!(action("SCMP_ACT_ERRNO", None).expect("known"), 0x0005_0001);
        assert!(action("SCMP_ACT_NOTIFY", None).is_err());
    }
}
