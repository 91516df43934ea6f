//! The daemon's log: text, JSON or the journal, at a level that can be changed while it runs.

#[cfg(feature = "otlp")]
pub(crate) mod otlp;

use std::io;
use std::os::unix::fs::MetadataExt;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// The journal under systemd, text elsewhere.
    Auto,
    Text,
    Json,
}

/// Says what is logged from now on.
#[derive(Debug, Clone)]
pub(crate) struct Levels(reload::Handle<EnvFilter, Registry>);

#[derive(Debug, thiserror::Error)]
pub(crate) enum LevelError {
    #[error(
        "{filter:?} is no log filter such as `debug` or `info,lapstrake::sandbox=debug`: {reason}"
    )]
    Filter { filter: String, reason: String },
    #[error("change the log filter: {0}")]
    Gone(#[from] reload::Error),
}

/// What a filter of the log may be made of.
pub(crate) fn parse(filter: &str) -> Result<EnvFilter, LevelError> {
    let refused = |reason: String| LevelError::Filter { filter: filter.to_owned(), reason };
    // An unknown word would be taken for the name of a module, and switch everything else off.
    for directive in filter.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default().trim();
        let known = ["off", "error", "warn", "info", "debug", "trace"];
        if !known.contains(&level.to_lowercase().as_str()) {
            return Err(refused(format!("{level:?} is none of {}", known.join(", "))));
        }
    }
    EnvFilter::try_new(filter).map_err(|error| refused(error.to_string()))
}

impl Levels {
    pub(crate) fn set(&self, filter: &str) -> Result<(), LevelError> {
        Ok(self.0.reload(parse(filter)?)?)
    }
}

/// What logging needs as long as the daemon lives.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) levels: Levels,
    #[cfg(feature = "otlp")]
    _export: Option<otlp::Export>,
}

/// Starts logging to standard error, or to the journal when systemd connects that to it.
pub(crate) fn start(filter: EnvFilter, format: Format) -> Started {
    let (filter, handle) = reload::Layer::new(filter);
    let journal = match format {
        Format::Auto if journal_listens() => tracing_journald::layer().ok(),
        _ => None,
    };
    let lines: Option<Box<dyn Layer<_> + Send + Sync>> = match (format, &journal) {
        (Format::Auto, Some(_)) => None,
        (Format::Json, _) => Some(
            fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(true)
                .with_span_list(false)
                .with_writer(io::stderr)
                .boxed(),
        ),
        (Format::Auto | Format::Text, _) => {
            // Colours are for people at a terminal.
            let colours = io::IsTerminal::is_terminal(&io::stderr());
            Some(fmt::layer().with_ansi(colours).with_writer(io::stderr).boxed())
        }
    };
    let logged = tracing_subscriber::registry().with(filter).with(lines).with(journal);
    #[cfg(feature = "otlp")]
    {
        let (spans, export) = otlp::start().unzip();
        logged.with(spans).init();
        Started { levels: Levels(handle), _export: export }
    }
    #[cfg(not(feature = "otlp"))]
    {
        logged.init();
        Started { levels: Levels(handle) }
    }
}

/// systemd says which file standard error is when it is the journal's; it may have been redirected
/// since.
fn journal_listens() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else { return false };
    let Ok(own) = std::fs::metadata("/proc/self/fd/2") else { return false };
    named.to_str() == Some(&format!("{}:{}", own.dev(), own.ino()))
}

/// The W3C trace that a caller is in: the identifier of the trace, and of the caller's span.
pub(crate) fn trace_of(traceparent: &str) -> Option<(&str, &str)> {
    let mut parts = traceparent.split('-');
    let version = parts.next()?;
    let (trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let known = hex(version, 2) && version != "ff" && hex(flags, 2);
    let given = hex(trace, 32) && hex(span, 16);
    let not_zero = |text: &str| text.bytes().any(|byte| byte != b'0');
    (known && given && not_zero(trace) && not_zero(span)).then_some((trace, span))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_checked_before_it_is_taken() {
        assert!(parse("debug").is_ok());
        assert!(parse("info,lapstrake::sandbox=debug").is_ok());
        for wrong in ["loud", "", "info,lapstrake=x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_trace_of_a_caller_is_taken_when_it_is_one() {
        let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
        assert_eq!(trace_of(&format!("00-{trace}-{span}-01")), Some((trace, span)));
        // A later version may say more.
        assert_eq!(trace_of(&format!("01-{trace}-{span}-01-more")), Some((trace, span)));
        for wrong in [
            String::new(),
            format!("ff-{trace}-{span}-01"),
            format!("00-{}-{span}-01", "0".repeat(32)),
            format!("00-{}-{span}-01", trace.to_uppercase()),
            format!("00-{trace}-{span}"),
        ] {
            assert_eq!(trace_of(&wrong), None, "{wrong}");
        }
    }
}
