//! Numbers for Prometheus: what is counted on the way, what is asked of the node's parts, and the
//! page on which both stand. Must never make what it counts wait: a part that does not answer in
//! time is shown as it was.
//!
//! `docs/metrics.md` names every series; a test from outside compares the two.

mod calls;
mod cluster;
mod connections;
mod cores;
mod executions;
mod methods;
mod page;
mod process;
mod serve;
mod tiers;

pub(crate) use self::{
    calls::{Call, Calls, CoreCalls, MeasuredBody},
    page::Page,
    serve::serve,
    tiers::WatchedTier,
};

use crate::{peer::Peering, transport::Connections};
use engine::{cores::Cores, exec::Executions};
use futures_util::future::LocalBoxFuture;
use std::{sync::Arc, time::Duration};

/// How long one part of the node is waited for when it is asked; then its last answer is shown.
const ANSWER_WAIT: Duration = Duration::from_millis(500);

/// A part of the node whose numbers are shown.
pub(crate) trait Collector {
    /// Puts its numbers of this moment on the page. Ends soon, whatever the part does.
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()>;
}

/// The parts of a node that every node has, or may have one of.
pub(crate) struct Watched {
    pub(crate) cores: Cores,
    pub(crate) executions: Option<Executions>,
    pub(crate) connections: Connections,
    pub(crate) calls: Calls,
    pub(crate) tiers: Vec<WatchedTier>,
    pub(crate) peering: Option<Arc<Peering>>,
}

impl Watched {
    /// Their collectors. Who has further parts adds their collectors to the list.
    pub(crate) fn collectors(self) -> Vec<Box<dyn Collector>> {
        let mut collectors: Vec<Box<dyn Collector>> = vec![
            Box::new(process::Process::started_now()),
            Box::new(self.connections),
            Box::new(self.calls),
            Box::new(cores::WatchedCores::new(self.cores)),
        ];
        if let Some(executions) = self.executions {
            collectors.push(Box::new(executions::WatchedExecutions::new(executions)));
        }
        if let Some(peering) = self.peering {
            collectors.push(Box::new(cluster::WatchedCluster(peering)));
        }
        for tier in self.tiers {
            collectors.push(Box::new(tier));
        }
        collectors
    }
}
