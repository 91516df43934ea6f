//! Filter to program: optimisation changes nothing, newer calls keep their rules, limits hold.

use super::*;
use crate::default;
use crate::filter::{Condition, ENOSYS, EPERM, Known};
use crate::machine::audit;
use crate::simulate::{ALLOW, Call, errno, run};
use libseccomp::{ScmpAction, ScmpArch, ScmpCompareOp, ScmpSyscall};
use std::time::Instant;

const X86_64: u32 = 0xc000_003e;
const ENOENT: i32 = 2;

fn filter(default: ScmpAction, rules: Vec<Rule>) -> Filter {
    let known = crate::filter::known(default, Vec::new());
    Filter { default, arches: Machine::X86_64.arches().to_vec(), rules, known }
}

fn rule(name: &str, action: ScmpAction) -> Rule {
    Rule { name: name.into(), action, conditions: Vec::new() }
}

fn answers(filter: &Filter) -> impl Fn(u32) -> u32 + use<> {
    let code = compile(filter, Machine::X86_64).unwrap();
    move |number| run(&code, Call::new(X86_64, number))
}

const REFUSE: ScmpAction = ScmpAction::Errno(EPERM as i32);

/// Every call of every table, with arguments on both sides of every comparison that the built-in profile makes.
fn decide_alike(filter: &Filter, machine: Machine, one: &[u8], other: &[u8]) {
    let known = |arch, number: u32| {
        ScmpSyscall::from_raw_syscall(number as i32).get_name_by_arch(arch).is_ok()
    };
    for arch in machine.arches() {
        let numbers = (0..600).chain(0xf_0000..0xf_0008).chain([0xffff_ffff]);
        for number in numbers.flat_map(|n| [n, n | crate::machine::X32_BIT]) {
            // libseccomp has no rules for calls that it does not know.
            if (451..470).contains(&(number & 0xffff)) && !known(*arch, number) {
                continue;
            }
            let low = (0..50).chain([1 << 17, 1 << 17 | 8, 1 << 28, 0x7e02_0000, 0xffff_ffff]);
            for arg in low.flat_map(|low| [low, low | 0xdead_beef << 32]) {
                let mut call = Call::new(audit(*arch).unwrap(), number);
                call.args[0] = arg;
                let arches = &filter.arches;
                assert_eq!(run(one, call), run(other, call), "{call:x?} among {arches:?}");
            }
        }
    }
}

#[test]
fn the_gate_the_tree_and_the_list_decide_alike() {
    for capabilities in [&[][..], &["SYS_ADMIN", "NET_ADMIN"]] {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            let mut filter = default::filter(machine, capabilities);
            for arches in [filter.arches.clone(), machine.arches().to_vec()] {
                filter.arches = arches;
                let compiled =
                    |gate, kind| compile_as(&filter, machine, gate, kind).expect("compiled");
                let nothing = gate::Settled::new();
                let gate = gate::settled(&filter);
                for name in ["clone", "personality", "socket"] {
                    assert!(gate.contains_key(name), "{name} is left to libseccomp");
                }
                let [gate, tree] = [&gate, &nothing].map(|gate| compiled(gate, TREE));
                decide_alike(&filter, machine, &gate, &tree);
                decide_alike(&filter, machine, &gate, &compiled(&nothing, 1));
            }
        }
    }
}

#[test]
fn rules_about_one_argument_that_the_gate_must_leave_to_libseccomp() {
    const INT: u64 = 0xffff_ffff;
    let masked =
        |action, argument, mask, value| Rule::masked("kill", action, argument, mask, value);
    let (allow, other) = (ScmpAction::Allow, ScmpAction::Errno(ENOENT));
    for (why, rules) in [
        ("all 64 bits", vec![masked(allow, 1, u64::MAX, 9)]),
        ("a value that cannot be", vec![masked(allow, 1, 1, 3)]),
        ("two arguments", vec![masked(allow, 1, INT, 9), masked(allow, 0, INT, 9)]),
        ("two answers at once", vec![masked(allow, 1, 1, 1), masked(other, 1, 2, 2)]),
        ("a rule for all besides", vec![masked(allow, 1, INT, 9), rule("kill", other)]),
    ] {
        let filter = filter(REFUSE, rules);
        assert_eq!(gate::settled(&filter), gate::Settled::new(), "{why}");
    }
    let filter = filter(REFUSE, vec![masked(allow, 1, INT, 9), masked(other, 1, INT, INT)]);
    let code = compile(&filter, Machine::X86_64).unwrap();
    for (signal, expected) in [(9, ALLOW), (INT, errno(ENOENT as u32)), (8, errno(EPERM))] {
        let mut call = Call::new(X86_64, 62);
        call.args[1] = signal;
        assert_eq!(run(&code, call), expected, "{signal:#x}");
    }
}

