//! What a server must hold before a row can be measured, and how it gets there. Must take no time
//! measurements: everything here happens outside of them.

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message;
use proto::{bytestream, reapi};
use uuid::Uuid;

use crate::{
    call::{Call, Expect, Reply},
    client::{Client, Frame, Method},
    payload::{Blob, Lane, Seed, digest_of},
};

/// Payload of one preparing BatchUpdateBlobs, in bytes, at most: far below any server's limit.
const BATCH_LEN_MAX: usize = 512 * 1024;
/// Blobs of one preparing BatchUpdateBlobs, at most.
const BATCH_COUNT_MAX: usize = 500;
/// Files of one input directory; more inputs make more directories.
const DIRECTORY_FILES: usize = 100;
/// Length of an input file, in bytes.
const INPUT_LEN: usize = 64;

/// One server, and how it is spoken to.
pub(crate) struct Setup {
    pub client: Client,
    pub instance: String,
    pub seed: Seed,
    /// Length of one message of an upload, in bytes.
    pub chunk_len: usize,
}

impl Setup {
    /// Stores blobs: small ones in batches, the others as streams.
    pub(crate) async fn store(&self, blobs: Vec<Blob>) -> Result<()> {
        let (mut batch, mut batch_len) = (Vec::new(), 0);
        for blob in blobs {
            let len = blob.pieces.iter().map(Bytes::len).sum::<usize>();
            if len > BATCH_LEN_MAX {
                let expect = Expect::Committed(blob.digest.size_bytes);
                let reply = Call::Write(self.write(&blob)).run(&self.client, false).await?;
                expect.check(reply, true)?;
                continue;
            }
            if batch_len + len > BATCH_LEN_MAX || batch.len() == BATCH_COUNT_MAX {
                self.store_batch(std::mem::take(&mut batch)).await?;
                batch_len = 0;
            }
            batch_len += len;
            batch.push(blob);
        }
        if batch.is_empty() { Ok(()) } else { self.store_batch(batch).await }
    }

    async fn store_batch(&self, blobs: Vec<Blob>) -> Result<()> {
        let expect = Expect::Stored { count: blobs.len() };
        let message = self.batch_update(blobs);
        let reply = self.client.unary(Method::BatchUpdateBlobs, message).await?;
        expect.check(Reply::Message(reply), true)?;
        Ok(())
    }

    /// The encoded BatchUpdateBlobs of blobs that are one piece each.
    pub(crate) fn batch_update(&self, blobs: Vec<Blob>) -> Bytes {
        let request = |blob: Blob| reapi::batch_update_blobs_request::Request {
            digest: Some(blob.digest),
            data: blob.pieces.into_iter().next().unwrap_or_default(),
            ..Default::default()
        };
        encoded(&reapi::BatchUpdateBlobsRequest {
            instance_name: self.instance.clone(),
            requests: blobs.into_iter().map(request).collect(),
            ..Default::default()
        })
    }

    /// The messages of a ByteStream.Write.
    pub(crate) fn write(&self, blob: &Blob) -> Vec<Frame> {
        let tail = format!("blobs/{}/{}", blob.digest.hash, blob.digest.size_bytes);
        let name = format!("{}uploads/{}/{tail}", self.prefix(), Uuid::new_v4());
        write_frames(&name, &blob.pieces, self.chunk_len)
    }

    /// The encoded ByteStream.Read of a whole blob.
    pub(crate) fn read(&self, digest: &reapi::Digest) -> Bytes {
        let resource_name = format!("{}blobs/{}/{}", self.prefix(), digest.hash, digest.size_bytes);
        encoded(&bytestream::ReadRequest { resource_name, read_offset: 0, read_limit: 0 })
    }

    fn prefix(&self) -> String {
        if self.instance.is_empty() { String::new() } else { format!("{}/", self.instance) }
    }

