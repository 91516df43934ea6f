//! From a filter to the instructions: libseccomp's part with our gate in front.

use crate::assembler::Instruction;
use crate::error::CompileError;
use crate::filter::{Filter, Rule, permits};
use crate::gate::{self, Settled};
use crate::machine::Machine;
use libseccomp::error::SeccompError;
use libseccomp::{ScmpArch, ScmpArgCompare, ScmpFilterContext, ScmpVersion};
use rustix::fs::MemfdFlags;
use std::fs::File;
use std::io::{self, Read, Seek};

/// What seccomp(2) takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// An array of `struct sock_filter`, 8 bytes each, in this machine's byte order.
    pub code: Vec<u8>,
    /// `SECCOMP_FILTER_FLAG_*` bits. NEW_LISTENER is among them when a rule notifies.
    pub flags: u32,
}

/// The size of `struct sock_filter`.
pub(crate) const INSTRUCTION: usize = 8;
/// `BPF_MAXINSNS`.
pub(crate) const MOST_INSTRUCTIONS: usize = 4096;
/// SCMP_FLTATR_CTL_OPTIMIZE: find the call in a binary tree rather than in a list.
const TREE: u32 = 2;

pub(crate) fn compile(filter: &Filter, machine: Machine) -> Result<Vec<u8>, CompileError> {
    compile_as(filter, machine, &gate::settled(filter), TREE)
}

pub(crate) fn compile_as(
    filter: &Filter,
    machine: Machine,
    settled: &Settled<'_>,
    optimize: u32,
) -> Result<Vec<u8>, CompileError> {
    let gate = gate::gate(filter, settled);
    let mut code: Vec<u8> = gate.into_iter().flat_map(bytes).collect();
    let is_left = |rule: &&Rule| !settled.contains_key(rule.name.as_str());
    let any_left = filter.rules.iter().any(|rule| is_left(&rule));
    // Without that of the number that gathers them, rules of calls that are gathered may contradict each other.
    let needed = |rule: &&Rule| is_left(rule) || any_left && gate::gathers(&rule.name);
    let rest: Vec<&Rule> = filter.rules.iter().filter(needed).collect();
    code.extend(library(filter, &rest, machine, optimize)?);
    let instructions = code.len() / INSTRUCTION;
    if instructions > MOST_INSTRUCTIONS {
        return Err(CompileError::TooLong { instructions, limit: MOST_INSTRUCTIONS });
    }
    Ok(code)
}

pub(crate) fn library_version() -> String {
    ScmpVersion::current().map_or_else(|_| "of unknown version".into(), |found| found.to_string())
}

fn library(
    filter: &Filter,
    rules: &[&Rule],
    machine: Machine,
    optimize: u32,
) -> Result<Vec<u8>, CompileError> {
    let stage = |stage| move |source| CompileError::Library { stage, source };
    let mut context = ScmpFilterContext::new(filter.default).map_err(stage("begin a filter"))?;
    for arch in &filter.arches {
        context.add_arch(*arch).map_err(stage("add a system call table"))?;
    }
    if machine != Machine::here() {
        context.remove_arch(ScmpArch::Native).map_err(stage("remove the native table"))?;
    }
    context.set_ctl_optimize(optimize).map_err(stage("ask for a binary tree"))?;
    for rule in rules {
        add(&mut context, rule, filter)?;
    }
    let memfd = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC);
    let mut file = File::from(memfd.map_err(|errno| CompileError::Export(errno.into()))?);
    context.export_bpf(&file).map_err(stage("generate the program"))?;
    read(&mut file).map_err(CompileError::Export)
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    file.rewind()?;
    let mut code = Vec::new();
    file.read_to_end(&mut code)?;
    Ok(code)
}

fn add(context: &mut ScmpFilterContext, rule: &Rule, filter: &Filter) -> Result<(), CompileError> {
    // libseccomp refuses a rule that says what happens anyway.
    if rule.action == filter.default {
        return Ok(());
    }
    let Some(syscall) = gate::named(&rule.name) else {
        let name = rule.name.clone();
        if permits(rule.action) || !permits(filter.default) {
            return Ok(());
        }
        return Err(CompileError::Unknown { name, version: library_version() });
    };
    let compare =
        |one: &crate::filter::Condition| ScmpArgCompare::new(one.argument, one.op, one.datum);
    let conditions: Vec<ScmpArgCompare> = rule.conditions.iter().map(compare).collect();
    context
        .add_rule_conditional(rule.action, syscall, &conditions)
        .map(drop)
        .map_err(|source: SeccompError| CompileError::Rule { name: rule.name.clone(), source })
}

fn bytes(one: Instruction) -> [u8; INSTRUCTION] {
    let [c0, c1] = one.code.to_ne_bytes();
    let [k0, k1, k2, k3] = one.k.to_ne_bytes();
    [c0, c1, one.jt, one.jf, k0, k1, k2, k3]
}

#[cfg(test)]
mod tests;
