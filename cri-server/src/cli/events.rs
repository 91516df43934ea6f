//! `lapstrake events`: what is on the node and what happens to it, as it happens.

use std::process::ExitCode;

use proto::admin::v1::Event;
use serde_json::json;

use super::{Cause, client, console};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object a line
    #[arg(long)]
    json: bool,

    /// End after so many events that were not there at the beginning
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn events(args: &Args) -> Result<ExitCode, Cause> {
    let client = client::Client::connect(&args.daemon).await?;
    let mut events = client.watch_events().await?;
    let mut left = args.count;
    while left != Some(0) {
        let event = events.message().await.map_err(|status| client::Error::Call {
            call: "WatchEvents",
            object: "the node".to_owned(),
            status: Box::new(status),
        })?;
        // The daemon ends: so do we.
        let Some(event) = event else { break };
        console::out(if args.json { as_json(&event) } else { as_line(&event) })
            .map_err(Cause::Output)?;
        if !event.present {
            left = left.map(|left| left - 1);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn as_json(event: &Event) -> String {
    json!({
        "number": event.number, "atNs": event.at_ns, "kind": event.kind, "present": event.present,
        "pod": event.pod, "container": event.container, "id": event.id, "reason": event.reason,
        "subject": event.subject,
    })
    .to_string()
}

/// The time of day in UTC, as the daemon's log has it.
fn as_line(event: &Event) -> String {
    let seconds = event.at_ns.div_euclid(1_000_000_000);
    let millis = event.at_ns.rem_euclid(1_000_000_000) / 1_000_000;
    let (hour, minute) = (seconds.rem_euclid(86_400) / 3600, seconds.rem_euclid(3600) / 60);
    let time = format!("{hour:02}:{minute:02}:{:02}.{millis:03}Z", seconds.rem_euclid(60));
    let slash = if event.container.is_empty() { "" } else { " " };
    let subject = match event.pod.as_str() {
        "" => event.subject.clone(),
        pod => format!("{pod}{slash}{} ({})", event.container, console::short_id(&event.id)),
    };
    let there = if event.present { "is " } else { "" };
    let why = if event.reason.is_empty() { String::new() } else { format!(": {}", event.reason) };
    format!("{time} {subject} {there}{}{why}", event.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_who_and_what() {
        let mut event = Event {
            number: 1,
            at_ns: 1_700_000_001_234_000_000,
            kind: "started".into(),
            present: false,
            pod: "default/web".into(),
            container: "main".into(),
            id: "a".repeat(64),
            reason: String::new(),
            subject: String::new(),
        };
        assert_eq!(as_line(&event), "22:13:21.234Z default/web main (aaaaaaaaaaaa) started");
        (event.kind, event.reason) = ("stopped".into(), "OOMKilled".into());
        assert_eq!(
            as_line(&event),
            "22:13:21.234Z default/web main (aaaaaaaaaaaa) stopped: OOMKilled"
        );
        event.reason.clear();
        (event.present, event.container, event.kind) = (true, String::new(), "ready".into());
        assert_eq!(as_line(&event), "22:13:21.234Z default/web (aaaaaaaaaaaa) is ready");
        (event.kind, event.reason) = ("repaired".into(), "the table was missing".into());
        (event.present, event.pod, event.id) = (false, String::new(), String::new());
        event.subject = "network".into();
        assert_eq!(as_line(&event), "22:13:21.234Z network repaired: the table was missing");
    }
}
