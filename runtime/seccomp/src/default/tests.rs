//! The table is whole, and says the same on every machine and with every libseccomp.

use super::*;
use crate::compile::compile;
use crate::filter::{ENOSYS, EPERM};
use crate::machine::{X32_BIT, audit};
use crate::simulate::{ALLOW, Call, errno, run};
use libseccomp::{ScmpArch, ScmpSyscall};

const MACHINES: [Machine; 2] = [Machine::X86_64, Machine::Aarch64];

/// Names libseccomp has for what no supported kernel does: they answer ENOSYS, as they would.
const ABSENT: &str = "afs_syscall break create_module epoll_ctl_old epoll_wait_old ftime \
    get_kernel_syms getpmsg gtty idle lock mpx prof profil putpmsg query_module security stty \
    tuxcall ulimit vserver pciconfig_iobase pciconfig_read pciconfig_write usr26 usr32 \
    get_tls arm_sync_file_range";
/// Decided by argument or by capability in code rather than in a table.
const CODED: &str = "clone clone3 personality socket";

/// The tables that the profile lets be used.
fn arches(machine: Machine) -> Vec<ScmpArch> {
    filter(machine, &[]).arches
}

fn code(machine: Machine, capabilities: &[&str]) -> Vec<u8> {
    compile(&filter(machine, capabilities), machine).unwrap()
}

fn numbered(arch: ScmpArch, name: &str) -> u32 {
    let found = ScmpSyscall::from_name_by_arch(name, arch).unwrap().as_raw_syscall();
    u32::try_from(found).unwrap_or_else(|_| panic!("{name} has no number on {arch:?}"))
}

fn answer(code: &[u8], arch: ScmpArch, name: &str, args: &[u64]) -> u32 {
    let mut call = Call::new(audit(arch).unwrap(), numbered(arch, name));
    call.args[..args.len()].copy_from_slice(args);
    run(code, call)
}

fn every_name() -> Vec<&'static str> {
    let tables = ALLOWED.iter().chain(REFUSED).flat_map(|calls| calls.split_whitespace());
    let opened = OPENED.iter().flat_map(|group| group.calls.split_whitespace());
    tables.chain(opened).chain(CODED.split_whitespace()).collect()
}

