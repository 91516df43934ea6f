//! `state`, `list`, `ps`, `events`: what is there, in words and in JSON.
#![allow(clippy::print_stdout, reason = "the answer of a command line goes to standard output")]

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use cgroup::{Hierarchies, Stats};
use serde_json::{Value, json};

use crate::cli::{Cli, EventsArgs, Format, ListArgs, PsArgs, ROOT};
use crate::error::Error;
use crate::state::{self, Record, Status};

pub(crate) fn state(cli: &Cli, id: &str) -> Result<(), Error> {
    let record = state::load(cli, id)?;
    let status = record.status(cli, &Hierarchies::detect()?);
    println!("{}", record.state(status).to_text(true));
    Ok(())
}

pub(crate) fn list(cli: &Cli, args: &ListArgs) -> Result<(), Error> {
    let node = Hierarchies::detect()?;
    let mut records = Vec::new();
    let entries = match std::fs::read_dir(&cli.root) {
        // Nothing was ever made under the default one; one that is named should be there.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && cli.root == Path::new(ROOT) => None,
        other => Some(other.map_err(Error::file("list", &cli.root))?),
    };
    for entry in entries.into_iter().flatten().flatten() {
        // One that is being made or deleted just now has no record: it is no container yet or any more.
        if let Ok(record) = state::load(cli, &entry.file_name().to_string_lossy()) {
            records.push(record);
        }
    }
    records.sort_by(|a, b| a.id.cmp(&b.id));
    if args.quiet {
        records.iter().for_each(|r| println!("{}", r.id));
        return Ok(());
    }
    let rows: Vec<(Record, Status)> =
        records.into_iter().map(|r| (r.status(cli, &node), r)).map(|(s, r)| (r, s)).collect();
    match args.format {
        Format::Json => {
            let all: Vec<String> = rows.iter().map(|(r, s)| r.state(*s).to_text(false)).collect();
            println!("[{}]", all.join(","));
        }
        Format::Table => {
            println!(
                "{:<24} {:<8} {:<8} {:<40} {:<32} OWNER",
                "ID", "PID", "STATUS", "BUNDLE", "CREATED"
            );
            for (r, status) in rows {
                println!(
                    "{:<24} {:<8} {:<8} {:<40} {:<32} root",
                    r.id,
                    r.pid,
                    status.word(),
                    r.bundle.display(),
                    r.created
                );
            }
        }
    }
    Ok(())
}

pub(crate) fn ps(cli: &Cli, args: &PsArgs) -> Result<(), Error> {
    let record = state::load(cli, &args.id)?;
    let pids = Hierarchies::detect()?.pids(&record.cgroup)?;
    if args.format == Format::Json {
        println!("{}", json!(pids));
        return Ok(());
    }
    let options =
        if args.options.is_empty() { vec!["-ef".to_owned()] } else { args.options.clone() };
    let output = Command::new("ps").args(&options).output().map_err(Error::system("run ps"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let title = lines.next().unwrap_or("");
    let column = title.split_whitespace().position(|c| c == "PID");
    let column = column.ok_or_else(|| Error::Usage("the output of ps has no PID column".into()))?;
    println!("{title}");
    for line in lines {
        let pid = line.split_whitespace().nth(column).and_then(|p| p.parse::<i32>().ok());
        if pid.is_some_and(|p| pids.contains(&p)) {
            println!("{line}");
        }
    }
    Ok(())
}

pub(crate) fn events(cli: &Cli, args: &EventsArgs) -> Result<(), Error> {
    let record = state::load(cli, &args.id)?;
    let node = Hierarchies::detect()?;
    let interval = interval(&args.interval)?;
    if args.stats {
        return print(&stats_line(&record, &node));
    }
    let mut ooms = node.oom_kills(&record.cgroup);
    let mut next = Instant::now() + interval;
    while record.is_alive() {
        std::thread::sleep(OOM_POLL.min(next.saturating_duration_since(Instant::now())));
        let now = node.oom_kills(&record.cgroup);
        if now > ooms {
            print(&format!(r#"{{"type":"oom","id":"{}"}}"#, record.id))?;
            ooms = now;
        }
        if Instant::now() >= next {
            print(&stats_line(&record, &node))?;
            next += interval;
        }
    }
    Ok(())
}

/// How soon an out-of-memory kill is told: well within what a human calls at once.
const OOM_POLL: Duration = Duration::from_millis(100);

/// In the order that other tools match as text.
fn stats_line(record: &Record, node: &Hierarchies) -> String {
    let data = data(&node.stats(&record.cgroup));
    format!(r#"{{"type":"stats","id":"{}","data":{data}}}"#, record.id)
}

fn print(line: &str) -> Result<(), Error> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(Error::system("write"))
}

/// `5`, `5s`, `100ms`, `2m`.
fn interval(text: &str) -> Result<Duration, Error> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let millis = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let total = millis.zip(number.parse::<u64>().ok()).and_then(|(m, n)| n.checked_mul(m));
    total.filter(|ms| *ms > 0).map(Duration::from_millis).ok_or_else(|| {
        Error::Usage(format!("--interval {text:?} is no duration like \"5s\" or \"100ms\""))
    })
}

fn data(s: &Stats) -> Value {
    json!({
        "cpu": {
            "usage": { "total": s.cpu_total_ns, "user": s.cpu_user_ns, "kernel": s.cpu_system_ns },
            "throttling": { "throttledPeriods": s.cpu_throttled_periods },
        },
        "memory": {
            "usage": { "usage": s.memory_usage, "limit": s.memory_limit },
            "swap": { "usage": s.swap_usage },
            "workingSet": s.memory_working_set,
            "rss": s.memory_rss,
        },
        "pids": { "current": s.pids, "limit": s.pids_limit },
    })
}
