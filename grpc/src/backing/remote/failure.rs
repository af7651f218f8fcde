//! What a status of another server means here: the only file that decides. Must have no wildcard
//! arm.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::{backing::channel::causes, status::short};
use engine::tier::BelowError;
use http::StatusCode;
use prost::Message;
use proto::rpc;
use std::{error::Error, time::Duration};
use tonic::{Code, Status, TimeoutExpired};

/// The longest rest that a server can ask for: more would be as good as gone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

/// How a call failed.
pub(super) fn below_error(status: &Status) -> BelowError {
    if timed_out(status) {
        return BelowError::TimedOut;
    }
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    let why = match status.source() {
        // It says more than the message, which is often "transport error".
        Some(source) => causes(source),
        None => status.message().to_owned(),
    };
    judged(status.code(), why, retry_after(&details))
}

/// How one of many failed.
pub(super) fn answer_error(status: &rpc::Status) -> BelowError {
    judged(Code::from_i32(status.code), status.message.clone(), retry_after(&status.details))
}

/// What HTTP alone says: somebody between here and the server answered.
pub(super) fn http_error(status: StatusCode) -> BelowError {
    let why = short(format!("HTTP status {status}"));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
            BelowError::Refused(why)
        }
        _ => BelowError::Unreachable(why),
    }
}

fn judged(code: Code, why: String, retry_after: Option<Duration>) -> BelowError {
    let why = short(if why.is_empty() { code.description().to_owned() } else { why });
    match code {
        Code::NotFound => BelowError::Absent,
        Code::ResourceExhausted | Code::Aborted => BelowError::Busy { why, retry_after },
        Code::Unavailable if retry_after.is_some() => BelowError::Busy { why, retry_after },
        // Cancelled not by us: a reset stream. Unknown and Internal: what h2 makes of most.
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled => {
            BelowError::Unreachable(why)
        }
        Code::DeadlineExceeded => BelowError::TimedOut,
        Code::Ok
        | Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => BelowError::Refused(why),
    }
}

/// Whether our own clock ended it (the one behind `grpc-timeout`).
fn timed_out(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<TimeoutExpired>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn retry_after(details: &[prost_types::Any]) -> Option<Duration> {
    let detail = details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = rpc::RetryInfo::decode(&*detail.value).ok()?.retry_delay?;
    Duration::try_from(delay).ok().map(|delay| delay.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::with_details;
    use proto::any::any;

    fn word(error: &BelowError) -> String {
        match error {
            BelowError::Absent => "absent".to_owned(),
            BelowError::Busy { retry_after, .. } => format!("busy {retry_after:?}"),
            BelowError::Unreachable(_) => "unreachable".to_owned(),
            BelowError::TimedOut => "timed out".to_owned(),
            BelowError::Refused(_) => "refused".to_owned(),
            BelowError::Wrong(_) | BelowError::Local(_) => "another".to_owned(),
        }
    }

    #[test]
    fn each_code_means_one_thing() {
        for (code, expect) in [
            (Code::NotFound, "absent"),
            (Code::ResourceExhausted, "busy None"),
            (Code::Aborted, "busy None"),
            (Code::Unavailable, "unreachable"),
            (Code::Unknown, "unreachable"),
            (Code::Internal, "unreachable"),
            (Code::Cancelled, "unreachable"),
            (Code::DeadlineExceeded, "timed out"),
            (Code::InvalidArgument, "refused"),
            (Code::PermissionDenied, "refused"),
            (Code::FailedPrecondition, "refused"),
            (Code::OutOfRange, "refused"),
            (Code::Unimplemented, "refused"),
            (Code::DataLoss, "refused"),
            (Code::Unauthenticated, "refused"),
        ] {
            let whole = below_error(&Status::new(code, "why"));
            assert_eq!(word(&whole), expect, "{code:?}");
            let one = rpc::Status { code: code as i32, ..Default::default() };
            assert_eq!(word(&answer_error(&one)), expect, "{code:?}");
        }
    }

    #[test]
    fn a_rest_that_is_asked_for_is_heard_and_bounded() {
        for (code, seconds, expect) in [
            (Code::ResourceExhausted, 2, "busy Some(2s)"),
            (Code::Unavailable, 2, "busy Some(2s)"),
            (Code::Unavailable, 1_000_000, "busy Some(300s)"),
            (Code::Unavailable, -5, "unreachable"),
            (Code::InvalidArgument, 2, "refused"),
        ] {
            let delay = prost_types::Duration { seconds, nanos: 0 };
            let info = rpc::RetryInfo { retry_delay: Some(delay) };
            let status = with_details(code, "why".to_owned(), vec![any(&info)]);
            assert_eq!(word(&below_error(&status)), expect, "{code:?} {seconds}");
        }
    }

    #[test]
    fn http_alone_refuses_or_is_out_of_reach() {
        for (status, expect) in [(403, "refused"), (404, "refused"), (502, "unreachable")] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(word(&http_error(status)), expect, "{status}");
        }
    }

    #[test]
    fn what_a_server_says_is_shortened() {
        let BelowError::Refused(why) = below_error(&Status::not_found("x")) else {
            let long = Status::invalid_argument("x".repeat(100_000));
            assert!(below_error(&long).to_string().len() < 300);
            return;
        };
        panic!("{why}");
    }
}
