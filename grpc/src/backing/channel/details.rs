//! Answers as tonic may be given them: it panics on the details of a status that are not base64,
//! and a panic ends the node. Must never change anything else of an answer.

use bytes::Bytes;
use futures_util::TryFutureExt as _;
use futures_util::future::MapOk;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Status, body::Body, codegen::Service, metadata::MetadataMap};

/// Where the details of a status stand, in headers and trailers.
pub(crate) const DETAILS: &str = "grpc-status-details-bin";

/// A connection whose answers tonic can read.
#[derive(Clone, Debug)]
pub(crate) struct Readable<S>(pub(super) S);

/// An answer's body whose trailers tonic can read.
struct ReadableBody(Body);

type Answer = Response<Body>;

impl<S, B> Service<Request<Body>> for Readable<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Response = Answer;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(Response<B>) -> Answer>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request).map_ok(|answer| readable(answer.map(Body::new)))
    }
}

fn readable(mut answer: Answer) -> Answer {
    drop_malformed(answer.headers_mut());
    answer.map(|body| Body::new(ReadableBody(body)))
}

/// Takes details away that are not base64.
pub(crate) fn drop_malformed(headers: &mut HeaderMap) {
    if !headers.contains_key(DETAILS) {
        return;
    }
    let mut metadata = MetadataMap::from_headers(std::mem::take(headers));
    let malformed = metadata.get_all_bin(DETAILS).iter().any(|one| one.to_bytes().is_err());
    if malformed {
        metadata.remove_bin(DETAILS);
    }
    *headers = metadata.into_headers();
}

impl http_body::Body for ReadableBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut polled = Pin::new(&mut self.0).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            drop_malformed(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};

    const DAMAGED: [&str; 8] = ["", "!", "A", "AB", "A=", "====", "QUJD====", "A B"];

    /// Whether this is one that tonic decodes, found out without it.
    fn is_base64(details: &str) -> bool {
        MetadataMap::from_headers(HeaderMap::from_iter([(
            DETAILS.parse().unwrap(),
            details.parse().unwrap(),
        )]))
        .get_bin(DETAILS)
        .unwrap()
        .to_bytes()
        .is_ok()
    }

    #[tokio::test]
    async fn what_is_no_base64_is_no_details_and_the_rest_stays() {
        for details in DAMAGED.into_iter().chain(["QUJD", "QUI", "QUI="]) {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", "14".parse().unwrap());
            headers.insert("grpc-message", "why".parse().unwrap());
            headers.insert(DETAILS, details.parse().unwrap());
            let frames = [
                Ok::<_, Status>(Frame::data(Bytes::from("data"))),
                Ok(Frame::trailers(headers.clone())),
            ];
            let body = Body::new(StreamBody::new(futures_util::stream::iter(frames)));
            let mut answer = Response::new(body);
            *answer.headers_mut() = headers;
            let (parts, body) = readable(answer).into_parts();
            let whole = body.collect().await.unwrap();
            let trailers = whole.trailers().unwrap().clone();
            assert_eq!(whole.to_bytes(), "data");
            for headers in [parts.headers, trailers] {
                assert_eq!(headers.contains_key(DETAILS), is_base64(details), "{details:?}");
                let status = Status::from_header_map(&headers).unwrap();
                assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "why"));
            }
        }
    }
}