/// Profiles by chance, of calls that are special in one table or another.
#[test]
fn whatever_the_gate_takes_over_it_decides_as_libseccomp_would() {
    const NAMES: [&str; 16] = [
        "read",
        "close",
        "clone",
        "socket",
        "socket",
        "bind",
        "accept",
        "recvmmsg",
        "socketcall",
        "socketcall",
        "ipc",
        "semget",
        "semop",
        "personality",
        "kill",
        "mkdir",
    ];
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |n: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % n as u64) as usize
    };
    let actions = [
        ScmpAction::Allow,
        ScmpAction::Allow,
        ScmpAction::Errno(2),
        ScmpAction::Errno(3),
        ScmpAction::Log,
    ];
    let defaults =
        [REFUSE, REFUSE, ScmpAction::Allow, ScmpAction::KillProcess, ScmpAction::Errno(38)];
    let (mut compared, mut taken_over) = (0, 0);
    for _ in 0..400 {
        let mut rules = Vec::new();
        for _ in 0..=below(8) {
            let (name, action) = (NAMES[below(NAMES.len())], actions[below(actions.len())]);
            let (argument, datum) = (below(8) as u32 / 7, below(4) as u64);
            let mask = [0xffff_ffff, 0xffff_ffff, 1, 3, 1 << 28, u64::MAX][below(6)];
            rules.push(match below(5) {
                0 => rule(name, action),
                1 => {
                    let op = ScmpCompareOp::GreaterEqual;
                    let conditions = vec![Condition { argument, op, datum }];
                    Rule { name: name.into(), action, conditions }
                }
                _ => Rule::masked(name, action, argument, mask, datum & mask),
            });
        }
        let mut filter = filter(defaults[below(defaults.len())], rules);
        filter.arches.truncate(1 + below(3));
        let settled = gate::settled(&filter);
        let compiled = |gate| compile_as(&filter, Machine::X86_64, gate, TREE);
        let (Ok(gate), Ok(tree)) = (compiled(&settled), compiled(&gate::Settled::new())) else {
            continue; // rules that contradict each other
        };
        (compared, taken_over) = (compared + 1, taken_over + settled.len());
        let named = NAMES.iter().flat_map(|name| {
            [ScmpArch::X8664, ScmpArch::X86, ScmpArch::X32].map(|arch| {
                ScmpSyscall::from_name_by_arch(name, arch).map_or(0, |n| n.as_raw_syscall())
            })
        });
        let numbers = named.filter_map(|n| u32::try_from(n).ok()).chain(337..346).chain(359..403);
        for number in numbers {
            for (audit, arg) in [X86_64, 0x4000_0003]
                .into_iter()
                .flat_map(|audit| [0, 1, 2, 3, 1 << 28, 1 << 40 | 1].map(|arg| (audit, arg)))
            {
                let call = Call { args: [arg, arg >> 1, 0, 0, 0, 0], ..Call::new(audit, number) };
                assert_eq!(run(&gate, call), run(&tree, call), "{call:x?} of {filter:?}");
            }
        }
    }
    assert!(compared > 200 && taken_over > 200, "{compared} profiles, {taken_over} calls");
}

/// The number of x32's close is that of the 32-bit table, as a value.
#[test]
fn a_call_left_to_libseccomp_does_not_stray_into_the_next_table() {
    let condition = Condition { argument: 0, op: ScmpCompareOp::GreaterEqual, datum: 5 };
    let close =
        Rule { name: "close".into(), action: ScmpAction::Allow, conditions: vec![condition] };
    let code = compile(&filter(REFUSE, vec![close]), Machine::X86_64).unwrap();
    for (descriptor, expected) in [(5, ALLOW), (4, errno(EPERM))] {
        for number in [3, crate::machine::X32_BIT | 3] {
            let mut call = Call::new(X86_64, number);
            call.args[0] = descriptor;
            assert_eq!(run(&code, call), expected, "{number:#x}");
        }
    }
}

#[test]
fn a_file_that_refuses_by_default_answers_enosys_beyond_its_newest_call() {
    let newest = answers(&filter(REFUSE, vec![Rule::allow("read"), Rule::allow("openat2")]));
    assert_eq!(newest(0), ALLOW);
    assert_eq!(newest(1), errno(EPERM)); // write: older, so refused
    assert_eq!(newest(437), ALLOW); // openat2
    assert_eq!(newest(438), errno(ENOSYS)); // pidfd_getfd came later
    assert_eq!(newest(9999), errno(ENOSYS));
}

#[test]
fn a_file_that_allows_by_default_or_chose_enosys_has_its_way_everywhere() {
    let open = answers(&filter(ScmpAction::Allow, vec![rule("mkdir", REFUSE)]));
    assert_eq!(open(83), errno(EPERM));
    assert_eq!(open(9999), ALLOW);
    let enosys = ScmpAction::Errno(ENOSYS as i32);
    let closed = answers(&filter(enosys, vec![Rule::allow("read"), rule("mkdir", REFUSE)]));
    assert_eq!([closed(0), closed(83), closed(84)], [ALLOW, errno(EPERM), errno(ENOSYS)]);
}

