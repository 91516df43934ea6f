//! The kernel loads the programs and decides as the profile says, for root and for a user.

#![expect(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

mod sys;

use seccomp::{Compiler, Profile};
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use sys::{Call, Who, answers};
use tempfile::{TempDir, tempdir};

const EPERM: i32 = libc::EPERM;
const ENOSYS: i32 = libc::ENOSYS;
const EFAULT: i32 = libc::EFAULT;
const EBADF: i32 = libc::EBADF;
const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;

fn compiler() -> (TempDir, Compiler) {
    let dir = tempdir().unwrap();
    let compiler = Compiler::open(dir.path().join("seccomp")).unwrap();
    (dir, compiler)
}

fn built_in(capabilities: &[&str]) -> Vec<u8> {
    let (_dir, compiler) = compiler();
    fs::read(compiler.program(Profile::RuntimeDefault, capabilities).unwrap()).unwrap()
}

fn localhost(json: &str) -> Vec<u8> {
    let (dir, compiler) = compiler();
    let file = dir.path().join("profile.json");
    fs::write(&file, json).unwrap();
    fs::read(compiler.program(Profile::File(&file), &[]).unwrap()).unwrap()
}

/// `expected` is an errno, or 0 for a call that succeeds. The arguments are chosen so that a call
/// which passes the filter fails in the kernel with another errno than the filter's.
#[track_caller]
fn check(program: &[u8], who: Who, cases: &[(&str, Call, i32)]) {
    let calls: Vec<Call> = cases.iter().map(|(_, call, _)| *call).collect();
    for (found, (name, _, expected)) in answers(program, who, &calls).into_iter().zip(cases) {
        assert_eq!(found, *expected, "{name} as {who:?}");
    }
}

