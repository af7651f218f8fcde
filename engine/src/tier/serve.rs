//! The loop that owns a tier's state: which blobs are on their way, and what is known not to be
//! there. Must never wait for anything but its inbox and its own work.

use super::{
    Below, BelowError,
    batch::batches,
    counts::TierCounts,
    fetch,
    handle::{Joined, LARGE_BYTES_MIN, Phase, Request},
    push,
};
use crate::{
    blob::{BlobError, Result},
    cores::Cores,
    digest::Digest,
    env::clock::Clock,
};
use bytes::Bytes;
use futures_util::{
    future::{BoxFuture, join_all},
    stream::{FuturesUnordered, StreamExt},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// Absent and wrong blobs remembered; beyond it all that is old is forgotten, then everything.
const REMEMBERED_MAX: usize = 100_000;
/// How long a blob whose bytes were wrong counts as absent below: its place there is to be
/// written again, by whoever has it.
const WRONG_KEPT: Duration = Duration::from_secs(600);

/// What a tier is told.
#[derive(Clone, Debug)]
pub struct TierConfig {
    /// Requests served at the same time; others wait in the inbox.
    pub jobs_max: usize,
    /// How long it is remembered that below does not have a blob.
    pub absent_kept: Duration,
    /// Largest blob that is brought here, in bytes.
    pub blob_bytes_max: u64,
}

/// What a job of the loop says when it ends.
pub(super) enum Ended {
    /// A fetch; its digest, and whether below proved not to have it or to have it wrong.
    Fetch(Vec<(Digest, Known)>),
    /// A question; those that are there.
    Found(Vec<Digest>),
    /// Anything else.
    Other,
}

/// What a fetch taught about a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// It is here.
    Here,
    /// Below does not have it.
    Absent,
    /// Below has other bytes under its name.
    Wrong,
    /// Nothing: it could not be asked, or nobody waited.
    Nothing,
}

/// What every job may use.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) below: Arc<dyn Below>,
    pub(super) cores: Cores,
    pub(super) counts: Arc<TierCounts>,
}

/// A fetch that others may join.
#[derive(Clone)]
enum Flight {
    Large(Arc<watch::Sender<Phase>>),
    Small(watch::Receiver<Option<Result<Bytes>>>),
}

/// The state behind [`super::Tier`].
pub(super) struct Serving {
    shared: Shared,
    config: TierConfig,
    flights: HashMap<Digest, Flight>,
    remembered: HashMap<Digest, (Known, Duration)>,
    clock: Clock,
}

type Jobs = FuturesUnordered<BoxFuture<'static, Ended>>;

impl Serving {
    pub(super) fn new(
        below: Arc<dyn Below>,
        cores: Cores,
        config: TierConfig,
        counts: Arc<TierCounts>,
    ) -> Self {
        let shared = Shared { below, cores, counts };
        Self {
            shared,
            config,
            flights: HashMap::new(),
            remembered: HashMap::new(),
            clock: Clock::start(),
        }
    }

    /// Serves until the inbox is closed; what is under way then is given up.
    pub(super) async fn run(mut self, inbox: async_channel::Receiver<Request>) {
        let mut jobs = Jobs::new();
        loop {
            tokio::select! {
                biased;
                Some(ended) = jobs.next(), if !jobs.is_empty() => self.ended(ended),
                request = inbox.recv(), if jobs.len() < self.config.jobs_max => {
                    let Ok(request) = request else { return };
                    self.serve(request, &mut jobs);
                }
            }
        }
    }

    fn serve(&mut self, request: Request, jobs: &mut Jobs) {
        let shared = self.shared.clone();
        match request {
            Request::Fetch { digest, reply } => drop(reply.send(self.fetch(digest, jobs))),
            Request::FetchMany { digests, reply } => self.fetch_many(&digests, reply, jobs),
            Request::FindMissing { digests, reply } => {
                let (known, asked): (Vec<_>, Vec<_>) =
                    digests.into_iter().partition(|digest| self.is_wrong(digest));
                jobs.push(Box::pin(async move {
                    let missing = push::find_missing(&shared, asked.clone()).await;
                    let found = missing.as_ref().map(|missing| present(asked, missing));
                    let found = found.unwrap_or_default();
                    drop(reply.send(missing.map(|mut missing| {
                        missing.extend(known);
                        missing
                    })));
                    Ended::Found(found)
                }));
            }
            Request::Push { digests, reply } => {
                let wrong = self.forget_wrong(&digests);
                jobs.push(Box::pin(async move {
                    drop(reply.send(push::push(&shared, digests, wrong).await));
                    Ended::Other
                }));
            }
            Request::PushMany { blobs, reply } => {
                let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
                self.forget_wrong(&digests);
                jobs.push(Box::pin(async move {
                    drop(reply.send(push::push_many(&shared, blobs).await));
                    Ended::Other
                }));
            }
            Request::GetAction { instance, action, reply } => jobs.push(Box::pin(async move {
                let found = shared.below.get_action(&instance, action).await;
                drop(reply.send(found.map_err(|error| shared.failed(action, error))));
                Ended::Other
            })),
            Request::PutAction { instance, action, result, reply } => {
                jobs.push(Box::pin(async move {
                    let put = shared.below.put_action(&instance, action, *result).await;
                    drop(reply.send(put.map_err(|error| shared.failed(action, error))));
                    Ended::Other
                }));
            }
        }
    }

