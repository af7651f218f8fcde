//! Digests and digest functions that are not as they have to be, in every RPC that takes one.

use crate::shared::{assert_refused, shared};
use proto::reapi::{
    ActionResult, BatchReadBlobsRequest, BatchUpdateBlobsRequest, Digest, ExecuteRequest,
    FindMissingBlobsRequest, GetActionResultRequest, GetTreeRequest, UpdateActionResultRequest,
    batch_update_blobs_request::Request, digest_function::Value as Function,
};
use ringforge_tests::client::{Client, digest};
use tonic::{Code, Status};

/// Every RPC that takes a digest.
const RPCS: [&str; 7] = [
    "FindMissingBlobs",
    "BatchUpdateBlobs",
    "BatchReadBlobs",
    "GetTree",
    "GetActionResult",
    "UpdateActionResult",
    "Execute",
];

/// How the RPC answers to this digest; what it says of a single blob counts as its answer.
async fn ask(
    client: &Client,
    rpc: &str,
    digest: Option<Digest>,
    digest_function: i32,
) -> Result<(), Status> {
    let one = digest.clone().into_iter().collect::<Vec<_>>();
    let each = |status: Option<proto::rpc::Status>| {
        let status = status.unwrap_or_default();
        match status.code {
            0 => Ok(()),
            code => Err(Status::new(Code::from_i32(code), status.message)),
        }
    };
    match rpc {
        "FindMissingBlobs" => {
            let blob_digests = one;
            let request =
                FindMissingBlobsRequest { blob_digests, digest_function, ..Default::default() };
            client.cas.clone().find_missing_blobs(request).await.map(drop)
        }
        "BatchUpdateBlobs" => {
            let requests = vec![Request { digest, data: "a".into(), compressor: 0 }];
            let request =
                BatchUpdateBlobsRequest { requests, digest_function, ..Default::default() };
            let answer = client.cas.clone().batch_update_blobs(request).await?.into_inner();
            each(answer.responses[0].status.clone())
        }
        "BatchReadBlobs" => {
            let digests = one;
            let request = BatchReadBlobsRequest { digests, digest_function, ..Default::default() };
            let answer = client.cas.clone().batch_read_blobs(request).await?.into_inner();
            each(answer.responses[0].status.clone())
        }
        "GetTree" => {
            let request =
                GetTreeRequest { root_digest: digest, digest_function, ..Default::default() };
            let mut stream = client.cas.clone().get_tree(request).await?.into_inner();
            stream.message().await.map(drop)
        }
        "GetActionResult" => {
            let action_digest = digest;
            let request =
                GetActionResultRequest { action_digest, digest_function, ..Default::default() };
            client.action_cache.clone().get_action_result(request).await.map(drop)
        }
        "UpdateActionResult" => {
            let request = UpdateActionResultRequest {
                action_digest: digest,
                action_result: Some(ActionResult { exit_code: 1, ..Default::default() }),
                digest_function,
                ..Default::default()
            };
            client.action_cache.clone().update_action_result(request).await.map(drop)
        }
        "Execute" => {
            let action_digest = digest;
            let request = ExecuteRequest { action_digest, digest_function, ..Default::default() };
            client.execute(request).await.map(drop)
        }
        _ => unreachable!("{rpc}"),
    }
}

#[tokio::test]
async fn a_malformed_digest_is_an_invalid_argument_everywhere() {
    let node = shared().await;
    let good = digest(b"a");
    let with = |hash: String, size_bytes: i64| Some(Digest { hash, size_bytes });
    let hash = &good.hash;
    for digest in [
        with(String::new(), 1),
        with(hash.to_uppercase(), 1),
        with(format!("{}A", &hash[1..]), 1),
        with(hash[1..].to_owned(), 1),
        with(format!("{hash}0"), 1),
        with(format!("{} ", &hash[1..]), 1),
        with("g".repeat(64), 1),
        with("ü".repeat(32), 1),
        with("\0".repeat(64), 1),
        with("../".repeat(21) + "a", 1),
        with(hash.clone(), -1),
        with(hash.clone(), i64::MIN),
        with(hash.clone(), 0),
        // Of other functions, which are not served.
        with("d41d8cd98f00b204e9800998ecf8427e".to_owned(), 0),
        with("0".repeat(40), 1),
        with("0".repeat(96), 1),
        with("0".repeat(128), 1),
    ] {
        for rpc in RPCS {
            let answer = ask(&node, rpc, digest.clone(), 0).await;
            assert_refused(answer, Code::InvalidArgument, &format!("{rpc} {digest:?}"));
        }
    }
}

#[tokio::test]
async fn a_digest_that_is_not_there_is_an_invalid_argument() {
    let node = shared().await;
    for rpc in ["BatchUpdateBlobs", "GetTree", "GetActionResult", "UpdateActionResult", "Execute"] {
        assert_refused(ask(&node, rpc, None, 0).await, Code::InvalidArgument, rpc);
    }
}

#[tokio::test]
async fn only_sha256_is_served_by_its_name_or_without_one() {
    let node = shared().await;
    let good = digest(b"a");
    for rpc in RPCS {
        let unnamed = ask(&node, rpc, Some(good.clone()), 0).await.map_err(|error| error.code());
        let named = ask(&node, rpc, Some(good.clone()), Function::Sha256 as i32).await;
        assert_eq!(named.map_err(|error| error.code()), unnamed, "{rpc}");
        for function in [
            Function::Sha1,
            Function::Md5,
            Function::Vso,
            Function::Sha384,
            Function::Sha512,
            Function::Murmur3,
            Function::Sha256tree,
            Function::Blake3,
            Function::Gitsha1,
        ] {
            let answer = ask(&node, rpc, Some(good.clone()), function as i32).await;
            let code = answer.expect_err(rpc).code();
            let refused = matches!(code, Code::InvalidArgument | Code::Unimplemented);
            assert!(refused, "{rpc} {function:?}: {code}");
        }
        let unknown = ask(&node, rpc, Some(good.clone()), 77).await;
        assert_refused(unknown, Code::InvalidArgument, rpc);
    }
}