    /// Stores an action result under `key`, with outputs that are there.
    pub(crate) async fn store_result(
        &self,
        key: &reapi::Digest,
        outputs: &[reapi::Digest],
    ) -> Result<()> {
        let output = |(at, digest): (usize, &reapi::Digest)| reapi::OutputFile {
            path: format!("out/file{at:03}.o"),
            digest: Some(digest.clone()),
            ..Default::default()
        };
        let message = encoded(&reapi::UpdateActionResultRequest {
            instance_name: self.instance.clone(),
            action_digest: Some(key.clone()),
            action_result: Some(reapi::ActionResult {
                output_files: outputs.iter().enumerate().map(output).collect(),
                execution_metadata: Some(reapi::ExecutedActionMetadata {
                    worker: "reapi-load".to_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        });
        let reply = self.client.unary(Method::UpdateActionResult, message).await?;
        Expect::Outputs(outputs.len()).check(Reply::Message(reply), true)?;
        Ok(())
    }

    /// Stores the command `/bin/true` and an input root of `inputs` files; gives both digests.
    pub(crate) async fn store_true(&self, inputs: usize) -> Result<(reapi::Digest, reapi::Digest)> {
        let command = Blob::whole(encoded(&reapi::Command {
            arguments: vec!["/bin/true".to_owned()],
            ..Default::default()
        }));
        let mut blobs = vec![command.clone()];
        let root = input_root(self.seed, inputs, &mut blobs);
        self.store(blobs).await.context("storing an input root")?;
        Ok((command.digest, root))
    }
}

/// A message, encoded.
pub(crate) fn encoded(message: &impl Message) -> Bytes {
    Bytes::from(message.encode_to_vec())
}

/// Cuts pieces into the messages of one ByteStream.Write. The payload is not copied: it follows
/// the encoded rest of its message as field 10.
fn write_frames(name: &str, pieces: &[Bytes], chunk_len: usize) -> Vec<Frame> {
    const DATA_FIELD: u8 = (10 << 3) | 2;
    let total: usize = pieces.iter().map(Bytes::len).sum();
    let (mut frames, mut offset) = (Vec::new(), 0);
    for piece in pieces {
        let mut rest = piece.clone();
        while !rest.is_empty() {
            let payload = rest.split_to(rest.len().min(chunk_len));
            let mut head = bytestream::WriteRequest {
                resource_name: if offset == 0 { name.to_owned() } else { String::new() },
                write_offset: offset as i64,
                finish_write: offset + payload.len() == total,
                data: Bytes::new(),
            }
            .encode_to_vec();
            head.push(DATA_FIELD);
            let mut len = payload.len();
            // A length of 64 bits has at most ten groups of seven.
            while len > 0x7f {
                head.push((len & 0x7f) as u8 | 0x80);
                len >>= 7;
            }
            head.push(len as u8);
            offset += payload.len();
            frames.push(Frame { head: Bytes::from(head), payload });
        }
    }
    frames
}

/// Adds the files and directories of an input root to `blobs`, and gives the root's digest.
fn input_root(seed: Seed, inputs: usize, blobs: &mut Vec<Blob>) -> reapi::Digest {
    let file = |at: usize| Blob::whole(seed.bytes(Lane::Input(inputs), at as u64, INPUT_LEN));
    let mut groups = Vec::new();
    for first in (0..inputs).step_by(DIRECTORY_FILES) {
        let mut files = Vec::new();
        for at in first..inputs.min(first + DIRECTORY_FILES) {
            let blob = file(at);
            files.push(reapi::FileNode {
                name: format!("file{at:05}.h"),
                digest: Some(blob.digest.clone()),
                ..Default::default()
            });
            blobs.push(blob);
        }
        groups.push(reapi::Directory { files, ..Default::default() });
    }
    let root = if groups.len() == 1 {
        groups.remove(0)
    } else {
        let mut directories = Vec::new();
        for (at, group) in groups.into_iter().enumerate() {
            let blob = Blob::whole(encoded(&group));
            let digest = Some(blob.digest.clone());
            directories.push(reapi::DirectoryNode { name: format!("dir{at:03}"), digest });
            blobs.push(blob);
        }
        reapi::Directory { directories, ..Default::default() }
    };
    let root = Blob::whole(encoded(&root));
    let digest = root.digest.clone();
    blobs.push(root);
    digest
}

/// A key or a salt that no other row has.
pub(crate) fn unique(seed: Seed, row: &str, index: u64) -> Vec<u8> {
    let mut out = row.as_bytes().to_vec();
    out.extend_from_slice(&seed.bytes(Lane::Action, index, 16));
    out
}

/// The key of an action result that stands for no action.
pub(crate) fn result_key(seed: Seed, row: &str, index: u64) -> reapi::Digest {
    digest_of(&unique(seed, row, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_decode_to_the_messages_of_one_upload() {
        let table: [(&[usize], usize, usize); 5] =
            [(&[1], 10, 1), (&[10], 10, 1), (&[11], 10, 2), (&[300, 5], 200, 3), (&[], 10, 0)];
        for (lens, chunk_len, count) in table {
            let pieces: Vec<Bytes> = lens.iter().map(|&len| Bytes::from(vec![7; len])).collect();
            let total: usize = lens.iter().sum();
            let frames = write_frames("a/b", &pieces, chunk_len);
            assert_eq!(frames.len(), count, "{lens:?}");
            let mut offset = 0;
            for frame in frames {
                let wire = [frame.head, frame.payload].concat();
                let message = bytestream::WriteRequest::decode(wire.as_slice()).unwrap();
                assert_eq!(message.resource_name.is_empty(), offset > 0);
                assert_eq!(message.write_offset, offset as i64);
                offset += message.data.len();
                assert_eq!(message.finish_write, offset == total);
            }
            assert_eq!(offset, total);
        }
    }

    #[test]
    fn an_input_root_names_each_input_once_and_in_order() {
        for (inputs, directories) in [(1, 0), (100, 0), (101, 2), (1000, 10)] {
            let mut blobs = Vec::new();
            let root = input_root(Seed(1), inputs, &mut blobs);
            assert_eq!(blobs.len(), inputs + directories + 1, "{inputs}");
            let last = blobs.last().unwrap();
            assert_eq!(last.digest, root);
            let message = reapi::Directory::decode(last.pieces[0].clone()).unwrap();
            assert_eq!(message.directories.len(), directories);
            assert!(message.directories.is_sorted_by(|one, two| one.name < two.name));
            assert!(message.files.is_sorted_by(|one, two| one.name < two.name));
        }
    }

    #[test]
    fn keys_differ_by_row_and_index() {
        let key = |row, index| result_key(Seed(1), row, index);
        assert_ne!(key("a", 0), key("b", 0));
        assert_ne!(key("a", 0), key("a", 1));
    }
}
