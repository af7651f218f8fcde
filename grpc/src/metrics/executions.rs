//! The numbers of the schedule. One that is too busy to answer, or has ended, is shown as it was.
//! Must never wait for more than one answer's time.

use super::{
    ANSWER_WAIT, Collector,
    page::{Number, Page, counter, gauge},
};
use engine::exec::{Executions, ScheduleCounts};
use futures_util::future::LocalBoxFuture;
use std::cell::RefCell;
use tokio::time::timeout;

/// Of requests that wait for the schedule, and how many may.
const INBOX: [Number<(usize, usize)>; 2] = [
    (gauge("ringforge_executions_inbox", "Requests that wait for the schedule."), |inbox| {
        inbox.0 as f64
    }),
    (gauge("ringforge_executions_inbox_max", "Requests that may wait for it."), |inbox| {
        inbox.1 as f64
    }),
];

const NUMBERS: [Number<ScheduleCounts>; 14] = [
    (gauge("ringforge_executions_slots", "Actions that may run at the same time."), |all| {
        all.slots as f64
    }),
    (gauge("ringforge_executions_running", "Actions that have a slot."), |all| {
        all.executing as f64
    }),
    (gauge("ringforge_executions_queued", "Actions that wait for a slot."), |all| {
        all.queued as f64
    }),
    (gauge("ringforge_executions_queued_max", "Actions that may wait for a slot."), |all| {
        all.queue_max as f64
    }),
    (gauge("ringforge_executions_away", "Actions that run at peers."), |all| all.away as f64),
    (
        gauge(
            "ringforge_operations",
            "Operations that have not ended; several may share an action.",
        ),
        |all| all.operations as f64,
    ),
    (
        counter(
            "ringforge_operations_joined_total",
            "Operations that joined the run of another one with the same action.",
        ),
        |all| all.joined as f64,
    ),
    (gauge("ringforge_operations_kept", "Ended operations that can still be asked for."), |all| {
        all.kept as f64
    }),
    (gauge("ringforge_executions_draining", "1 where no further actions are taken."), |all| {
        f64::from(u8::from(all.draining))
    }),
    (
        counter("ringforge_offload_sent_total", "Actions given to peers, each time counted."),
        |all| all.offload.sent as f64,
    ),
    (
        counter(
            "ringforge_offload_taken_back_total",
            "Actions taken back from peers that failed, drained or were gone.",
        ),
        |all| all.offload.taken_back as f64,
    ),
    (counter("ringforge_offload_declined_total", "Actions for which a peer had no room."), |all| {
        all.offload.declined as f64
    }),
    (
        counter(
            "ringforge_offload_unreached_total",
            "Actions that a peer could not be told of, or that it takes none of from this node.",
        ),
        |all| all.offload.unreached as f64,
    ),
    (counter("ringforge_offload_received_total", "Operations accepted from peers."), |all| {
        all.offload.received as f64
    }),
];

/// The schedule, and its last answer.
pub(super) struct WatchedExecutions {
    executions: Executions,
    last: RefCell<Option<ScheduleCounts>>,
}

impl WatchedExecutions {
    pub(super) fn new(executions: Executions) -> Self {
        Self { executions, last: RefCell::new(None) }
    }

    async fn write(&self, page: &mut Page) {
        page.set_all(&INBOX, &self.executions.inbox(), &[]);
        let answer = timeout(ANSWER_WAIT, self.executions.counts()).await;
        let mut last = self.last.borrow_mut();
        if let Ok(Ok(counts)) = answer {
            *last = Some(counts);
        }
        if let Some(last) = &*last {
            page.set_all(&NUMBERS, last, &[]);
        }
    }
}

impl Collector for WatchedExecutions {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        Box::pin(self.write(page))
    }
}
