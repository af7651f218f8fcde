//! Certificates that are read again while the node runs: when a file has changed, and when somebody
//! says so by SIGHUP. Must never put anything in place of what works that does not load.

use super::{
    Loaded,
    files::{BadTls, Sources, Stamp, shown},
};
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{signal::unix::Signal, sync::watch, time::MissedTickBehavior};

/// How often the files are looked at. They are read once they look the same twice, because a
/// certificate and its key are two files that nobody writes at once.
const LOOK: Duration = Duration::from_secs(1);
/// How long before its end a certificate is worth a warning, and how often.
const ENDS_SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);
const WARN_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is read again.
pub(crate) struct Renewal {
    sources: Sources,
    watched: Watched,
    current: watch::Sender<Arc<Loaded>>,
    warned: Option<SystemTime>,
}

/// Which look of the files was taken, and which one has to be seen once more.
struct Watched {
    taken: Stamp,
    seen: Option<Stamp>,
}

impl Watched {
    /// Whether the files are to be read: they have changed, and are left alone since.
    fn look(&mut self, now: Stamp) -> bool {
        if now == self.taken {
            self.seen = None;
            return false;
        }
        if self.seen.as_ref() != Some(&now) {
            self.seen = Some(now);
            return false;
        }
        self.seen = None;
        self.taken = now;
        true
    }
}

impl Renewal {
    pub(super) fn new(sources: Sources, taken: Stamp, current: watch::Sender<Arc<Loaded>>) -> Self {
        let watched = Watched { taken, seen: None };
        Self { sources, watched, current, warned: None }
    }

    /// Reads again as long as it is polled. On the control core: files of certificates are small.
    pub(crate) async fn run(mut self, mut hangups: Signal) {
        let mut interval = tokio::time::interval(LOOK);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = tokio::select! {
                _ = hangups.recv() => {
                    self.watched = Watched { taken: self.sources.stamp(), seen: None };
                    true
                }
                _ = interval.tick() => self.watched.look(self.sources.stamp()),
            };
            if now {
                self.read(SystemTime::now());
            }
            self.warn(SystemTime::now());
        }
    }

    /// Reads the files, and says what came of it.
    pub(super) fn read(&mut self, now: SystemTime) {
        match self.renewed(now) {
            Ok(ends) => tracing::info!(ends = shown(ends), "certificates were read again"),
            Err(error) => {
                tracing::error!(%error, "certificates are as they were: new ones are of no use");
            }
        }
    }

    fn renewed(&mut self, now: SystemTime) -> Result<SystemTime, BadTls> {
        let loaded = self.sources.load(now)?;
        let ends = loaded.ends;
        self.warned = None;
        self.current.send_replace(Arc::new(loaded));
        Ok(ends)
    }

    /// Says once a day that the certificate ends soon, or has.
    fn warn(&mut self, now: SystemTime) {
        let ends = self.current.borrow().ends;
        let since = |then: SystemTime| now.duration_since(then).unwrap_or_default();
        let left = ends.duration_since(now).unwrap_or_default();
        if left > ENDS_SOON || self.warned.is_some_and(|warned| since(warned) < WARN_EVERY) {
            return;
        }
        self.warned = Some(now);
        tracing::warn!(ends = shown(ends), "this node's certificate ends soon: renew it");
    }
}

/// SIGHUP where there are no certificates: it must not end the node, and there is nothing to read.
pub(crate) async fn ignore(mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        tracing::info!("SIGHUP: there are no certificates to read again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ClientAuth, TlsSettings};

    /// That of a file with this text.
    fn stamp(text: &str) -> Stamp {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, text).unwrap();
        let client_auth = ClientAuth::None;
        let (certificate, key) = (file.clone(), file);
        let settings =
            TlsSettings { certificate, key, client_ca: None, client_auth, node_ca: None };
        Sources::new(&settings).stamp()
    }

    #[test]
    fn files_are_read_once_they_are_left_alone() {
        let [first, second, third] = ["", "two", "three"].map(stamp);
        let mut watched = Watched { taken: first.clone(), seen: None };
        for (now, expect) in [
            (&first, false),
            // Changed, and changed again before it was left alone.
            (&second, false),
            (&third, false),
            (&third, true),
            (&third, false),
            // Written and put back.
            (&first, false),
            (&third, false),
            (&first, false),
            (&first, true),
            (&first, false),
        ] {
            assert_eq!(watched.look(now.clone()), expect, "{now:?}");
        }
    }
}
