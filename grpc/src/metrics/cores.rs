//! The numbers of data cores and of what they keep. A core that is too busy to answer is shown as
//! it was. Must never wait for more than one answer's time.

use super::{
    ANSWER_WAIT, Collector,
    page::{Family, Number, Page, counter, gauge},
};
use engine::cores::{CoreCounts, Cores, InboxCounts};
use futures_util::future::{LocalBoxFuture, join_all};
use std::cell::RefCell;
use tokio::time::timeout;

const INBOX: [Number<InboxCounts>; 3] = [
    (gauge("ringforge_core_inbox", "Requests that wait for the data core."), |inbox| {
        inbox.len as f64
    }),
    (gauge("ringforge_core_inbox_max", "Requests that may wait for the data core."), |inbox| {
        inbox.len_max as f64
    }),
    (
        counter(
            "ringforge_core_losses_total",
            "Blobs that the data core lost: damaged, or evicted although they were promised.",
        ),
        |inbox| inbox.losses as f64,
    ),
];

const CORE: [Number<CoreCounts>; 10] = [
    (gauge("ringforge_core_in_flight", "Requests that the data core serves."), |core| {
        core.in_flight as f64
    }),
    (gauge("ringforge_core_uploads", "Blobs that come to the data core in parts."), |core| {
        core.uploads as f64
    }),
    (gauge("ringforge_core_blobs", "Blobs that the data core keeps."), |core| {
        core.holdings.blobs as f64
    }),
    (gauge("ringforge_core_results", "Results of actions that the data core keeps."), |core| {
        core.holdings.results as f64
    }),
    (gauge("ringforge_core_segments", "Segments that the data core reads from."), |core| {
        core.holdings.segments as f64
    }),
    (counter("ringforge_store_evicted_blobs_total", "Blobs that went to make room."), |core| {
        core.holdings.evictions.blobs as f64
    }),
    (counter("ringforge_store_evicted_results_total", "Results that went to make room."), |core| {
        core.holdings.evictions.results as f64
    }),
    (
        counter("ringforge_store_evicted_bytes_total", "Bytes on disk that eviction freed."),
        |core| core.holdings.evictions.bytes as f64,
    ),
    (
        counter(
            "ringforge_store_carried_bytes_total",
            "Bytes of records copied to another segment so that theirs could go.",
        ),
        |core| core.holdings.evictions.carried_bytes as f64,
    ),
    (
        counter(
            "ringforge_store_promises_broken_total",
            "Blobs that went although a client had been promised them: the store is too small.",
        ),
        |core| core.holdings.evictions.promises_broken as f64,
    ),
];

const ANSWERING: Family = gauge(
    "ringforge_core_answering",
    "1 where the data core answered in time; 0 where its numbers are those of its last answer.",
);
const USED: Family =
    gauge("ringforge_store_used_bytes", "What blobs and results take on disk, all cores together.");

/// All cores, and their last answers.
pub(super) struct WatchedCores {
    cores: Cores,
    last: RefCell<Vec<CoreCounts>>,
}

impl WatchedCores {
    pub(super) fn new(cores: Cores) -> Self {
        let last = vec![CoreCounts::default(); usize::from(cores.shards())];
        Self { cores, last: RefCell::new(last) }
    }

    async fn write(&self, page: &mut Page) {
        let ask = |core| timeout(ANSWER_WAIT, self.cores.counts(core));
        let answers = join_all((0..self.cores.shards()).map(ask)).await;
        let mut last = self.last.borrow_mut();
        for (core, (answer, last)) in (0..).zip(answers.into_iter().zip(last.iter_mut())) {
            let answering = matches!(answer, Ok(Ok(_)));
            if let Ok(Ok(counts)) = answer {
                *last = counts;
            }
            let name = core.to_string();
            let labels = [("core", name.as_str())];
            page.set(&ANSWERING, &labels, f64::from(u8::from(answering)));
            page.set_all(&CORE, last, &labels);
            page.set_all(&INBOX, &self.cores.inbox(core).unwrap_or_default(), &labels);
        }
        // The same for all; one that did not answer knows less.
        let used = last.iter().map(|core| core.holdings.used_bytes).max();
        page.set(&USED, &[], used.unwrap_or_default() as f64);
    }
}

impl Collector for WatchedCores {
    fn collect<'a>(&'a self, page: &'a mut Page) -> LocalBoxFuture<'a, ()> {
        Box::pin(self.write(page))
    }
}
