//! [`Executions`]: what one may ask of a node's actions, from any thread; and the start of the
//! threads that answer. Must never hold a decision: those are the scheduler's.

use super::{
    ExecError, ExecLimits, ExecuteOutcome, RunProgress, Timestamps,
    errand::{ERRANDS_MAX, Errand, Load, PeerCapacity},
    prepare::Prepared,
    schedule::{Away, Held, Schedule},
    scheduler::{Snapshot, event::RunId},
    worker::{Job, SandboxConfig, Workshop},
};
use crate::{cores::Cores, digest::Digest, env::clock::Clock};
use futures_util::future::BoxFuture;
use sandbox::Spawner;
use std::{
    io,
    path::PathBuf,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, SystemTime},
};
use tokio::sync::{oneshot, watch};

/// Requests that wait for the schedule.
const REQUESTS_MAX: usize = 8192;

/// An operation's name on the wire: `node:uuid`.
pub type OperationName = Arc<str>;

/// What the executions of a node are told.
#[derive(Clone, Debug)]
pub struct ExecutionsConfig {
    /// Actions that run at the same time.
    pub slots: usize,
    /// Actions that may wait.
    pub queue_max: usize,
    /// Operations that may be live, and ended ones that are remembered.
    pub operations_max: usize,
    /// How long an ended operation is remembered.
    pub operations_kept: Duration,
    /// The first part of operations' names.
    pub node_id: Arc<str>,
    /// CPUs on which workers and actions run.
    pub cpus: Vec<usize>,
    /// Where execution roots are made.
    pub directory: PathBuf,
    /// Bounds of one action.
    pub limits: ExecLimits,
    /// What every action's sandbox is made of.
    pub sandbox: SandboxConfig,
}

/// How far an operation is, as REAPI names it; what comes before the queue is the service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It waits for a worker, or its inputs are being laid out.
    Queued,
    /// Its process runs.
    Executing,
    /// It has ended.
    Completed,
}

/// One operation at one moment.
#[derive(Clone, Debug)]
pub struct OperationState {
    /// Its name.
    pub name: OperationName,
    /// The action it executes.
    pub action: Digest,
    /// How far it is.
    pub stage: Stage,
    /// When it went through which step so far.
    pub times: Timestamps,
    /// The peer that executes it, where it is not this node.
    pub peer: Option<Arc<str>>,
    /// How it ended; there once its stage is `Completed`.
    pub outcome: Option<Arc<ExecuteOutcome>>,
}

/// A view of an operation that changes with it. While one is held, somebody listens.
pub type Listening = watch::Receiver<OperationState>;

/// What the schedule is asked.
pub(super) enum Request {
    Execute {
        prepared: Arc<Prepared>,
        priority: i32,
        forwarded: bool,
        reply: oneshot::Sender<Result<Listening, ExecError>>,
    },
    Peers {
        peers: Vec<PeerCapacity>,
    },
    Returned {
        run: RunId,
        why: String,
        peer: Arc<str>,
    },
    Declined {
        run: RunId,
    },
    Unreached {
        run: RunId,
        why: String,
        peer: Arc<str>,
    },
    Wait {
        name: String,
        reply: oneshot::Sender<Option<Listening>>,
    },
    List {
        reply: oneshot::Sender<Vec<OperationState>>,
    },
    Cancel {
        name: String,
        reply: oneshot::Sender<bool>,
    },
    Count {
        reply: oneshot::Sender<Snapshot>,
    },
    Tick,
    Drain {
        idle: oneshot::Sender<()>,
    },
    Progress {
        run: RunId,
        progress: RunProgress,
    },
    Finished {
        run: RunId,
        outcome: Box<ExecuteOutcome>,
    },
}

/// The executions of this node, to be asked from any thread. Cheap to clone.
#[derive(Clone)]
pub struct Executions {
    requests: async_channel::Sender<Request>,
    node_id: Arc<str>,
    limits: Arc<ExecLimits>,
    load: watch::Receiver<Load>,
}

/// The threads that run actions.
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
}

impl Workers {
    /// Waits until every worker has ended; they do once the schedule is gone.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended by a panic");
            }
        }
    }
}

impl Executions {
    /// The node's name, as the first part of its operations' names.
    #[must_use]
    pub fn node_id(&self) -> &str {
        &self.node_id
    }

    /// Bounds of one action.
    #[must_use]
    pub fn limits(&self) -> &ExecLimits {
        &self.limits
    }

    /// Queues an action, or joins the run of the same action that is in flight.
    ///
    /// One that a peer has forwarded is run here or refused, never given to another.
    ///
    /// # Errors
    /// `Overloaded`, `Draining`.
    pub async fn execute(
        &self,
        prepared: Prepared,
        priority: i32,
        forwarded: bool,
    ) -> Result<Listening, ExecError> {
        let prepared = Arc::new(prepared);
        self.ask(|reply| Request::Execute { prepared, priority, forwarded, reply }).await?
    }

    /// How busy this node is, and each change of it.
    #[must_use]
    pub fn load(&self) -> watch::Receiver<Load> {
        self.load.clone()
    }

    /// Says which peers there are and how busy; to be said a few times a second.
    pub fn peers(&self, peers: Vec<PeerCapacity>) {
        // A full inbox loses it: the next one says the same, or better.
        drop(self.requests.try_send(Request::Peers { peers }));
    }

