//! Calls end once, under the status that the client was given.

use super::*;
use futures_lite::future::block_on;
use futures_util::stream;
use http::HeaderValue;
use http_body_util::{BodyExt, StreamBody};
use std::convert::Infallible;

const READ: &str = "/google.bytestream.ByteStream/Read";

/// How often each code was counted.
fn ended(calls: &Calls) -> Vec<(&'static str, u64)> {
    let all = calls.cores.iter().flat_map(|core| core.methods.iter());
    let counted = |at: usize| all.clone().map(|method| method.codes[at].get()).sum::<u64>();
    let codes = CODES.iter().enumerate().map(|(at, code)| (*code, counted(at)));
    codes.filter(|(_, count)| *count > 0).collect()
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(STATUS.parse().unwrap(), HeaderValue::from_static(code))])
}

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;
type Played = stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

fn reply(headers: HeaderMap, frames: Frames) -> Response<StreamBody<Played>> {
    let mut reply = Response::new(StreamBody::new(stream::iter(frames)));
    *reply.headers_mut() = headers;
    reply
}

#[test]
fn a_call_ends_by_its_trailers_its_headers_or_its_clients_going_away() {
    let bytes = || Ok(Frame::data(Bytes::from_static(b"bytes")));
    let trailers = |code| Ok(Frame::trailers(status(code)));
    for (headers, frames, expected) in [
        (HeaderMap::new(), vec![bytes(), trailers("0")], "OK"),
        (HeaderMap::new(), vec![bytes(), trailers("14")], "UNAVAILABLE"),
        (HeaderMap::new(), vec![bytes()], "CANCELLED"),
        (HeaderMap::new(), vec![], "CANCELLED"),
        (status("5"), vec![], "NOT_FOUND"),
        (status("17"), vec![], "UNKNOWN"),
        (status("-1"), vec![], "UNKNOWN"),
        (status("five"), vec![], "UNKNOWN"),
    ] {
        let calls = Calls::new(1);
        let call = calls.on(0).begin(READ);
        let whole = call.measure(reply(headers, frames)).into_body().collect();
        block_on(whole).unwrap();
        assert_eq!(ended(&calls), [(expected, 1)]);
    }
    let calls = Calls::new(1);
    drop(calls.on(0).begin(READ));
    assert_eq!(ended(&calls), [("CANCELLED", 1)]);
    let mut refused = reply(HeaderMap::new(), vec![]);
    *refused.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    drop(calls.on(0).begin(READ).measure(refused));
    assert_eq!(ended(&calls), [("CANCELLED", 1), ("UNKNOWN", 1)]);
}

#[test]
fn what_began_is_in_flight_until_it_ends_and_cores_add_up() {
    let calls = Calls::new(2);
    let text = || {
        let mut page = Page::default();
        calls.write(&mut page);
        page.into_text().unwrap()
    };
    let (first, second) = (calls.on(0).begin(READ), calls.on(1).begin("/nobody/knows"));
    assert!(text().contains("\nringforge_requests_in_flight 2\n"));
    drop(first.measure(reply(status("0"), vec![])));
    drop(calls.on(1).begin(READ).measure(reply(status("0"), vec![])));
    let text = text();
    for line in [
        "ringforge_requests_in_flight 1",
        "ringforge_requests_total{service=\"google.bytestream.ByteStream\",method=\"Read\",\
         code=\"OK\"} 2",
        "ringforge_request_seconds_count{service=\"google.bytestream.ByteStream\",\
         method=\"Read\"} 2",
        "ringforge_requests_total{service=\"other\",method=\"other\",code=\"OK\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    drop(second);
}

#[test]
fn a_duration_is_counted_in_every_range_that_reaches_it() {
    let calls = Calls::new(2);
    for (core, micros) in [(0, 100), (1, 101), (0, 600_000_001)] {
        let tallies = &calls.cores[core].methods[0];
        tallies.ranges[BOUNDS_MICROS.partition_point(|&bound| bound < micros)].add(1);
        tallies.micros.add(micros);
    }
    let all = distribution(calls.cores.iter().map(|core| &core.methods[0]));
    assert_eq!((all.count, all.sum), (3, 600.000_202));
    assert_eq!(all.buckets[..2], [(0.000_1, 1), (0.000_25, 2)]);
    assert_eq!(all.buckets.last(), Some(&(600.0, 2)));
}
