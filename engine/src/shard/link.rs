//! Blobs as files that actions may be given by a hard link: made when first asked for, one inode
//! for each mode. Must never change an inode that has a name.

use super::{
    Shard,
    index::Entry,
    layout::{MODE_EXECUTABLE, MODE_PLAIN},
};
use crate::{
    blob::{BlobError, Home, Link, Result},
    digest::Digest,
    limits::WRITE_BYTES,
};
use bytes::Bytes;
use std::path::PathBuf;

/// Small blobs that are about to get files.
#[derive(Default)]
struct Promotions {
    blobs: Vec<(Bytes, PathBuf, u32)>,
    bytes: usize,
    entered: Vec<(Digest, bool)>,
}

impl Shard {
    /// The files to link for each (blob, executable?); makes those that are not there yet.
    pub(crate) async fn link(&self, wanted: Vec<(Digest, bool)>) -> Result<Vec<Link>> {
        let mut links = Vec::with_capacity(wanted.len());
        let mut promotions = Promotions::default();
        for (digest, executable) in wanted {
            let entry = self.touch(&digest)?;
            let path = self.config.layout.blob(&digest, executable);
            links.push(Link { path: path.clone() });
            let home = Home::file(executable);
            if entry.has(home) {
                if entry.is_verified(home) {
                    continue;
                }
                match self.verify_file(&digest, home).await {
                    Ok(()) => continue,
                    // That one is lost by now; another home may be left to make it from.
                    Err(BlobError::NotFound(_)) => {}
                    Err(other) => return Err(other),
                }
            }
            let entry = self.touch(&digest)?;
            let _share = self.reserve(digest.size()).await?;
            let mode = if executable { MODE_EXECUTABLE } else { MODE_PLAIN };
            match entry.place() {
                Some(place) => {
                    let verified = entry.is_verified(Home::Segment);
                    let bytes = self.read_small(&digest, place, verified).await?;
                    promotions.bytes += bytes.len();
                    promotions.blobs.push((bytes, path, mode));
                    promotions.entered.push((digest, executable));
                }
                None => {
                    let twin = Home::file(!executable);
                    if !entry.is_verified(twin) {
                        self.verify_file(&digest, twin).await?;
                    }
                    let _naming = self.names.naming(digest).await;
                    let twin = self.config.layout.blob(&digest, !executable);
                    self.env.disk.copy(twin, path, mode).await?;
                    self.enter_file(&digest, executable);
                }
            }
            if promotions.bytes >= WRITE_BYTES {
                self.promote(std::mem::take(&mut promotions)).await?;
            }
        }
        self.promote(promotions).await?;
        Ok(links)
    }

    async fn promote(&self, promotions: Promotions) -> Result<()> {
        if promotions.blobs.is_empty() {
            return Ok(());
        }
        let mut naming = Vec::with_capacity(promotions.entered.len());
        for (digest, _) in &promotions.entered {
            naming.push(self.names.naming(*digest).await);
        }
        self.env.disk.publish_many(promotions.blobs).await?;
        for (digest, executable) in promotions.entered {
            self.enter_file(&digest, executable);
        }
        Ok(())
    }

    fn enter_file(&self, digest: &Digest, executable: bool) {
        // It was made from bytes that were checked.
        self.enter(digest, Entry::in_file(digest, executable, true));
    }
}
