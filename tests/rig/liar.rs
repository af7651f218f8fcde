//! The liar is right when told no lie, and wrong as told.

use bytes::Bytes;
use prost::Message;
use proto::{
    bytestream::WriteRequest,
    reapi::{
        ActionResult, Digest, GetActionResultRequest, GetCapabilitiesRequest,
        UpdateActionResultRequest, capabilities_client::CapabilitiesClient,
    },
    rpc,
};
use ringforge_tests::{
    certificates::Certificates,
    client::{Client, digest},
    liar::{BreakReads, Failing, Liar, Options, When, WrongBytes, WrongMissing, WrongResult},
};
use std::time::Duration;
use tonic::{
    Code, Status,
    transport::{Channel, ClientTlsConfig},
};

async fn started() -> (Liar, Client) {
    let liar = Liar::start();
    let client = Client::connect(&liar.address().to_string()).await;
    (liar, client)
}

async fn result_of(client: &Client, action: &Digest) -> Result<ActionResult, Status> {
    let action_digest = Some(action.clone());
    let request = GetActionResultRequest { action_digest, ..Default::default() };
    client.action_cache.clone().get_action_result(request).await.map(tonic::Response::into_inner)
}

#[tokio::test]
async fn told_no_lie_it_is_a_cache() {
    let (liar, client) = started().await;
    let small = Bytes::from_static(b"small");
    let large: Bytes = (0..1_000_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    let digests = vec![digest(&small), digest(&large), digest(b"")];
    assert_eq!(client.missing(digests.clone()).await.unwrap(), digests[..2]);
    client.put([small.clone()]).await;
    let name = format!("a/b/uploads/u-u-i-d/blobs/{}/{}", digests[1].hash, large.len());
    let parts = [large.slice(..400_000), large.slice(400_000..)];
    let write = |at: usize, data: Bytes| WriteRequest {
        resource_name: name.clone(),
        write_offset: i64::try_from(at).unwrap(),
        finish_write: at > 0,
        data,
    };
    let [one, two] = parts;
    let written = client.write(vec![write(0, one), write(400_000, two)]).await.unwrap();
    assert_eq!(written, 1_000_000);
    assert_eq!(client.missing(digests.clone()).await.unwrap(), []);
    assert_eq!(client.read(&digests[1]).await.unwrap(), large);
    assert_eq!(client.read(&digests[2]).await.unwrap(), "");
    let name = format!("a/b/blobs/{}/{}", digests[1].hash, large.len());
    assert_eq!(client.read_range(&name, 300_000, 0).await.unwrap(), large.slice(300_000..));
    assert_eq!(client.read_range(&name, 7, 9).await.unwrap(), large.slice(7..16));
    let wrong = client.write(vec![WriteRequest { finish_write: true, ..write(0, small) }]).await;
    assert_eq!(wrong.unwrap_err().code(), Code::InvalidArgument);
    let absent = client.read(&digest(b"absent")).await.unwrap_err();
    assert_eq!(absent.code(), Code::NotFound);

    let action = digest(b"action");
    assert_eq!(result_of(&client, &action).await.unwrap_err().code(), Code::NotFound);
    let result = ActionResult { exit_code: 7, ..Default::default() };
    let request = UpdateActionResultRequest {
        action_digest: Some(action.clone()),
        action_result: Some(result.clone()),
        ..Default::default()
    };
    client.action_cache.clone().update_action_result(request).await.unwrap();
    assert_eq!(result_of(&client, &action).await.unwrap(), result);

    let blobs: Vec<Bytes> = liar.blobs().into_values().collect();
    assert!(blobs.len() == 2 && blobs.contains(&large));
    assert_eq!(liar.results()[&action.hash], result);
    assert_eq!(liar.instances().into_iter().collect::<Vec<_>>(), ["", "a/b"]);
    assert_eq!((liar.calls("Read"), liar.calls("Write"), liar.calls("GetTree")), (5, 2, 0));
}

#[tokio::test]
async fn wrong_bytes_are_wrong_as_told() {
    let (liar, client) = started().await;
    let (one, other) = (liar.put("one blob"), liar.put("the other blob"));
    for (wrong, expect) in [
        (WrongBytes::Shorter, &b"one blo"[..]),
        (WrongBytes::Longer, b"one blob\0"),
        (WrongBytes::LastByte, b"one bloc"),
    ] {
        liar.lie(|lies| lies.bytes = [(one.hash.clone(), wrong)].into());
        assert_eq!(client.read(&one).await.unwrap(), expect);
        assert_eq!(client.read(&other).await.unwrap(), "the other blob");
    }
    liar.lie(|lies| lies.all_bytes = Some(WrongBytes::SameLength));
    let read = client.read(&other).await.unwrap();
    assert!(read.len() == 14 && read != "the other blob");
    liar.honest();
    assert_eq!(client.read(&one).await.unwrap(), "one blob");
}

#[tokio::test]
async fn it_lies_about_what_is_missing() {
    let (liar, client) = started().await;
    let digests = vec![liar.put("there"), digest(b"absent")];
    liar.lie(|lies| lies.missing = Some(WrongMissing::Nothing));
    assert_eq!(client.missing(digests.clone()).await.unwrap(), []);
    liar.lie(|lies| lies.missing = Some(WrongMissing::Everything));
    assert_eq!(client.missing(digests.clone()).await.unwrap(), digests);
}

#[tokio::test]
async fn results_are_wrong_as_told() {
    let (liar, client) = started().await;
    let action = digest(b"action");
    let right = ActionResult { exit_code: 7, ..Default::default() };
    liar.put_result(&action, right.clone());
    for wrong in [
        WrongResult::AbsentBlob,
        WrongResult::AbsentTree,
        WrongResult::NoDigest,
        WrongResult::BadHash,
        WrongResult::NegativeSize,
        WrongResult::PathUp,
        WrongResult::AbsolutePath,
        WrongResult::EmptyPath,
    ] {
        liar.lie(|lies| lies.result = Some(wrong));
        let result = result_of(&client, &action).await.unwrap();
        assert!(result != right && result.exit_code == 7, "{wrong:?}");
        assert_ne!(result_of(&client, &digest(b"unknown")).await.unwrap(), right);
    }
}

#[tokio::test]
async fn calls_fail_as_told() {
    let (liar, client) = started().await;
    let there = liar.put("there");
    liar.lie(|lies| lies.failing = Some(Failing::unavailable(2, Duration::from_millis(300))));
    for _ in 0..2 {
        let failed = client.read(&there).await.unwrap_err();
        assert_eq!(failed.code(), Code::Unavailable);
        let status = rpc::Status::decode(failed.details()).unwrap();
        let retry = rpc::RetryInfo::decode(&*status.details[0].value).unwrap();
        assert_eq!(retry.retry_delay.unwrap().nanos, 300_000_000);
    }
    assert_eq!(client.read(&there).await.unwrap(), "there");
    for code in [Code::ResourceExhausted, Code::PermissionDenied] {
        let method = Some("Read");
        let failing = Failing { method, ..Failing::always(code) };
        liar.lie(|lies| lies.failing = Some(failing));
        assert_eq!(client.read(&there).await.unwrap_err().code(), code);
        assert_eq!(client.missing(vec![there.clone()]).await.unwrap(), []);
    }
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        liar.lie(|lies| lies.failing = Some(Failing::half(7)));
        let mut half = Vec::new();
        for _ in 0..40 {
            half.push(client.read(&there).await.is_ok());
        }
        let good = half.iter().filter(|good| **good).count();
        assert!((10..30).contains(&good), "{good} of 40");
        outcomes.push(half);
    }
    assert_eq!(outcomes[0], outcomes[1], "the seed says which");
    assert_eq!(Failing::half(7).when, When::Half { seed: 7 });
}

