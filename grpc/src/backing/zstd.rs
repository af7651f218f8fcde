//! Streams of zstd frames, a piece at a time (RFC 8878). Must never make more of what it is given
//! than its caller expects: a few bytes can claim to be gigabytes.

use bytes::{Bytes, BytesMut};
use std::io;
use zstd::stream::raw::{Decoder, Encoder, InBuffer, Operation, OutBuffer};
use zstd::zstd_safe::DParameter;

/// Fast enough to keep up with 1 Gbit/s on one core, and most of the gain.
const LEVEL: i32 = 1;
/// Largest window accepted, as a power of two: what one stream may make us allocate. 32 MiB: other
/// encoders use up to that, zstd itself 8 MiB below its `--ultra` levels.
const WINDOW_LOG_MAX: u32 = 25;
/// Bytes of one piece that comes out: the format's largest block.
const PIECE_BYTES: usize = 128 << 10;
/// Bytes that a stream may be larger packed than unpacked, besides a 64th (zstd's own bound is a
/// 256th, and a frame's head).
const PACKED_BYTES_MORE: u64 = 64 << 10;

/// Why a stream can't be unpacked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadZstd {
    /// It is not zstd, or it needs a window above the bound.
    #[error("zstd: {0}")]
    Format(#[from] io::Error),
    /// It is longer than it should be.
    #[error("zstd: more bytes than expected")]
    TooLong,
}

/// Unpacks a stream that must become no more than a given number of bytes.
pub(crate) struct Unpacker {
    decoder: Decoder<'static>,
    input: Bytes,
    /// Whether the decoder stands between frames.
    at_end: bool,
    /// Whether it may hold output that needs no further input.
    full: bool,
    left: u64,
    /// What may still be fed: frames of nothing could go on for ever.
    packed_left: u64,
}

impl Unpacker {
    /// For a stream of `size` bytes once unpacked.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub(crate) fn new(size: u64) -> Result<Self, BadZstd> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
        let packed_left = size.saturating_add(size / 64).saturating_add(PACKED_BYTES_MORE);
        Ok(Self {
            decoder,
            input: Bytes::new(),
            at_end: true,
            full: false,
            left: size,
            packed_left,
        })
    }

    /// Gives it what has come; only where [`Self::next`] had nothing more.
    ///
    /// # Errors
    /// [`BadZstd::TooLong`].
    pub(crate) fn feed(&mut self, input: Bytes) -> Result<(), BadZstd> {
        let packed_left = self.packed_left.checked_sub(input.len() as u64);
        self.packed_left = packed_left.ok_or(BadZstd::TooLong)?;
        self.input = input;
        Ok(())
    }

    /// The next piece of what was fed, if there is one.
    ///
    /// # Errors
    /// [`BadZstd`].
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, BadZstd> {
        while !self.input.is_empty() || self.full {
            let mut piece = vec![0; PIECE_BYTES];
            let mut input = InBuffer::around(&self.input);
            let mut output = OutBuffer::around(&mut piece[..]);
            let hint = self.decoder.run(&mut input, &mut output)?;
            let (read, written) = (input.pos(), output.pos());
            self.at_end = hint == 0;
            self.full = written == PIECE_BYTES && !self.at_end;
            self.input = self.input.slice(read..);
            if written > 0 {
                self.left = self.left.checked_sub(written as u64).ok_or(BadZstd::TooLong)?;
                piece.truncate(written);
                return Ok(Some(piece.into()));
            }
        }
        Ok(None)
    }

    /// Whether nothing is missing of what was expected.
    pub(crate) fn is_whole(&self) -> bool {
        self.at_end && self.left == 0
    }
}

/// Packs a stream into one frame.
pub(crate) struct Packer {
    encoder: Encoder<'static>,
}

