//! Starting and stopping data cores. Must never leave a core half alive: a core whose thread ends
//! by a panic ends the process.

use super::{
    handle::{Cores, Inbox},
    pump::Pump,
};
use crate::{
    blob::stack,
    env::Env,
    limits::Limits,
    shard::{Recovered, Shard, StoreConfig},
};
use futures_util::future::{LocalBoxFuture, join, select};
use glommio::{
    ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, PoolPlacement, Shares,
};
use std::{pin::pin, rc::Rc, sync::Arc, time::Duration};

/// Locked memory that one executor registers for its rings, in bytes.
const RING_MEMORY_BYTES: usize = 512 * 1024;
/// Operations that one executor's ring holds.
const RING_DEPTH: usize = 256;
/// Threads of one executor that may wait for the disk: a sync that takes long must not hold up
/// those who only want a file opened.
const BLOCKING_THREADS: usize = 4;
/// How late a core may notice that another thread woke it, while it is busy.
const WAKE_LATENCY: Duration = Duration::from_millis(1);

/// What the part in front of a core's store is given.
#[derive(Clone)]
pub struct CoreContext {
    /// Which core this is.
    pub id: u16,
    /// All shards.
    pub cores: Cores,
    /// This core's view of the world.
    pub env: Rc<Env>,
}

/// What runs on each core beside its store: the connections. It ends when the node drains.
pub type Front = Arc<dyn Fn(CoreContext) -> LocalBoxFuture<'static, ()> + Send + Sync>;

/// Why the cores did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An executor could not be made: io_uring, locked memory, a CPU.
    #[error("data core {core} on CPU {cpu}: {cause}")]
    Executor {
        /// Which core.
        core: usize,
        /// On which CPU.
        cpu: usize,
        /// What glommio says.
        cause: String,
    },
    /// The store could not be opened.
    #[error("store: {0}")]
    Store(#[from] std::io::Error),
}

/// Data cores that run.
pub struct RunningCores {
    threads: Vec<ExecutorJoinHandle<()>>,
}

impl RunningCores {
    /// Waits until each core's front has ended and its inbox, once closed, is empty.
    ///
    /// # Errors
    /// The number of cores that ended by a fault.
    pub fn join(self) -> Result<(), usize> {
        let ended = self.threads.into_iter().map(ExecutorJoinHandle::join);
        match ended.filter(Result::is_err).count() {
            0 => Ok(()),
            faults => Err(faults),
        }
    }
}

/// Cores that do not run yet: what asks them is made before what answers.
pub struct WaitingCores {
    cores: Cores,
    inboxes: Vec<Inbox>,
}

impl WaitingCores {
    /// The handle to all of them.
    #[must_use]
    pub fn handle(&self) -> Cores {
        self.cores.clone()
    }
}

/// The handle to `shards` cores that are to be started.
#[must_use]
pub fn prepare(shards: u16, inbox_len_max: usize) -> WaitingCores {
    let (cores, inboxes) = Cores::new(shards, inbox_len_max);
    WaitingCores { cores, inboxes }
}

/// Starts a core for each recovered shard, in turn on `cpus`; there are as many of them as
/// waiting cores.
///
/// # Errors
/// [`StartError`]; cores that had started end with their handle.
#[expect(clippy::too_many_arguments, reason = "each is owned by somebody else")]
pub fn start(
    waiting: WaitingCores,
    cpus: &[usize],
    config: &StoreConfig,
    limits: &Limits,
    recovered: Vec<Recovered>,
    front: &Front,
) -> Result<RunningCores, StartError> {
    let WaitingCores { cores, inboxes } = waiting;
    let mut threads = Vec::new();
    for (id, (recovered, inbox)) in recovered.into_iter().zip(inboxes).enumerate() {
        let cpu = cpus[id % cpus.len()];
        let core = OneCore {
            id: u16::try_from(id).expect("fewer than a u16 of shards"),
            cores: cores.clone(),
            config: config.clone(),
            limits: limits.clone(),
            recovered,
            inbox,
            front: front.clone(),
        };
        let thread = LocalExecutorBuilder::new(Placement::Fixed(cpu))
            .name(&format!("core-{id}"))
            .io_memory(RING_MEMORY_BYTES)
            .ring_depth(RING_DEPTH)
            .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
            .spawn(move || core.run())
            .map_err(|cause| StartError::Executor { core: id, cpu, cause: cause.to_string() })?;
        threads.push(thread);
    }
    Ok(RunningCores { threads })
}

/// All that crosses into a core's thread when it starts.
struct OneCore {
    id: u16,
    cores: Cores,
    config: StoreConfig,
    limits: Limits,
    recovered: Recovered,
    inbox: Inbox,
    front: Front,
}

impl OneCore {
    async fn run(self) {
        let env = Env::real();
        let shard =
            Shard::open(env.clone(), self.config, self.recovered, self.inbox.losses.clone());
        let context = CoreContext { id: self.id, cores: self.cores, env: env.clone() };
        let pump = Pump {
            store: stack(shard.clone()),
            shard: shard.clone(),
            env: env.clone(),
            limits: self.limits,
            uploads: Default::default(),
        };
        // Foreign threads wake this queue: without a latency goal a busy executor would notice
        // only at its preemption timer, 100 ms later.
        let queue = glommio::executor().create_task_queue(
            Shares::default(),
            Latency::Matters(WAKE_LATENCY),
            "core",
        );
        let front = (self.front)(context);
        let served = glommio::spawn_local_into(
            async move {
                let store = async {
                    let upkeep = pin!(join(pump.sync_epochs(), pump.shard.tend()));
                    select(pin!(pump.run(self.inbox)), upkeep).await;
                };
                select(pin!(join(front, store)), pin!(env.alarms.beat())).await;
            },
            queue,
        );
        served.expect("the queue was made on this executor").await;
        shard.close().await;
    }
}
