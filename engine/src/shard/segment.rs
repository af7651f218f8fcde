//! Records of small blobs and of actions' results, appended together. Owns the format of a
//! segment; must never change a byte that was written.
//!
//! ```text
//! segment   = header (16) · record … · [ footer ]
//! header    = "RFSEG001" · reserved (8)
//! record    = magic (4) · kind (1) · function (1) · 0 (2) · hash (32) · length (8)
//!             · crc of the payload (4) · crc of the 52 bytes before (4) · payload · padding to 8
//! footer    = entry … · trailer (24)             written when the segment is sealed
//! entry     = kind (1) · function (1) · 0 (2) · payload's offset (4) · length (8) · hash (32)
//! trailer   = entries' offset (8) · number (4) · crc of entries and these 12 (4) · "RFSEAL01"
//! ```
//! All numbers are little-endian. For a result the hash is the action's key.

use super::index::Place;
use crate::digest::{DigestFunction, HASH_BYTES};
use bytes::Bytes;

/// Bytes before the first record.
pub(super) const HEADER: &[u8; 16] = b"RFSEG001\0\0\0\0\0\0\0\0";
const MAGIC: u32 = 0x3152_4652;
pub(super) const RECORD_HEADER_BYTES: usize = 56;
const ENTRY_BYTES: usize = 48;
pub(super) const TRAILER_BYTES: usize = 24;
const SEAL: &[u8; 8] = b"RFSEAL01";

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// A blob, under its hash.
    Blob = 1,
    /// A result, under its action's key.
    Action = 2,
}

/// A record as the footer and the recovery know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordEntry {
    pub(super) kind: Kind,
    pub(super) function: DigestFunction,
    /// Of the payload, from the start of the segment.
    pub(super) offset: u32,
    pub(super) length: u64,
    pub(super) hash: [u8; HASH_BYTES],
}

/// A record that is to be appended.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) function: DigestFunction,
    pub(super) hash: &'a [u8; HASH_BYTES],
    pub(super) payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes that the record takes in a segment.
    pub(super) fn encoded_len(&self) -> usize {
        (RECORD_HEADER_BYTES + self.payload.len()).next_multiple_of(8)
    }

    /// Appends the record to `buffer`, which begins at `start` of the segment.
    pub(super) fn encode(&self, start: u32, buffer: &mut Vec<u8>) -> RecordEntry {
        let begin = buffer.len();
        buffer.extend_from_slice(&MAGIC.to_le_bytes());
        buffer.extend_from_slice(&[self.kind as u8, self.function as u8, 0, 0]);
        buffer.extend_from_slice(self.hash);
        buffer.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        buffer.extend_from_slice(&crc32fast::hash(self.payload).to_le_bytes());
        let crc = crc32fast::hash(&buffer[begin..]);
        buffer.extend_from_slice(&crc.to_le_bytes());
        buffer.extend_from_slice(self.payload);
        buffer.resize(begin + self.encoded_len(), 0);
        let within = u32::try_from(begin + RECORD_HEADER_BYTES).expect("a batch is bounded");
        RecordEntry {
            kind: self.kind,
            function: self.function,
            offset: start + within,
            length: self.payload.len() as u64,
            hash: *self.hash,
        }
    }
}

impl RecordEntry {
    /// Where the payload lies, in this segment.
    pub(super) fn place(&self, segment: u32) -> Place {
        Place { segment, offset: self.offset }
    }
}

/// The footer of a segment whose records end at `end`.
pub(super) fn footer(entries: &[RecordEntry], end: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES + TRAILER_BYTES);
    for entry in entries {
        bytes.extend_from_slice(&[entry.kind as u8, entry.function as u8, 0, 0]);
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.length.to_le_bytes());
        bytes.extend_from_slice(&entry.hash);
    }
    bytes.extend_from_slice(&end.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(SEAL);
    bytes
}

/// Where the entries of a sealed segment begin, by the last bytes of its file.
pub(super) fn footer_start(last: &[u8; TRAILER_BYTES]) -> Option<u64> {
    (&last[16..] == SEAL).then(|| u64_at(last, 0))
}

/// The records of a sealed segment, from its bytes since [`footer_start`]; `None` where they are
/// damaged.
pub(super) fn read_footer(footer: &[u8]) -> Option<Vec<RecordEntry>> {
    let trailer_at = footer.len().checked_sub(TRAILER_BYTES)?;
    let trailer = &footer[trailer_at..];
    let count = usize::try_from(u32_at(trailer, 8)).ok()?;
    let covered = &footer[..trailer_at + 12];
    if &trailer[16..] != SEAL
        || trailer_at != count.checked_mul(ENTRY_BYTES)?
        || crc32fast::hash(covered) != u32_at(trailer, 12)
    {
        return None;
    }
    covered[..trailer_at].chunks_exact(ENTRY_BYTES).map(read_entry).collect()
}

