//! What a peer's answer to a forwarded action means here: a result, an action that comes back, or
//! one that was never taken. Must never blame an action for what its peer failed at.

use engine::{
    digest::{Digest, DigestFunction},
    exec::{ErrandEnd, ExecError, ExecuteOutcome},
};
use prost::Message;
use proto::{
    reapi::ExecuteResponse,
    rpc::{self, PreconditionFailure, RetryInfo},
};
use tonic::{Code, Status};

/// What follows from a call that the peer refused, or that did not reach it.
pub(super) fn of_refusal(status: &Status) -> ErrandEnd {
    let wire = crate::status::to_wire(status);
    match status.code() {
        // It has no room, or stops: it has taken nothing.
        Code::ResourceExhausted => ErrandEnd::Declined,
        Code::Unavailable if has_detail::<RetryInfo>(&wire) => ErrandEnd::Declined,
        // It is not there, does not know this node, or wants nothing from it: no fault of the
        // action, which it has not looked at. A connection that breaks while the peer looks is
        // UNKNOWN to tonic, and counts: the action may be what brings its peers down.
        Code::Unavailable
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented => ErrandEnd::Unreached(crate::status::short(status.to_string())),
        _ => ErrandEnd::Returned(crate::status::short(status.to_string())),
    }
}

/// What follows from the peer's last word on an action that it took; a result's blobs are still
/// there.
pub(super) fn of_response(response: ExecuteResponse) -> ErrandEnd {
    let status = response.status.unwrap_or_default();
    let message = status.message.clone();
    let error = match Code::from(status.code) {
        Code::Ok => None,
        Code::InvalidArgument => Some(ExecError::Invalid(message)),
        Code::DeadlineExceeded => Some(ExecError::TimedOut),
        Code::ResourceExhausted if !has_detail::<RetryInfo>(&status) => {
            Some(ExecError::TooLarge(message))
        }
        Code::FailedPrecondition => match missing(&status) {
            Some(missing) => Some(ExecError::Missing(missing)),
            None => Some(ExecError::Output(message)),
        },
        code => {
            let why = format!("{code:?}: {message}");
            return ErrandEnd::Returned(crate::status::short(why));
        }
    };
    if error.is_none() && response.result.is_none() {
        return ErrandEnd::Returned("it gave neither a result nor an error".to_owned());
    }
    let cached = response.cached_result;
    ErrandEnd::Finished(Box::new(ExecuteOutcome { result: response.result, error, cached }))
}

/// The blobs that a status names as missing; `None` where it is about something else.
fn missing(status: &rpc::Status) -> Option<Vec<Digest>> {
    let failure: PreconditionFailure = detail(status)?;
    let digests = failure.violations.iter().map(|violation| {
        let (hash, size) = violation.subject.strip_prefix("blobs/")?.split_once('/')?;
        Digest::parse(DigestFunction::Sha256, hash, size.parse().ok()?).ok()
    });
    digests.collect()
}

fn has_detail<M: Message + Default + prost::Name>(status: &rpc::Status) -> bool {
    detail::<M>(status).is_some()
}

fn detail<M: Message + Default + prost::Name>(status: &rpc::Status) -> Option<M> {
    let is_one =
        |any: &&prost_types::Any| any.type_url.rsplit('/').next() == Some(&*M::full_name());
    let named = status.details.iter().find(is_one)?;
    M::decode(&*named.value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{blob_status, exec_status, to_wire};
    use engine::blob::BlobError;

    fn response(error: &ExecError) -> ExecuteResponse {
        let status = Some(to_wire(&exec_status(error)));
        ExecuteResponse { status, ..ExecuteResponse::default() }
    }

    fn kind(end: &ErrandEnd) -> &'static str {
        match end {
            ErrandEnd::Finished(_) => "finished",
            ErrandEnd::Returned(_) => "returned",
            ErrandEnd::Declined => "declined",
            ErrandEnd::Unreached(_) => "unreached",
        }
    }

    #[test]
    fn the_actions_own_faults_end_it_and_the_peers_bring_it_back() {
        let digest = Digest::of(b"x");
        for (error, expected) in [
            (ExecError::Invalid("no".to_owned()), "finished"),
            (ExecError::TooLarge("no".to_owned()), "finished"),
            (ExecError::Missing(vec![digest]), "finished"),
            (ExecError::Output("no".to_owned()), "finished"),
            (ExecError::TimedOut, "finished"),
            (ExecError::Cancelled, "returned"),
            (ExecError::Draining, "returned"),
            (ExecError::Overloaded, "returned"),
            (ExecError::Worker("gone".to_owned()), "returned"),
            (ExecError::Store(BlobError::Full), "returned"),
        ] {
            assert_eq!(kind(&of_response(response(&error))), expected, "{error}");
        }
        assert_eq!(kind(&of_response(ExecuteResponse::default())), "returned");
    }

    #[test]
    fn a_missing_input_is_known_by_its_digest() {
        let digest = Digest::of(b"x");
        let end = of_response(response(&ExecError::Missing(vec![digest])));
        let ErrandEnd::Finished(outcome) = end else { panic!("{end:?}") };
        assert!(matches!(outcome.error, Some(ExecError::Missing(missing)) if missing == [digest]));
    }

    #[test]
    fn a_peer_without_room_has_taken_nothing() {
        for (status, expected) in [
            (exec_status(&ExecError::Overloaded), "declined"),
            (exec_status(&ExecError::Draining), "declined"),
            (blob_status(&BlobError::Full), "declined"),
            (Status::unavailable("connection refused"), "unreached"),
            (Status::permission_denied("who are you"), "unreached"),
            (Status::unimplemented("nothing is executed here"), "unreached"),
            (Status::internal("a fault of its own"), "returned"),
            (Status::unknown("connection reset"), "returned"),
            (exec_status(&ExecError::Missing(vec![Digest::of(b"x")])), "returned"),
        ] {
            assert_eq!(kind(&of_refusal(&status)), expected, "{status}");
        }
    }
}
