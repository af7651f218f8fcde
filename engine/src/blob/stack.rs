//! The order of the layers. Nothing else decides it.

use super::BlobStore;

/// What a core asks for a blob; read bottom to top, the way a request travels.
pub fn stack(shard: impl BlobStore) -> impl BlobStore {
    shard
        .verified() // bytes are hashed before they are kept, whoever brings them
        .with_empty_blob() // REAPI: the empty blob is always present, and never stored
}