fn call(number: i64, args: &[i64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { number, args: all, compat: false }
}

#[test]
fn runtime_default_allows_ordinary_work_and_refuses_the_rest() {
    // ENOSYS before Linux 6.6.
    let fchmodat2 = call(452, &[-1, 1]);
    let all = localhost(r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#);
    let unfiltered = answers(&all, Who::Self_, &[fchmodat2])[0];
    let cases = [
        ("getpid", call(libc::SYS_getpid, &[]), 0),
        ("read", call(libc::SYS_read, &[-1]), EBADF),
        ("mount", call(libc::SYS_mount, &[1, 1, 1]), EPERM),
        ("unshare(NEWUSER)", call(libc::SYS_unshare, &[libc::CLONE_NEWUSER.into()]), EPERM),
        ("setns", call(libc::SYS_setns, &[-1]), EPERM),
        ("clone(NEWUSER)", call(libc::SYS_clone, &[libc::CLONE_NEWUSER.into()]), EPERM),
        ("clone3", call(libc::SYS_clone3, &[1, 1]), ENOSYS),
        ("keyctl", call(libc::SYS_keyctl, &[0]), EPERM),
        ("add_key", call(libc::SYS_add_key, &[]), EPERM),
        ("io_uring_setup", call(libc::SYS_io_uring_setup, &[1, 1]), EPERM),
        ("bpf", call(libc::SYS_bpf, &[0, 1, 1]), EPERM),
        ("userfaultfd", call(libc::SYS_userfaultfd, &[]), EPERM),
        ("open_by_handle_at", call(libc::SYS_open_by_handle_at, &[-1]), EPERM),
        ("chroot", call(libc::SYS_chroot, &[1]), EPERM),
        ("reboot", call(libc::SYS_reboot, &[]), EPERM),
        // PTRACE_PEEKUSER of no process
        ("ptrace", call(libc::SYS_ptrace, &[3, 0x7fff_ffff]), libc::ESRCH),
        ("fchmodat2", fchmodat2, unfiltered),
        ("number 9999", call(9999, &[]), ENOSYS),
        ("number 600", call(600, &[]), ENOSYS),
        ("socket(ALG)", call(libc::SYS_socket, &[38, 5]), EAFNOSUPPORT),
        ("socket(VSOCK)", call(libc::SYS_socket, &[40, 1]), EAFNOSUPPORT),
        ("socket(VSOCK + 2^32)", call(libc::SYS_socket, &[1 << 32 | 40, 1]), EAFNOSUPPORT),
        ("socket(UNIX)", call(libc::SYS_socket, &[1, 1]), 0),
        ("socket(INET)", call(libc::SYS_socket, &[2, 1]), 0),
        ("personality(?)", call(libc::SYS_personality, &[0xffff_ffff]), 0),
        ("personality(no ASLR)", call(libc::SYS_personality, &[0x0004_0000]), EPERM),
    ];
    let program = built_in(&[]);
    check(&program, Who::Self_, &cases);
    check(&program, Who::Nobody, &cases);
}

#[test]
fn capabilities_open_their_calls() {
    for (capability, name, one, passed) in [
        ("SYS_ADMIN", "mount", call(libc::SYS_mount, &[1, 1, 1]), EFAULT),
        ("SYS_ADMIN", "setns", call(libc::SYS_setns, &[-1]), EBADF),
        ("SYS_ADMIN", "clone3", call(libc::SYS_clone3, &[1, 1]), libc::EINVAL),
        ("SYS_ADMIN", "unshare", call(libc::SYS_unshare, &[0]), 0),
        ("SYS_CHROOT", "chroot", call(libc::SYS_chroot, &[1]), EFAULT),
        ("DAC_READ_SEARCH", "open_by_handle_at", call(304, &[-1, 1]), EFAULT),
        ("SYS_PTRACE", "pidfd_getfd", call(libc::SYS_pidfd_getfd, &[-1]), EBADF),
        ("SYS_TIME", "settimeofday", call(libc::SYS_settimeofday, &[1]), EFAULT),
        ("SYS_NICE", "set_mempolicy", call(libc::SYS_set_mempolicy, &[99]), libc::EINVAL),
    ] {
        let refused = if name == "clone3" { ENOSYS } else { EPERM };
        check(&built_in(&[]), Who::Self_, &[(name, one, refused)]);
        check(&built_in(&[capability]), Who::Self_, &[(name, one, passed)]);
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_32_bit_door_is_filtered_as_well() {
    let compat = |number, args: &[i64]| Call { compat: true, ..call(number, args) };
    let works = answers(&built_in(&["SYS_ADMIN"]), Who::Self_, &[compat(20, &[])]);
    if works != [0] {
        assert!(std::env::var_os("E2E_REQUIRE_ROOT").is_none(), "this kernel has no 32-bit calls");
        println!("SKIPPED: this kernel has no 32-bit calls");
        return;
    }
    let cases = [
        ("getpid", compat(20, &[]), 0),
        ("mount", compat(21, &[]), EPERM),
        ("socket(INET)", compat(359, &[2, 1]), 0),
        ("socket(ALG)", compat(359, &[38, 5]), EAFNOSUPPORT),
        ("socketcall(SOCKET)", compat(102, &[1, 1]), EFAULT),
        ("bind", compat(361, &[-1]), EBADF),
        ("clone3", compat(435, &[1, 1]), ENOSYS),
        ("number 9999", compat(9999, &[]), ENOSYS),
    ];
    check(&built_in(&[]), Who::Self_, &cases);
}

#[test]
fn a_localhost_profile_has_its_own_answers() {
    let program = localhost(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
              {"names": ["sethostname", "mseal"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
              {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#,
    );
    let cases = [
        ("sethostname", call(libc::SYS_sethostname, &[1, 1]), libc::EOPNOTSUPP),
        ("mseal", call(462, &[]), libc::EOPNOTSUPP),
        ("kill(0, 10)", call(libc::SYS_kill, &[0x7fff_ffff, 10]), EPERM),
        ("kill(0, 0)", call(libc::SYS_kill, &[0x7fff_ffff, 0]), libc::ESRCH),
        ("getpid", call(libc::SYS_getpid, &[]), 0),
    ];
    check(&program, Who::Self_, &cases);
}

#[test]
fn shells_pipes_and_processes_work_inside() {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-ec", "ls / | wc -l; (sleep 0.01 & wait); id -u; mkdir x; chmod 700 x; rmdir x"]);
    let dir = tempdir().unwrap();
    let output = sys::inside(&mut shell, built_in(&[])).current_dir(dir.path()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    assert_eq!(error, "");
}

#[test]
fn threads_and_name_resolution_work_inside() {
    const INSIDE: &str = "SECCOMP_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        let threads = (0..8).map(|n| std::thread::spawn(move || n * n));
        let squares: Vec<i32> = threads.map(|thread| thread.join().unwrap()).collect();
        assert_eq!(squares[7], 49);
        let found = std::net::ToSocketAddrs::to_socket_addrs(&("localhost", 80));
        assert!(found.is_ok_and(|mut addresses| addresses.next().is_some()));
        return;
    }
    let this: PathBuf = std::env::current_exe().unwrap();
    let mut again = Command::new(this);
    again.args(["--exact", "threads_and_name_resolution_work_inside"]).env(INSIDE, "1");
    let output = sys::inside(&mut again, built_in(&[])).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// Prints figures rather than judging them: machines differ.
#[test]
fn loading_and_passing_the_filter_costs_little() {
    let program = built_in(&[]);
    let figures = sys::cost(&program);
    println!(
        "{} instructions: load {} us; getpid {} ns with, {} ns without; refused clone {} ns",
        program.len() / 8,
        figures.load_us,
        figures.getpid_ns,
        figures.bare_getpid_ns,
        figures.clone_refused_ns
    );
    assert!(figures.getpid_ns < 100_000);
}
