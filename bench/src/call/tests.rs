//! What a reply must be to count. Must need no server.

use proto::rpc;

use super::*;

fn message(message: &impl Message) -> Reply {
    Reply::Message(Bytes::from(message.encode_to_vec()))
}

fn check(expect: &Expect, reply: Reply, want: Result<u64, &str>) {
    match (expect.check(reply, true), want) {
        (Ok(bytes), Ok(want)) => assert_eq!(bytes, want),
        (Err(error), Err(want)) => {
            let error = error.to_string();
            assert!(error.contains(want), "'{error}' does not say '{want}'");
        }
        (got, want) => panic!("got {got:?}, not {want:?}"),
    }
}

fn status(code: i32) -> Option<rpc::Status> {
    Some(rpc::Status { code, message: "because".to_owned(), details: Vec::new() })
}

#[test]
fn a_stream_counts_with_the_right_length_and_the_right_bytes_only() {
    let expect = Expect::Stream(digest_of(b"hello world"));
    let stream = |text: &'static str| {
        let (front, back) = text.split_at(text.len() / 2);
        let pieces = vec![Bytes::from(front), Bytes::from(back)];
        Reply::Stream { len: text.len() as u64, pieces }
    };
    check(&expect, stream("hello world"), Ok(11));
    check(&expect, stream("hello"), Err("5 bytes of 11"));
    check(&expect, stream("jello world"), Err("other bytes"));
    check(&expect, Reply::Message(Bytes::new()), Err("another kind"));
}

#[test]
fn every_blob_of_a_batch_must_be_stored() {
    let response = |code| reapi::batch_update_blobs_response::Response {
        status: status(code),
        ..Default::default()
    };
    let reply = |codes: &[i32]| {
        let responses = codes.iter().map(|&code| response(code)).collect();
        message(&reapi::BatchUpdateBlobsResponse { responses })
    };
    let expect = Expect::Stored { count: 2 };
    check(&expect, reply(&[0, 0]), Ok(0));
    check(&expect, reply(&[0]), Err("1 blobs of 2"));
    check(&expect, reply(&[0, 8]), Err("code 8: because"));
}

#[test]
fn every_blob_of_a_batch_must_come_back_whole() {
    let reply = |bytes: &'static [u8], code| {
        message(&reapi::BatchReadBlobsResponse {
            responses: vec![reapi::batch_read_blobs_response::Response {
                digest: Some(digest_of(b"abc")),
                data: Bytes::from_static(bytes),
                status: status(code),
                ..Default::default()
            }],
        })
    };
    let expect = Expect::Blobs { count: 1, len: 3 };
    check(&expect, reply(b"abc", 0), Ok(3));
    check(&expect, reply(b"abd", 0), Err("other bytes"));
    check(&expect, reply(b"ab", 0), Err("2 bytes of 3"));
    check(&expect, reply(b"", 5), Err("code 5: because"));
}

#[test]
fn the_number_of_missing_blobs_must_be_right() {
    let digest = digest_of(b"abc");
    let reply = |count| reapi::FindMissingBlobsResponse {
        missing_blob_digests: vec![digest.clone(); count],
    };
    let expect = Expect::Missing { count: 3, encoded_len: reply(3).encoded_len() };
    check(&expect, message(&reply(3)), Ok(0));
    check(&expect, message(&reply(2)), Err("2 blobs missing, not 3"));
    let shallow = expect.check(message(&reply(2)), false);
    assert!(shallow.is_err(), "another length is decoded even when not asked to");
}

#[test]
fn an_execution_counts_if_the_program_ran_and_ended_well() {
    let reply = |response: reapi::ExecuteResponse| {
        message(&longrunning::Operation {
            done: true,
            result: Some(longrunning::operation::Result::Response(prost_types::Any {
                type_url: String::new(),
                value: response.encode_to_vec(),
            })),
            ..Default::default()
        })
    };
    let ended = |exit_code| reapi::ExecuteResponse {
        result: Some(reapi::ActionResult { exit_code, ..Default::default() }),
        ..Default::default()
    };
    let cached = reapi::ExecuteResponse { cached_result: true, ..ended(0) };
    let refused = reapi::ExecuteResponse { status: status(9), ..Default::default() };
    check(&Expect::Ran, reply(ended(0)), Ok(0));
    check(&Expect::Ran, reply(ended(1)), Err("ended with 1"));
    check(&Expect::Ran, reply(cached), Err("from the cache"));
    check(&Expect::Ran, reply(refused), Err("code 9: because"));
    check(&Expect::Ran, reply(reapi::ExecuteResponse::default()), Err("no action result"));
    check(&Expect::Ran, message(&longrunning::Operation::default()), Err("before its operation"));
}

#[test]
fn other_replies_are_checked_too() {
    let committed = |committed_size| message(&bytestream::WriteResponse { committed_size });
    check(&Expect::Committed(7), committed(7), Ok(0));
    check(&Expect::Committed(7), committed(6), Err("6 of 7 bytes"));
    let outputs = |count| {
        let output_files = vec![reapi::OutputFile::default(); count];
        message(&reapi::ActionResult { output_files, ..Default::default() })
    };
    check(&Expect::Outputs(2), outputs(2), Ok(0));
    check(&Expect::Outputs(2), outputs(1), Err("1 output files of 2"));
    let empty = message(&reapi::ServerCapabilities::default());
    check(&Expect::Capabilities, empty, Err("no cache capabilities"));
}
