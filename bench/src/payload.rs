//! The bytes that are sent: unique for each run by a seed, the same again for the same seed. Must
//! cost the client little, for its CPU time is on the same machine as the server's.

use bytes::Bytes;
use proto::reapi::Digest;
use sha2::{Digest as _, Sha256};

/// Unique end of a large blob, in bytes; what stands before it is one buffer for all of them, so
/// that a new blob costs the client the hash of this much only.
const TAIL_LEN: usize = 64 * 1024;

/// Which sequence of payloads: two rows never send the same bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Blobs that are there before the measurement.
    Present,
    /// Digests of blobs that are never sent.
    Absent,
    /// Blobs written while measuring, by their length.
    Fresh(usize),
    /// Keys and salts of actions.
    Action,
    /// Input files, by how many an action has.
    Input(usize),
}

/// Where all randomness of a run comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(pub u64);

impl Seed {
    /// Payload number `index` of a lane, not compressible.
    pub(crate) fn bytes(self, lane: Lane, index: u64, len: usize) -> Bytes {
        let mut state = self.start(lane, index);
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&next(&mut state).to_le_bytes());
        }
        out.truncate(len);
        Bytes::from(out)
    }

    fn start(self, lane: Lane, index: u64) -> u64 {
        let lane = match lane {
            Lane::Present => 1,
            Lane::Absent => 2,
            Lane::Action => 3,
            Lane::Fresh(len) => 4 + ((len as u64) << 8),
            Lane::Input(count) => 5 + ((count as u64) << 8),
        };
        // Each part is stirred by itself: neighbours in one must not meet neighbours in another.
        let (mut seed, mut lane, mut index) = (self.0, lane, index);
        next(&mut seed) ^ next(&mut lane).rotate_left(21) ^ next(&mut index).rotate_left(42)
    }
}

/// splitmix64: passes for random, and costs a nanosecond for eight bytes.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut word = *state;
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A blob in the pieces it is made of, in order.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub digest: Digest,
    pub pieces: Vec<Bytes>,
}

impl Blob {
    /// A blob of one piece.
    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self { digest: digest_of(&bytes), pieces: vec![bytes] }
    }
}

/// SHA-256 and length of `bytes`.
pub(crate) fn digest_of(bytes: &[u8]) -> Digest {
    finished(Sha256::new_with_prefix(bytes), bytes.len())
}

/// Digest of pieces that follow one another.
pub(crate) fn digest_of_pieces(pieces: &[Bytes]) -> Digest {
    let mut hash = Sha256::new();
    for piece in pieces {
        hash.update(piece);
    }
    finished(hash, pieces.iter().map(Bytes::len).sum())
}

/// The digest of `len` bytes that went through `hash`.
pub(crate) fn finished(hash: Sha256, len: usize) -> Digest {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        text.push(char::from(HEX[usize::from(byte >> 4)]));
        text.push(char::from(HEX[usize::from(byte & 15)]));
    }
    Digest { hash: text, size_bytes: i64::try_from(len).unwrap_or(i64::MAX) }
}

/// An endless supply of different blobs of one length.
pub(crate) struct Source {
    seed: Seed,
    lane: Lane,
    len: usize,
    shared: Option<(Bytes, Sha256)>,
}

impl Source {
    /// Blobs of `len` bytes.
    pub(crate) fn new(seed: Seed, lane: Lane, len: usize) -> Self {
        let shared = (len > 2 * TAIL_LEN).then(|| {
            let front = seed.bytes(lane, u64::MAX, len - TAIL_LEN);
            let hash = Sha256::new_with_prefix(&front);
            (front, hash)
        });
        Self { seed, lane, len, shared }
    }

    /// Blob number `index`.
    pub(crate) fn blob(&self, index: u64) -> Blob {
        let Some((front, hash)) = &self.shared else {
            return Blob::whole(self.seed.bytes(self.lane, index, self.len));
        };
        let tail = self.seed.bytes(self.lane, index, TAIL_LEN);
        let digest = finished(hash.clone().chain_update(&tail), self.len);
        Blob { digest, pieces: vec![front.clone(), tail] }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn payloads_differ_by_seed_lane_and_index() {
        let lanes = [
            Lane::Present,
            Lane::Absent,
            Lane::Action,
            Lane::Fresh(1024),
            Lane::Fresh(4096),
            Lane::Input(1),
            Lane::Input(1000),
        ];
        let mut seen = HashSet::new();
        for seed in 0..4 {
            for lane in lanes {
                for index in [0, 1, 2, 3, u64::MAX] {
                    assert!(seen.insert(Seed(seed).bytes(lane, index, 32)));
                }
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_of_the_asked_length() {
        for len in [0, 1, 7, 8, 9, 1000] {
            let once = Seed(5).bytes(Lane::Present, 3, len);
            assert_eq!(once.len(), len);
            assert_eq!(once, Seed(5).bytes(Lane::Present, 3, len));
        }
    }

    #[test]
    fn a_digest_is_lowercase_hex_of_sha256() {
        let empty = digest_of(b"");
        let known = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!((empty.hash.as_str(), empty.size_bytes), (known, 0));
    }

    #[test]
    fn a_large_blob_has_the_digest_of_all_its_pieces() {
        for len in [1024, 2 * TAIL_LEN, 2 * TAIL_LEN + 1, 1 << 20] {
            let source = Source::new(Seed(1), Lane::Fresh(len), len);
            let (one, two) = (source.blob(0), source.blob(1));
            assert_ne!(one.digest, two.digest);
            assert_eq!(one.digest, digest_of_pieces(&one.pieces));
            assert_eq!(one.digest.size_bytes, i64::try_from(len).unwrap());
        }
    }
}
