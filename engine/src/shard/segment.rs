//! Records of small blobs and of actions' results, appended together. Owns the format of a
//! segment; must never change a byte that was written.
//!
//! ```text
//! segment   = header (16) · record … · [ footer ]
//! header    = "RFSEG002" · nonce (8)
//! record    = magic (4) · kind (1) · function (1) · 0 (2) · hash (32) · length (8)
//!             · crc of the payload (4) · crc of the 52 bytes before (4) · payload · padding to 8
//! footer    = entry … · trailer (24)             written when the segment is sealed
//! entry     = kind (1) · function (1) · 0 (2) · payload's offset (4) · length (8) · hash (32)
//! trailer   = entries' offset (8) · number (4) · crc of entries and these 12 (4) · "RFSEAL01"
//! ```
//! All numbers are little-endian. For a result the hash is the action's key. The checksums of
//! records' headers and of the footer begin with the nonce, which nobody outside knows: a payload,
//! which a client chose, can hold nothing that looks like a record or a footer of its segment.

use super::index::Place;
use crate::digest::{DigestFunction, HASH_BYTES};
use bytes::Bytes;

/// Bytes before the first record.
pub(super) const HEADER_BYTES: usize = 16;
const START: &[u8; 8] = b"RFSEG002";
const MAGIC: u32 = 0x3152_4652;
pub(super) const RECORD_HEADER_BYTES: usize = 56;
const ENTRY_BYTES: usize = 48;
pub(super) const TRAILER_BYTES: usize = 24;
const SEAL: &[u8; 8] = b"RFSEAL01";

/// Bytes that a record with a payload of `length` takes in a segment.
pub(super) fn record_bytes(length: u64) -> u64 {
    (RECORD_HEADER_BYTES as u64 + length).next_multiple_of(8)
}

/// What makes a segment's checksums its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonce([u8; 8]);

impl Nonce {
    /// One that nobody can guess.
    pub(super) fn new() -> Self {
        let random = uuid::Uuid::new_v4();
        let mut nonce = [0; 8];
        // Bytes 6 and 8 of a version 4 UUID are not all random.
        nonce[..6].copy_from_slice(&random.as_bytes()[..6]);
        nonce[6..].copy_from_slice(&random.as_bytes()[14..]);
        Self(nonce)
    }

    /// That of the segment which begins with these bytes.
    pub(super) fn read(header: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER_BYTES] = header.get(..HEADER_BYTES)?.try_into().ok()?;
        let (start, nonce) = header.split_at(START.len());
        (start == START).then(|| Self(nonce.try_into().expect("eight bytes")))
    }

    /// What a segment begins with.
    pub(super) fn header(self) -> Vec<u8> {
        [START.as_slice(), &self.0].concat()
    }

    fn crc(self, bytes: &[u8]) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.0);
        crc.update(bytes);
        crc.finalize()
    }
}

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

    /// Appends the record to `buffer`; its place is within that.
    pub(super) fn encode(&self, nonce: Nonce, buffer: &mut Vec<u8>) -> RecordEntry {
        let begin = buffer.len();
        buffer.extend_from_slice(&MAGIC.to_le_bytes());
        buffer.extend_from_slice(&[self.kind as u8, self.function as u8, 0, 0]);
        buffer.extend_from_slice(self.hash);
        buffer.extend_from_slice(&(self.payload.len() as u64).to_le_bytes());
        buffer.extend_from_slice(&crc32fast::hash(self.payload).to_le_bytes());
        let crc = nonce.crc(&buffer[begin..]);
        buffer.extend_from_slice(&crc.to_le_bytes());
        buffer.extend_from_slice(self.payload);
        buffer.resize(begin + self.encoded_len(), 0);
        let within = u32::try_from(begin + RECORD_HEADER_BYTES).expect("a batch is bounded");
        RecordEntry {
            kind: self.kind,
            function: self.function,
            offset: within,
            length: self.payload.len() as u64,
            hash: *self.hash,
        }
    }
}

