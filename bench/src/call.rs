//! One operation: the part whose time is taken, and the checks of its reply, whose time is not.
//! Must never count an operation whose reply was not checked.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use prost::Message;
use proto::{bytestream, longrunning, reapi};

use crate::{
    client::{Client, Frame, Method},
    payload::{digest_of, digest_of_pieces},
};

/// What is sent. A clone shares the bytes.
#[derive(Clone)]
pub(crate) enum Call {
    /// One message, one reply.
    Unary(Method, Bytes),
    /// ByteStream.Read.
    Read(Bytes),
    /// ByteStream.Write.
    Write(Vec<Frame>),
    /// Execution.Execute, until its operation is done.
    Execute(Bytes),
}

/// What came back.
pub(crate) enum Reply {
    /// The only or the last message.
    Message(Bytes),
    /// What a ByteStream.Read brought: its length, and the bytes if they were to be kept.
    Stream { len: u64, pieces: Vec<Bytes> },
}

impl Call {
    /// Sends it and waits for the whole reply. `keep` keeps the bytes of a stream for the check.
    pub(crate) async fn run(self, client: &Client, keep: bool) -> Result<Reply> {
        match self {
            Self::Unary(method, message) => {
                Ok(Reply::Message(client.unary(method, message).await?))
            }
            Self::Write(frames) => Ok(Reply::Message(client.upload(Method::Write, frames).await?)),
            Self::Read(message) => read(client, message, keep).await,
            Self::Execute(message) => execute(client, message).await,
        }
    }
}

async fn read(client: &Client, message: Bytes, keep: bool) -> Result<Reply> {
    let mut stream = client.download(Method::Read, message).await?;
    let (mut len, mut pieces) = (0, Vec::new());
    // Ends with the server's stream; a server that sends without end meets the row's deadline.
    while let Some(message) = stream.next().await? {
        let piece = bytestream::ReadResponse::decode(message).context("a ReadResponse")?.data;
        len += piece.len() as u64;
        if keep {
            pieces.push(piece);
        }
    }
    Ok(Reply::Stream { len, pieces })
}

async fn execute(client: &Client, message: Bytes) -> Result<Reply> {
    let mut stream = client.download(Method::Execute, message).await?;
    let mut last = None;
    while let Some(message) = stream.next().await? {
        last = Some(message);
    }
    Ok(Reply::Message(last.context("Execute ended without any operation")?))
}

/// What the reply has to be.
#[derive(Debug, Clone)]
pub(crate) enum Expect {
    /// Capabilities of a cache.
    Capabilities,
    /// So many missing digests, in a message of this length: equal digests have equal lengths, so
    /// the length tells the number without a decoding of each reply.
    Missing { count: usize, encoded_len: usize },
    /// So many blobs, each stored.
    Stored { count: usize },
    /// So many blobs of one length, each with its bytes.
    Blobs { count: usize, len: usize },
    /// The bytes of this blob, as one stream.
    Stream(reapi::Digest),
    /// A finished upload of this length.
    Committed(i64),
    /// An action result with so many output files.
    Outputs(usize),
    /// A run of the program, not from the cache, that ended with 0.
    Ran,
}

impl Expect {
    /// Checks a reply and gives the payload bytes that the operation read, 0 for the others.
    /// `deep` asks for what is too dear to do each time: hashes, and full decoding.
    pub(crate) fn check(&self, reply: Reply, deep: bool) -> Result<u64> {
        let message = match (self, reply) {
            (Self::Stream(digest), Reply::Stream { len, pieces }) => {
                return check_stream(digest, len, &pieces, deep);
            }
            (Self::Stream(_), Reply::Message(_)) | (_, Reply::Stream { .. }) => {
                bail!("a reply of another kind than was asked for")
            }
            (_, Reply::Message(message)) => message,
        };
        match self {
            Self::Capabilities => check_capabilities(message)?,
            Self::Missing { count, encoded_len } => {
                check_missing(message, *count, *encoded_len, deep)?;
            }
            Self::Stored { count } => check_stored(message, *count)?,
            Self::Blobs { count, len } => return check_blobs(message, *count, *len, deep),
            Self::Committed(size) => {
                let reply = bytestream::WriteResponse::decode(message)?;
                let got = reply.committed_size;
                ensure!(got == *size, "Write committed {got} of {size} bytes");
            }
            Self::Outputs(count) => {
                let got = reapi::ActionResult::decode(message)?.output_files.len();
                ensure!(got == *count, "GetActionResult gave {got} output files of {count}");
            }
            Self::Ran => check_run(message)?,
            Self::Stream(_) => {}
        }
        Ok(0)
    }
}

