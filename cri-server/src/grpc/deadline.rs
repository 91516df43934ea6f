//! A caller's own deadline, answered as the deadline it was: `DeadlineExceeded`, which clients tell
//! from a cancelled call when they decide whether to try again.

use std::time::Duration;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use tonic::Status;

/// Answers a call in the time that its `grpc-timeout` allows. What must not end half-way goes on
/// behind it ([`super::observe`]).
pub(super) async fn keep(request: Request, next: Next) -> Response {
    let header = request.headers().get("grpc-timeout").and_then(|value| value.to_str().ok());
    let Some(limit) = header.and_then(parse) else { return next.run(request).await };
    let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
    match tokio::time::timeout(limit, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => Status::deadline_exceeded(format!(
            "{method}: the caller's deadline of {limit:?} passed; the same call again joins what is still under way"
        ))
        .into_http(),
    }
}

/// At most eight digits and a unit, as the gRPC protocol over HTTP/2 has it; anything else is no
/// deadline.
fn parse(header: &str) -> Option<Duration> {
    let (digits, unit) = header.split_at_checked(header.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_known() {
        for (header, wanted) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("15S", Duration::from_secs(15)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("7u", Duration::from_micros(7)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(parse(header), Some(wanted), "{header}");
        }
    }

    #[test]
    fn what_is_no_timeout_sets_none() {
        for header in ["", "S", "5", "+5S", "-1S", "123456789m", "5 S", "5s", "5é"] {
            assert_eq!(parse(header), None, "{header}");
        }
    }
}