/// The payload of a record as read back with its header, if it is the one that was written.
pub(super) fn checked_payload(record: &Bytes, hash: &[u8; HASH_BYTES]) -> Option<Bytes> {
    let entry = read_record(record, 0)?;
    (entry.hash == *hash).then(|| record.slice(RECORD_HEADER_BYTES..))
}

fn read_entry(bytes: &[u8]) -> Option<RecordEntry> {
    Some(RecordEntry {
        kind: kind(bytes[0])?,
        function: function(bytes[1])?,
        offset: u32_at(bytes, 4),
        length: u64_at(bytes, 8),
        hash: bytes[16..48].try_into().ok()?,
    })
}

/// The records of a segment that was not sealed, each with its payload checked, and where the
/// last good one ends. What follows a damaged record is not looked at: it was never acknowledged
/// before the damaged one was.
pub(super) fn scan(segment: &[u8]) -> (Vec<RecordEntry>, u64) {
    let mut entries = Vec::new();
    let mut at = HEADER.len();
    if segment.get(..at) != Some(HEADER.as_slice()) {
        return (entries, 0);
    }
    while let Some(entry) = read_record(segment, at) {
        let length = usize::try_from(entry.length).unwrap_or(usize::MAX);
        at += (RECORD_HEADER_BYTES + length).next_multiple_of(8);
        entries.push(entry);
    }
    (entries, at as u64)
}

fn read_record(segment: &[u8], at: usize) -> Option<RecordEntry> {
    let header = segment.get(at..at + RECORD_HEADER_BYTES)?;
    if u32_at(header, 0) != MAGIC || crc32fast::hash(&header[..52]) != u32_at(header, 52) {
        return None;
    }
    let length = u64_at(header, 40);
    let payload_at = at + RECORD_HEADER_BYTES;
    let payload_end = payload_at.checked_add(usize::try_from(length).ok()?)?;
    let payload = segment.get(payload_at..payload_end)?;
    if crc32fast::hash(payload) != u32_at(header, 48) {
        return None;
    }
    Some(RecordEntry {
        kind: kind(header[4])?,
        function: function(header[5])?,
        offset: u32::try_from(payload_at).ok()?,
        length,
        hash: header[8..40].try_into().ok()?,
    })
}

fn kind(byte: u8) -> Option<Kind> {
    match byte {
        1 => Some(Kind::Blob),
        2 => Some(Kind::Action),
        _ => None,
    }
}

fn function(byte: u8) -> Option<DigestFunction> {
    (byte == DigestFunction::Sha256 as u8).then_some(DigestFunction::Sha256)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    fn segment_of(payloads: &[&[u8]]) -> (Vec<u8>, Vec<RecordEntry>) {
        let mut bytes = HEADER.to_vec();
        let entries = payloads
            .iter()
            .map(|payload| {
                let digest = Digest::of(payload);
                let (kind, function, hash) = (Kind::Blob, digest.function(), digest.hash());
                Record { kind, function, hash, payload }.encode(0, &mut bytes)
            })
            .collect();
        (bytes, entries)
    }

    #[test]
    fn what_was_appended_is_scanned() {
        let (bytes, entries) = segment_of(&[b"one", b"", b"three three"]);
        assert_eq!(scan(&bytes), (entries.clone(), bytes.len() as u64));
        let third = &entries[2];
        let at = third.offset as usize;
        assert_eq!(&bytes[at..at + 11], b"three three");
    }

    #[test]
    fn a_footer_round_trips_and_a_damaged_one_is_refused() {
        let (mut bytes, entries) = segment_of(&[b"one", b"two"]);
        let end = bytes.len();
        bytes.extend(footer(&entries, end as u64));
        let last = bytes[bytes.len() - TRAILER_BYTES..].try_into().unwrap();
        assert_eq!(footer_start(&last), Some(end as u64));
        assert_eq!(read_footer(&bytes[end..]), Some(entries));
        for at in end..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(read_footer(&damaged[end..]), None, "byte {at}");
        }
    }

    #[test]
    fn a_scan_stops_at_the_first_damage_wherever_it_is() {
        let (bytes, entries) = segment_of(&[b"first", b"second"]);
        let second = entries[1].offset as usize - RECORD_HEADER_BYTES;
        for at in second..second + RECORD_HEADER_BYTES + 6 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(scan(&damaged).0, entries[..1], "byte {at}");
        }
        let end_of_second = second + RECORD_HEADER_BYTES + b"second".len();
        for cut in 0..end_of_second {
            assert!(scan(&bytes[..cut]).0.len() < 2);
        }
    }
}
