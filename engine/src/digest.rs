//! What names a blob, and which shard owns it. Must never accept a name that is not canonical:
//! two spellings of one digest would be two blobs.

use sha2::{Digest as _, Sha256};
use std::fmt;

/// Bytes of the hash of every digest function that is served.
pub const HASH_BYTES: usize = 32;

/// How a blob's hash is made. A further function is a variant here and an arm in [`Hasher`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DigestFunction {
    /// SHA-256 (FIPS 180-4): REAPI's default.
    Sha256 = 1,
}

/// A REAPI digest: the hash of a blob's bytes, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    function: DigestFunction,
    hash: [u8; HASH_BYTES],
    size: u64,
}

/// Why a text is not a digest. The message is meant for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDigest {
    /// The hash has another length than its function makes.
    #[error("digest hash has {0} characters, SHA-256 has 64")]
    Length(usize),
    /// A character other than 0-9 and a-f.
    #[error("digest hash {0:?} is not lowercase hex")]
    NotHex(String),
    /// `size_bytes` below zero.
    #[error("digest size {0} is negative")]
    NegativeSize(i64),
    /// Size zero with the hash of something, or the empty hash with a size.
    #[error("digest {0}/{1}: only the empty blob has size 0 and the hash of nothing")]
    EmptyMismatch(String, i64),
}

/// One of the equal ranges that the space of hashes is cut into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// SHA-256 of no bytes.
const EMPTY_SHA256: [u8; HASH_BYTES] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let hash = Sha256::digest(bytes).into();
        Self { function: DigestFunction::Sha256, hash, size: bytes.len() as u64 }
    }

    /// A digest as REAPI writes it: lowercase hex of the full length, and a size.
    ///
    /// # Errors
    /// [`BadDigest`] says what is malformed.
    pub fn parse(function: DigestFunction, hash: &str, size: i64) -> Result<Self, BadDigest> {
        let text = hash.as_bytes();
        if text.len() != HASH_BYTES * 2 {
            return Err(BadDigest::Length(hash.chars().count()));
        }
        let mut bytes = [0; HASH_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let (Some(high), Some(low)) = (nibble(pair[0]), nibble(pair[1])) else {
                return Err(BadDigest::NotHex(hash.to_owned()));
            };
            *byte = high << 4 | low;
        }
        let size_u64 = u64::try_from(size).map_err(|_| BadDigest::NegativeSize(size))?;
        if (size_u64 == 0) != (bytes == EMPTY_SHA256) {
            return Err(BadDigest::EmptyMismatch(hash.to_owned(), size));
        }
        Ok(Self { function, hash: bytes, size: size_u64 })
    }

    /// A digest from the parts that a record on disk holds.
    #[must_use]
    pub const fn from_parts(function: DigestFunction, hash: [u8; HASH_BYTES], size: u64) -> Self {
        Self { function, hash, size }
    }

    /// How its hash was made.
    #[must_use]
    pub const fn function(&self) -> DigestFunction {
        self.function
    }

    /// The hash's bytes.
    #[must_use]
    pub const fn hash(&self) -> &[u8; HASH_BYTES] {
        &self.hash
    }

    /// How many bytes the blob has.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The size as protobuf's `int64` has it.
    #[must_use]
    pub fn size_i64(&self) -> i64 {
        i64::try_from(self.size).unwrap_or(i64::MAX)
    }

    /// Whether this names the blob of no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// The hash as lowercase hex.
    #[must_use]
    pub fn hex(&self) -> String {
        hex(&self.hash)
    }

    /// The owner among `shards`.
    #[must_use]
    pub fn owner(&self, shards: u16) -> ShardId {
        owner(&self.hash, shards)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.hex(), self.size)
    }
}

/// The owner of a hash among `shards`: contiguous ranges of its first two bytes, so that what
/// lies on disk by prefix does not move when the number of shards changes.
#[must_use]
pub fn owner(hash: &[u8; HASH_BYTES], shards: u16) -> ShardId {
    let prefix = u32::from(u16::from_be_bytes([hash[0], hash[1]]));
    let shard = (prefix * u32::from(shards)) >> 16;
    ShardId(u16::try_from(shard).expect("a product of two u16 shifted by 16 fits"))
}

/// Bytes as lowercase hex.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

const fn nibble(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        _ => None,
    }
}

/// Makes a digest from bytes that come in pieces.
#[derive(Clone)]
pub struct Hasher {
    state: Sha256,
    size: u64,
}

impl Hasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new(function: DigestFunction) -> Self {
        match function {
            DigestFunction::Sha256 => Self { state: Sha256::new(), size: 0 },
        }
    }

    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.size += bytes.len() as u64;
    }

    /// Bytes seen.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The digest of all pieces.
    #[must_use]
    pub fn finish(self) -> Digest {
        let hash = self.state.finalize().into();
        Digest { function: DigestFunction::Sha256, hash, size: self.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn only_canonical_text_is_a_digest() {
        let of_a = Digest::of(b"a").hex();
        let upper = of_a.to_uppercase();
        for (hash, size, good) in [
            (of_a.as_str(), 1, true),
            (of_a.as_str(), i64::MAX, true),
            (upper.as_str(), 1, false),
            (&of_a[1..], 1, false),
            ("", 0, false),
            (of_a.as_str(), -1, false),
            (of_a.as_str(), 0, false),
            (EMPTY, 0, true),
            (EMPTY, 103, false),
            ("ä3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b85", 1, false),
        ] {
            let parsed = Digest::parse(DigestFunction::Sha256, hash, size);
            assert_eq!(parsed.is_ok(), good, "{hash} {size}: {parsed:?}");
        }
    }

    #[test]
    fn text_and_bytes_round_trip() {
        let digest = Digest::of(b"hello");
        let again = Digest::parse(DigestFunction::Sha256, &digest.hex(), 5);
        assert_eq!(again, Ok(digest));
        assert!(Digest::of(b"").is_empty());
        assert_eq!(Digest::of(b"").hex(), EMPTY);
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = Hasher::new(DigestFunction::Sha256);
        hasher.update(b"hel");
        hasher.update(b"lo");
        assert_eq!(hasher.finish(), Digest::of(b"hello"));
    }

    #[test]
    fn owners_are_contiguous_ranges_that_cover_everything() {
        for shards in [1_u16, 2, 3, 8, 64] {
            let mut last = ShardId(0);
            for prefix in 0..=u16::MAX {
                let mut hash = [0; HASH_BYTES];
                hash[..2].copy_from_slice(&prefix.to_be_bytes());
                let shard = owner(&hash, shards);
                assert!(shard == last || shard.0 == last.0 + 1);
                last = shard;
            }
            assert_eq!(last.0, shards - 1);
        }
    }
}
