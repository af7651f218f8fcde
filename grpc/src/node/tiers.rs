//! The thread on which what lies below is asked, and what is made there at start. Must never be
//! waited for by a data core.

use crate::{
    backing,
    config::{BackingSettings, Config, Durability},
    metrics::WatchedTier,
    services::BackingRule,
};
use anyhow::Context;
use engine::{
    cores::{Cores, placement},
    limits::Limits,
    tier::{
        Backlog, BacklogConfig, Below, BreakerConfig, GuardConfig, Guarded, HedgeConfig,
        LocalBlobs, RetryConfig, Tier, TierConfig,
    },
};
use std::{
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{runtime, sync::oneshot};

/// Attempts at one call: the first, and two more after short pauses.
const ATTEMPTS_MAX: u32 = 3;
/// Bounds of the pause before a further attempt.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Further attempts, in percent of calls: an outage must not be answered with more load.
const RETRIES_PERCENT: u32 = 10;
/// Second questions, in percent of calls: what is slower than 95 of 100, and a little more.
const HEDGES_PERCENT: u32 = 5;
/// Either of the two that may come at once.
const BURST: u32 = 20;
/// When a second question may be sent at the earliest and at the latest.
const HEDGE_DELAY: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(2));
/// Answers that have to be known before one counts as slow.
const HEDGE_SAMPLES_MIN: usize = 50;
/// The part of recent calls whose failure opens the circuit, in percent, where not all fail.
const OUTAGES_PERCENT: u32 = 50;
/// Calls that have to be recent before that part means anything, and what is recent.
const WINDOW: (usize, Duration) = (20, Duration::from_secs(10));
/// Wrong answers, not outweighed by right ones, after which a tier counts as down.
const WRONG_MAX: u32 = 20;
/// How long the circuit may stay open after it opened again and again: with a probe, a tier that
/// is well again is used again within ten seconds.
const OPEN_FOR_MAX: Duration = Duration::from_secs(8);
/// How long a probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Writes of the backlog at the same time.
const BACKLOG_IN_FLIGHT_MAX: usize = 8;

/// The thread, and what is below.
pub(super) struct Tiers {
    runtime: runtime::Handle,
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    /// The cache below, where one is configured.
    pub(super) backing: Option<OpenBacking>,
}

/// A cache below that is in use.
pub(super) struct OpenBacking {
    pub(super) rule: BackingRule,
    pub(super) guard: Guarded,
}

impl Tiers {
    /// Starts the thread on `cpus`; the backlog lies in `directory`.
    ///
    /// # Errors
    /// What is wrong with the settings, or with the backlog on disk.
    pub(super) fn start(
        config: &Config,
        cores: &Cores,
        limits: &Limits,
        directory: &Path,
        cpus: &[usize],
    ) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let backing = match config.backing.url.as_str() {
            "" => None,
            _ => {
                let _inside = handle.enter();
                Some(open(config, cores, limits, directory).context("the cache below")?)
            }
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let cpus = cpus.to_vec();
        let thread = thread::Builder::new().name("tiers".to_owned()).spawn(move || {
            if let Err(error) = placement::bind_thread(&cpus) {
                tracing::warn!(%error, "the thread of tiers runs on any CPU");
            }
            // An error means that whoever stops it is gone.
            let _ = runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, thread, stop, backing })
    }

    /// Where tiers are asked.
    pub(super) const fn runtime(&self) -> &runtime::Handle {
        &self.runtime
    }

    /// What of them is watched.
    pub(super) fn watched(&self) -> Vec<WatchedTier> {
        let watch = |open: &OpenBacking| WatchedTier {
            name: open.guard.name().to_owned(),
            guard: open.guard.clone(),
            tier: open.rule.tier.clone(),
            backlog: Some(open.rule.backlog.clone()),
        };
        self.backing.iter().map(watch).collect()
    }

    /// Ends the thread: what is still asked is given up, what is owed stays on disk.
    pub(super) fn stop(self) {
        // The thread may have ended by a fault, which is reported where it happened.
        let _ = self.stop.send(());
        if self.thread.join().is_err() {
            tracing::error!("the thread of tiers ended by a panic");
        }
    }
}

/// Opens the cache below; within the runtime of tiers.
fn open(
    config: &Config,
    cores: &Cores,
    limits: &Limits,
    directory: &Path,
) -> anyhow::Result<OpenBacking> {
    let settings = &config.backing;
    let guard = Guarded::new(backing::open(settings)?, guard_config(settings));
    let below: Arc<dyn Below> = Arc::new(guard.clone());
    let (tier, serve) = Tier::new(below.clone(), cores.clone(), tier_config(settings, limits));
    tokio::spawn(serve);
    let backlog = BacklogConfig {
        items_max: settings.backlog_max,
        sync: config.store.durability == Durability::Sync,
        in_flight_max: BACKLOG_IN_FLIGHT_MAX,
    };
    let (backlog, drain) = Backlog::open(directory, backlog).context("the backlog")?;
    let local = LocalBlobs::new(cores.clone(), limits.into(), tier.clone());
    tokio::spawn(drain.run(below, Arc::new(local)));
    let by_instance = settings.write_by_instance.iter().cloned().collect();
    let rule = BackingRule {
        tier,
        backlog,
        mode: settings.write,
        mode_by_instance: Arc::new(by_instance),
    };
    Ok(OpenBacking { rule, guard })
}

/// What a tier that is used as these settings say is told.
fn tier_config(settings: &BackingSettings, limits: &Limits) -> TierConfig {
    TierConfig {
        jobs_max: settings.waiting_max,
        absent_kept: settings.absent_kept,
        blob_bytes_max: limits.blob_bytes_max,
    }
}

/// What a peer's blobs as a tier are told: a peer may have at any moment what it had not.
pub(super) fn peer_tier_config(settings: &BackingSettings, limits: &Limits) -> TierConfig {
    TierConfig { absent_kept: Duration::ZERO, ..tier_config(settings, limits) }
}

/// How a tier is guarded.
pub(super) fn guard_config(settings: &BackingSettings) -> GuardConfig {
    let (backoff_first, backoff_max) = BACKOFF;
    let (delay_min, delay_max) = HEDGE_DELAY;
    let (window_calls_min, window) = WINDOW;
    GuardConfig {
        seed: uuid::Uuid::new_v4().as_u64_pair().0,
        timeout: settings.timeout,
        idle_timeout: settings.idle_timeout,
        concurrency_max: settings.concurrency_max,
        waiting_max: settings.waiting_max,
        breaker: BreakerConfig {
            outages_max: settings.failures_max,
            outages_percent: OUTAGES_PERCENT,
            window_calls_min,
            window,
            wrong_max: WRONG_MAX,
            open_for: settings.open_for,
            open_for_max: OPEN_FOR_MAX,
            probe_timeout: PROBE_TIMEOUT,
        },
        retry: RetryConfig {
            attempts_max: ATTEMPTS_MAX,
            backoff_first,
            backoff_max,
            calls_percent: RETRIES_PERCENT,
            burst: BURST,
        },
        hedge: HedgeConfig {
            samples_min: HEDGE_SAMPLES_MIN,
            delay_min,
            delay_max,
            calls_percent: if settings.hedge { HEDGES_PERCENT } else { 0 },
            burst: if settings.hedge { BURST } else { 0 },
        },
    }
}
