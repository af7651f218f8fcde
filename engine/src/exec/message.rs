//! Messages that clients keep as blobs, decoded within bounds. Must never let a few bytes become
//! much memory: an entry of nothing is two bytes on the wire and a hundred once decoded.

use super::ExecError;
use crate::digest::Digest;
use bytes::Bytes;
use prost::{
    Message,
    encoding::{WireType, decode_key, decode_varint},
};

/// Bytes of one Action, Command or Directory: a directory of some hundred thousand files.
pub(super) const MESSAGE_BYTES_MAX: u64 = 8 << 20;

/// Refuses a message by its digest, before it is read.
///
/// # Errors
/// `Invalid` where it is larger than any message that is read.
pub fn check_message_size(digest: &Digest) -> Result<(), ExecError> {
    if digest.size() > MESSAGE_BYTES_MAX {
        let message = format!("blob {digest}: a message has at most {MESSAGE_BYTES_MAX} bytes");
        return Err(ExecError::Invalid(message));
    }
    Ok(())
}

/// The message that a blob holds. Its fields, each repetition counted, are taken from `room`.
///
/// # Errors
/// `Invalid` where it is none, `TooLarge` where there is no room, before anything is decoded.
pub fn decode_message<M: Message + Default>(
    digest: Digest,
    encoded: Bytes,
    room: &mut u64,
) -> Result<M, ExecError> {
    check_message_size(&digest)?;
    match room.checked_sub(count_fields(&encoded)) {
        Some(left) => *room = left,
        None => {
            let message = format!("blob {digest}: it, or what it belongs to, has too many entries");
            return Err(ExecError::TooLarge(message));
        }
    }
    M::decode(encoded).map_err(|error| ExecError::Invalid(format!("blob {digest}: {error}")))
}

/// Fields of the outermost message, up to the first that is malformed: decoding ends there too.
fn count_fields(mut rest: &[u8]) -> u64 {
    let mut count = 0;
    while !rest.is_empty() {
        let Ok((_, wire_type)) = decode_key(&mut rest) else { break };
        count += 1;
        let length = match wire_type {
            WireType::Varint => decode_varint(&mut rest).map(|_| 0),
            WireType::SixtyFourBit => Ok(8),
            WireType::ThirtyTwoBit => Ok(4),
            WireType::LengthDelimited => decode_varint(&mut rest),
            // What is inside a group is counted as if it were not.
            WireType::StartGroup | WireType::EndGroup => Ok(0),
        };
        let Some(behind) = length.ok().and_then(|length| rest.get(usize::try_from(length).ok()?..))
        else {
            break;
        };
        rest = behind;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::reapi::{Directory, FileNode, SymlinkNode};

    #[test]
    fn entries_are_counted_before_they_are_decoded() {
        let full = Directory {
            files: vec![FileNode { name: "f".to_owned(), ..Default::default() }; 3],
            symlinks: vec![SymlinkNode { target: "t".to_owned(), ..Default::default() }; 2],
            ..Default::default()
        };
        for (encoded, count) in [
            (Vec::new(), 0),
            (full.encode_to_vec(), 5),
            (b"\x0a\x00\x0a\x00".to_vec(), 2),
            (b"\x08\x01\x09\x00\x00\x00\x00\x00\x00\x00\x00\x0d\x00\x00\x00\x00".to_vec(), 3),
            (b"\x0a\x05\x00".to_vec(), 1),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01".to_vec(), 1),
            (b"\x0f".to_vec(), 0),
        ] {
            assert_eq!(count_fields(&encoded), count, "{encoded:?}");
        }
    }

    #[test]
    fn a_message_that_would_become_a_flood_is_refused() {
        let encoded = Bytes::from(b"\x0a\x00".repeat(1000));
        let digest = Digest::of(&encoded);
        let mut room = 1500;
        let decoded: Directory = decode_message(digest, encoded.clone(), &mut room).unwrap();
        assert_eq!((decoded.files.len(), room), (1000, 500));
        // What is left is for the whole tree.
        let again = decode_message::<Directory>(digest, encoded, &mut room);
        assert!(matches!(again, Err(ExecError::TooLarge(_))), "{again:?}");
        let long = Bytes::from(vec![0x0a; usize::try_from(MESSAGE_BYTES_MAX).unwrap() + 1]);
        let refused = decode_message::<Directory>(Digest::of(&long), long, &mut room);
        assert!(matches!(refused, Err(ExecError::Invalid(_))), "{refused:?}");
    }
}