    /// A view of an operation by its name.
    ///
    /// # Errors
    /// `NoOperation`, `Overloaded`, `Draining`.
    pub async fn wait(&self, name: &str) -> Result<Listening, ExecError> {
        let found = self.ask(|reply| Request::Wait { name: name.to_owned(), reply }).await?;
        found.ok_or_else(|| ExecError::NoOperation(name.to_owned()))
    }

    /// Every operation that is live or remembered, by name.
    ///
    /// # Errors
    /// `Overloaded`, `Draining`.
    pub async fn list(&self) -> Result<Vec<OperationState>, ExecError> {
        self.ask(|reply| Request::List { reply }).await
    }

    /// Ends an operation. One that has ended stays as it is.
    ///
    /// # Errors
    /// `NoOperation`, `Overloaded`, `Draining`.
    pub async fn cancel(&self, name: &str) -> Result<(), ExecError> {
        let known = self.ask(|reply| Request::Cancel { name: name.to_owned(), reply }).await?;
        if known { Ok(()) } else { Err(ExecError::NoOperation(name.to_owned())) }
    }

    /// Requests that wait for the schedule, and how many may.
    #[must_use]
    pub fn inbox(&self) -> (usize, usize) {
        (self.requests.len(), REQUESTS_MAX)
    }

    /// What waits, runs and has passed, at this moment.
    ///
    /// # Errors
    /// `Overloaded`, `Draining`.
    pub async fn counts(&self) -> Result<Snapshot, ExecError> {
        self.ask(|reply| Request::Count { reply }).await
    }

    /// Says that time has passed; to be called about once a second.
    pub fn tick(&self) {
        // A full inbox loses it: the next one says the same.
        drop(self.requests.try_send(Request::Tick));
    }

    /// Ends what waits, takes nothing more, and returns once nothing runs.
    pub async fn drain(&self) {
        let (idle, all_ended) = oneshot::channel();
        if self.requests.send(Request::Drain { idle }).await.is_ok() {
            // An error means that the schedule is gone, and everything with it.
            drop(all_ended.await);
        }
    }

    /// Ends the schedule, and with it the workers.
    pub fn close(&self) {
        self.requests.close();
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, ExecError> {
        let (reply, answer) = oneshot::channel();
        self.requests.try_send(request(reply)).map_err(|refused| match refused {
            async_channel::TrySendError::Full(_) => ExecError::Overloaded,
            async_channel::TrySendError::Closed(_) => ExecError::Draining,
        })?;
        answer.await.map_err(|_| ExecError::Draining)
    }
}

/// What was started.
pub struct Started {
    /// The handle.
    pub executions: Executions,
    /// To be run on the control core.
    pub schedule: BoxFuture<'static, ()>,
    /// The threads.
    pub workers: Workers,
    /// Actions that peers are to execute; each has to be taken and ended.
    pub errands: async_channel::Receiver<Errand>,
}

/// Starts the workers.
///
/// # Errors
/// Where a thread can't be made.
pub fn start(config: ExecutionsConfig, cores: Cores, spawner: Spawner) -> io::Result<Started> {
    let (requests, inbox) = async_channel::bounded(REQUESTS_MAX);
    let (jobs, waiting) = crossbeam_channel::bounded::<Job>(config.slots);
    let clock = Clock::start();
    let workshop = Arc::new(Workshop {
        cores,
        limits: config.limits.clone(),
        spawner,
        sandbox: config.sandbox.clone(),
        directory: config.directory.clone(),
        node_id: config.node_id.clone(),
        clock,
    });
    let mut threads = Vec::with_capacity(config.slots);
    for slot in 0..config.slots {
        let (workshop, waiting) = (workshop.clone(), waiting.clone());
        let (requests, cpus) = (requests.clone(), config.cpus.clone());
        let work = move || {
            if let Err(error) = crate::cores::placement::bind_thread(&cpus) {
                tracing::warn!(%error, "a worker runs on any CPU");
            }
            for job in waiting {
                work_on(&workshop, slot, &job, &requests);
            }
        };
        threads.push(thread::Builder::new().name(format!("worker-{slot}")).spawn(work)?);
    }
    let (sender, errands) = async_channel::bounded(ERRANDS_MAX);
    let (publish, load) = watch::channel(Load { slots: config.slots, ..Load::default() });
    let executions = Executions {
        requests: requests.clone(),
        node_id: config.node_id.clone(),
        limits: Arc::new(config.limits.clone()),
        load,
    };
    let away = Away::new(sender, requests, publish);
    let schedule = Box::pin(Schedule::new(&config, jobs, away, clock).run(inbox));
    Ok(Started { executions, schedule, workers: Workers { threads }, errands })
}

/// One action; whatever happens, the schedule is told that it ended.
fn work_on(workshop: &Workshop, slot: usize, job: &Job, requests: &async_channel::Sender<Request>) {
    let run = job.run;
    let progress = |progress| {
        // A closed inbox means that the node is past caring.
        drop(requests.send_blocking(Request::Progress { run, progress }));
    };
    let outcome = Box::new(workshop.run(slot, job, &progress));
    drop(requests.send_blocking(Request::Finished { run, outcome }));
    workshop.clean_up(slot, job);
}

impl OperationState {
    pub(super) fn queued(name: OperationName, action: Digest, at: SystemTime) -> Self {
        Self {
            name,
            action,
            stage: Stage::Queued,
            times: Timestamps::queued(at),
            peer: None,
            outcome: None,
        }
    }
}

impl Held {
    /// Whether anybody holds a view of it.
    pub(super) fn listeners(&self) -> usize {
        self.state.receiver_count()
    }
}
