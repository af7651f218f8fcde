//! The loop that owns a tier's state: which blobs are on their way, and what is known not to be
//! there (`memory`). Must never wait for anything but its inbox and its own work.

use super::{
    Below, BelowError,
    batch::batches,
    counts::TierCounts,
    fetch,
    handle::{Joined, LARGE_BYTES_MIN, Phase, Request},
    memory::Memory,
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
    /// A question; those that below did not give before, and says that it has.
    Question(Vec<Digest>),
    /// A write; those that below took.
    Write(Vec<Digest>),
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
    memory: Memory,
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
        let memory = Memory::new(config.absent_kept);
        Self { shared, config, flights: HashMap::new(), memory, clock: Clock::start() }
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
            Request::Fetch { digest, anew, reply } => {
                drop(reply.send(self.fetch(digest, anew, jobs)));
            }
            Request::FetchMany { digests, anew, reply } => {
                self.fetch_many(&digests, anew, reply, jobs);
            }
            Request::FindMissing { digests, reply } => self.find_missing(digests, reply, jobs),
            Request::Wrong { digests, reply } => drop(reply.send(self.wrong_among(&digests))),
            Request::Written { digests } => self.ended(Ended::Write(digests)),
            Request::Push { digests, reply } => {
                let wrong = self.wrong_among(&digests);
                jobs.push(Box::pin(async move {
                    let pushed = push::push(&shared, digests.clone(), wrong).await;
                    let written = if pushed.is_ok() { digests } else { Vec::new() };
                    drop(reply.send(pushed));
                    Ended::Write(written)
                }));
            }
            Request::PushMany { blobs, reply } => jobs.push(Box::pin(async move {
                let digests: Vec<_> = blobs.iter().map(|(digest, _)| *digest).collect();
                let pushed = push::push_many(&shared, blobs).await;
                let taken = digests.into_iter().zip(&pushed).filter(|(_, answer)| answer.is_ok());
                let written = taken.map(|(digest, _)| digest).collect();
                drop(reply.send(pushed));
                Ended::Write(written)
            })),
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

    fn wrong_among(&self, digests: &[Digest]) -> Vec<Digest> {
        let now = self.clock.now();
        let wrong = digests.iter().filter(|digest| self.memory.is_wrong(digest, now));
        wrong.copied().collect()
    }

    /// Asks which blobs below lacks; those that are wrong there count as lacking.
    fn find_missing(
        &self,
        digests: Vec<Digest>,
        reply: oneshot::Sender<Result<Vec<Digest>>>,
        jobs: &mut Jobs,
    ) {
        let (shared, now) = (self.shared.clone(), self.clock.now());
        let (wrong, asked): (Vec<_>, Vec<_>) =
            digests.into_iter().partition(|digest| self.memory.is_wrong(digest, now));
        // What is on its way was asked for before this: its end says nothing about the answer.
        let is_doubted = |digest: &&Digest| {
            self.memory.was_absent(digest) && !self.flights.contains_key(*digest)
        };
        let mut doubted: HashSet<Digest> = asked.iter().filter(is_doubted).copied().collect();
        jobs.push(Box::pin(async move {
            let missing = push::find_missing(&shared, asked).await;
            match &missing {
                Ok(missing) => {
                    for digest in missing {
                        doubted.remove(digest);
                    }
                }
                Err(_) => doubted.clear(),
            }
            drop(reply.send(missing.map(|mut missing| {
                missing.extend(wrong);
                missing
            })));
            Ended::Question(doubted.into_iter().collect())
        }));
    }

    /// Joins the fetch of a blob, or begins it; `anew` where below is asked although it did not
    /// have it a moment ago.
    fn fetch(&mut self, digest: Digest, anew: bool, jobs: &mut Jobs) -> Joined {
        if let Some(Flight::Large(phase)) = self.flights.get(&digest) {
            self.shared.counts.joined.add(1);
            return phase.subscribe();
        }
        let refusal = if digest.size() > self.config.blob_bytes_max {
            let size_max = self.config.blob_bytes_max;
            Some(BlobError::TooLarge { size: digest.size(), size_max })
        } else {
            self.is_remembered(&digest, anew).then_some(BlobError::NotFound(digest))
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
        anew: bool,
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
            if self.is_remembered(&digest, anew) || digest.size() > LARGE_BYTES_MIN {
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
        let now = self.clock.now();
        match ended {
            Ended::Fetch(fetched) => {
                for (digest, known) in fetched {
                    self.flights.remove(&digest);
                    match known {
                        Known::Absent => self.memory.absent(digest, now),
                        Known::Wrong => self.memory.wrong(digest, now),
                        Known::Here | Known::Nothing => {}
                    }
                }
            }
            Ended::Question(claimed) => {
                claimed.into_iter().for_each(|digest| self.memory.claimed(digest, now));
            }
            // Not before: what was not taken is as wrong as it was.
            Ended::Write(written) => {
                written.iter().for_each(|digest| self.memory.written(digest));
            }
            Ended::Other => {}
        }
    }

    /// Whether a blob is not asked for: below does not have it, or does not have it right.
    fn is_remembered(&self, digest: &Digest, anew: bool) -> bool {
        let now = self.clock.now();
        let known = match anew {
            true => self.memory.is_wrong(digest, now),
            false => self.memory.is_absent(digest, now),
        };
        if known {
            self.shared.counts.absent_remembered.add(1);
        }
        known
    }
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
