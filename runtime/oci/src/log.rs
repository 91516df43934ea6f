//! Errors where engines look for them: the `--log` file in text or JSON, and standard error.

use std::fs::File;
use std::io::Write;

use crate::cli::{Cli, LogFormat};
use crate::error::Error;

pub(crate) fn report(cli: &Cli, error: &Error) {
    let text = error.to_string();
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "lapstrake-oci: {text}");
    write(cli, "error", &text);
}

/// Something asked for was not granted as asked; the container goes on.
pub(crate) fn warn(cli: &Cli, text: &str) {
    write(cli, "warning", text);
    if cli.log.is_none() {
        let _ = writeln!(std::io::stderr(), "lapstrake-oci: warning: {text}");
    }
}

/// What is done, for those who ask by `--debug`.
pub(crate) fn debug(cli: &Cli, text: impl FnOnce() -> String) {
    if !cli.debug {
        return;
    }
    let text = text();
    write(cli, "debug", &text);
    if cli.log.is_none() {
        let now = crate::state::now();
        let _ = writeln!(std::io::stderr(), "time=\"{now}\" level=debug msg={text:?}");
    }
}

fn write(cli: &Cli, level: &str, text: &str) {
    let Some(path) = &cli.log else { return };
    let now = crate::state::now();
    let line = match cli.log_format {
        LogFormat::Json => {
            serde_json::json!({ "level": level, "msg": text, "time": now }).to_string()
        }
        LogFormat::Text => format!("time=\"{now}\" level={level} msg={text:?}"),
    };
    let written = File::options()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut f| writeln!(f, "{line}"));
    if let Err(e) = written {
        let _ = writeln!(std::io::stderr(), "lapstrake-oci: --log {}: {e}", path.display());
    }
}
