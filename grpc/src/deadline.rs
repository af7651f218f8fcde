//! How long a caller waits (`grpc-timeout`), and how a reply ends that takes longer. Must never
//! end one that is ready.

use crate::services::byte_stream::trailers;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;
use http::HeaderMap;
use http_body::Body;
use hyper::body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tonic::Status;

/// Where a caller says it (gRPC over HTTP2, Requests).
const HEADER: &str = "grpc-timeout";
/// Digits that it may have.
const DIGITS_MAX: usize = 8;

/// Ready once the caller does not wait any more.
pub(crate) type Deadline = LocalBoxFuture<'static, ()>;

/// How long the caller of these headers waits; `None` for ever.
///
/// # Errors
/// `INVALID_ARGUMENT` where it is no timeout.
pub(crate) fn asked(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let parsed = value.to_str().ok().and_then(parse);
    let malformed = || Status::invalid_argument("grpc-timeout is malformed");
    parsed.map(Some).ok_or_else(malformed)
}

fn parse(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let plain = (1..=DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|digit| digit.is_ascii_digit());
    let count = plain.then(|| digits.parse::<u64>().ok()).flatten()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// What such a caller is told.
pub(crate) fn exceeded() -> Status {
    Status::deadline_exceeded("the call's deadline has passed")
}

/// A reply's body that ends at a deadline.
pub(crate) struct TimedBody<B> {
    /// `None` once it was cut off.
    body: Option<B>,
    deadline: Option<Deadline>,
}

impl<B> TimedBody<B> {
    pub(crate) fn new(body: B, deadline: Option<Deadline>) -> Self {
        Self { body: Some(body), deadline }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TimedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        let Some(deadline) = this.deadline.as_mut().filter(|_| frame.is_pending()) else {
            return frame;
        };
        if deadline.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        (this.body, this.deadline) = (None, None);
        Poll::Ready(Some(Ok(Frame::trailers(trailers(&exceeded())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.body, &self.deadline) {
            (Some(body), None) => body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_lite::future::block_on;
    use futures_util::{StreamExt, stream};
    use http::HeaderValue;
    use http_body_util::{BodyExt, StreamBody};
    use std::convert::Infallible;

    #[test]
    fn a_timeout_is_read_as_grpc_says() {
        for (value, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999S", None),
            ("", None),
            ("S", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1 S", None),
            ("1ü", None),
        ] {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            let headers = HeaderMap::from_iter([(HEADER.parse().unwrap(), value.clone())]);
            assert_eq!(asked(&headers).ok().flatten(), expected, "{value:?}");
        }
        assert_eq!(asked(&HeaderMap::new()).unwrap(), None);
    }

    #[test]
    fn a_reply_that_stalls_ends_with_its_deadline_and_what_is_ready_goes_first() {
        let data = Frame::data(Bytes::from_static(b"first"));
        let frames = stream::iter([Ok::<_, Infallible>(data)]).chain(stream::pending());
        let passed: Deadline = Box::pin(async {});
        let mut body = TimedBody::new(StreamBody::new(frames), Some(passed));
        let first = block_on(body.frame()).unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first");
        let last = block_on(body.frame()).unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(last["grpc-status"], "4");
        assert!(block_on(body.frame()).is_none());
        assert!(body.is_end_stream());
    }
}
