//! Results of actions. A result is a hit only if every blob it names is here, the content of its
//! trees included: a client that builds without the bytes never looks again.
//!
//! Must never delete a result for what is missing: the blob may come back.

use super::{BlobError, Result};
use crate::{
    cores::Cores,
    digest::{Digest, DigestFunction, HASH_BYTES, Hasher},
    limits::Limits,
};
use bytes::Bytes;
use prost::Message;
use proto::reapi::{ActionResult, Digest as WireDigest, Directory, Tree};
use std::collections::BTreeSet;

/// The result stored for an action under an instance, if it is complete.
///
/// # Errors
/// `Overloaded`, `Stopped`, `Disk`.
pub async fn get(
    cores: &Cores,
    instance: &str,
    action: Digest,
    limits: &Limits,
) -> Result<Option<ActionResult>> {
    let key = key(instance, action);
    // Read before the blobs are looked at: a loss in between makes the memo stale, not wrong.
    let generation = cores.generation();
    let Some(stored) = cores.get_action(key).await? else { return Ok(None) };
    let Ok(result) = ActionResult::decode(stored.bytes.clone()) else { return Ok(None) };
    if stored.complete_at == generation {
        return Ok(Some(result));
    }
    if !is_complete(cores, &result, limits).await? {
        return Ok(None);
    }
    cores.complete_action(key, &stored, generation);
    Ok(Some(result))
}

/// Stores the result of an action under an instance, over any other.
///
/// # Errors
/// `Full`, `Overloaded`, `Stopped`, `Disk`.
pub async fn put(
    cores: &Cores,
    instance: &str,
    action: Digest,
    result: &ActionResult,
) -> Result<()> {
    cores.put_action(key(instance, action), Bytes::from(result.encode_to_vec())).await
}

/// The key under which a result lies: instances do not see each other's.
#[must_use]
pub fn key(instance: &str, action: Digest) -> [u8; HASH_BYTES] {
    let mut hasher = Hasher::new(DigestFunction::Sha256);
    hasher.update(instance.as_bytes());
    // An instance name holds no NUL, so the parts cannot run into each other.
    hasher.update(&[0, action.function() as u8]);
    hasher.update(action.hash());
    hasher.update(&action.size().to_be_bytes());
    *hasher.finish().hash()
}

/// Whether everything that the result names can be read.
async fn is_complete(cores: &Cores, result: &ActionResult, limits: &Limits) -> Result<bool> {
    let Some(mut named) = named_blobs(result) else { return Ok(false) };
    let mut room = limits.tree_bytes_max;
    let mut trees = BTreeSet::new();
    let mut roots = BTreeSet::new();
    for directory in &result.output_directories {
        let Some(tree) = directory.tree_digest.as_ref().and_then(parse) else { return Ok(false) };
        trees.insert(tree);
        roots.extend(directory.root_directory_digest.as_ref().and_then(parse));
    }
    // Several outputs may be the same tree: each is read once.
    for tree in trees {
        let Some(encoded) = read(cores, tree, &mut room).await? else { return Ok(false) };
        let Ok(tree) = Tree::decode(encoded) else { return Ok(false) };
        if tree.children.len() > limits.tree_directories_max {
            return Ok(false);
        }
        for directory in tree.root.iter().chain(&tree.children) {
            if !add_files(directory, &mut named) {
                return Ok(false);
            }
        }
    }
    if !add_directories(cores, roots, &mut room, &mut named).await? {
        return Ok(false);
    }
    Ok(cores.find_missing(named.into_iter().collect()).await?.is_empty())
}

/// Adds the files of directories that are given as blobs, and of all below them; false where one
/// is not here or is none.
async fn add_directories(
    cores: &Cores,
    roots: BTreeSet<Digest>,
    room: &mut u64,
    named: &mut BTreeSet<Digest>,
) -> Result<bool> {
    let mut waiting: Vec<Digest> = roots.iter().copied().collect();
    let mut seen = roots;
    while let Some(next) = waiting.pop() {
        let Some(encoded) = read(cores, next, room).await? else { return Ok(false) };
        let Ok(directory) = Directory::decode(encoded) else { return Ok(false) };
        if !add_files(&directory, named) {
            return Ok(false);
        }
        for child in &directory.directories {
            let Some(child) = child.digest.as_ref().and_then(parse) else { return Ok(false) };
            waiting.extend(seen.insert(child).then_some(child));
        }
    }
    Ok(true)
}

/// A blob that is read whole, within what is left of the bound; `None` where it is not here.
async fn read(cores: &Cores, digest: Digest, room: &mut u64) -> Result<Option<Bytes>> {
    let encoded = match cores.read(digest, *room).await {
        Ok(encoded) => encoded,
        Err(BlobError::NotFound(_) | BlobError::TooLarge { .. }) => return Ok(None),
        Err(other) => return Err(other),
    };
    *room = room.saturating_sub(digest.size());
    Ok(Some(encoded))
}

/// The blobs that the result itself names; `None` where a digest is malformed.
fn named_blobs(result: &ActionResult) -> Option<BTreeSet<Digest>> {
    let files = result.output_files.iter().map(|file| file.digest.as_ref());
    let directories = result.output_directories.iter();
    let mut named = BTreeSet::new();
    for digest in files {
        named.insert(parse(digest?)?);
    }
    for directory in directories {
        named.insert(parse(directory.tree_digest.as_ref()?)?);
        if let Some(root) = &directory.root_directory_digest {
            named.insert(parse(root)?);
        }
    }
    for digest in [&result.stdout_digest, &result.stderr_digest].into_iter().flatten() {
        named.insert(parse(digest)?);
    }
    Some(named)
}

/// Adds the files of a directory; false where a digest is malformed.
fn add_files(directory: &Directory, named: &mut BTreeSet<Digest>) -> bool {
    directory.files.iter().all(|file| {
        let digest = file.digest.as_ref().and_then(parse);
        digest.map(|digest| named.insert(digest)).is_some()
    })
}

fn parse(digest: &WireDigest) -> Option<Digest> {
    Digest::parse(DigestFunction::Sha256, &digest.hash, digest.size_bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::key;
    use crate::digest::Digest;

    #[test]
    fn instances_have_keys_of_their_own() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(key("main", a), key("main", a));
        assert_ne!(key("main", a), key("", a));
        assert_ne!(key("main", a), key("main", b));
    }
}