#[test]
fn no_call_is_decided_twice() {
    let mut names = every_name();
    names.sort_unstable();
    let twice: Vec<_> = names.windows(2).filter(|two| two[0] == two[1]).map(|t| t[0]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn every_name_of_the_table_is_a_call_somewhere() {
    let unknown: Vec<_> = every_name()
        .into_iter()
        .filter(|name| crate::gate::named(name).is_none() && crate::gate::newer(name).is_none())
        .collect();
    assert!(unknown.is_empty(), "misspelt: {unknown:?}");
}

#[test]
fn every_call_that_libseccomp_knows_is_decided() {
    // The newest number this table has seen; a later libseccomp may know more.
    const NEWEST: u32 = 469;
    let decided = every_name();
    let mut missing = Vec::new();
    for arch in MACHINES.iter().flat_map(|machine| machine.arches()) {
        let bit = if *arch == ScmpArch::X32 { X32_BIT } else { 0 };
        for number in (0..=NEWEST).chain(512..560) {
            let call = ScmpSyscall::from_raw_syscall((bit | number) as i32);
            let Ok(name) = call.get_name_by_arch(*arch) else { continue };
            let absent = ABSENT.split_whitespace().any(|absent| absent == name);
            if !absent && !decided.contains(&name.as_str()) {
                missing.push(format!("{arch:?} {number} {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn each_table_of_each_machine_allows_refuses_and_does_not_know() {
    for machine in MACHINES {
        let code = code(machine, &[]);
        for arch in &arches(machine) {
            for (name, expected) in [
                ("getpid", ALLOW),
                ("read", ALLOW),
                ("futex", ALLOW),
                ("ptrace", ALLOW),
                ("mount", errno(EPERM)),
                ("unshare", errno(EPERM)),
                ("setns", errno(EPERM)),
                ("keyctl", errno(EPERM)),
                ("io_uring_setup", errno(EPERM)),
                ("bpf", errno(EPERM)),
                ("pivot_root", errno(EPERM)),
                ("clone3", errno(ENOSYS)),
            ] {
                assert_eq!(answer(&code, *arch, name, &[]), expected, "{name} on {arch:?}");
            }
            for number in [470, 999, 9999, 0x3fff_ffff, X32_BIT, X32_BIT | 59] {
                let call = Call::new(audit(*arch).unwrap(), number);
                assert_eq!(run(&code, call), errno(ENOSYS), "{number} on {arch:?}");
            }
        }
    }
}

#[test]
fn calls_newer_than_libseccomp_are_allowed_by_their_number() {
    for machine in MACHINES {
        let code = code(machine, &[]);
        for arch in &arches(machine) {
            for (number, expected) in [
                (451, ALLOW),         // cachestat
                (452, ALLOW),         // fchmodat2
                (462, ALLOW),         // mseal
                (460, errno(EPERM)),  // lsm_set_self_attr, by CAP_SYS_ADMIN
                (467, errno(EPERM)),  // open_tree_attr, by CAP_SYS_ADMIN
                (469, errno(ENOSYS)), // file_setattr, undecided
            ] {
                let call = Call::new(audit(*arch).unwrap(), number);
                assert_eq!(run(&code, call), expected, "{number} on {arch:?}");
            }
        }
    }
}

#[test]
fn a_capability_opens_its_calls_and_no_others() {
    for group in OPENED {
        for by in group.by {
            let without = code(Machine::X86_64, &[]);
            let with = code(Machine::X86_64, &[by]);
            for name in OPENED.iter().flat_map(|group| group.calls.split_whitespace()) {
                let native = ScmpSyscall::from_name_by_arch(name, ScmpArch::X8664);
                if native.is_err() || native.is_ok_and(|found| found.as_raw_syscall() < 0) {
                    continue;
                }
                let opened = OPENED.iter().any(|group| {
                    group.by.contains(by) && group.calls.split_whitespace().any(|one| one == name)
                });
                let expected = if opened { ALLOW } else { errno(EPERM) };
                assert_eq!(answer(&with, ScmpArch::X8664, name, &[]), expected, "{name} with {by}");
                assert_eq!(answer(&without, ScmpArch::X8664, name, &[]), errno(EPERM), "{name}");
            }
        }
    }
}

#[test]
fn clone_makes_threads_but_no_namespaces() {
    const THREAD: u64 = 0x003d_0f00;
    for machine in MACHINES {
        let (plain, admin) = (code(machine, &[]), code(machine, &["SYS_ADMIN"]));
        for arch in &arches(machine) {
            assert_eq!(answer(&plain, *arch, "clone", &[THREAD]), ALLOW, "{arch:?}");
            for bit in [17, 25, 26, 27, 28, 29, 30] {
                let flags = [1 << bit | 17];
                assert_eq!(answer(&plain, *arch, "clone", &flags), errno(EPERM), "{bit} {arch:?}");
                assert_eq!(answer(&admin, *arch, "clone", &flags), ALLOW, "{bit} {arch:?}");
            }
            assert_eq!(answer(&admin, *arch, "clone3", &[]), ALLOW);
        }
    }
}

#[test]
fn personality_takes_harmless_values_only() {
    let code = code(Machine::X86_64, &["SYS_ADMIN"]);
    for (value, expected) in [
        (0, ALLOW),
        (8, ALLOW),
        (0x20000, ALLOW),
        (0x20008, ALLOW),
        (0xffff_ffff, ALLOW),
        (u64::MAX, ALLOW), // -1 with its sign: the kernel takes the low half
        (0x0040_0000, errno(EPERM)), // READ_IMPLIES_EXEC
        (0x0004_0000, errno(EPERM)), // ADDR_NO_RANDOMIZE
        (0x0002_0001, errno(EPERM)),
    ] {
        let found = answer(&code, ScmpArch::X8664, "personality", &[value]);
        assert_eq!(found, expected, "{value:#x}");
    }
}

#[test]
fn socket_families_are_compared_as_the_kernel_reads_them() {
    const GARBAGE: u64 = 0xdead_beef_0000_0000;
    let no = errno(EAFNOSUPPORT as u32);
    // TIPC, ALG, VSOCK, INET6
    for (capabilities, cases) in [
        (&[][..], [(30, no), (38, no), (40, no), (10, ALLOW)]),
        (&["NET_ADMIN"], [(30, ALLOW), (38, no), (40, no), (10, ALLOW)]),
        (&["SYS_ADMIN"], [(30, no), (38, no), (40, no), (10, ALLOW)]),
    ] {
        for (machine, arch) in [
            (Machine::X86_64, ScmpArch::X8664),
            (Machine::Aarch64, ScmpArch::Aarch64),
            (Machine::Aarch64, ScmpArch::Arm),
        ] {
            let code = code(machine, capabilities);
            for (family, expected) in cases {
                for high in [0, GARBAGE] {
                    let found = answer(&code, arch, "socket", &[high | family]);
                    assert_eq!(found, expected, "{family} on {arch:?} with {capabilities:?}");
                }
            }
        }
    }
}

#[test]
fn both_ways_to_a_socket_work_on_32_bit_x86() {
    let code = code(Machine::X86_64, &[]);
    let call = |number, args: &[u64]| {
        let mut call = Call::new(audit(ScmpArch::X86).unwrap(), number);
        call.args[..args.len()].copy_from_slice(args);
        run(&code, call)
    };
    const SOCKETCALL: u32 = 102;
    const SOCKET: u32 = 359;
    const RECVMMSG: u32 = 337;
    const SENDMMSG: u32 = 345;
    const BIND: u32 = 361;
    const SEMGET: u32 = 393;
    assert_eq!(call(SOCKETCALL, &[1, 0]), ALLOW);
    assert_eq!(call(SOCKETCALL, &[2, 0]), ALLOW);
    for direct in [RECVMMSG, SENDMMSG, BIND, SEMGET] {
        assert_eq!(call(direct, &[]), ALLOW, "{direct}");
    }
    assert_eq!(call(SOCKET, &[2]), ALLOW);
    assert_eq!(call(SOCKET, &[38]), errno(EAFNOSUPPORT as u32));
}

#[test]
fn capabilities_that_change_nothing_share_a_program() {
    assert_eq!(relevant(&["CHOWN", "KILL", "NET_RAW"]), Vec::<&str>::new());
    assert_eq!(relevant(&["SYS_TIME", "CHOWN", "BPF"]), ["BPF", "SYS_TIME"]);
}
