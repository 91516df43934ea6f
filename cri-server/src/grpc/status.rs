//! Errors as gRPC codes: the only place where one becomes the other. The kubelet acts on
//! NotFound, Unimplemented and DeadlineExceeded, and on texts that begin with a known word.
#![deny(clippy::wildcard_enum_match_arm)]

use tonic::{Code, Status};

use crate::error::Error;

pub(super) fn status(error: &Error) -> Status {
    Status::new(code(error), error.to_string())
}

fn code(error: &Error) -> Code {
    match error {
        Error::Invalid { .. } => Code::InvalidArgument,
        // Unimplemented would tell the kubelet that the whole call is not served.
        Error::Unsupported { .. } => Code::InvalidArgument,
        Error::NotFound { .. } => Code::NotFound,
        Error::AlreadyExists { .. } => Code::AlreadyExists,
        Error::State { .. } => Code::FailedPrecondition,
        Error::ExecTimeout { .. } => Code::DeadlineExceeded,
        Error::Network { source, .. } => network_code(source),
        Error::Cni { .. } | Error::NoNetwork { .. } | Error::Systemd(_) => Code::Unavailable,
        Error::Runtime(error) => runtime_code(error.kind),
        Error::Image(source) | Error::Pull { source, .. } => image_code(source.kind()),
        Error::Seccomp(_) | Error::Cdi(_) => Code::InvalidArgument,
        // As for images: only this code lets the first word through.
        Error::ImageVolume { .. } => Code::Unknown,
        Error::Streaming(crate::streaming::Error::TooMany(_)) => Code::ResourceExhausted,
        Error::Streaming(_) => Code::Unavailable,
        Error::Record(_) | Error::Io { .. } | Error::Cgroup(_) | Error::Panicked { .. } => {
            Code::Internal
        }
        Error::Shared(error) => code(error),
        Error::Leftovers { cause, .. } => code(cause),
    }
}

fn network_code(error: &netplugin::Error) -> Code {
    if let netplugin::Error::Exhausted { .. } = error {
        Code::ResourceExhausted
    } else if let netplugin::Error::PortTaken { .. } = error {
        Code::AlreadyExists
    } else if let netplugin::Error::Port { .. } = error {
        Code::InvalidArgument
    } else {
        Code::Unavailable
    }
}

fn runtime_code(kind: runtime::ErrorKind) -> Code {
    use runtime::ErrorKind;
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::AlreadyExited | ErrorKind::InvalidState => Code::FailedPrecondition,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Gone => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Failed => Code::Unknown,
    }
}

fn image_code(kind: image::ErrorKind) -> Code {
    use image::ErrorKind;
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::InvalidReference | ErrorKind::BadContent => Code::InvalidArgument,
        ErrorKind::Unauthorized => Code::Unauthenticated,
        // The kubelet reads the first word of the text, and only of errors with this code.
        ErrorKind::RegistryUnavailable | ErrorKind::Signature | ErrorKind::Volume => Code::Unknown,
        ErrorKind::Verification | ErrorKind::Unsupported => Code::Unknown,
        ErrorKind::Configuration => Code::FailedPrecondition,
        ErrorKind::DiskFull => Code::ResourceExhausted,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => Code::Internal,
    }
}
