//! One record of the log as bytes, and a segment's bytes as records. Must never trust a length
//! that no checksum covers: a damaged record costs itself, not those after it.
//!
//! ```text
//! segment  MAGIC(8) version(4) crc(4)   then records, nothing between them
//! record   mark(4) crc(4) length(4) sequence(8) kind(1)   payload(length)
//!                  '----'-> of everything after it
//! payload  1 blob    function(1) hash(32) size(8)
//!          2 action  function(1) hash(32) size(8) instance(rest, UTF-8)
//!          3 done    nothing: the item of this sequence is settled
//! ```
//! Numbers are little-endian.

use super::Item;
use crate::digest::{Digest, DigestFunction, HASH_BYTES};

/// Bytes of a segment's header.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes of an instance's name that an item may have.
pub(super) const INSTANCE_BYTES_MAX: usize = 4096;

const MAGIC: &[u8; 8] = b"rfbacklg";
const VERSION: u32 = 1;
const MARK: &[u8; 4] = b"\xb1rec";
const FIXED_BYTES: usize = 21;
const DIGEST_BYTES: usize = 1 + HASH_BYTES + 8;
const PAYLOAD_BYTES_MAX: usize = DIGEST_BYTES + INSTANCE_BYTES_MAX;
const KIND_BLOB: u8 = 1;
const KIND_ACTION: u8 = 2;
const KIND_DONE: u8 = 3;

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// This item is pending.
    Pushed(u64, Item),
    /// The item of this sequence is settled.
    Done(u64),
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// This version's.
    Known,
    /// One of ours, from a version that this program does not know.
    Foreign(u32),
    /// Cut short or damaged.
    Damaged,
}

/// What was found in a segment.
pub(super) struct Reading {
    /// The good records in order.
    pub(super) records: Vec<Record>,
    /// Stretches of bytes that are no record and have good ones after them.
    pub(super) damaged: u64,
    /// Where the last good record ends.
    pub(super) end: usize,
}

/// The header of a segment.
pub(super) fn header() -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..12]);
    bytes[12..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// What the first bytes of a segment say.
pub(super) fn read_header(bytes: &[u8]) -> Header {
    if bytes.len() < HEADER_BYTES
        || &bytes[..8] != MAGIC
        || u32_at(bytes, 12) != crc32fast::hash(&bytes[..12])
    {
        return Header::Damaged;
    }
    match u32_at(bytes, 8) {
        VERSION => Header::Known,
        other => Header::Foreign(other),
    }
}

/// Appends the record of a pending item; returns how many bytes it has.
pub(super) fn push(buffer: &mut Vec<u8>, sequence: u64, item: &Item) -> usize {
    let mut payload = Vec::with_capacity(DIGEST_BYTES);
    let (kind, digest, instance) = match item {
        Item::Blob(digest) => (KIND_BLOB, digest, ""),
        Item::Action { instance, action } => (KIND_ACTION, action, instance.as_str()),
    };
    payload.push(digest.function() as u8);
    payload.extend_from_slice(digest.hash());
    payload.extend_from_slice(&digest.size().to_le_bytes());
    payload.extend_from_slice(instance.as_bytes());
    frame(buffer, sequence, kind, &payload)
}

/// Appends the record of a settled item; returns how many bytes it has.
pub(super) fn done(buffer: &mut Vec<u8>, sequence: u64) -> usize {
    frame(buffer, sequence, KIND_DONE, &[])
}

/// All good records of a segment after its header.
pub(super) fn read_all(bytes: &[u8]) -> Reading {
    let mut reading = Reading { records: Vec::new(), damaged: 0, end: HEADER_BYTES };
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        match read(&bytes[at..]) {
            Some((record, length)) => {
                if at != reading.end {
                    reading.damaged += 1;
                }
                reading.records.push(record);
                at += length;
                reading.end = at;
            }
            // The length of what is damaged can't be trusted: the next mark is looked for.
            None => at += 1,
        }
    }
    reading
}

fn frame(buffer: &mut Vec<u8>, sequence: u64, kind: u8, payload: &[u8]) -> usize {
    let start = buffer.len();
    let length = u32::try_from(payload.len()).expect("an instance's name is bounded");
    buffer.extend_from_slice(MARK);
    buffer.extend_from_slice(&[0; 4]);
    buffer.extend_from_slice(&length.to_le_bytes());
    buffer.extend_from_slice(&sequence.to_le_bytes());
    buffer.push(kind);
    buffer.extend_from_slice(payload);
    let crc = crc32fast::hash(&buffer[start + 8..]);
    buffer[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    buffer.len() - start
}

/// The record that these bytes begin with, and its length.
fn read(bytes: &[u8]) -> Option<(Record, usize)> {
    if bytes.len() < FIXED_BYTES || &bytes[..4] != MARK {
        return None;
    }
    let length = usize::try_from(u32_at(bytes, 8)).ok()?;
    let end = FIXED_BYTES + length;
    if length > PAYLOAD_BYTES_MAX || bytes.len() < end {
        return None;
    }
    if u32_at(bytes, 4) != crc32fast::hash(&bytes[8..end]) {
        return None;
    }
    let sequence = u64_at(bytes, 12);
    let payload = &bytes[FIXED_BYTES..end];
    let record = match bytes[20] {
        KIND_BLOB if length == DIGEST_BYTES => {
            Record::Pushed(sequence, Item::Blob(digest(payload)?))
        }
        KIND_ACTION if length >= DIGEST_BYTES => {
            let instance = str::from_utf8(&payload[DIGEST_BYTES..]).ok()?.to_owned();
            Record::Pushed(sequence, Item::Action { instance, action: digest(payload)? })
        }
        KIND_DONE if length == 0 => Record::Done(sequence),
        _ => return None,
    };
    Some((record, end))
}

fn digest(payload: &[u8]) -> Option<Digest> {
    if payload[0] != DigestFunction::Sha256 as u8 {
        return None;
    }
    let mut hash = [0; HASH_BYTES];
    hash.copy_from_slice(&payload[1..=HASH_BYTES]);
    Some(Digest::from_parts(DigestFunction::Sha256, hash, u64_at(payload, 1 + HASH_BYTES)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}
