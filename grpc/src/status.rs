//! Every error of ours as a gRPC status: the only file that decides. Must have no wildcard arm, so
//! that a further error has to choose its code.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::resource_name::BadName;
use engine::{blob::BlobError, digest::Digest, exec::ExecError};
use prost::Message;
use proto::{
    any::any,
    rpc::{self, precondition_failure::Violation},
};
use std::time::Duration;
use tonic::{Code, Status};

/// When a client that was refused for lack of room may come back.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Missing blobs named in one status, so that it fits a message; a client that uploads these and
/// asks again is told the rest.
const VIOLATIONS_MAX: usize = 10_000;

/// Characters of one message: a client's own text comes back in it, through headers that others
/// bound.
const MESSAGE_CHARS_MAX: usize = 200;

/// What a message says of a longer text.
pub(crate) fn short(text: impl Into<String>) -> String {
    let mut text = text.into();
    if let Some((end, _)) = text.char_indices().nth(MESSAGE_CHARS_MAX - 1)
        && text[end..].chars().nth(1).is_some()
    {
        text.truncate(end);
        text.push('…');
    }
    text
}

/// What a store says, to a client.
pub(crate) fn blob_status(error: &BlobError) -> Status {
    let message = short(error.to_string());
    match error {
        BlobError::NotFound(_) => Status::not_found(message),
        BlobError::Mismatch(_) | BlobError::TooLarge { .. } => Status::invalid_argument(message),
        BlobError::Incomplete(_) => Status::aborted(message),
        BlobError::Overloaded | BlobError::Full => retry(Code::ResourceExhausted, message),
        BlobError::Stopped => retry(Code::Unavailable, message),
        // Never NOT_FOUND: that would be a claim about the blob.
        BlobError::Disk(_) | BlobError::Below(_) => retry(Code::Unavailable, message),
    }
}

/// Why an action has no result, to a client.
pub(crate) fn exec_status(error: &ExecError) -> Status {
    let message = short(error.to_string());
    match error {
        ExecError::Invalid(_) => Status::invalid_argument(message),
        ExecError::TooLarge(_) => Status::resource_exhausted(message),
        ExecError::Missing(digests) => missing(message, digests),
        ExecError::NoWorker(_) | ExecError::Output(_) => Status::failed_precondition(message),
        ExecError::TimedOut => Status::deadline_exceeded(message),
        ExecError::Cancelled => Status::cancelled(message),
        ExecError::Overloaded => retry(Code::ResourceExhausted, message),
        ExecError::Draining => retry(Code::Unavailable, message),
        ExecError::NoOperation(_) => Status::not_found(message),
        ExecError::Worker(_) => Status::internal(message),
        ExecError::Store(error) => blob_status(error),
        ExecError::Disk(_) => retry(Code::Unavailable, message),
    }
}

/// Blobs that a client has to upload, named as REAPI asks (Execute, `MISSING`).
fn missing(message: String, digests: &[Digest]) -> Status {
    let violations = digests.iter().take(VIOLATIONS_MAX).map(|digest| Violation {
        r#type: "MISSING".to_owned(),
        subject: format!("blobs/{digest}"),
        description: String::new(),
    });
    let failure = rpc::PreconditionFailure { violations: violations.collect() };
    with_details(Code::FailedPrecondition, message, vec![any(&failure)])
}

/// What is wrong with a resource name, to a client.
pub(crate) fn name_status(error: &BadName) -> Status {
    let message = short(error.to_string());
    match error {
        BadName::Form(..) | BadName::Digest(_) => Status::invalid_argument(message),
        BadName::Unsupported(..) => Status::unimplemented(message),
    }
}

/// A status with details, as one message inside another carries it.
pub(crate) fn to_wire(status: &Status) -> rpc::Status {
    if let Ok(wire) = rpc::Status::decode(status.details())
        && !wire.details.is_empty()
    {
        return wire;
    }
    rpc::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    }
}

/// A status that tells the client when to try again.
pub(crate) fn retry(code: Code, message: String) -> Status {
    let delay = prost_types::Duration {
        seconds: i64::try_from(RETRY_AFTER.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(RETRY_AFTER.subsec_nanos()).unwrap_or(0),
    };
    let info = rpc::RetryInfo { retry_delay: Some(delay) };
    with_details(code, message, vec![any(&info)])
}

/// A status with details for programs.
pub(crate) fn with_details(code: Code, message: String, details: Vec<prost_types::Any>) -> Status {
    let message = short(message);
    let wire = rpc::Status { code: code as i32, message: message.clone(), details };
    Status::with_details(code, message, wire.encode_to_vec().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::digest::Digest;

    #[test]
    fn each_error_has_its_code() {
        let digest = Digest::of(b"x");
        let disk = BlobError::Disk(std::sync::Arc::new(std::io::Error::other("EIO")));
        for (error, code) in [
            (BlobError::NotFound(digest), Code::NotFound),
            (BlobError::Mismatch(digest), Code::InvalidArgument),
            (BlobError::Incomplete(digest), Code::Aborted),
            (BlobError::TooLarge { size: 2, size_max: 1 }, Code::InvalidArgument),
            (BlobError::Overloaded, Code::ResourceExhausted),
            (BlobError::Full, Code::ResourceExhausted),
            (BlobError::Stopped, Code::Unavailable),
            (disk, Code::Unavailable),
            (BlobError::Below("gone".into()), Code::Unavailable),
        ] {
            assert_eq!(blob_status(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn what_a_client_said_does_not_come_back_at_any_length() {
        for (said, chars) in [("", 0), ("ü", 1), (&"ü".repeat(200), 200), (&"ü".repeat(201), 200)]
        {
            let said = short(said);
            assert_eq!(said.chars().count(), chars, "{said}");
        }
        let long = "ü".repeat(100_000);
        let name = BadName::Form(long.clone(), "no");
        let statuses = [
            exec_status(&ExecError::Invalid(long.clone())),
            exec_status(&ExecError::NoOperation(long.clone())),
            retry(Code::Unavailable, long.clone()),
            name_status(&name),
        ];
        for status in statuses {
            assert!(status.message().chars().count() <= MESSAGE_CHARS_MAX, "{status:?}");
            assert!(to_wire(&status).message.chars().count() <= MESSAGE_CHARS_MAX);
        }
    }

    #[test]
    fn a_missing_input_is_named_as_the_protocol_asks() {
        let digest = Digest::of(b"x");
        let status = exec_status(&ExecError::Missing(vec![digest]));
        assert_eq!(status.code(), Code::FailedPrecondition);
        let wire = to_wire(&status);
        let failure = rpc::PreconditionFailure::decode(&*wire.details[0].value).unwrap();
        assert_eq!(failure.violations[0].r#type, "MISSING");
        assert_eq!(failure.violations[0].subject, format!("blobs/{}/1", digest.hex()));
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let status = blob_status(&BlobError::Full);
        let wire = to_wire(&status);
        assert_eq!(wire.code, Code::ResourceExhausted as i32);
        assert!(wire.details[0].type_url.ends_with("google.rpc.RetryInfo"));
    }
}
