//! Reading what may be damaged: every home of a blob is hashed once after a start, and one that
//! proves bad is taken from the index and from the disk. Must never take a blob away on another's
//! word, nor because a descriptor or the memory ran out.

use super::{
    Shard,
    index::{Place, on_disk},
};
use crate::{
    blob::{BlobError, Home, Result},
    digest::{Digest, HASH_BYTES, Hasher},
    limits::IO_BYTES,
};
use bytes::Bytes;
use std::{fs::File, io, sync::Arc};

impl Shard {
    /// Somebody read every byte of a home.
    pub(crate) async fn checked(&self, digest: Digest, home: Home, good: bool) {
        if good {
            if let Some(entry) = self.index.borrow_mut().get_mut(&digest) {
                entry.set_verified(home);
            }
            return;
        }
        // The report may be late, and the blob a better one by now: seen again, by its owner.
        if let Err(error) = self.verify_file(&digest, home).await {
            tracing::debug!(%digest, %error, "a blob that was reported as damaged");
        }
    }

    /// The bytes of a record; checked where they were not since the start.
    pub(super) async fn read_small(
        &self,
        digest: &Digest,
        place: Place,
        verified: bool,
    ) -> Result<Bytes> {
        let gone = || BlobError::NotFound(*digest);
        let Some(file) = self.segments.reader(place.segment) else {
            self.lose_record(digest, place);
            return Err(gone());
        };
        let length = usize::try_from(digest.size()).map_err(|_| gone())?;
        let bytes = match self.env.disk.read(&file, u64::from(place.offset), length).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                self.lose_record(digest, place);
                return Err(gone());
            }
            Err(error) => return Err(error.into()),
        };
        if verified {
            return Ok(bytes);
        }
        if Digest::of(&bytes) != *digest {
            self.lose_record(digest, place);
            return Err(gone());
        }
        let mut index = self.index.borrow_mut();
        if let Some(entry) = index.get_mut(digest).filter(|entry| entry.place() == Some(place)) {
            entry.set_verified(Home::Segment);
        }
        Ok(bytes)
    }

    /// The file of a home, if it is there and of the right length.
    pub(super) async fn open_home(&self, digest: &Digest, home: Home) -> Result<Arc<File>> {
        let path = self.config.layout.blob(digest, home == Home::Executable);
        let file = match self.env.disk.open(path).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lose(digest, home);
                return Err(BlobError::NotFound(*digest));
            }
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.len() == digest.size() {
            return Ok(file);
        }
        self.quarantine(digest, home, &file).await;
        Err(BlobError::NotFound(*digest))
    }

    /// Hashes the file of a home; one that is bad is gone when this returns.
    pub(super) async fn verify_file(&self, digest: &Digest, home: Home) -> Result<()> {
        if home == Home::Segment {
            return Ok(());
        }
        let file = self.open_home(digest, home).await?;
        let pause = async |_| futures_lite::future::yield_now().await;
        if !self.holds(&file, digest, pause).await? {
            self.quarantine(digest, home, &file).await;
            return Err(BlobError::NotFound(*digest));
        }
        if let Some(entry) = self.index.borrow_mut().get_mut(digest) {
            entry.set_verified(home);
        }
        Ok(())
    }

    /// Whether a file holds a blob; `pause` is called with the length of each piece that was read.
    pub(super) async fn holds(
        &self,
        file: &Arc<File>,
        digest: &Digest,
        mut pause: impl AsyncFnMut(usize),
    ) -> Result<bool> {
        let mut hasher = Hasher::new(digest.function());
        while hasher.size() < digest.size() {
            let rest = usize::try_from(digest.size() - hasher.size()).unwrap_or(usize::MAX);
            let length = rest.min(IO_BYTES);
            match self.env.disk.read(file, hasher.size(), length).await {
                Ok(bytes) => hasher.update(&bytes),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error.into()),
            }
            pause(length).await;
        }
        Ok(hasher.finish() == *digest)
    }

    /// Takes a bad file from the index, and its name from the disk, so that a later start does not
    /// take it for a blob again.
    async fn quarantine(&self, digest: &Digest, home: Home, bad: &Arc<File>) {
        self.lose(digest, home);
        let path = self.config.layout.blob(digest, home == Home::Executable);
        if let Err(error) = self.env.disk.remove_if_same(bad.clone(), path).await {
            tracing::error!(%digest, %error, "a damaged blob could not be removed");
        }
    }

    /// Forgets a result whose record there is damaged.
    pub(super) fn lose_result(&self, key: &[u8; HASH_BYTES], place: Place) {
        tracing::error!(segment = place.segment, "a result's record is damaged");
        let mut actions = self.actions.borrow_mut();
        if actions.get_mut(key).is_some_and(|now| now.place == place) {
            actions.remove(key);
        }
    }

    pub(super) fn lose_record(&self, digest: &Digest, place: Place) {
        let is_same = |entry: &mut super::index::Entry| entry.place() == Some(place);
        if self.index.borrow_mut().get_mut(digest).is_some_and(is_same) {
            self.lose(digest, Home::Segment);
        }
    }

    fn lose(&self, digest: &Digest, home: Home) {
        if !self.index.borrow_mut().get_mut(digest).is_some_and(|entry| entry.has(home)) {
            return;
        }
        // First: whoever asks in between must not find a result complete that is not.
        self.losses.add();
        tracing::error!(%digest, ?home, "a stored blob is damaged there");
        if home != Home::Segment {
            self.space.sub_file(on_disk(digest.size()));
        }
        if self.index.borrow_mut().lose(digest, home) {
            tracing::error!(%digest, "the blob counts as absent");
        }
    }
}
