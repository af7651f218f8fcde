//! The payload of ReadResponses as it comes: each DATA frame gives what it holds of it, without
//! waiting for its message to be whole. So a server's large messages cost no more time until the
//! first byte than its frames do. Must never copy a byte of payload, nor keep one.

use bytes::{Buf, Bytes};

/// gRPC's envelope: a flag and four bytes of length.
pub(super) const ENVELOPE_BYTES: usize = 5;
/// Bits of the longest varint (protobuf encoding).
const VARINT_BITS: u32 = 70;

/// These bytes are no ReadResponses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Where in a stream of enveloped ReadResponses its reader is.
#[derive(Debug, Default)]
pub(super) struct Messages {
    part: Part,
    /// Bytes of the message that are still to come.
    left: u64,
    /// The envelope as far as it came.
    envelope: [u8; ENVELOPE_BYTES],
    gathered: usize,
    /// A varint as far as it came, and how many bits of it.
    number: u64,
    bits: u32,
}

/// What comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    #[default]
    Envelope,
    Tag,
    /// The length of a field: of the payload, or of one to be passed over.
    Length {
        is_payload: bool,
    },
    /// A number that is passed over.
    Number,
    /// So many bytes of payload, or of something else.
    Bytes {
        left: u64,
        is_payload: bool,
    },
}

