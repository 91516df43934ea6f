//! How a session ended, as the error stream says it: a `metav1.Status`, or before version 4 plain text. Pure.

use serde::Serialize;

use crate::target::Failure;

/// How a command ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Exited(i32),
    /// The client left its container; how that ends is no news of this session.
    Detached,
    Failed(Failure),
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Metadata,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details<'a> {
    causes: [Cause<'a>; 1],
}

#[derive(Serialize)]
struct Cause<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    message: &'a str,
}

impl Outcome {
    /// What goes to the error stream; empty: nothing.
    pub(crate) fn to_text(&self, status: bool) -> String {
        let message = match self {
            Self::Exited(0) | Self::Detached => String::new(),
            Self::Exited(code) => {
                format!("command terminated with non-zero exit code: exit status {code}")
            }
            Self::Failed(failure) => format!("Internal error occurred: {failure}"),
        };
        if !status {
            return message;
        }
        let code_text = match self {
            Self::Exited(code) => code.to_string(),
            Self::Detached | Self::Failed(_) => String::new(),
        };
        let failure = |reason, details, code| Status {
            metadata: Metadata {},
            status: "Failure",
            message: Some(&message),
            reason: Some(reason),
            details: Some(Details { causes: [details] }),
            code,
        };
        let status = match self {
            Self::Exited(0) | Self::Detached => Status {
                metadata: Metadata {},
                status: "Success",
                message: None,
                reason: None,
                details: None,
                code: None,
            },
            Self::Exited(_) => {
                let cause = Cause { reason: Some("ExitCode"), message: &code_text };
                failure("NonZeroExitCode", cause, None)
            }
            Self::Failed(cause) => {
                let cause = Cause { reason: None, message: &cause.message };
                failure("InternalError", cause, Some(500))
            }
        };
        // Strings and numbers in structs of our own: this cannot fail.
        serde_json::to_string(&status).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(outcome: &Outcome, text: &str, json: &str) {
        assert_eq!(outcome.to_text(false), text);
        assert_eq!(outcome.to_text(true), json);
    }

    #[test]
    fn the_client_learns_how_it_ended() {
        let success = r#"{"metadata":{},"status":"Success"}"#;
        check(&Outcome::Exited(0), "", success);
        check(&Outcome::Detached, "", success);
        let text = "command terminated with non-zero exit code: exit status 3";
        let json = format!(
            r#"{{"metadata":{{}},"status":"Failure","message":"{text}","reason":"NonZeroExitCode","details":{{"causes":[{{"reason":"ExitCode","message":"3"}}]}}}}"#
        );
        check(&Outcome::Exited(3), text, &json);
        let text = "Internal error occurred: no \"sh\"";
        let json = r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: no \"sh\"","reason":"InternalError","details":{"causes":[{"message":"no \"sh\""}]},"code":500}"#;
        check(&Outcome::Failed(Failure::new("no \"sh\"")), text, json);
    }
}
