//! What a Localhost profile may say, and what it is told when it cannot be used.

use super::*;
use crate::compile::compile;
use crate::simulate::{ALLOW, Call, errno, run};
use std::os::unix::fs::symlink;

const X86_64: u32 = 0xc000_003e;
const READ: u32 = 0;
const MKDIR: u32 = 83;
const PTRACE: u32 = 101;

fn facts<'a>(capabilities: &'a [&'a str]) -> Facts<'a> {
    Facts { machine: Machine::X86_64, kernel: (5, 10), capabilities }
}

fn decide(json: &str, facts: Facts<'_>) -> Result<Filter, Error> {
    filter(Path::new("/p/x.json"), json.as_bytes(), facts)
}

/// The answer to one native call.
fn answer(json: &str, capabilities: &[&str], number: u32, arg: u64) -> u32 {
    let filter = decide(json, facts(capabilities)).unwrap();
    let mut call = Call::new(X86_64, number);
    call.args[0] = arg;
    run(&compile(&filter, Machine::X86_64).unwrap(), call)
}

fn refusal(json: &str) -> String {
    let error = decide(json, facts(&[])).unwrap_err().to_string();
    assert!(error.contains("/p/x.json"), "{error}");
    error
}

/// A closed profile with one rule about ptrace that says also this.
fn rule(rest: &str) -> String {
    format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {{"names": ["ptrace"], "action": "SCMP_ACT_ALLOW" {rest}}}]}}"#
    )
}

