//! `lapstrake why`: what a pod or container is doing or waiting for.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use proto::admin::v1::{WhyMember, WhyOperation, WhyProcess, WhyResponse};

use super::{Cause, client, console};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The id of a pod or container, the beginning of one, or a name; a pod means its containers too
    #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    object: String,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn why(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let reasons = client.why(&args.object).await?;
    console::out(render(&reasons)).map_err(Cause::Output)?;
    Ok(ExitCode::SUCCESS)
}

fn render(reasons: &WhyResponse) -> String {
    let mut lines = Vec::new();
    for member in &reasons.members {
        let WhyMember { kind, name, state, .. } = member;
        lines.push(format!("{kind} {name} ({}): {state}", console::short_id(&member.id)));
        lines.extend(about(member).into_iter().map(|line| format!("  {line}")));
    }
    let told = |operation: &WhyOperation, stage: String| {
        let seconds = operation.milliseconds as f64 / 1000.0;
        format!(
            "{} of {}: {seconds:.1} s{stage}",
            operation.operation,
            console::short_id(&operation.object)
        )
    };
    for operation in &reasons.under_way {
        let stage = match operation.stage.as_str() {
            "" => String::new(),
            stage => format!(", in stage {stage}"),
        };
        lines.push(format!("under way: {}", told(operation, stage)));
    }
    if reasons.under_way.is_empty() {
        lines.push("nothing is under way".to_owned());
    }
    for operation in &reasons.slow {
        let stages = match operation.stage.as_str() {
            "" => String::new(),
            stages => format!(" ({stages})"),
        };
        lines.push(format!("was slow: {}", told(operation, stages)));
    }
    if !reasons.network_debt.is_empty() {
        lines.push(format!("network not given back: {}", reasons.network_debt));
    }
    lines.join("\n")
}

fn about(member: &WhyMember) -> Vec<String> {
    let mut lines = Vec::new();
    if !member.ending.is_empty() {
        lines.push(member.ending.clone());
    }
    if member.frozen {
        lines.push("frozen: none of its processes runs until it is thawed".to_owned());
    }
    if member.process_count > 0 {
        lines.push(match member.process_count {
            1 => "1 process".to_owned(),
            count => format!("{count} processes"),
        });
    }
    lines.extend(member.processes.iter().map(|process| format!("  {}", doing(process))));
    if member.memory > 0 {
        let limit = match member.memory_limit {
            0 => "without a limit".to_owned(),
            limit => format!("of {}", console::size(limit)),
        };
        lines.push(format!("memory {} {limit}", console::size(member.memory)));
    }
    if member.oom_kills > 0 {
        let limit = if member.kind == "pod" { "the pod's limit or one below" } else { "its limit" };
        lines.push(format!("{} killed for want of memory at {limit}", member.oom_kills));
    }
    lines
}

/// A process in words; the letters are those of proc(5).
fn doing(process: &WhyProcess) -> String {
    let state = match process.state.as_str() {
        "R" => "runs",
        "S" | "I" => "sleeps",
        "D" => "waits for a device or file system and cannot be killed meanwhile",
        "T" | "t" => "is stopped by a signal or debugger",
        "Z" | "X" => "is dead, its parent has not reaped it",
        other => other,
    };
    let place = match process.waits_in.as_str() {
        "" => String::new(),
        function => format!(" in {function}"),
    };
    format!("{} (pid {}) {state}{place}", process.command, process.pid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_and_where_is_told_in_words() {
        let dd = WhyProcess {
            pid: 7,
            command: "dd".into(),
            state: "D".into(),
            waits_in: "nfs_wait".into(),
        };
        let container = WhyMember {
            kind: "container".into(),
            id: "c".repeat(64),
            name: "app".into(),
            state: "running".into(),
            processes: vec![dd],
            process_count: 3,
            memory: 2_000_000,
            memory_limit: 4_000_000,
            oom_kills: 1,
            ..WhyMember::default()
        };
        let stop = WhyOperation {
            operation: "StopContainer".into(),
            object: "c".repeat(64),
            stage: String::new(),
            milliseconds: 12_340,
        };
        let run = WhyOperation {
            operation: "run_pod_sandbox".into(),
            object: "a".repeat(64),
            stage: "network 6000 ms, pause 3 ms".into(),
            milliseconds: 6_003,
        };
        let reasons = WhyResponse {
            members: vec![container],
            under_way: vec![stop],
            slow: vec![run],
            network_debt: "default/old (b), 3 attempts: crash".into(),
        };
        assert_eq!(
            render(&reasons),
            "\
container app (cccccccccccc): running
  3 processes
    dd (pid 7) waits for a device or file system and cannot be killed meanwhile in nfs_wait
  memory 2.0 MB of 4.0 MB
  1 killed for want of memory at its limit
under way: StopContainer of cccccccccccc: 12.3 s
was slow: run_pod_sandbox of aaaaaaaaaaaa: 6.0 s (network 6000 ms, pause 3 ms)
network not given back: default/old (b), 3 attempts: crash"
        );
    }
}
