//! What the other server can do (GetCapabilities), asked once and again when it was lost. Must
//! never keep anybody from asking for a blob.

use super::{RECEIVED_BYTES_MAX, Remote, SHA256};
use engine::tier::{BelowError, BelowResult};
use proto::reapi::{
    GetCapabilitiesRequest, ServerCapabilities, capabilities_client::CapabilitiesClient, compressor,
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Bytes of blobs in one message, where the server sets no bound: a message of 4 MiB with room
/// for the names of the blobs.
const BATCH_BYTES_MAX: u64 = (4 << 20) - (64 << 10);
/// A server that did not answer is not asked again sooner.
const ASK_PAUSE: Duration = Duration::from_secs(5);
/// Which part of a call's deadline is spent on asking first what the server can do.
const ASK_SHARE: u32 = 4;

/// What is used of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    /// Bytes of blobs that one batch may have.
    pub(super) batch_bytes_max: u64,
    /// Whether blobs may travel as zstd.
    pub(super) zstd: bool,
}

/// What every server can do.
const LEAST: Offer = Offer { batch_bytes_max: BATCH_BYTES_MAX, zstd: false };

/// The last offer heard.
#[derive(Debug, Default)]
pub(super) struct Offers {
    last: Mutex<Last>,
    /// Held by whoever asks, so that the others wait for that answer.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Last {
    offer: Option<Offer>,
    failed: Option<Instant>,
}

impl Offers {
    fn lock(&self) -> MutexGuard<'_, Last> {
        // Nothing panics while it is held; a half-made value could not exist anyway.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, or else what every server can do.
    pub(super) fn last(&self) -> Offer {
        self.lock().offer.unwrap_or(LEAST)
    }

    /// What is known well enough not to ask.
    fn known(&self) -> Option<Offer> {
        let last = self.lock();
        let failed_lately = last.failed.is_some_and(|at| at.elapsed() < ASK_PAUSE);
        last.offer.or(failed_lately.then_some(LEAST))
    }

    /// After a broken connection, another server may stand there.
    pub(super) fn heard(&self, error: BelowError) -> BelowError {
        if matches!(error, BelowError::Unreachable(_)) {
            self.lock().offer = None;
        }
        error
    }
}

impl Remote {
    /// What the server can do, as far as can be known.
    pub(super) async fn offer(&self) -> Offer {
        if let Some(offer) = self.offers.known() {
            return offer;
        }
        let _asking = self.offers.asking.lock().await;
        if let Some(offer) = self.offers.known() {
            return offer;
        }
        // A part of what a read may take: it still has to come to its own question.
        let patience = self.settings.call_deadline / ASK_SHARE;
        if let Ok(asked) = timeout(patience, self.ask_offer()).await {
            return asked.unwrap_or(LEAST);
        }
        self.offers.lock().failed = Some(Instant::now());
        LEAST
    }

    /// Asks anew.
    ///
    /// # Errors
    /// [`BelowError::Refused`] where it has nothing that could be used here.
    pub(super) async fn ask_offer(&self) -> BelowResult<Offer> {
        let request = GetCapabilitiesRequest { instance_name: self.settings.instance.clone() };
        let mut client = CapabilitiesClient::new(self.calls.clone())
            .max_decoding_message_size(RECEIVED_BYTES_MAX);
        let answer = self.answer(client.get_capabilities(self.request(request))).await;
        let offer = answer.and_then(|capabilities| offer_in(&capabilities));
        let mut last = self.offers.lock();
        match &offer {
            Ok(offer) => *last = Last { offer: Some(*offer), failed: None },
            Err(_) => last.failed = Some(Instant::now()),
        }
        offer
    }
}

fn offer_in(capabilities: &ServerCapabilities) -> BelowResult<Offer> {
    let Some(cache) = &capabilities.cache_capabilities else {
        return Err(BelowError::Refused("it has no cache".to_owned()));
    };
    let functions = &cache.digest_functions;
    // None named: it is older than that list, and speaks SHA-256 alone.
    if !functions.is_empty() && !functions.contains(&SHA256) {
        return Err(BelowError::Refused("it does not serve SHA-256".to_owned()));
    }
    let batch_bytes_max = match u64::try_from(cache.max_batch_total_size_bytes) {
        Ok(0) | Err(_) => BATCH_BYTES_MAX,
        Ok(bytes) => bytes.min(BATCH_BYTES_MAX),
    };
    let zstd = cache.supported_compressors.contains(&(compressor::Value::Zstd as i32));
    Ok(Offer { batch_bytes_max, zstd })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::reapi::CacheCapabilities;

    #[test]
    fn an_offer_is_what_both_can_do() {
        let offer = |batch_bytes_max, zstd| Some(Offer { batch_bytes_max, zstd });
        for (functions, bytes, compressors, expect) in [
            (vec![], 0, vec![], offer(BATCH_BYTES_MAX, false)),
            (vec![SHA256], 1000, vec![0, 1], offer(1000, true)),
            (vec![9, SHA256], i64::MAX, vec![2], offer(BATCH_BYTES_MAX, false)),
            (vec![SHA256], -1, vec![], offer(BATCH_BYTES_MAX, false)),
            (vec![9], 0, vec![], None),
        ] {
            let cache = CacheCapabilities {
                digest_functions: functions,
                max_batch_total_size_bytes: bytes,
                supported_compressors: compressors,
                ..Default::default()
            };
            let capabilities =
                ServerCapabilities { cache_capabilities: Some(cache), ..Default::default() };
            assert_eq!(offer_in(&capabilities).ok(), expect);
        }
        assert!(matches!(offer_in(&ServerCapabilities::default()), Err(BelowError::Refused(_))));
    }
}