#[test]
fn a_rule_applies_when_all_of_includes_and_nothing_of_excludes_hold() {
    for (rest, capabilities, applies) in [
        ("", &[][..], true),
        (r#", "includes": {}, "excludes": {}"#, &[], true),
        (r#", "includes": {"caps": ["CAP_SYS_PTRACE"]}"#, &[], false),
        (r#", "includes": {"caps": ["CAP_SYS_PTRACE"]}"#, &["SYS_PTRACE"], true),
        (r#", "includes": {"caps": ["CAP_SYS_PTRACE", "CAP_BPF"]}"#, &["SYS_PTRACE"], false),
        (r#", "excludes": {"caps": ["CAP_SYS_PTRACE", "CAP_BPF"]}"#, &["BPF"], false),
        (r#", "excludes": {"caps": ["CAP_SYS_PTRACE"]}"#, &["BPF"], true),
        (r#", "includes": {"arches": ["amd64", "x32"]}"#, &[], true),
        (r#", "includes": {"arches": ["arm64"]}"#, &[], false),
        (r#", "excludes": {"arches": ["amd64"]}"#, &[], false),
        (r#", "includes": {"minKernel": "4.8"}"#, &[], true),
        (r#", "includes": {"minKernel": "5.10"}"#, &[], true),
        (r#", "includes": {"minKernel": "5.11"}"#, &[], false),
        (r#", "excludes": {"minKernel": "4.8"}"#, &[], false),
        (r#", "excludes": {"minKernel": "6.0"}"#, &[], true),
        (r#", "comment": "why", "args": null, "errnoRet": 1"#, &[], true),
    ] {
        let expected = if applies { ALLOW } else { errno(1) };
        assert_eq!(answer(&rule(rest), capabilities, PTRACE, 0), expected, "{rest}");
    }
}

#[test]
fn errnos_come_by_number_or_by_name() {
    let profile = |default: &str, of_rule: &str| {
        format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO" {default}, "syscalls": [
              {{"name": "mkdir", "action": "SCMP_ACT_ERRNO" {of_rule}}}]}}"#
        )
    };
    for (default, of_rule, expected) in [
        ("", r#", "errnoRet": 13"#, [errno(1), errno(13)]),
        (r#", "defaultErrnoRet": 22"#, "", [errno(22), errno(1)]),
        (r#", "defaultErrno": "ENOSYS""#, r#", "errno": "EINVAL""#, [errno(38), errno(22)]),
        (r#", "defaultErrnoRet": 2, "defaultErrno": "ENOSYS""#, "", [errno(2), errno(1)]),
    ] {
        let json = profile(default, of_rule);
        assert_eq!([READ, MKDIR].map(|n| answer(&json, &[], n, 0)), expected, "{default}{of_rule}");
    }
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_all_hold() {
    let either = rule(
        r#", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"},
                      {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]"#,
    );
    assert_eq!([3, 4, 5].map(|a| answer(&either, &[], PTRACE, a)), [ALLOW, errno(1), ALLOW]);
    let both = rule(
        r#", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"},
                      {"index": 1, "value": 5, "op": "SCMP_CMP_EQ"}]"#,
    );
    assert_eq!(answer(&both, &[], PTRACE, 3), errno(1));
    let masked = rule(
        r#", "args": [{"index": 0, "value": 240, "valueTwo": 16, "op": "SCMP_CMP_MASKED_EQ"}]"#,
    );
    assert_eq!([0x1f, 0x2f].map(|a| answer(&masked, &[], PTRACE, a)), [ALLOW, errno(1)]);
}

#[test]
fn tables_come_from_either_form_and_only_those_of_this_machine() {
    use libseccomp::ScmpArch::{X32, X86, X8664};
    for (json, expected) in [
        ("", vec![X8664]),
        (r#", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]"#, vec![X8664, X86]),
        (r#", "architectures": ["SCMP_ARCH_S390X"]"#, vec![X8664]),
        (
            r#", "archMap": [
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
                {"architecture": "SCMP_ARCH_RISCV64", "subArchitectures": null},
                {"architecture": "SCMP_ARCH_X86_64",
                 "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}]"#,
            vec![X8664, X86, X32],
        ),
    ] {
        let json = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW" {json}}}"#);
        assert_eq!(decide(&json, facts(&[])).unwrap().arches, expected, "{json}");
    }
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let with = |rest: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ERRNO" {rest}}}"#);
    for (json, word) in [
        (with(r#", "listenerPath": "/run/agent.sock""#), "listenerPath"),
        (with(r#", "flags": ["SECCOMP_FILTER_FLAG_LOG"]"#), "flags"),
        (with(r#", "archMap": [], "architectures": []"#), "archMap"),
        (with(r#", "defaultErrnoRet": 4096"#), "4096"),
        (with(r#", "defaultErrno": "EGREGIOUS""#), "EGREGIOUS"),
        (with(r#", "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": []}]"#), "syscalls[0]"),
        (rule(r#", "exclude": {"caps": ["CAP_BPF"]}"#), "exclude"),
        (rule(r#", "excludes": {"cap": ["CAP_BPF"]}"#), "cap"),
        (rule(r#", "includes": {"minKernel": "new"}"#), "new"),
        (rule(r#", "name": "read""#), "names"),
        (rule(r#", "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]"#), "ptrace"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.into(), "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction": "SCMP_ACT_ALOW"}"#.into(), "SCMP_ACT_ALOW"),
        (r#"{"syscalls": []}"#.into(), "defaultAction"),
        ("{".into(), "line 1"),
    ] {
        let error = refusal(&json);
        assert!(error.contains(word), "{error} should name {word}");
    }
    assert!(decide(&with(r#", "flags": ["SECCOMP_FILTER_FLAG_TSYNC"]"#), facts(&[])).is_ok());
    assert!(decide(&with(r#", "$schema": "x", "note": 1"#), facts(&[])).is_ok());
}

#[test]
fn only_a_regular_file_of_a_sane_size_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let missing = read(&at("absent.json")).unwrap_err().to_string();
    assert!(missing.contains("/var/lib/kubelet/seccomp"), "{missing}");
    assert!(matches!(read(dir.path()), Err(FileError::NotRegular)));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert!(matches!(read(&at("fifo")), Err(FileError::NotRegular)));
    std::fs::write(at("large"), vec![b' '; LARGEST as usize + 1]).unwrap();
    assert!(matches!(read(&at("large")), Err(FileError::TooLarge { .. })));
    std::fs::write(at("fits"), vec![b' '; LARGEST as usize]).unwrap();
    symlink(at("fits"), at("link")).unwrap();
    assert_eq!(read(&at("link")).unwrap().len() as u64, LARGEST);
}

#[test]
fn kernel_releases_are_read_as_two_numbers() {
    for (text, expected) in [
        ("6.1.0-13-amd64", Some((6, 1))),
        ("4.8", Some((4, 8))),
        ("5.15-rc1", Some((5, 15))),
        ("6", None),
        ("6.x", None),
        ("", None),
    ] {
        assert_eq!(version(text), expected, "{text}");
    }
}

#[test]
fn a_call_that_only_an_inapplicable_rule_names_is_refused_rather_than_missing() {
    let gated = rule(r#", "includes": {"caps": ["CAP_SYS_PTRACE"]}"#);
    assert_eq!(answer(&gated, &[], PTRACE, 0), errno(1));
    assert_eq!(answer(&gated, &[], PTRACE + 1, 0), errno(38), "newer than all the profile names");
}

#[test]
fn the_profile_that_containers_common_ships_compiles() {
    const SHIPPED: &str = "/usr/share/containers/seccomp.json";
    let Ok(bytes) = read(Path::new(SHIPPED)) else {
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "{SHIPPED} is not installed");
        println!("SKIPPED: {SHIPPED} (golang-github-containers-common) is not installed");
        return;
    };
    let json = String::from_utf8(bytes).unwrap();
    assert_eq!(answer(&json, &[], READ, 0), ALLOW);
    assert_eq!(answer(&json, &[], 9999, 0), errno(38));
    const BPF: u32 = 321;
    assert_eq!(answer(&json, &[], BPF, 0), errno(1));
    assert_eq!(answer(&json, &["SYS_ADMIN"], BPF, 0), ALLOW);
}