#[tokio::test]
async fn a_read_breaks_off_or_comes_late_as_told() {
    let (liar, client) = started().await;
    let there = liar.put(vec![7; 200_000]);
    let broken = BreakReads { after_bytes: 100_000, times: 1 };
    liar.lie(|lies| lies.break_reads = Some(broken));
    assert_eq!(client.read(&there).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(client.read(&there).await.unwrap().len(), 200_000);
    liar.lie(|lies| lies.first_byte = Duration::from_secs(600));
    let late = tokio::time::timeout(Duration::from_millis(200), client.read(&there)).await;
    assert!(late.is_err(), "it came");
}

#[tokio::test]
async fn without_its_header_nobody_is_let_in() {
    let header = Some(("x-api-key", "secret".to_owned()));
    let liar = Liar::start_with(Options { header, ..Options::default() });
    let mut client = Client::connect(&liar.address().to_string()).await.capabilities;
    for (value, expect) in [(None, false), (Some("wrong"), false), (Some("secret"), true)] {
        let mut request = tonic::Request::new(GetCapabilitiesRequest::default());
        if let Some(value) = value {
            request.metadata_mut().insert("x-api-key", value.parse().unwrap());
        }
        match client.get_capabilities(request).await {
            Ok(_) => assert!(expect),
            Err(refused) => assert!(!expect && refused.code() == Code::Unauthenticated),
        }
    }
    assert_eq!(liar.calls("GetCapabilities"), 3);
}

#[tokio::test]
async fn certificates_are_good_expired_or_anothers_as_named() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path());
    for (server, client_ca, ca, client, expect) in [
        ("server", None, "ca", None, true),
        ("server", None, "other-ca", None, false),
        ("other-server", None, "ca", None, false),
        ("expired", None, "ca", None, false),
        ("server", Some("ca"), "ca", None, false),
        ("server", Some("ca"), "ca", Some("client"), true),
        ("server", Some("ca"), "ca", Some("other-client"), false),
        ("server", Some("ca"), "ca", Some("expired-client"), false),
    ] {
        let liar = Liar::start_with(Options {
            tls: Some(certificates.identity(server)),
            client_ca: client_ca.map(|name| certificates.authority_of(name)),
            ..Options::default()
        });
        let mut tls = ClientTlsConfig::new().ca_certificate(certificates.authority_of(ca));
        if let Some(client) = client {
            tls = tls.identity(certificates.identity(client));
        }
        let channel = Channel::from_shared(format!("https://{}", liar.address())).unwrap();
        let channel = channel.tls_config(tls).unwrap().connect_lazy();
        let asked = CapabilitiesClient::new(channel)
            .get_capabilities(GetCapabilitiesRequest::default())
            .await;
        assert_eq!(asked.is_ok(), expect, "{server} {client_ca:?} {ca} {client:?}: {asked:?}");
    }
}
