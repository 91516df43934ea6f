//! A profile as an OCI `linux.seccomp` object, for a runtime that compiles by itself.

use std::collections::BTreeMap;

use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp};
use serde_json::{Value, json};

use crate::filter::{Condition, Filter};

/// What the object cannot say is left out: that numbers nobody has decided about answer ENOSYS. Runtimes have rules of
/// their own for those.
pub(crate) fn document(filter: &Filter) -> Value {
    // One entry for all calls with the same answer, in the order of their first mention.
    let mut places = BTreeMap::new();
    let mut entries: Vec<(Value, Vec<&str>)> = Vec::new();
    for rule in &filter.rules {
        let mut entry = answer("action", rule.action);
        if !rule.conditions.is_empty() {
            entry["args"] = rule.conditions.iter().map(condition).collect();
        }
        let place = *places.entry(entry.to_string()).or_insert_with(|| {
            entries.push((entry, Vec::new()));
            entries.len() - 1
        });
        entries[place].1.push(&rule.name);
    }
    let calls = entries.into_iter().map(|(mut entry, names)| {
        entry["names"] = json!(names);
        entry
    });
    let mut document = answer("defaultAction", filter.default);
    if let Some(code) = document.as_object_mut().and_then(|it| it.remove("errnoRet")) {
        document["defaultErrnoRet"] = code;
    }
    document["architectures"] = filter.arches.iter().filter_map(arch).collect();
    document["syscalls"] = calls.collect();
    document
}

fn answer(key: &str, action: ScmpAction) -> Value {
    match action {
        ScmpAction::Allow => json!({ key: "SCMP_ACT_ALLOW" }),
        ScmpAction::Errno(code) => json!({ key: "SCMP_ACT_ERRNO", "errnoRet": code }),
        ScmpAction::Trace(code) => json!({ key: "SCMP_ACT_TRACE", "errnoRet": code }),
        ScmpAction::Trap => json!({ key: "SCMP_ACT_TRAP" }),
        ScmpAction::Log => json!({ key: "SCMP_ACT_LOG" }),
        ScmpAction::Notify => json!({ key: "SCMP_ACT_NOTIFY" }),
        ScmpAction::KillThread => json!({ key: "SCMP_ACT_KILL_THREAD" }),
        // Whatever else there may be, it does not take place.
        _ => json!({ key: "SCMP_ACT_KILL_PROCESS" }),
    }
}

fn condition(c: &Condition) -> Value {
    let (op, value, second) = match c.op {
        ScmpCompareOp::MaskedEqual(mask) => ("SCMP_CMP_MASKED_EQ", mask, Some(c.datum)),
        ScmpCompareOp::NotEqual => ("SCMP_CMP_NE", c.datum, None),
        ScmpCompareOp::Less => ("SCMP_CMP_LT", c.datum, None),
        ScmpCompareOp::LessOrEqual => ("SCMP_CMP_LE", c.datum, None),
        ScmpCompareOp::GreaterEqual => ("SCMP_CMP_GE", c.datum, None),
        ScmpCompareOp::Greater => ("SCMP_CMP_GT", c.datum, None),
        _ => ("SCMP_CMP_EQ", c.datum, None),
    };
    let mut condition = json!({ "index": c.argument, "value": value, "op": op });
    if let Some(second) = second {
        condition["valueTwo"] = json!(second);
    }
    condition
}

fn arch(arch: &ScmpArch) -> Option<&'static str> {
    Some(match arch {
        ScmpArch::X8664 => "SCMP_ARCH_X86_64",
        ScmpArch::X86 => "SCMP_ARCH_X86",
        ScmpArch::X32 => "SCMP_ARCH_X32",
        ScmpArch::Aarch64 => "SCMP_ARCH_AARCH64",
        ScmpArch::Arm => "SCMP_ARCH_ARM",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::{compile, default, spec};

    #[test]
    fn the_built_in_profile_comes_back_the_same_from_its_own_document() {
        let machine = Machine::here();
        let filter = default::filter(machine, &["CHOWN"]);
        let document = document(&filter);
        let read = serde_json::from_value(document.clone()).expect("an OCI object");
        let (again, flags) = spec::filter(&read, machine).expect("usable");
        assert_eq!(flags, spec::DEFAULT_FLAGS);
        assert_eq!((again.default, &again.arches), (filter.default, &filter.arches));
        let sorted = |filter: &Filter| {
            let mut rules: Vec<_> = filter.rules.iter().map(|r| format!("{r:?}")).collect();
            rules.sort();
            rules
        };
        assert_eq!(sorted(&again), sorted(&filter), "{document}");
        assert!(compile(&read).is_ok());
    }
}
