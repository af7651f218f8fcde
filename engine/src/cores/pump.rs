//! The `!Send` side of the seam: serves one core's inbox. Must never serve more at a time than
//! its bounds say; what waits beyond them waits in the inbox, and what does not fit there is
//! refused by the handle.

use super::{
    handle::Inbox,
    request::{Attached, CoreCounts, Reply, Request, UploadName},
};
use crate::{
    blob::{
        BlobError, BlobStore, Body, Growth, Result, Source,
        source::{Chunk, Chunks, Follower},
    },
    digest::Digest,
    env::Env,
    limits::{IO_BYTES, Limits, UPLOAD_CHUNKS_MAX},
    shard::Shard,
};
use bytes::{Bytes, BytesMut};
use futures_util::{
    future::{LocalBoxFuture, join_all},
    stream::{FuturesUnordered, Stream, StreamExt},
};
use std::{
    cell::RefCell,
    collections::HashMap,
    io::ErrorKind,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::watch;

/// How much may be lost to a power failure where durability is `epoch`.
const EPOCH: Duration = Duration::from_secs(1);

/// One core's store, and the uploads that are open on it.
pub(super) struct Pump<S> {
    pub(super) store: S,
    pub(super) shard: Rc<Shard>,
    pub(super) env: Rc<Env>,
    pub(super) limits: Limits,
    pub(super) uploads: RefCell<HashMap<UploadName, OpenUpload>>,
}

/// An upload in parts, as its owner sees it.
pub(super) struct OpenUpload {
    committed: Arc<AtomicU64>,
    /// Absent while a connection holds it; with the time since when none does.
    parked: Option<(Attached, Duration)>,
}

/// What one poll of the pump found.
enum Turn {
    Received(Request),
    Finished,
    Closed,
}

impl<S: BlobStore> Pump<S> {
    /// Serves until the inbox is closed and nothing is in flight.
    pub(super) async fn run(&self, inbox: Inbox) {
        let mut requests = Box::pin(inbox.requests);
        let mut closed = false;
        let mut in_flight = FuturesUnordered::new();
        let mut uploads: FuturesUnordered<LocalBoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            let turn = std::future::poll_fn(|cx| {
                if closed && in_flight.is_empty() {
                    return Poll::Ready(Turn::Closed);
                }
                let busy = closed || in_flight.len() >= self.limits.in_flight_max;
                poll_turn(&mut in_flight, &mut uploads, requests.as_mut(), busy, cx)
            })
            .await;
            match turn {
                Turn::Finished => {}
                // Uploads go on meanwhile: what is in flight may wait for what one of them writes.
                Turn::Closed if in_flight.is_empty() => break,
                Turn::Closed => closed = true,
                Turn::Received(Request::Attach { name, digest, reply }) => {
                    if let Some(upload) = self.attach(name, digest, reply) {
                        uploads.push(Box::pin(upload));
                    }
                }
                Turn::Received(Request::Fill { digest, chunks, follower }) => {
                    if uploads.len() < self.limits.uploads_max {
                        uploads.push(Box::pin(self.fill(digest, chunks, follower)));
                    } else {
                        ended(&follower.growth, Err(BlobError::Overloaded));
                    }
                }
                Turn::Received(Request::Count { reply }) => {
                    let holdings = self.shard.holdings();
                    let (in_flight, uploads) = (in_flight.len(), uploads.len());
                    let _ = reply.send(CoreCounts { in_flight, uploads, holdings });
                }
                Turn::Received(request) => in_flight.push(self.serve(request)),
            }
        }
    }

    /// Makes what was acknowledged durable at least once an epoch; never ends.
    pub(super) async fn sync_epochs(&self) {
        loop {
            self.env.alarms.sleep(EPOCH).await;
            self.shard.sync_epoch().await;
        }
    }

    /// One request, from its variant to its reply.
    async fn serve(&self, request: Request) {
        match request {
            Request::FindMissing { digests, reply } => {
                drop(reply.send(self.store.find_missing(digests).await));
            }
            Request::Get { digest, reply } => drop(reply.send(self.store.get(digest).await)),
            Request::GetMany { digests, reply } => {
                let reads = digests.into_iter().map(|digest| self.read(digest, u64::MAX));
                drop(reply.send(join_all(reads).await));
            }
            Request::Put { digest, bytes, reply } => {
                drop(reply.send(self.store.put(digest, Source::Bytes(bytes)).await));
            }
            Request::PutMany { blobs, reply } => {
                let puts = blobs
                    .into_iter()
                    .map(|(digest, bytes)| self.store.put(digest, Source::Bytes(bytes)));
                drop(reply.send(join_all(puts).await));
            }
            Request::Read { digest, size_max, reply } => {
                drop(reply.send(self.read(digest, size_max).await));
            }
            Request::Link { wanted, reply } => drop(reply.send(self.shard.link(wanted).await)),
            Request::Adopt { digest, file, executable, reply } => {
                drop(reply.send(self.shard.adopt(digest, file, executable).await));
            }
            Request::GetAction { key, reply } => {
                drop(reply.send(self.shard.get_action(&key).await));
            }
            Request::PutAction { key, bytes, reply } => {
                drop(reply.send(self.shard.put_action(&key, &bytes).await));
            }
            Request::Hold { blobs, results, seconds, reply } => {
                self.shard.hold(&blobs, &results, seconds);
                let _ = reply.send(());
            }
            Request::Checked { digest, home, good } => {
                self.shard.checked(digest, home, good).await;
            }
            other => self.note(other),
        }
    }

    /// Requests that are served at once.
    fn note(&self, request: Request) {
        match request {
            Request::Park { name, attached } => {
                let mut uploads = self.uploads.borrow_mut();
                // One that was given up leaves its name to another.
                let own =
                    |open: &&mut OpenUpload| Arc::ptr_eq(&open.committed, &attached.committed);
                if let Some(upload) = uploads.get_mut(&name).filter(own) {
                    upload.parked = Some((attached, self.env.clock.now()));
                }
            }
            Request::UploadStatus { name, reply } => {
                let uploads = self.uploads.borrow();
                let committed = uploads.get(&name).map(|up| up.committed.load(Ordering::Acquire));
                let _ = reply.send(committed);
            }
            Request::CompleteAction { key, record, generation } => {
                self.shard.complete_action(&key, record, generation);
            }
            _ => unreachable!("serve() answers all others"),
        }
    }

    /// The whole blob, wherever it lies.
    async fn read(&self, digest: Digest, size_max: u64) -> Result<Bytes> {
        if digest.size() > size_max {
            return Err(BlobError::TooLarge { size: digest.size(), size_max });
        }
        let extent = match self.store.get(digest).await? {
            Body::Bytes(bytes) => return Ok(bytes),
            Body::Extent(extent) => extent,
        };
        let size = usize::try_from(digest.size())
            .map_err(|_| BlobError::TooLarge { size: digest.size(), size_max })?;
        let mut whole = BytesMut::with_capacity(size);
        while whole.len() < size {
            let length = IO_BYTES.min(size - whole.len());
            let position = whole.len() as u64;
            let read = self.env.disk.read(&extent.file, position, length).await;
            if read.as_ref().is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof) {
                self.shard.checked(digest, extent.home, false).await;
                return Err(BlobError::NotFound(digest));
            }
            whole.extend_from_slice(&read?);
        }
        let whole = whole.freeze();
        if !extent.verified {
            let good = Digest::of(&whole) == digest;
            self.shard.checked(digest, extent.home, good).await;
            if !good {
                return Err(BlobError::NotFound(digest));
            }
        }
        Ok(whole)
    }

    /// Keeps a blob that comes in pieces and is read meanwhile.
    async fn fill(
        &self,
        digest: Digest,
        chunks: async_channel::Receiver<Chunk>,
        follower: Follower,
    ) {
        let growth = follower.growth.clone();
        let idle = self.limits.upload_idle;
        let source = Chunks::new(digest, chunks, self.env.alarms.clone(), idle);
        let source = source.followed(follower);
        ended(&growth, self.store.put(digest, Source::Chunks(source)).await);
    }

    /// Answers who wants to send; the future that takes what is sent, where it is a fresh upload.
    fn attach(
        &self,
        name: UploadName,
        digest: Digest,
        reply: Reply<Result<Attached>>,
    ) -> Option<impl Future<Output = ()>> {
        let mut uploads = self.uploads.borrow_mut();
        if let Some(open) = uploads.get_mut(&name) {
            let parked = open.parked.take().map(|(attached, _)| attached);
            drop(reply.send(parked.ok_or(BlobError::Overloaded)));
            return None;
        }
        if uploads.len() >= self.limits.uploads_max && !give_up_longest_parked(&mut uploads) {
            drop(reply.send(Err(BlobError::Overloaded)));
            return None;
        }
        let (chunks, receiver) = async_channel::bounded::<Chunk>(UPLOAD_CHUNKS_MAX);
        let (sender, outcome) = watch::channel(None);
        let committed = Arc::new(AtomicU64::new(0));
        let own = committed.clone();
        uploads.insert(name.clone(), OpenUpload { committed: committed.clone(), parked: None });
        drop(reply.send(Ok(Attached { chunks, committed, outcome })));
        let source =
            Chunks::new(digest, receiver, self.env.alarms.clone(), self.limits.upload_idle);
        Some(async move {
            let stored = self.store.put(digest, Source::Chunks(source)).await;
            let mut uploads = self.uploads.borrow_mut();
            // Another may have its name by now, if this one was given up.
            if uploads.get(&name).is_some_and(|open| Arc::ptr_eq(&open.committed, &own)) {
                uploads.remove(&name);
            }
            drop(sender.send(Some(stored)));
        })
    }
}

