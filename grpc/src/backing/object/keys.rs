//! Under which names things lie in an object store, and the form of a stored result. Must never
//! change: other nodes, and older ones, read and write the same store.
//!
//! ```text
//! PREFIX/cas/sha256/ab/ab12…ef-1024    a blob's bytes, as they are
//! PREFIX/ac/sha256/cd/cd34…01          SHA-256 of what follows (32 bytes), then an ActionResult
//! ```
//!
//! A plain layout and not bazel-remote's (`cas.v2/ab/…`): there a header and compressed chunks
//! come before the bytes, so that neither the size nor an offset of an object is that of its blob;
//! and its results lie under the action's hash, the same for every instance. Two letters make
//! directories of a size that file systems like; to the stores they mean nothing. The size is part
//! of a blob's name as it is of its digest: a false size can't hide a true one.

use engine::{
    digest::{Digest, DigestFunction, HASH_BYTES, hex},
    tier::action_cache,
};
use object_store::path::Path;
use prost::Message;
use proto::reapi::ActionResult;

/// Bytes of an object that holds a result, at most: such a thing is read into memory whole.
pub(super) const RESULT_BYTES_MAX: u64 = 64 << 20;

/// Names below one prefix.
#[derive(Debug)]
pub(super) struct Keys {
    prefix: Path,
}

impl Keys {
    pub(super) const fn new(prefix: Path) -> Self {
        Self { prefix }
    }

    /// Where a blob lies.
    pub(super) fn blob(&self, digest: Digest) -> Path {
        let hash = digest.hex();
        let name = format!("{hash}-{}", digest.size());
        self.place("cas", digest.function(), &hash, name)
    }

    /// Where a result lies: the hash of instance and action, so that the name has one length,
    /// holds no character that a store minds, and belongs to one instance.
    pub(super) fn result(&self, instance: &str, action: Digest) -> Path {
        let key = hex(&action_cache::key(instance, action));
        self.place("ac", action.function(), &key, key.clone())
    }

    /// A name that nothing lies under.
    pub(super) fn nothing(&self) -> Path {
        self.prefix.clone().join("probe")
    }

    fn place(&self, kind: &str, function: DigestFunction, hash: &str, name: String) -> Path {
        let function = match function {
            DigestFunction::Sha256 => "sha256",
        };
        self.prefix.clone().join(kind).join(function).join(&hash[..2]).join(name)
    }
}

/// A result as it is stored. Protobuf cut off between two fields is still protobuf, and says that
/// an action had fewer outputs: the hash tells. It leads, where no cut moves it.
pub(super) fn seal(result: &ActionResult) -> Vec<u8> {
    let encoded = result.encode_to_vec();
    let mut sealed = Vec::with_capacity(HASH_BYTES + encoded.len());
    sealed.extend_from_slice(Digest::of(&encoded).hash());
    sealed.extend_from_slice(&encoded);
    sealed
}

/// The result in a stored object; nothing if it is not whole.
pub(super) fn unseal(sealed: &[u8]) -> Option<ActionResult> {
    let (hash, encoded) = sealed.split_at_checked(HASH_BYTES)?;
    if Digest::of(encoded).hash().as_slice() != hash {
        return None;
    }
    ActionResult::decode(encoded).ok()
}
