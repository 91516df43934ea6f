//! `lapstrake doctor`: what this kernel and node can and cannot do, and what to do about it.
//!
//! It needs no daemon: it is for the node on which the daemon does not start, too.

mod facts;
mod findings;
mod network;

use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Config;
use findings::{Finding, Verdict};

/// Prints one line for each thing looked at. Fails when pods cannot run here.
pub(crate) fn doctor(config: &Config) -> ExitCode {
    let findings = findings::findings(&facts::read(config));
    if io::stdout().write_all(render(&findings).as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    let broken = findings.iter().any(|finding| finding.verdict == Verdict::Broken);
    if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.topic.len()).max().unwrap_or_default();
    let mut text = String::new();
    for finding in findings {
        let word = finding.verdict.word();
        text += &format!("{word:<6} {:<width$}  {}\n", finding.topic, finding.says);
        if let Some(fix) = &finding.fix {
            text += &format!("{:<6} {:<width$}  → {fix}\n", "", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fix_stands_under_what_it_mends() {
        let findings = [
            Finding::fine("kernel", "6.1".to_owned()),
            Finding::broken("overlayfs", "is missing".to_owned(), "modprobe overlay"),
        ];
        assert_eq!(
            render(&findings),
            "ok     kernel     6.1\nBROKEN overlayfs  is missing\n                  → modprobe overlay\n"
        );
    }
}
