//! A test run again in a process of its own: to die, to be measured, or to have another environment.

use std::process::{Command, Output};

/// `test`: its whole name.
pub(crate) fn run(test: &str, environment: &[(&str, &str)]) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]).envs(environment.iter().copied());
    child.output().unwrap()
}

/// The same for a child that must be content.
pub(crate) fn passes(test: &str, environment: &[(&str, &str)]) {
    let Output { status, stdout, stderr } = run(test, environment);
    let said = [stdout, stderr].concat();
    assert!(status.success(), "{test}: {}", String::from_utf8_lossy(&said));
}