fn ended(growth: &watch::Sender<Growth>, outcome: Result<()>) {
    growth.send_modify(|growth| growth.outcome = Some(outcome));
}

/// Ends the upload that has been without a connection for the longest time; false where each has
/// one. A client that abandons uploads must not keep others from theirs.
fn give_up_longest_parked(uploads: &mut HashMap<UploadName, OpenUpload>) -> bool {
    let parked = uploads.iter().filter_map(|(name, upload)| {
        let (_, since) = upload.parked.as_ref()?;
        Some((*since, name.clone()))
    });
    match parked.min() {
        // Without a sender its future ends, and leaves nothing.
        Some((_, name)) => uploads.remove(&name).is_some(),
        None => false,
    }
}

/// Finished work first, because it makes room; then the next request, if there is room.
fn poll_turn<F: Future<Output = ()>, G: Future<Output = ()>>(
    in_flight: &mut FuturesUnordered<F>,
    uploads: &mut FuturesUnordered<G>,
    requests: Pin<&mut async_channel::Receiver<Request>>,
    busy: bool,
    cx: &mut Context<'_>,
) -> Poll<Turn> {
    if let Poll::Ready(Some(())) = in_flight.poll_next_unpin(cx) {
        return Poll::Ready(Turn::Finished);
    }
    if let Poll::Ready(Some(())) = uploads.poll_next_unpin(cx) {
        return Poll::Ready(Turn::Finished);
    }
    if busy {
        return Poll::Pending;
    }
    match requests.poll_next(cx) {
        Poll::Ready(Some(request)) => Poll::Ready(Turn::Received(request)),
        Poll::Ready(None) => Poll::Ready(Turn::Closed),
        Poll::Pending => Poll::Pending,
    }
}