fn check_stream(digest: &reapi::Digest, len: u64, pieces: &[Bytes], deep: bool) -> Result<u64> {
    let size = digest.size_bytes;
    ensure!(i64::try_from(len) == Ok(size), "Read gave {len} bytes of {size}");
    if deep {
        ensure!(
            digest_of_pieces(pieces) == *digest,
            "Read gave other bytes than those of {digest:?}"
        );
    }
    Ok(len)
}

fn check_capabilities(message: Bytes) -> Result<()> {
    let reply = reapi::ServerCapabilities::decode(message)?;
    ensure!(reply.cache_capabilities.is_some(), "GetCapabilities gave no cache capabilities");
    Ok(())
}

fn check_missing(message: Bytes, count: usize, encoded_len: usize, deep: bool) -> Result<()> {
    let len = message.len();
    if deep || len != encoded_len {
        let got = reapi::FindMissingBlobsResponse::decode(message)?.missing_blob_digests.len();
        ensure!(got == count, "FindMissingBlobs called {got} blobs missing, not {count}");
    }
    Ok(())
}

fn check_stored(message: Bytes, count: usize) -> Result<()> {
    let reply = reapi::BatchUpdateBlobsResponse::decode(message)?;
    let got = reply.responses.len();
    ensure!(got == count, "BatchUpdateBlobs answered for {got} blobs of {count}");
    for response in reply.responses {
        let status = response.status.unwrap_or_default();
        let (code, text) = (status.code, status.message);
        ensure!(code == 0, "BatchUpdateBlobs refused a blob with code {code}: {text}");
    }
    Ok(())
}

fn check_blobs(message: Bytes, count: usize, len: usize, deep: bool) -> Result<u64> {
    let reply = reapi::BatchReadBlobsResponse::decode(message)?;
    let got = reply.responses.len();
    ensure!(got == count, "BatchReadBlobs answered for {got} blobs of {count}");
    for response in reply.responses {
        let status = response.status.unwrap_or_default();
        let (code, text) = (status.code, status.message);
        ensure!(code == 0, "BatchReadBlobs refused a blob with code {code}: {text}");
        let got = response.data.len();
        ensure!(got == len, "BatchReadBlobs gave {got} bytes of {len}");
        if deep {
            let digest = digest_of(&response.data);
            ensure!(Some(digest) == response.digest, "BatchReadBlobs gave other bytes");
        }
    }
    Ok((count * len) as u64)
}

fn check_run(message: Bytes) -> Result<()> {
    let operation = longrunning::Operation::decode(message)?;
    ensure!(operation.done, "Execute ended before its operation was done");
    let response = match operation.result {
        Some(longrunning::operation::Result::Response(any)) => any,
        Some(longrunning::operation::Result::Error(status)) => {
            bail!("the operation failed with code {}: {}", status.code, status.message)
        }
        None => bail!("a done operation without a response"),
    };
    let response = reapi::ExecuteResponse::decode(response.value.as_slice())?;
    let status = response.status.unwrap_or_default();
    ensure!(status.code == 0, "Execute ended with code {}: {}", status.code, status.message);
    ensure!(!response.cached_result, "Execute answered from the cache, and ran nothing");
    let result = response.result.context("Execute gave no action result")?;
    let code = result.exit_code;
    ensure!(
        code == 0,
        "the program ended with {code}: {}",
        String::from_utf8_lossy(&result.stderr_raw)
    );
    Ok(())
}

#[cfg(test)]
#[path = "call/tests.rs"]
mod tests;