impl RecordEntry {
    /// Whether the record lies between a segment's header and `end`.
    fn lies_before(&self, end: u64) -> bool {
        let offset = u64::from(self.offset);
        let first = (HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        offset >= first && offset.checked_add(self.length).is_some_and(|last| last <= end)
    }

    /// Where the payload lies, in this segment.
    pub(super) fn place(&self, segment: u32) -> Place {
        Place { segment, offset: self.offset }
    }
}

/// The footer of a segment whose records end at `end`.
pub(super) fn footer(nonce: Nonce, entries: &[RecordEntry], end: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * ENTRY_BYTES + TRAILER_BYTES);
    for entry in entries {
        bytes.extend_from_slice(&[entry.kind as u8, entry.function as u8, 0, 0]);
        bytes.extend_from_slice(&entry.offset.to_le_bytes());
        bytes.extend_from_slice(&entry.length.to_le_bytes());
        bytes.extend_from_slice(&entry.hash);
    }
    bytes.extend_from_slice(&end.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(u32::MAX).to_le_bytes());
    let crc = nonce.crc(&bytes);
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
pub(super) fn read_footer(nonce: Nonce, footer: &[u8]) -> Option<Vec<RecordEntry>> {
    let trailer_at = footer.len().checked_sub(TRAILER_BYTES)?;
    let trailer = &footer[trailer_at..];
    let count = usize::try_from(u32_at(trailer, 8)).ok()?;
    let covered = &footer[..trailer_at + 12];
    if &trailer[16..] != SEAL
        || trailer_at != count.checked_mul(ENTRY_BYTES)?
        || nonce.crc(covered) != u32_at(trailer, 12)
    {
        return None;
    }
    let end = u64_at(trailer, 0);
    let entries = covered[..trailer_at].chunks_exact(ENTRY_BYTES).map(read_entry);
    entries.map(|entry| entry.filter(|entry| entry.lies_before(end))).collect()
}

/// The payload of a record as read back with its header, if it is the one that was written.
pub(super) fn checked_payload(record: &Bytes, hash: &[u8; HASH_BYTES]) -> Option<Bytes> {
    let header = record.get(..RECORD_HEADER_BYTES)?;
    let payload = record.slice(RECORD_HEADER_BYTES..);
    let good = u32_at(header, 0) == MAGIC
        && header[8..40] == *hash
        && u64_at(header, 40) == payload.len() as u64
        && u32_at(header, 48) == crc32fast::hash(&payload);
    good.then_some(payload)
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

/// The records of a segment that has no good footer, each with its payload checked, and where the
/// last good one ends. Damage in the middle costs what it hit and nothing behind it.
pub(super) fn scan(nonce: Nonce, segment: &[u8]) -> (Vec<RecordEntry>, u64) {
    let mut entries = Vec::new();
    let (mut at, mut end) = (HEADER_BYTES, HEADER_BYTES);
    while at + RECORD_HEADER_BYTES <= segment.len() {
        match read_record(nonce, segment, at) {
            Some(entry) => {
                let length = usize::try_from(entry.length).unwrap_or(usize::MAX);
                at += (RECORD_HEADER_BYTES + length).next_multiple_of(8);
                end = at.min(segment.len());
                entries.push(entry);
            }
            None => at += 8,
        }
    }
    (entries, end as u64)
}

fn read_record(nonce: Nonce, segment: &[u8], at: usize) -> Option<RecordEntry> {
    let header = segment.get(at..at + RECORD_HEADER_BYTES)?;
    if u32_at(header, 0) != MAGIC || nonce.crc(&header[..52]) != u32_at(header, 52) {
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

    const NONCE: Nonce = Nonce([7; 8]);

    fn segment_of(payloads: &[&[u8]]) -> (Vec<u8>, Vec<RecordEntry>) {
        let mut bytes = NONCE.header();
        let entries = payloads
            .iter()
            .map(|payload| {
                let digest = Digest::of(payload);
                let (kind, function, hash) = (Kind::Blob, digest.function(), digest.hash());
                Record { kind, function, hash, payload }.encode(NONCE, &mut bytes)
            })
            .collect();
        (bytes, entries)
    }

    #[test]
    fn what_was_appended_is_scanned() {
        let (bytes, entries) = segment_of(&[b"one", b"", b"three three"]);
        assert_eq!(Nonce::read(&bytes), Some(NONCE));
        assert_eq!(scan(NONCE, &bytes), (entries.clone(), bytes.len() as u64));
        let third = &entries[2];
        let at = third.offset as usize;
        assert_eq!(&bytes[at..at + 11], b"three three");
        let record = Bytes::from(bytes).slice(at - RECORD_HEADER_BYTES..at + 11);
        assert_eq!(checked_payload(&record, &third.hash).unwrap(), "three three");
        assert_eq!(checked_payload(&record, &entries[0].hash), None);
    }

    #[test]
    fn a_footer_round_trips_and_a_damaged_one_is_refused() {
        let (mut bytes, entries) = segment_of(&[b"one", b"two"]);
        let end = bytes.len();
        bytes.extend(footer(NONCE, &entries, end as u64));
        let last = bytes[bytes.len() - TRAILER_BYTES..].try_into().unwrap();
        assert_eq!(footer_start(&last), Some(end as u64));
        assert_eq!(read_footer(NONCE, &bytes[end..]), Some(entries));
        for at in end..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(read_footer(NONCE, &damaged[end..]), None, "byte {at}");
        }
    }

    #[test]
    fn a_client_that_does_not_know_the_nonce_can_forge_neither_footer_nor_record() {
        let guessed = Nonce([8; 8]);
        let forged_footer = footer(guessed, &[], 16);
        let mut forged_record = Vec::new();
        let hash = [1; HASH_BYTES];
        let (kind, function) = (Kind::Action, DigestFunction::Sha256);
        let record = Record { kind, function, hash: &hash, payload: b"x" };
        record.encode(guessed, &mut forged_record);
        let (bytes, entries) = segment_of(&[&forged_record, &forged_footer]);
        assert_eq!(scan(NONCE, &bytes), (entries, bytes.len() as u64));
        assert_eq!(read_footer(NONCE, &forged_footer), None);
    }

    #[test]
    fn an_entry_outside_its_segment_is_refused() {
        let (bytes, entries) = segment_of(&[b"one"]);
        let end = bytes.len() as u64;
        for (offset, length) in [(0, 3), (16, 3), (u32::MAX, 3), (72, 1 << 60), (72, u64::MAX)] {
            let entry = RecordEntry { offset, length, ..entries[0] };
            let bytes = footer(NONCE, &[entry], end);
            assert_eq!(read_footer(NONCE, &bytes), None, "{offset} {length}");
        }
    }

    #[test]
    fn damage_costs_the_record_it_hits_and_no_other() {
        let (bytes, entries) = segment_of(&[b"first", b"second", b"third"]);
        let second = entries[1].offset as usize - RECORD_HEADER_BYTES;
        for at in second..second + RECORD_HEADER_BYTES + 6 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x40;
            assert_eq!(scan(NONCE, &damaged).0, [entries[0], entries[2]], "byte {at}");
        }
        let end_of_third = entries[2].offset as usize + 5;
        for cut in 0..end_of_third {
            assert!(scan(NONCE, &bytes[..cut]).0.len() < 3);
        }
    }
}
