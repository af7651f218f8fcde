//! Every error of ours as a gRPC status: the only file that decides. Must have no wildcard arm, so
//! that a further error has to choose its code.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::resource_name::BadName;
use engine::blob::BlobError;
use prost::Message;
use proto::{any::any, rpc};
use std::time::Duration;
use tonic::{Code, Status};

/// When a client that was refused for lack of room may come back.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// What a store says, to a client.
pub(crate) fn blob_status(error: &BlobError) -> Status {
    let message = error.to_string();
    match error {
        BlobError::NotFound(_) => Status::not_found(message),
        BlobError::Mismatch(_) | BlobError::TooLarge { .. } => Status::invalid_argument(message),
        BlobError::Incomplete(_) => Status::aborted(message),
        BlobError::Overloaded | BlobError::Full => retry(Code::ResourceExhausted, message),
        BlobError::Stopped => retry(Code::Unavailable, message),
        // Never NOT_FOUND: that would be a claim about the blob.
        BlobError::Disk(_) => retry(Code::Unavailable, message),
    }
}

/// What is wrong with a resource name, to a client.
pub(crate) fn name_status(error: &BadName) -> Status {
    match error {
        BadName::Form(..) | BadName::Digest(_) => Status::invalid_argument(error.to_string()),
        BadName::Unsupported(..) => Status::unimplemented(error.to_string()),
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
pub(crate) fn with_details(
    code: Code,
    message: String,
    details: Vec<prost_types::Any>,
) -> Status {
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
        ] {
            assert_eq!(blob_status(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let status = blob_status(&BlobError::Full);
        let wire = to_wire(&status);
        assert_eq!(wire.code, Code::ResourceExhausted as i32);
        assert!(wire.details[0].type_url.ends_with("google.rpc.RetryInfo"));
    }
}
