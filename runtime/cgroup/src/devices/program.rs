//! Device rules as a BPF program: pure, from the list to the instructions.
//!
//! The program keeps the kinds of access nobody has decided about yet in a register and asks the rules from the
//! last to the first: a matching denial of any of them ends it, a matching permission strikes them out, and it
//! ends when none is left. That is the same as "the last rule that matches decides", for each kind by itself.

use super::rule::Rule;
use crate::sys::Instruction;

/// Registers: the answer, the context the kernel passes, and what is loaded from it.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const PENDING: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Operations of the kernel's instruction set (`linux/bpf.h`), with an immediate operand unless said.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP: u8 = 0x05;
const JUMP_IF_ANY_BIT: u8 = 0x45;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

const DENY: i32 = 0;
const ALLOW: i32 = 1;

/// The program for `rules`; `None` when it would never deny anything.
pub(super) fn compile(rules: &[Rule]) -> Option<Vec<Instruction>> {
    // What stands before a rule that matches everything can never be reached.
    let first = rules.iter().rposition(Rule::is_total).unwrap_or(0);
    let rules = &rules[first..];
    if rules.iter().all(|r| r.allow) {
        return None;
    }
    // struct bpf_cgroup_dev_ctx: access << 16 | kind, major, minor; 32 bits each.
    let mut out = vec![
        load(KIND, 0),
        Instruction::new(MOVE_REGISTER, PENDING, KIND, 0, 0),
        Instruction::new(AND, KIND, 0, 0, 0xffff),
        Instruction::new(SHIFT_RIGHT, PENDING, 0, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    rules.iter().rev().for_each(|rule| out.extend(ask(rule)));
    // No rule spoke of it: the groups above decide.
    out.extend(end(ALLOW));
    Some(out)
}

/// Skipped as a whole where the rule does not match.
fn ask(rule: &Rule) -> Vec<Instruction> {
    let body: Vec<Instruction> = if rule.allow {
        let undecided = Instruction::new(JUMP_UNLESS_EQUAL, PENDING, 0, 2, 0);
        let strike = Instruction::new(AND, PENDING, 0, 0, !rule.access);
        [strike, undecided].into_iter().chain(end(ALLOW)).collect()
    } else {
        let hit = Instruction::new(JUMP_IF_ANY_BIT, PENDING, 0, 1, rule.access);
        let miss = Instruction::new(JUMP, 0, 0, 2, 0);
        [hit, miss].into_iter().chain(end(DENY)).collect()
    };
    let wanted = [(KIND, rule.kind.map(|k| k as i32)), (MAJOR, rule.major), (MINOR, rule.minor)];
    let tests: Vec<(u8, i32)> =
        wanted.into_iter().filter_map(|(register, n)| n.map(|n| (register, n))).collect();
    let matching = tests.iter().enumerate().map(|(at, (register, number))| {
        // At most three tests and a body of four.
        let rest = (tests.len() - 1 - at + body.len()) as i16;
        Instruction::new(JUMP_UNLESS_EQUAL, *register, 0, rest, *number)
    });
    matching.chain(body.iter().copied()).collect()
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction::new(LOAD_WORD, register, CONTEXT, offset, 0)
}

fn end(answer: i32) -> [Instruction; 2] {
    [Instruction::new(MOVE, ANSWER, 0, 0, answer), Instruction::new(EXIT, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::super::rule::{EVERY_ACCESS, Kind};
    use super::*;

    /// The part of the machine that the program uses; panics on anything else.
    fn run(program: &[Instruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut r = [0u64; 11];
        let mut at = 0usize;
        loop {
            let i = program[at];
            at += 1;
            let value = i64::from(i.immediate) as u64;
            let (to, from) = (usize::from(i.destination()), usize::from(i.source()));
            let jump = match i.code {
                LOAD_WORD => {
                    assert_eq!(from, usize::from(CONTEXT));
                    r[to] = u64::from(context[i.offset as usize / 4]);
                    false
                }
                MOVE => {
                    r[to] = value;
                    false
                }
                MOVE_REGISTER => {
                    r[to] = r[from];
                    false
                }
                AND => {
                    r[to] &= value;
                    false
                }
                SHIFT_RIGHT => {
                    r[to] >>= value;
                    false
                }
                JUMP => true,
                JUMP_IF_ANY_BIT => r[to] & value != 0,
                JUMP_UNLESS_EQUAL => r[to] != value,
                EXIT => return r[0] == 1,
                other => panic!("operation {other:#x}"),
            };
            if jump {
                at += i.offset as usize;
            }
        }
    }

    /// The meaning of a list, written the other way round: forwards, one kind of access after the other.
    fn meaning(rules: &[Rule], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        [1, 2, 4].into_iter().filter(|bit| access & bit != 0).all(|bit| {
            rules.iter().fold(true, |so_far, r| {
                let hit = r.kind.is_none_or(|k| k as i32 == kind)
                    && r.major.is_none_or(|m| m as u32 == major)
                    && r.minor.is_none_or(|m| m as u32 == minor)
                    && r.access & bit != 0;
                if hit { r.allow } else { so_far }
            })
        })
    }

    /// Every rule that can be made of few numbers.
    fn every_rule() -> Vec<Rule> {
        let mut out = Vec::new();
        for kind in [None, Some(Kind::Char), Some(Kind::Block)] {
            for major in [None, Some(1), Some(10)] {
                for minor in [None, Some(3), Some(229)] {
                    for access in 1..=EVERY_ACCESS {
                        for allow in [false, true] {
                            out.push(Rule { allow, kind, major, minor, access });
                        }
                    }
                }
            }
        }
        out
    }

    fn compare(rules: &[Rule]) {
        let program = compile(rules);
        for kind in [1, 2] {
            for access in 0..=EVERY_ACCESS {
                for (major, minor) in [(1, 3), (1, 229), (10, 3), (10, 229), (7, 7)] {
                    let want = meaning(rules, kind, access, major, minor);
                    let got = program.as_ref().is_none_or(|p| run(p, kind, access, major, minor));
                    assert_eq!(got, want, "{rules:?}: {kind} {major}:{minor} access {access}");
                }
            }
        }
    }

    #[test]
    fn every_pair_of_rules_decides_as_their_order_says() {
        let all = every_rule();
        compare(&[]);
        for first in &all {
            compare(std::slice::from_ref(first));
            all.iter().for_each(|second| compare(&[first.clone(), second.clone()]));
        }
    }

    #[test]
    fn nothing_but_what_is_listed_passes_after_a_denial_of_everything() {
        let all = every_rule();
        let deny =
            Rule { allow: false, kind: None, major: None, minor: None, access: EVERY_ACCESS };
        for (first, second) in all.iter().zip(all.iter().rev().step_by(5).cycle()) {
            compare(&[second.clone(), deny.clone(), first.clone(), second.clone()]);
        }
    }

    #[test]
    fn a_list_that_denies_nothing_needs_no_program() {
        let allow = Rule { allow: true, kind: None, major: None, minor: None, access: 7 };
        let deny = Rule { allow: false, ..allow.clone() };
        assert_eq!(compile(&[]), None);
        assert_eq!(compile(&[deny.clone(), allow.clone()]), None);
        assert!(compile(&[allow, deny]).is_some());
    }
}
