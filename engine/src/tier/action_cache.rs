//! Results of actions. A result is a hit only if every blob it names is here, the content of its
//! trees included: a client that builds without the bytes never looks again.
//!
//! Must never delete a result for what is missing: the blob may come back.

use super::{Backing, Blobs, Item, WriteMode};
use crate::{
    blob::{BlobError, Result},
    digest::{Digest, DigestFunction, HASH_BYTES, Hasher},
    limits::Limits,
};
use bytes::Bytes;
use prost::Message;
use proto::reapi::{ActionResult, Digest as WireDigest, Directory, Tree};
use std::collections::BTreeSet;

/// Bounds of the trees that a result may name.
#[derive(Clone, Copy, Debug)]
pub struct TreeBounds {
    /// Bytes of all of them.
    pub bytes_max: u64,
    /// Directories in one of them.
    pub directories_max: usize,
}

impl From<&Limits> for TreeBounds {
    fn from(limits: &Limits) -> Self {
        Self { bytes_max: limits.tree_bytes_max, directories_max: limits.tree_directories_max }
    }
}

/// The result stored for an action under an instance, if it is complete: here, else below. What
/// comes from below has to be `sound` too, since nobody here has checked it.
///
/// # Errors
/// `Overloaded`, `Stopped`, `Disk`.
pub async fn get(
    blobs: &Blobs,
    instance: &str,
    action: Digest,
    bounds: TreeBounds,
    sound: fn(&ActionResult) -> bool,
) -> Result<Option<ActionResult>> {
    let cores = blobs.cores();
    let key = key(instance, action);
    // Read before the blobs are looked at: a loss in between makes the memo stale, not wrong.
    let generation = cores.generation();
    if let Some(stored) = cores.get_action(key).await?
        && let Ok(result) = ActionResult::decode(stored.bytes.clone())
    {
        if stored.complete_at == generation {
            return Ok(Some(result));
        }
        match find(blobs, &result, bounds).await? {
            Found::Here => {
                cores.complete_action(key, &stored, generation);
                return Ok(Some(result));
            }
            Found::Below => return Ok(Some(result)),
            Found::Incomplete => {}
        }
    }
    let Some(backing) = blobs.backing() else { return Ok(None) };
    let result = match backing.tier.get_action(instance, action).await {
        Ok(Some(result)) if sound(&result) => result,
        Ok(_) => return Ok(None),
        // For a cache it is always true that it has none: the client runs the action.
        Err(error) => {
            tracing::debug!(%action, %error, "taken as no result");
            return Ok(None);
        }
    };
    if find(blobs, &result, bounds).await? == Found::Incomplete {
        return Ok(None);
    }
    backing.tier.counts().results.add(1);
    if let Err(error) = cores.put_action(key, Bytes::from(result.encode_to_vec())).await {
        tracing::debug!(%action, %error, "a result from below was not kept");
    }
    Ok(Some(result))
}

/// The result stored here for an action, complete or not.
pub(super) async fn stored(
    blobs: &Blobs,
    instance: &str,
    action: Digest,
) -> Result<Option<ActionResult>> {
    let stored = blobs.cores().get_action(key(instance, action)).await?;
    Ok(stored.and_then(|stored| ActionResult::decode(stored.bytes).ok()))
}

/// Stores the result of an action under an instance, over any other; below as the instance's mode
/// says, after its blobs.
///
/// # Errors
/// `Full`, `Overloaded`, `Stopped`, `Disk`, `Below`.
pub async fn put(
    blobs: &Blobs,
    instance: &str,
    action: Digest,
    result: &ActionResult,
    bounds: TreeBounds,
) -> Result<()> {
    let encoded = Bytes::from(result.encode_to_vec());
    blobs.cores().put_action(key(instance, action), encoded).await?;
    match blobs.backing() {
        Some(Backing { tier, mode: WriteMode::Sync, .. }) => {
            // One that names what is nowhere will be no hit; below has no use for it.
            if push_blobs(blobs, result, bounds).await? {
                tier.put_action(instance, action, result).await?;
            }
            Ok(())
        }
        Some(Backing { backlog, mode: WriteMode::Async, .. }) => {
            // Trees that are only below come here: whoever writes the result later asks no tier.
            closure(blobs, result, bounds).await?;
            let instance = instance.to_owned();
            Ok(backlog.push(vec![Item::Action { instance, action }]).await?)
        }
        _ => Ok(()),
    }
}

