//! Who the cache below is, and who this node is to it: TLS, certificates, tokens; and a directory
//! as the cache below.

use super::front::{
    Front, IMPATIENT, eventually, get_result, put, put_result, read, result_of, write_large,
};
use ringforge_tests::{
    certificates::Certificates,
    client::digest,
    liar::{Liar, Options},
    noise,
};
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn below_is_trusted_by_its_certificate_and_shown_this_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path());
    let path = |file: &str| certificates.path(file).to_str().unwrap().to_owned();
    for (server, client_ca, ca, client, expect) in [
        ("server", None, "ca", None, true),
        ("server", None, "other-ca", None, false),
        ("server", None, "", None, false),
        ("other-server", None, "ca", None, false),
        ("expired", None, "ca", None, false),
        ("server", Some("ca"), "ca", None, false),
        ("server", Some("ca"), "ca", Some("client"), true),
        ("server", Some("ca"), "ca", Some("other-client"), false),
        ("server", Some("ca"), "ca", Some("expired-client"), false),
    ] {
        let what = format!("{server} {client_ca:?} {ca} {client:?}");
        let liar = Liar::start_with(Options {
            tls: Some(certificates.identity(server)),
            client_ca: client_ca.map(|name| certificates.authority_of(name)),
            ..Options::default()
        });
        let url = format!("grpcs://{}", liar.address());
        let ca = if ca.is_empty() { String::new() } else { path(&format!("{ca}.pem")) };
        let own = client.map(|name| (path(&format!("{name}.pem")), path(&format!("{name}.key"))));
        let (certificate, key) = own.unwrap_or_default();
        let mut settings = vec![
            ("BACKING__URL", url.as_str()),
            ("BACKING__CA", &ca),
            ("BACKING__CERTIFICATE", &certificate),
            ("BACKING__KEY", &key),
        ];
        settings.extend(IMPATIENT);
        let front = Front::with(&settings).await;
        let below = liar.put("by TLS");
        let answer = read(&front, &below).await;
        let code = put(&front, "", &noise("by TLS", 100)).await;
        if expect {
            assert_eq!(answer.unwrap(), "by TLS", "{what}");
            assert_eq!(code, Code::Ok, "{what}");
        } else {
            assert_eq!(answer.unwrap_err().code(), Code::Unavailable, "{what}");
            assert_eq!(code, Code::Unavailable, "{what}");
            assert!(liar.blobs().len() == 1, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_goes_with_every_call() {
    let header = Some(("authorization", "Bearer sesame".to_owned()));
    let liar = Liar::start_with(Options { header, ..Options::default() });
    let headers = ("BACKING__HEADERS", "[\"authorization: Bearer sesame\"]");
    let front = Front::before(liar.address(), &[headers]).await;
    let below = liar.put(noise("token", 3 << 20));
    assert!(read(&front, &below).await.is_ok());
    let blob = noise("token", 100);
    assert_eq!(put(&front, "", &blob).await, Code::Ok);
    write_large(&front, &noise("token large", 5 << 20)).await.unwrap();
    put_result(&front, "", &digest(b"token"), result_of(&digest(&blob))).await.unwrap();
    assert!(liar.blobs().len() == 3 && liar.results().len() == 1);
    let stranger = Front::before(liar.address(), &IMPATIENT).await;
    assert_eq!(read(&stranger, &below).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(put(&stranger, "", &noise("stranger", 10)).await, Code::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_can_be_what_is_below() {
    let below = tempfile::tempdir().unwrap();
    let url = format!("file://{}", below.path().to_str().unwrap());
    let front = Front::with(&[("BACKING__URL", &url)]).await;
    let blobs = [noise("dir", 10), noise("dir", 100_000), noise("dir", 20 << 20)];
    assert_eq!(put(&front, "", &blobs[0]).await, Code::Ok);
    for blob in &blobs[1..] {
        write_large(&front, blob).await.unwrap();
    }
    let action = digest(b"dir");
    put_result(&front, "one", &action, result_of(&digest(&blobs[1]))).await.unwrap();
    let other = Front::with(&[("BACKING__URL", &url)]).await;
    let absent = digest(b"nowhere");
    let missing = other.missing(vec![digest(&blobs[0]), digest(&blobs[2]), absent.clone()]).await;
    assert_eq!(missing.unwrap(), std::slice::from_ref(&absent));
    for blob in &blobs {
        assert!(read(&other, &digest(blob)).await.unwrap() == *blob);
    }
    assert!(get_result(&other, "one", &action).await.is_ok());
    assert_eq!(get_result(&other, "", &action).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(read(&other, &absent).await.unwrap_err().code(), Code::NotFound);
    // An asynchronous writer gets there too.
    let later = Front::with(&[("BACKING__URL", &url), ("BACKING__WRITE", "async")]).await;
    let blob = noise("dir later", 3 << 20);
    write_large(&later, &blob).await.unwrap();
    let third = Front::with(&[("BACKING__URL", &url), ("BACKING__ABSENT_KEPT", "1ms")]).await;
    eventually("it is there", async || read(&third, &digest(&blob)).await.is_ok()).await;
}
