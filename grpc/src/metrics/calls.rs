//! How many calls came, of which method, how they ended and how long they took. Must cost a call
//! no more than a few additions: no lock, no allocation, no cache line that two cores write.

use super::{
    Collector,
    methods::{self, COUNT},
    page::{Distribution, Family, Page, counter, gauge, histogram},
};
use bytes::Bytes;
use crossbeam_utils::CachePadded;
use futures_util::future::{LocalBoxFuture, ready};
use http::{HeaderMap, Response, StatusCode};
use http_body::Body;
use hyper::body::{Frame, SizeHint};
use std::{
    array,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

const CALLS: Family = counter(
    "ringforge_requests_total",
    "Calls that have ended, by the status that the client was given; CANCELLED where it went away.",
);
const SECONDS: Family = histogram(
    "ringforge_request_seconds",
    "Time from a call's headers to the end of its reply, or to the client's going away.",
);
const IN_FLIGHT: Family = gauge("ringforge_requests_in_flight", "Calls that have not ended.");

/// The status codes of gRPC, in the order of their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];
const OK: usize = 0;
const CANCELLED: usize = 1;
const UNKNOWN: usize = 2;
const STATUS: &str = "grpc-status";

/// Upper bounds of the ranges in which durations are counted, in microseconds: from an answer out
/// of memory to an action that runs for minutes.
const BOUNDS_MICROS: [u64; 14] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    50_000,
    250_000,
    1_000_000,
    5_000_000,
    30_000_000,
    120_000_000,
    600_000_000,
];

/// A number that one thread adds to and any thread reads.
#[derive(Default)]
struct Tally(AtomicU64);

impl Tally {
    /// No atomic addition, which costs ten times as much: there is one writer.
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The calls of one method on one core.
#[derive(Default)]
struct MethodTallies {
    codes: [Tally; CODES.len()],
    /// The last one is of those above every bound.
    ranges: [Tally; BOUNDS_MICROS.len() + 1],
    micros: Tally,
}

/// The calls on one core.
struct CoreTallies {
    begun: CachePadded<Tally>,
    methods: [CachePadded<MethodTallies>; COUNT],
}

/// The calls on all cores, to be read anywhere.
#[derive(Clone)]
pub(crate) struct Calls {
    cores: Arc<[Arc<CoreTallies>]>,
}

/// Held by `Rc`: each call has a share of it, which costs no atomic operation.
struct OwnTallies(Arc<CoreTallies>);

/// The calls on one core, to be counted there: not `Send`, so that there is one writer.
#[derive(Clone)]
pub(crate) struct CoreCalls {
    tallies: Rc<OwnTallies>,
}

impl Calls {
    pub(crate) fn new(cores: u16) -> Self {
        let tallies = || CoreTallies {
            begun: CachePadded::default(),
            methods: array::from_fn(|_| CachePadded::default()),
        };
        Self { cores: (0..cores).map(|_| Arc::new(tallies())).collect() }
    }

    /// What counts on `core`; to be asked for once by each core's own thread.
    pub(crate) fn on(&self, core: u16) -> CoreCalls {
        CoreCalls { tallies: Rc::new(OwnTallies(self.cores[usize::from(core)].clone())) }
    }

    fn write(&self, page: &mut Page) {
        let mut in_flight = 0_u64;
        for method in 0..COUNT {
            let (service, name) = methods::names(method);
            let all = self.cores.iter().map(|core| &core.methods[method]);
            for (at, code) in CODES.iter().enumerate() {
                let ended: u64 = all.clone().map(|core| core.codes[at].get()).sum();
                in_flight = in_flight.wrapping_sub(ended);
                // A code that never was is no series, so that a page is one that can be read.
                if ended > 0 || at == OK {
                    let labels = [("service", service), ("method", name), ("code", code)];
                    page.set(&CALLS, &labels, ended as f64);
                }
            }
            let labels = [("service", service), ("method", name)];
            page.distribute(&SECONDS, &labels, distribution(all));
        }
        // Read last: what began meanwhile is in flight, and none ended before it began.
        let begun: u64 = self.cores.iter().map(|core| core.begun.get()).sum();
        page.set(&IN_FLIGHT, &[], in_flight.wrapping_add(begun) as f64);
    }
}

fn distribution<'a>(
    cores: impl Iterator<Item = &'a CachePadded<MethodTallies>> + Clone,
) -> Distribution {
    let in_range = |at: usize| cores.clone().map(|core| core.ranges[at].get()).sum::<u64>();
    let mut count = 0;
    let buckets = BOUNDS_MICROS.iter().enumerate().map(|(at, &bound)| {
        count += in_range(at);
        (Duration::from_micros(bound).as_secs_f64(), count)
    });
    let buckets = buckets.collect();
    count += in_range(BOUNDS_MICROS.len());
    let micros = cores.map(|core| core.micros.get()).sum();
    Distribution { buckets, count, sum: Duration::from_micros(micros).as_secs_f64() }
}

impl Collector for Calls {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        self.write(page);
        Box::pin(ready(()))
    }
}

impl CoreCalls {
    /// A call to this path begins.
    pub(crate) fn begin(&self, path: &str) -> Call {
        self.tallies.0.begun.add(1);
        let tallies = self.tallies.clone();
        Call { tallies, method: methods::index(path), begun: Instant::now(), code: CANCELLED }
    }
}

/// One call; it ends when this is dropped.
pub(crate) struct Call {
    tallies: Rc<OwnTallies>,
    method: usize,
    begun: Instant,
    /// How it ends if it ends now.
    code: usize,
}

impl Call {
    /// The reply, with which the call goes on until its body is gone.
    pub(crate) fn measure<B>(mut self, reply: Response<B>) -> Response<MeasuredBody<B>> {
        if reply.status() != StatusCode::OK {
            self.code = UNKNOWN;
        }
        self.told(reply.headers());
        reply.map(|body| MeasuredBody { body, call: self })
    }

    /// The client is told how it ended, if these say so.
    fn told(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(STATUS) {
            let code = status.to_str().ok().and_then(|digits| digits.parse().ok());
            self.code = code.filter(|&code| code < CODES.len()).unwrap_or(UNKNOWN);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let micros = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let tallies = &self.tallies.0.methods[self.method];
        let range = BOUNDS_MICROS.partition_point(|&bound| bound < micros);
        tallies.codes[self.code].add(1);
        tallies.ranges[range].add(1);
        tallies.micros.add(micros);
    }
}

/// A reply's body, and the call that it ends.
pub(crate) struct MeasuredBody<B> {
    body: B,
    call: Call,
}

impl<B: Body<Data = Bytes> + Unpin> Body for MeasuredBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            this.call.told(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests;
