//! Errors where engines look for them: the `--log` file in text or JSON, and standard error.

use std::fs::File;
use std::io::Write;

use crate::cli::{Cli, LogFormat};
use crate::error::Error;

pub(crate) fn report(cli: &Cli, error: &Error) {
    let text = error.to_string();
    let mut stderr = std::io::stderr();
    let _ = writeln!(stderr, "lapstrake-oci: {text}");
    let Some(path) = &cli.log else { return };
    let line = match cli.log_format {
        LogFormat::Json => {
            serde_json::json!({ "level": "error", "msg": text, "time": crate::state::now() })
                .to_string()
        }
        LogFormat::Text => format!("time=\"{}\" level=error msg={text:?}", crate::state::now()),
    };
    let written = File::options()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut f| writeln!(f, "{line}"));
    if let Err(e) = written {
        let _ = writeln!(stderr, "lapstrake-oci: --log {}: {e}", path.display());
    }
}