/// Writes below what it lacks of a result's blobs; false where one of them is nowhere.
///
/// # Errors
/// `Overloaded`, `Stopped`, `Disk`, `Below`.
pub async fn push_blobs(blobs: &Blobs, result: &ActionResult, bounds: TreeBounds) -> Result<bool> {
    let Some(named) = closure(blobs, result, bounds).await? else { return Ok(false) };
    match blobs.push(named.into_iter().collect()).await {
        Ok(()) => Ok(true),
        Err(BlobError::NotFound(_)) => Ok(false),
        Err(other) => Err(other),
    }
}

/// Puts into the backlog what could not be written below: a result and its blobs where it is
/// `stored`, by instance and action; else the blobs alone.
///
/// # Errors
/// `Overloaded`, `Stopped`, `Disk`.
pub async fn owe(
    blobs: &Blobs,
    result: &ActionResult,
    stored: Option<(&str, Digest)>,
    bounds: TreeBounds,
) -> Result<()> {
    let Some(backing) = blobs.backing() else { return Ok(()) };
    let owed = match stored {
        Some((instance, action)) => vec![Item::Action { instance: instance.to_owned(), action }],
        None => {
            let named = closure(blobs, result, bounds).await?.unwrap_or_default();
            named.into_iter().map(Item::Blob).collect()
        }
    };
    Ok(backing.backlog.push(owed).await?)
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

/// Where the blobs of a result are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Here,
    /// Some of them below only.
    Below,
    /// Some of them nowhere, or it is malformed.
    Incomplete,
}

async fn find(blobs: &Blobs, result: &ActionResult, bounds: TreeBounds) -> Result<Found> {
    let Some(named) = closure(blobs, result, bounds).await? else { return Ok(Found::Incomplete) };
    let away = blobs.cores().find_missing(named.into_iter().collect()).await?;
    if away.is_empty() {
        return Ok(Found::Here);
    }
    let missing = blobs.find_missing(away).await?;
    Ok(if missing.is_empty() { Found::Below } else { Found::Incomplete })
}

/// Every blob that a result names, the files of its trees included; `None` where a tree is nowhere
/// or something is malformed.
///
/// # Errors
/// `Overloaded`, `Stopped`, `Disk`.
pub async fn closure(
    blobs: &Blobs,
    result: &ActionResult,
    bounds: TreeBounds,
) -> Result<Option<BTreeSet<Digest>>> {
    let Some(mut named) = named_blobs(result) else { return Ok(None) };
    let mut room = bounds.bytes_max;
    let mut trees = BTreeSet::new();
    let mut roots = BTreeSet::new();
    for directory in &result.output_directories {
        let Some(tree) = directory.tree_digest.as_ref().and_then(parse) else { return Ok(None) };
        trees.insert(tree);
        roots.extend(directory.root_directory_digest.as_ref().and_then(parse));
    }
    // Several outputs may be the same tree: each is read once.
    for tree in trees {
        let Some(encoded) = read(blobs, tree, &mut room).await? else { return Ok(None) };
        let Ok(tree) = Tree::decode(encoded) else { return Ok(None) };
        if tree.children.len() > bounds.directories_max {
            return Ok(None);
        }
        for directory in tree.root.iter().chain(&tree.children) {
            if !add_files(directory, &mut named) {
                return Ok(None);
            }
        }
    }
    if !add_directories(blobs, roots, &mut room, &mut named).await? {
        return Ok(None);
    }
    Ok(Some(named))
}

/// Adds the files of directories that are given as blobs, and of all below them; false where one
/// is not here or is none.
async fn add_directories(
    blobs: &Blobs,
    roots: BTreeSet<Digest>,
    room: &mut u64,
    named: &mut BTreeSet<Digest>,
) -> Result<bool> {
    let mut waiting: Vec<Digest> = roots.iter().copied().collect();
    let mut seen = roots;
    while let Some(next) = waiting.pop() {
        let Some(encoded) = read(blobs, next, room).await? else { return Ok(false) };
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
async fn read(blobs: &Blobs, digest: Digest, room: &mut u64) -> Result<Option<Bytes>> {
    let encoded = match blobs.read(digest, *room).await {
        Ok(encoded) => encoded,
        Err(BlobError::NotFound(_) | BlobError::TooLarge { .. } | BlobError::Below(_)) => {
            return Ok(None);
        }
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
