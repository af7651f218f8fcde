//! Who makes and who removes a blob's names on disk. Must never let a name be removed while
//! another one of that blob is made: the index would speak of a file that is gone.

use crate::digest::Digest;
use std::{
    cell::RefCell,
    collections::{HashMap, HashSet},
};
use tokio::sync::Notify;

/// The blobs of one shard whose names change at the moment. Bounded by the requests in flight and
/// by what one step of eviction removes.
#[derive(Default)]
pub(super) struct Names {
    made: RefCell<HashMap<Digest, usize>>,
    removed: RefCell<HashSet<Digest>>,
    removal_ended: Notify,
}

/// A name is being made.
pub(super) struct Naming<'a> {
    names: &'a Names,
    digest: Digest,
}

/// A blob's names are being removed.
pub(super) struct Removing<'a> {
    names: &'a Names,
    digest: Digest,
}

impl Names {
    /// Begins to make a name, after a removal that is under way.
    pub(super) async fn naming(&self, digest: Digest) -> Naming<'_> {
        while self.removed.borrow().contains(&digest) {
            self.removal_ended.notified().await;
        }
        *self.made.borrow_mut().entry(digest).or_default() += 1;
        Naming { names: self, digest }
    }

    /// Begins to remove a blob's names, unless one is being made.
    pub(super) fn removing(&self, digest: Digest) -> Option<Removing<'_>> {
        if self.made.borrow().contains_key(&digest) || !self.removed.borrow_mut().insert(digest) {
            return None;
        }
        Some(Removing { names: self, digest })
    }
}

impl Drop for Naming<'_> {
    fn drop(&mut self) {
        let mut made = self.names.made.borrow_mut();
        if let Some(count) = made.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                made.remove(&self.digest);
            }
        }
    }
}

impl Drop for Removing<'_> {
    fn drop(&mut self) {
        self.names.removed.borrow_mut().remove(&self.digest);
        self.names.removal_ended.notify_waiters();
    }
}