impl Packer {
    /// For a stream of any size.
    ///
    /// # Errors
    /// Where there is no memory for it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { encoder: Encoder::new(LEVEL)? })
    }

    /// What can be said of the stream with this further piece; often nothing.
    ///
    /// # Errors
    /// None are known of for valid parameters.
    pub(crate) fn pack(&mut self, piece: &[u8]) -> io::Result<Bytes> {
        let mut packed = BytesMut::new();
        let mut input = InBuffer::around(piece);
        let mut room = vec![0; PIECE_BYTES];
        while input.pos() < piece.len() {
            let mut output = OutBuffer::around(&mut room[..]);
            self.encoder.run(&mut input, &mut output)?;
            packed.extend_from_slice(output.as_slice());
        }
        Ok(packed.freeze())
    }

    /// The rest.
    ///
    /// # Errors
    /// None are known of for valid parameters.
    pub(crate) fn finish(mut self) -> io::Result<Bytes> {
        let mut packed = BytesMut::new();
        let mut room = vec![0; PIECE_BYTES];
        loop {
            let mut output = OutBuffer::around(&mut room[..]);
            let left = self.encoder.finish(&mut output, true)?;
            packed.extend_from_slice(output.as_slice());
            if left == 0 {
                return Ok(packed.freeze());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(blob: &[u8], piece: usize) -> Vec<u8> {
        let mut packer = Packer::new().unwrap();
        let mut packed = Vec::new();
        for piece in blob.chunks(piece) {
            packed.extend_from_slice(&packer.pack(piece).unwrap());
        }
        packed.extend_from_slice(&packer.finish().unwrap());
        packed
    }

    /// The blob, if it is whole.
    fn unpacked(packed: &[u8], piece: usize, size: u64) -> Result<Option<Vec<u8>>, BadZstd> {
        let mut unpacker = Unpacker::new(size)?;
        let mut blob = Vec::new();
        for piece in packed.chunks(piece) {
            unpacker.feed(Bytes::copy_from_slice(piece))?;
            while let Some(bytes) = unpacker.next()? {
                assert!(!bytes.is_empty() && bytes.len() <= PIECE_BYTES);
                blob.extend_from_slice(&bytes);
            }
        }
        Ok(unpacker.is_whole().then_some(blob))
    }

    #[test]
    fn a_stream_comes_back_however_it_is_cut() {
        for size in [1, 1000, PIECE_BYTES, PIECE_BYTES + 1, 1_000_000] {
            let random: Vec<u8> = (0..size as u64)
                .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[1])
                .collect();
            for blob in [vec![0; size], random] {
                for cut in [1000, 65_536, 10_000_000] {
                    let frame = packed(&blob, cut);
                    let whole = unpacked(&frame, cut, size as u64).unwrap();
                    assert_eq!(whole.as_ref(), Some(&blob), "{size} {cut}");
                    // Several frames are one stream.
                    let twice = [&frame[..], &frame[..]].concat();
                    let both = unpacked(&twice, cut, 2 * size as u64).unwrap();
                    assert_eq!(both, Some(blob.repeat(2)));
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_size_it_should_have() {
        let bomb = packed(&vec![0; 64 << 20], 1 << 20);
        assert!(bomb.len() < 64 << 10);
        for size in [0, 1, 1 << 20, (64 << 20) - 1] {
            let end = unpacked(&bomb, 4096, size);
            assert!(matches!(end, Err(BadZstd::TooLong)), "{size}");
        }
    }

    #[test]
    fn frames_of_nothing_do_not_go_on_for_ever() {
        let nothing = packed(&[], 1).repeat(100_000);
        assert!(matches!(unpacked(&nothing, 4096, 10), Err(BadZstd::TooLong)));
    }

    #[test]
    fn what_is_cut_or_is_no_zstd_is_an_error() {
        let frame = packed(&vec![7; 300_000], 1000);
        for length in [0, 1, 10, frame.len() - 1] {
            let cut = unpacked(&frame[..length], 64, 300_000);
            assert!(matches!(cut, Ok(None)), "{length}");
        }
        let long = [&frame[..], b"more"].concat();
        assert!(unpacked(&long, 64, 300_000).is_err());
        assert!(matches!(unpacked(b"plain text", 64, 10), Err(BadZstd::Format(_))));
        // A frame's head that asks for a window of 1 GiB: magic, descriptor, window descriptor.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (30 - 10) << 3];
        let asks = [&window[..], &[0x01, 0x00, 0x00]].concat();
        assert!(matches!(unpacked(&asks, 64, 0), Err(BadZstd::Format(_))));
    }
}
