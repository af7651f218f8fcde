//! One call on its way: let in, asked, perhaps asked twice at once, perhaps asked again.
//! Must never decide: the ledger says whether and when, this only waits and does.

use super::{
    entry::{Door, Entry, Over},
    ledger::Question,
};
use crate::tier::{Below, BelowError, BelowResult};
use futures_util::future::{BoxFuture, Either, select};
use std::{future::Future, pin::pin, sync::Arc};
use tokio::time::{Instant, sleep};

/// What came back, and the right under which it was asked: streams hold on to it.
pub(super) type Answer<T> = (T, Entry);

/// Why an attempt failed, and whether the tier itself was asked.
struct Failure {
    error: BelowError,
    asked: bool,
}

impl Door {
    /// Asks until there is an answer or no further attempt is allowed. `ask` may be called any
    /// number of times: whatever it asks must be harmless when asked twice.
    pub(super) async fn call<'a, T: Send>(
        self: &'a Arc<Self>,
        question: Question,
        ask: impl Fn(&'a dyn Below) -> BoxFuture<'a, BelowResult<T>> + Send + Sync,
    ) -> BelowResult<Answer<T>> {
        self.ledger().called();
        let deadline = Instant::now() + self.config.timeout;
        let mut attempts = 0;
        let mut last = None;
        loop {
            let failure = match self.attempt(question, deadline, &ask).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            if !failure.asked {
                // What the tier itself said tells more than that it is left alone since.
                return Err(last.unwrap_or(failure.error));
            }
            attempts += 1;
            let left = deadline.saturating_duration_since(Instant::now());
            let pause = self.ledger().retry(&failure.error, attempts, left);
            let Some(pause) = pause else {
                return Err(failure.error);
            };
            last = Some(failure.error);
            sleep(pause).await;
        }
    }

    async fn attempt<'a, T: Send>(
        self: &'a Arc<Self>,
        question: Question,
        deadline: Instant,
        ask: &(impl Fn(&'a dyn Below) -> BoxFuture<'a, BelowResult<T>> + Send + Sync),
    ) -> Result<Answer<T>, Failure> {
        let entered = self.enter(question, deadline).await;
        let entry = entered.map_err(|error| Failure { error, asked: false })?;
        let below = &*self.below;
        let first = perform(entry, ask(below), self.over(deadline));
        let again = || {
            let entry = self.enter_again(question)?;
            Some(perform(entry, ask(below), self.over(deadline)))
        };
        let hedge_after = self.ledger().hedge_after(question);
        let answer = match hedge_after {
            None => first.await,
            Some(delay) => {
                let (answer, won) = hedged(first, sleep(delay), again).await;
                if won {
                    self.ledger().hedge_won();
                }
                answer
            }
        };
        answer.map_err(|error| Failure { error, asked: true })
    }
}

/// Asks once, until the answer or until `limit` says that it is over.
pub(super) async fn perform<T>(
    mut entry: Entry,
    asking: impl Future<Output = BelowResult<T>>,
    limit: impl Future<Output = Over>,
) -> BelowResult<Answer<T>> {
    let answer = {
        match select(pin!(asking), pin!(limit)).await {
            Either::Left((answer, _)) => Ok(answer),
            Either::Right((over, _)) => Err(over),
        }
    };
    match answer {
        Err(over) => Err(entry.timed_out(over)),
        Ok(Ok(answer)) => {
            entry.first_answer();
            Ok((answer, entry))
        }
        Ok(Err(error)) => {
            if matches!(error, BelowError::Absent) {
                entry.first_answer();
            }
            entry.failed(&error);
            Err(error)
        }
    }
}

/// Waits for the first; once `late` is over, asks a second time where that is allowed, and takes
/// whichever good answer comes first. Says whether that was the second's.
async fn hedged<T, A, S>(
    first: A,
    late: impl Future<Output = ()>,
    again: impl FnOnce() -> Option<S>,
) -> (BelowResult<T>, bool)
where
    A: Future<Output = BelowResult<T>>,
    S: Future<Output = BelowResult<T>>,
{
    let mut first = pin!(first);
    if let Either::Left((answer, _)) = select(first.as_mut(), pin!(late)).await {
        return (answer, false);
    }
    let Some(second) = again() else {
        return (first.await, false);
    };
    let mut second = pin!(second);
    match select(first.as_mut(), second.as_mut()).await {
        Either::Left((answer, _)) if settles(&answer) => (answer, false),
        Either::Right((answer, _)) if settles(&answer) => (answer, true),
        Either::Left((failed, second)) => match second.await {
            answer if settles(&answer) => (answer, true),
            _ => (failed, false),
        },
        Either::Right((_, first)) => (first.await, false),
    }
}

/// Whether nothing better is to be hoped for from the other question.
const fn settles<T>(answer: &BelowResult<T>) -> bool {
    match answer {
        Ok(_) => true,
        Err(error) => !error.is_outage() && !matches!(error, BelowError::Wrong(_)),
    }
}