    /// Joins the fetch of a blob, or begins it.
    fn fetch(&mut self, digest: Digest, jobs: &mut Jobs) -> Joined {
        if let Some(Flight::Large(phase)) = self.flights.get(&digest) {
            self.shared.counts.joined.add(1);
            return phase.subscribe();
        }
        let refusal = if digest.size() > self.config.blob_bytes_max {
            let size_max = self.config.blob_bytes_max;
            Some(BlobError::TooLarge { size: digest.size(), size_max })
        } else {
            self.is_remembered(&digest).then_some(BlobError::NotFound(digest))
        };
        if let Some(refusal) = refusal {
            return watch::channel(Phase::Failed(refusal)).1;
        }
        let (phase, joined) = watch::channel(Phase::Opening);
        let phase = Arc::new(phase);
        self.flights.insert(digest, Flight::Large(phase.clone()));
        let shared = self.shared.clone();
        jobs.push(Box::pin(async move {
            Ended::Fetch(vec![(digest, fetch::large(&shared, digest, &phase).await)])
        }));
        joined
    }

    /// Joins the fetches of small blobs, or begins one for all that nobody asked for yet.
    fn fetch_many(
        &mut self,
        digests: &[Digest],
        reply: oneshot::Sender<Vec<Result<Bytes>>>,
        jobs: &mut Jobs,
    ) {
        let mut begun = Vec::new();
        let mut answers = Vec::with_capacity(digests.len());
        for &digest in digests {
            let flight = self.flights.get(&digest).cloned();
            if let Some(Flight::Small(answer)) = flight {
                self.shared.counts.joined.add(1);
                answers.push((digest, answer));
                continue;
            }
            if self.is_remembered(&digest) || digest.size() > LARGE_BYTES_MIN {
                let absent = watch::channel(Some(Err(BlobError::NotFound(digest)))).1;
                answers.push((digest, absent));
                continue;
            }
            let (sender, answer) = watch::channel(None);
            if flight.is_none() {
                self.flights.insert(digest, Flight::Small(answer.clone()));
            }
            begun.push((digest, sender));
            answers.push((digest, answer));
        }
        for group in batches(begun, |one| one.0.size(), self.shared.below.batch_bytes_max()) {
            let shared = self.shared.clone();
            jobs.push(Box::pin(async move { Ended::Fetch(fetch::small(&shared, group).await) }));
        }
        jobs.push(Box::pin(async move {
            let answers = answers.into_iter().map(|(digest, mut answer)| async move {
                let answer = answer.wait_for(Option::is_some).await;
                let answer = answer.ok().and_then(|answer| answer.clone());
                answer.unwrap_or(Err(BlobError::NotFound(digest)))
            });
            drop(reply.send(join_all(answers).await));
            Ended::Other
        }));
    }

    fn ended(&mut self, ended: Ended) {
        let fetched = match ended {
            Ended::Fetch(fetched) => fetched,
            Ended::Found(found) => return self.forget_absent(&found),
            Ended::Other => return,
        };
        for (digest, known) in fetched {
            self.flights.remove(&digest);
            if known == Known::Absent || known == Known::Wrong {
                self.remember(digest, known);
            }
        }
    }

    fn remember(&mut self, digest: Digest, known: Known) {
        if self.remembered.len() >= REMEMBERED_MAX {
            let (kept, now) = (self.config.absent_kept, self.clock.now());
            self.remembered
                .retain(|_, (known, at)| is_fresh(*known, now.saturating_sub(*at), kept));
            if self.remembered.len() >= REMEMBERED_MAX {
                self.remembered.clear();
            }
        }
        self.remembered.insert(digest, (known, self.clock.now()));
    }

    /// Whether below is known not to have it, or not to have it right.
    fn is_remembered(&self, digest: &Digest) -> bool {
        let known = self.known(digest).is_some();
        if known {
            self.shared.counts.absent_remembered.add(1);
        }
        known
    }

    fn known(&self, digest: &Digest) -> Option<Known> {
        let &(known, at) = self.remembered.get(digest)?;
        let age = self.clock.now().saturating_sub(at);
        is_fresh(known, age, self.config.absent_kept).then_some(known)
    }

    fn is_wrong(&self, digest: &Digest) -> bool {
        self.known(digest) == Some(Known::Wrong)
    }

    /// Who was told that a blob is there is not told next that it is not.
    fn forget_absent(&mut self, found: &[Digest]) {
        for digest in found {
            if matches!(self.remembered.get(digest), Some((Known::Absent, _))) {
                self.remembered.remove(digest);
            }
        }
    }

    /// Those of the blobs whose bytes below are wrong; they are about to be written again.
    fn forget_wrong(&mut self, digests: &[Digest]) -> Vec<Digest> {
        let mut wrong = Vec::new();
        for digest in digests {
            if self.is_wrong(digest) {
                wrong.push(*digest);
            }
            self.remembered.remove(digest);
        }
        wrong
    }
}

/// Those of `asked` that are not `missing`.
fn present(asked: Vec<Digest>, missing: &[Digest]) -> Vec<Digest> {
    let missing: HashSet<&Digest> = missing.iter().collect();
    asked.into_iter().filter(|digest| !missing.contains(digest)).collect()
}

/// Whether what became known `age` ago still counts.
fn is_fresh(known: Known, age: Duration, absent_kept: Duration) -> bool {
    age < if known == Known::Wrong { WRONG_KEPT } else { absent_kept }
}

impl Shared {
    /// What a failure below means to whoever asked for `digest` here.
    pub(super) fn failed(&self, digest: Digest, error: BelowError) -> BlobError {
        match error {
            BelowError::Absent | BelowError::Wrong(_) => BlobError::NotFound(digest),
            BelowError::Local(error) => error,
            other => {
                self.counts.failed.add(1);
                BlobError::Below(format!("{}: {other}", self.below.name()).into())
            }
        }
    }
}
