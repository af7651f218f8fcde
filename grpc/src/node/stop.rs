//! How a node ends: nothing new is taken, what runs ends within the grace, then everything that
//! was started is stopped, last first. A second signal ends it at once.

use super::cluster;
use crate::{front::SERVICES, transport::Connections};
use anyhow::bail;
use engine::{
    control::Membership,
    cores::{Cores, RunningCores},
    exec::{Executions, Workers},
};
use std::{
    process::ExitCode,
    rc::Rc,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tonic_health::{ServingStatus, server::HealthReporter};

/// How often it is looked whether the last connection has ended.
const LOOK: Duration = Duration::from_millis(20);
/// The code of a node that was ended by a second signal.
const ENDED_AT_ONCE: i32 = 130;

/// Everything that has to be told.
pub(super) struct Stop {
    /// Closes listeners and connections.
    pub(super) drain: watch::Sender<bool>,
    /// Says to whoever asks that no more should be sent here.
    pub(super) stopping: watch::Sender<bool>,
    pub(super) reporter: HealthReporter,
    pub(super) executions: Option<Executions>,
    pub(super) membership: Option<Rc<Membership>>,
    pub(super) connections: Connections,
    pub(super) cores: Cores,
}

impl Stop {
    /// Waits for the first signal and drains; whether that took no longer than `grace`.
    pub(super) async fn on_signal(self, mut signals: Signals, grace: Duration) -> bool {
        signals.next().await;
        tracing::info!(?grace, "draining");
        tokio::select! {
            held = self.all(grace) => held,
            () = signals.next() => {
                tracing::warn!("ended at once by a second signal");
                std::process::exit(ENDED_AT_ONCE);
            }
        }
    }

    async fn all(self, grace: Duration) -> bool {
        let until = tokio::time::Instant::now() + grace;
        for service in SERVICES.into_iter().chain([""]) {
            self.reporter.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.stopping.send_replace(true);
        if self.membership.is_none() {
            self.close();
        }
        let mut held = true;
        if let Some(executions) = &self.executions {
            held &= tokio::time::timeout_at(until, executions.drain()).await.is_ok();
            executions.close();
        }
        if let Some(membership) = &self.membership {
            // Until here peers have to find this node: they read the inputs of what it gave them,
            // and the outputs of what they gave it.
            cluster::leave(membership).await;
            self.close();
        }
        while self.connections.open() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(LOOK).await;
        }
        held &= self.connections.open() == 0;
        self.cores.close();
        held
    }

    /// Listeners close, and connections take no further streams.
    fn close(&self) {
        self.drain.send_replace(true);
        self.connections.close();
    }
}

/// The signals that end a node; from the moment this exists they end it in order.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// To be made within the control core's runtime, before clients can connect.
    pub(super) fn new() -> std::io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits until every worker has ended and every shard is closed; the exit code says whether the
/// grace period held. To be called when the control core has ended: workers end with its schedule.
pub(super) fn finish(
    held: bool,
    workers: Option<Workers>,
    running: RunningCores,
) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    // Past the grace an action may still run; it ends with this process.
    if held && let Some(workers) = workers {
        workers.join();
    }
    if let Err(faults) = running.join() {
        bail!("{faults} data core(s) ended by a fault");
    }
    tracing::info!(took = ?started.elapsed(), "shards closed");
    if held {
        return Ok(ExitCode::SUCCESS);
    }
    tracing::warn!("the grace period is over: what still ran was given up");
    Ok(ExitCode::FAILURE)
}