impl Messages {
    /// Gives each piece of payload in these bytes, in their order, to `take`.
    ///
    /// # Errors
    /// [`Malformed`]; what was given before that is not taken back.
    pub(super) fn feed(
        &mut self,
        mut bytes: Bytes,
        mut take: impl FnMut(Bytes),
    ) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match self.part {
                Part::Envelope => self.envelope(&mut bytes)?,
                Part::Tag => self.tag(&mut bytes)?,
                Part::Number => {
                    if self.varint(&mut bytes)?.is_some() {
                        self.part = Part::Tag;
                    }
                }
                Part::Length { is_payload } => {
                    if let Some(left) = self.varint(&mut bytes)? {
                        self.field(left, is_payload)?;
                    }
                }
                Part::Bytes { left, is_payload } => {
                    let length = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    let piece = bytes.split_to(length);
                    self.left -= length as u64;
                    let left = left - length as u64;
                    self.part =
                        if left == 0 { Part::Tag } else { Part::Bytes { left, is_payload } };
                    if is_payload {
                        take(piece);
                    }
                }
            }
            if self.left == 0 && self.part != Part::Envelope {
                // A message ends between its fields.
                if self.part != Part::Tag || self.bits > 0 {
                    return Err(Malformed);
                }
                self.part = Part::Envelope;
            }
        }
        Ok(())
    }

    /// Whether nothing has begun that has not ended.
    pub(super) fn is_between(&self) -> bool {
        self.part == Part::Envelope && self.gathered == 0
    }

    fn envelope(&mut self, bytes: &mut Bytes) -> Result<(), Malformed> {
        let length = bytes.len().min(ENVELOPE_BYTES - self.gathered);
        bytes.copy_to_slice(&mut self.envelope[self.gathered..self.gathered + length]);
        self.gathered += length;
        if self.gathered == ENVELOPE_BYTES {
            let [flag, length @ ..] = self.envelope;
            // Compressed messages were not asked for.
            if flag != 0 {
                return Err(Malformed);
            }
            self.gathered = 0;
            self.left = u64::from(u32::from_be_bytes(length));
            self.part = if self.left == 0 { Part::Envelope } else { Part::Tag };
        }
        Ok(())
    }

    fn tag(&mut self, bytes: &mut Bytes) -> Result<(), Malformed> {
        let Some(tag) = self.varint(bytes)? else { return Ok(()) };
        match (tag >> 3, tag & 7) {
            (0, _) => return Err(Malformed),
            (10, 2) => self.part = Part::Length { is_payload: true },
            (_, 0) => self.part = Part::Number,
            (_, 1) => self.field(8, false)?,
            (_, 2) => self.part = Part::Length { is_payload: false },
            (_, 5) => self.field(4, false)?,
            _ => return Err(Malformed),
        }
        Ok(())
    }

    /// A field of so many bytes begins.
    fn field(&mut self, left: u64, is_payload: bool) -> Result<(), Malformed> {
        if left > self.left {
            return Err(Malformed);
        }
        self.part = if left == 0 { Part::Tag } else { Part::Bytes { left, is_payload } };
        Ok(())
    }

    /// A varint, once its last byte is here.
    fn varint(&mut self, bytes: &mut Bytes) -> Result<Option<u64>, Malformed> {
        while !bytes.is_empty() {
            // It would run into the next message, or never end.
            if self.left == 0 || self.bits >= VARINT_BITS {
                return Err(Malformed);
            }
            let byte = bytes.get_u8();
            self.left -= 1;
            self.number |= u64::from(byte & 0x7f).checked_shl(self.bits).unwrap_or(0);
            self.bits += 7;
            if byte < 0x80 {
                self.bits = 0;
                return Ok(Some(std::mem::take(&mut self.number)));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::bytestream::ReadResponse;

    /// The message in its envelope.
    fn enveloped(message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(message);
        bytes
    }

    fn read(bytes: &[u8], cut: usize) -> Result<(Vec<u8>, bool), Malformed> {
        let (mut messages, mut payload) = (Messages::default(), Vec::new());
        for piece in bytes.chunks(cut) {
            messages.feed(Bytes::copy_from_slice(piece), |piece| payload.extend(piece))?;
        }
        Ok((payload, messages.is_between()))
    }

    #[test]
    fn payload_is_found_wherever_frames_are_cut() {
        let response = |data: &'static [u8]| ReadResponse { data: data.into() }.encode_to_vec();
        // Fields of a later version: varint, 8 bytes, text (empty and not), 4 bytes.
        let unknown = [
            &[0x08, 0x96, 0x01, 0x11, 1, 2, 3, 4, 5, 6, 7, 8, 0x1a, 0, 0x1a, 2, 9, 9][..],
            &response(b"new"),
            &[0x25, 1, 2, 3, 4],
        ]
        .concat();
        let stream = [
            enveloped(&response(b"first ")),
            enveloped(&[]),
            enveloped(&response(b"")),
            enveloped(&unknown),
            enveloped(&response(&[b'x'; 300])),
        ]
        .concat();
        let expect = [&b"first new"[..], &[b'x'; 300]].concat();
        for cut in 1..=stream.len() {
            assert_eq!(read(&stream, cut), Ok((expect.clone(), true)), "{cut}");
        }
        for end in 1..stream.len() {
            let (payload, _) = read(&stream[..end], end).unwrap();
            assert_eq!(payload, expect[..payload.len()], "{end}");
        }
        assert_eq!(read(&stream[..stream.len() - 1], 7).map(|(_, between)| between), Ok(false));
    }

    #[test]
    fn what_is_no_read_response_is_refused_however_it_is_cut() {
        let compressed = [1, 0, 0, 0, 1, 0].to_vec();
        for bytes in [
            compressed,
            enveloped(&[0x52, 5, 1, 2]), // payload longer than its message
            enveloped(&[0x52]),          // no length
            enveloped(&[0x52, 0x80]),    // half a length
            enveloped(&[0x00, 0x00]),    // field 0
            enveloped(&[0x0b]),          // a group
            enveloped(&[0x09, 1]),       // eight bytes of which there is one
            enveloped(&[[0x08].as_slice(), &[0xff; 11]].concat()), // an endless varint
        ] {
            // What follows must not be taken for the rest of it.
            let stream = [bytes.clone(), enveloped(&[])].concat();
            for cut in [1, 3, stream.len()] {
                assert_eq!(read(&stream, cut), Err(Malformed), "{bytes:?} by {cut}");
            }
        }
    }

    #[test]
    fn payload_is_not_copied() {
        let bytes =
            Bytes::from(enveloped(&ReadResponse { data: vec![7; 99].into() }.encode_to_vec()));
        let mut pieces = Vec::new();
        Messages::default().feed(bytes.clone(), |piece| pieces.push(piece)).unwrap();
        assert_eq!(pieces.len(), 1);
        assert_eq!(pieces[0].as_ptr(), bytes[7..].as_ptr());
    }
}