#[test]
fn a_rule_for_a_call_that_libseccomp_cannot_name_holds_by_number() {
    const FCHMODAT2: u32 = 452;
    const FILE_SETATTR: u32 = 469;
    for (default, action, expected) in [
        (REFUSE, ScmpAction::Allow, ALLOW),
        (ScmpAction::Allow, ScmpAction::Errno(ENOENT), errno(2)),
        (ScmpAction::Allow, ScmpAction::KillProcess, 0x8000_0000),
    ] {
        let rules = vec![rule("fchmodat2", action), rule("file_setattr", action)];
        let answer = answers(&filter(default, rules));
        assert_eq!(answer(FCHMODAT2), expected);
        assert_eq!(answer(FILE_SETATTR), expected);
    }
}

#[test]
fn an_unknown_name_is_skipped_where_that_permits_nothing_and_an_error_where_it_would() {
    let unknown = |default, action| {
        let rules = vec![rule("no_such_call", action), rule("mkdir", ScmpAction::KillThread)];
        compile(&filter(default, rules), Machine::X86_64)
    };
    assert!(unknown(REFUSE, ScmpAction::Allow).is_ok());
    assert!(unknown(REFUSE, ScmpAction::KillProcess).is_ok());
    assert!(unknown(ScmpAction::Log, ScmpAction::Allow).is_ok());
    let error = unknown(ScmpAction::Allow, REFUSE).unwrap_err().to_string();
    assert!(error.contains("no_such_call"), "{error}");
}

#[test]
fn every_comparison_means_what_it_says() {
    use ScmpCompareOp::*;
    const GETPRIORITY: u32 = 140;
    for (op, datum, yes, no) in [
        (Equal, 7, 7, 8),
        (NotEqual, 7, 8, 7),
        (Less, 7, 6, 7),
        (LessOrEqual, 7, 7, 8),
        (Greater, 7, 8, 7),
        (GreaterEqual, 7, 7, 6),
        (MaskedEqual(0xf0), 0x30, 0x3f, 0x4f),
    ] {
        let condition = Condition { argument: 3, op, datum };
        let name = "getpriority".into();
        let one = Rule { name, action: ScmpAction::Allow, conditions: vec![condition] };
        let code = compile(&filter(REFUSE, vec![one]), Machine::X86_64).unwrap();
        for (value, expected) in [(yes, ALLOW), (no, errno(EPERM))] {
            let mut call = Call::new(X86_64, GETPRIORITY);
            call.args[3] = value;
            assert_eq!(run(&code, call), expected, "{op:?} {value}");
        }
    }
}

#[test]
fn a_table_that_the_profile_does_not_list_is_not_a_way_around_it() {
    let mut one = filter(REFUSE, vec![Rule::allow("read")]);
    one.arches.truncate(1);
    let code = compile(&one, Machine::X86_64).unwrap();
    assert_eq!(run(&code, Call::new(0x4000_0003, 3)), 0, "32-bit read kills the thread");
    assert_eq!(run(&code, Call::new(X86_64, crate::machine::X32_BIT)), errno(ENOSYS));
}

#[test]
fn the_built_in_profile_stays_small_in_each_machine() {
    for machine in [Machine::X86_64, Machine::Aarch64] {
        let filter = default::filter(machine, &[]);
        assert!(matches!(filter.known, Known::Listed(_)));
        for (what, kind) in [("list", 1), ("tree", 2)] {
            let begun = Instant::now();
            let settled = gate::settled(&filter);
            let code = compile_as(&filter, machine, &settled, kind).unwrap();
            let (instructions, gate) =
                (code.len() / INSTRUCTION, gate::gate(&filter, &settled).len());
            println!(
                "{machine:?} {what}: {instructions} instructions, {gate} of them the gate, compiled in {:?}",
                begun.elapsed()
            );
            assert!(instructions < MOST_INSTRUCTIONS / 2);
        }
    }
}

/// Every other call refused in another way: the longest search there can be.
#[test]
fn a_profile_of_many_pieces_is_searched_beyond_the_reach_of_a_jump() {
    let native = |number| {
        let name = ScmpSyscall::from_raw_syscall(number).get_name_by_arch(ScmpArch::X8664).ok()?;
        Some((number as u32, name))
    };
    let calls: Vec<(u32, String)> = (0..450).filter_map(native).collect();
    let action = |number: u32| ScmpAction::Errno(100 + (number % 7) as i32);
    let rules = calls.iter().map(|(number, name)| rule(name, action(*number))).collect();
    let many = filter(ScmpAction::Allow, rules);
    let gate = gate::gate(&many, &gate::settled(&many));
    assert!(gate.len() > 1000, "{} instructions do not test it", gate.len());
    let answer = answers(&many);
    for (number, name) in calls {
        assert_eq!(answer(number), errno(100 + number % 7), "{name}");
    }
    assert_eq!(answer(9999), ALLOW);
}

#[test]
fn a_profile_without_rules_is_a_program() {
    let answer = answers(&filter(ScmpAction::Allow, Vec::new()));
    assert_eq!([answer(0), answer(9999)], [ALLOW, ALLOW]);
    let answer = answers(&filter(ScmpAction::KillProcess, vec![Rule::allow("getpid")]));
    assert_eq!([answer(39), answer(0)], [ALLOW, 0x8000_0000]);
}
