//! What is made of answers that no gRPC library would give.

use crate::backing::remote::tests::server::remote_at;
use bytes::Bytes;
use engine::{
    digest::Digest,
    tier::{Below, BelowError},
};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::convert::Infallible;
use tokio::net::TcpListener;

/// Headers or trailers, by name and value.
type Pairs = &'static [(&'static str, &'static str)];

const BLOB: &[u8] = b"twenty bytes of blob";
const NONE: &[u8] = b"";
const FINE: Pairs = &[("grpc-status", "0")];
const ABSENT: Pairs = &[("grpc-status", "5")];
const BUSY: Pairs = &[("grpc-status", "8")];
const NO_NUMBER: Pairs = &[("grpc-status", "no number")];
const NO_BASE64: Pairs = &[("grpc-status", "14"), ("grpc-status-details-bin", "no base64")];
const OTHER: Pairs = &[("other", "0")];

/// An answer as it is sent.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Pairs,
    body: Vec<Vec<u8>>,
    trailers: Option<Pairs>,
}

fn headers(pairs: Pairs) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Asks a server that answers so; every byte that came, and how it ended.
async fn read(answer: Answer) -> (Vec<u8>, &'static str) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: Request<Incoming>| {
            let answer = answer.clone();
            async move {
                request.into_body().collect().await.unwrap();
                let frames = answer.body.into_iter().map(|bytes| Frame::data(Bytes::from(bytes)));
                let trailers = answer.trailers.map(|pairs| Frame::trailers(headers(pairs)));
                let frames = stream::iter(frames.chain(trailers).map(Ok::<_, Infallible>));
                let mut response = Response::new(StreamBody::new(frames));
                *response.status_mut() = answer.status.try_into().unwrap();
                *response.headers_mut() = headers(answer.headers);
                Ok::<_, Infallible>(response)
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new());
        // The reader leaves when it has enough.
        drop(connection.serve_connection(TokioIo::new(socket), service).await);
    });
    let remote = remote_at(port, |settings| settings.compression = false);
    let mut came = Vec::new();
    let ended = match remote.read(Digest::of(BLOB), 0).await {
        Err(error) => word(&error),
        Ok(mut pieces) => loop {
            match pieces.next().await {
                Some(Ok(piece)) => came.extend_from_slice(&piece),
                Some(Err(error)) => break word(&error),
                None => break "whole",
            }
        },
    };
    served.abort();
    (came, ended)
}

fn word(error: &BelowError) -> &'static str {
    match error {
        BelowError::Absent => "absent",
        BelowError::Busy { .. } => "busy",
        BelowError::Unreachable(_) => "unreachable",
        BelowError::TimedOut => "timed out",
        BelowError::Refused(_) => "refused",
        BelowError::Wrong(_) => "wrong",
        BelowError::Local(_) => "local",
    }
}

/// A ReadResponse in its envelope.
fn message(data: &[u8]) -> Vec<u8> {
    let length = u8::try_from(data.len()).unwrap();
    [&[0, 0, 0, 0, length + 2, 0x52, length], data].concat()
}

#[tokio::test]
async fn a_stream_is_whole_only_where_its_status_says_so() {
    let halves = vec![message(&BLOB[..9]), message(&BLOB[9..])];
    let half = vec![message(&BLOB[..9])];
    let longer = vec![message(BLOB), message(b"!")];
    let cut = vec![message(BLOB)[..16].to_vec()];
    for (body, trailers, expect) in [
        (halves.clone(), Some(FINE), (BLOB, "whole")),
        (halves.clone(), None, (BLOB, "unreachable")),
        (halves.clone(), Some(OTHER), (BLOB, "unreachable")),
        (halves, Some(BUSY), (BLOB, "busy")),
        (half.clone(), Some(FINE), (&BLOB[..9], "wrong")),
        (half.clone(), None, (&BLOB[..9], "unreachable")),
        (half, Some(ABSENT), (&BLOB[..9], "absent")),
        (longer, Some(FINE), (BLOB, "wrong")),
        (cut, Some(FINE), (&BLOB[..9], "unreachable")),
        (Vec::new(), Some(FINE), (NONE, "wrong")),
        (Vec::new(), None, (NONE, "unreachable")),
        (vec![b"<html>nothing here</html>".to_vec()], Some(FINE), (NONE, "unreachable")),
    ] {
        let answer = Answer { status: 200, headers: &[], body, trailers };
        let (came, ended) = read(answer).await;
        assert_eq!((&came[..], ended), expect, "{trailers:?}");
    }
}

#[tokio::test]
async fn headers_may_say_all_there_is() {
    for (status, headers, expect) in [
        (200, ABSENT, "absent"),
        (200, NO_BASE64, "unreachable"),
        (200, NO_NUMBER, "unreachable"),
        (403, OTHER, "refused"),
        (503, OTHER, "unreachable"),
        (503, BUSY, "busy"),
    ] {
        let answer = Answer { status, headers, body: Vec::new(), trailers: None };
        assert_eq!(read(answer).await, (Vec::new(), expect), "{status} {headers:?}");
    }
}

#[tokio::test]
async fn details_that_are_none_end_nobody() {
    let body = vec![message(&BLOB[..9])];
    let answer = Answer { status: 200, headers: &[], body, trailers: Some(NO_BASE64) };
    assert_eq!(read(answer).await, (BLOB[..9].to_vec(), "unreachable"));
}
