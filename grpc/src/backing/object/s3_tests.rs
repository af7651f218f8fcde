//! The tier against a server that speaks S3 over HTTP: moto, which scripts/install-s3 installs.
//! What a directory can't show: signatures, multipart uploads, ranges over HTTP, and a store that
//! refuses, is down or hangs.

use super::{
    tests::{all, blob, contract, outgoing, result, settings},
    *,
};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A pause between two looks at a server that starts.
const PAUSE: Duration = Duration::from_millis(50);

/// Looks at a server that starts, at most: a minute of them.
const LOOKS_MAX: usize = 1200;

const BUCKET: &str = "cache";

struct S3 {
    server: Child,
    port: u16,
}

impl S3 {
    /// A server without buckets, which lets anybody in.
    fn start(port: u16) -> Self {
        let program = program().unwrap_or_else(|| panic!("no moto_server: run scripts/install-s3"));
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // It says where it listens, and goes on to tell of each request.
        let log = BufReader::new(server.stderr.take().unwrap());
        std::thread::spawn(move || log.lines().for_each(drop));
        for _ in 0..LOOKS_MAX {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Self { server, port };
            }
            std::thread::sleep(PAUSE);
        }
        panic!("{} does not listen", program.display());
    }

    fn with_bucket(port: u16) -> Self {
        let s3 = Self::start(port);
        let answer = s3.ask(&format!("PUT /{BUCKET} HTTP/1.1"), "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        s3
    }

    /// One request without a signature, in the fewest words.
    fn ask(&self, line: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let size = body.len();
        write!(
            connection,
            "{line}\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n{body}",
            self.port
        )
        .unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// In PATH, or where the script puts it.
fn program() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").unwrap_or_default());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = home.join(".local/share/ringforge/s3/bin");
    std::iter::once(installed)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join("moto_server"))
        .find(|program| program.is_file())
}

/// A port that nobody had a moment ago.
fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn s3_settings(port: u16, bucket: &str) -> ObjectSettings {
    let endpoint = format!("http://127.0.0.1:{port}");
    settings(
        &format!("s3://{bucket}/some/prefix"),
        &[
            ("aws_endpoint", &endpoint),
            ("aws_region", "us-east-1"),
            ("aws_access_key_id", "key"),
            ("aws_secret_access_key", "secret"),
            ("allow_http", "true"),
        ],
    )
}

fn tier(port: u16, bucket: &str) -> ObjectTier {
    ObjectTier::new(&s3_settings(port, bucket)).unwrap()
}

#[tokio::test]
async fn s3_keeps_the_contract() {
    let s3 = S3::with_bucket(port());
    contract(&tier(s3.port, BUCKET)).await;
    let listed = s3.ask(&format!("GET /{BUCKET}?list-type=2 HTTP/1.1"), "");
    assert!(listed.contains("<Key>some/prefix/cas/sha256/"), "{listed}");
    assert!(listed.contains("<Key>some/prefix/ac/sha256/"), "{listed}");
}

#[tokio::test]
async fn an_upload_that_fails_leaves_no_object_and_no_parts() {
    let s3 = S3::with_bucket(port());
    let tier = tier(s3.port, BUCKET);
    let (digest, bytes) = blob(20 << 20, 3);
    let error = tier.write(digest, outgoing(&bytes.slice(1..))).await.unwrap_err();
    assert!(matches!(error, BelowError::Local(_)), "{error}");
    assert_eq!(tier.find_missing(vec![digest]).await.unwrap(), [digest]);
    for _ in 0..LOOKS_MAX {
        let uploads = s3.ask(&format!("GET /{BUCKET}?uploads HTTP/1.1"), "");
        assert!(uploads.starts_with("HTTP/1.1 200"), "{uploads}");
        if !uploads.contains("<UploadId>") {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    panic!("the upload was not given up");
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_no_empty_cache() {
    let s3 = S3::with_bucket(port());
    let tier = tier(s3.port, "nowhere");
    let (action, bytes) = blob(9 << 20, 1);
    let (small, few) = blob(10, 1);
    let errors = [
        tier.probe().await.unwrap_err(),
        tier.read(action, 0).await.err().unwrap(),
        tier.get_action("", action).await.unwrap_err(),
        tier.put_action("", action, result("")).await.unwrap_err(),
        tier.write(action, outgoing(&bytes)).await.unwrap_err(),
        tier.write(small, outgoing(&few)).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.to_string(), "it refuses: there is no such bucket");
    }
}

#[tokio::test]
async fn wrong_credentials_are_refused() {
    let s3 = S3::with_bucket(port());
    // From here on the server looks at signatures; nobody has credentials that it knows.
    let strict = s3.ask("POST /moto-api/reset-auth HTTP/1.1", "0");
    assert!(strict.starts_with("HTTP/1.1 200"), "{strict}");
    let tier = tier(s3.port, BUCKET);
    let (digest, bytes) = blob(1000, 1);
    let errors = [
        tier.probe().await.unwrap_err(),
        tier.find_missing(vec![digest]).await.unwrap_err(),
        tier.read(digest, 0).await.err().unwrap(),
        tier.read_many(vec![digest]).await.unwrap().remove(0).unwrap_err(),
        tier.write(digest, outgoing(&bytes)).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, BelowError::Refused(_)), "{error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[tokio::test]
async fn a_store_that_comes_back_is_used_again() {
    let port = port();
    let tier = tier(port, BUCKET);
    let (digest, bytes) = blob(1000, 1);
    for _ in 0..2 {
        let error = tier.probe().await.unwrap_err();
        assert!(matches!(error, BelowError::Unreachable(_)), "{error:?}");
        let error = tier.write(digest, outgoing(&bytes)).await.unwrap_err();
        assert!(error.is_outage(), "{error:?}");
        assert!(tier.find_missing(vec![digest]).await.unwrap_err().is_outage());

        let s3 = S3::with_bucket(port);
        tier.probe().await.unwrap();
        tier.write(digest, outgoing(&bytes)).await.unwrap();
        let read = all(tier.read(digest, 10).await.unwrap()).await.unwrap();
        assert!(read == bytes[10..]);
        drop(s3);
    }
}

#[tokio::test]
async fn a_store_that_hangs_costs_a_bounded_time() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let timeout = Duration::from_millis(100);
    let settings = ObjectSettings { request_timeout: timeout, ..s3_settings(port, BUCKET) };
    let tier = ObjectTier::new(&settings).unwrap();
    let error = tier.probe().await.unwrap_err();
    assert!(matches!(error, BelowError::TimedOut), "{error:?}");
}

/// A server that gives one answer to whoever asks, and then says no more.
fn one_answer(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(connection.read(&mut request).unwrap() > 0);
        connection.write_all(answer.as_bytes()).unwrap();
        // Until the other side hangs up.
        while connection.read(&mut request).is_ok_and(|read| read > 0) {}
    });
    port
}

#[tokio::test]
async fn a_busy_store_is_asked_once_and_says_when_to_come_back() {
    let port = one_answer(
        "HTTP/1.1 503 Slow Down\r\nRetry-After: 3\r\nContent-Length: 36\r\n\r\n\
         <Error><Code>SlowDown</Code></Error>",
    );
    let error = tier(port, BUCKET).probe().await.unwrap_err();
    let BelowError::Busy { why, retry_after } = error else { panic!("{error:?}") };
    assert_eq!((why.as_str(), retry_after), ("SlowDown", Some(Duration::from_secs(3))));
}

#[tokio::test]
async fn a_blob_that_stops_on_its_way_is_given_up() {
    let port = one_answer(
        "HTTP/1.1 200 OK\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\nETag: \"x\"\r\n\
         Content-Length: 1000\r\n\r\nthe first bytes",
    );
    let (digest, _) = blob(1000, 1);
    let idle_timeout = Duration::from_millis(100);
    let settings = ObjectSettings { idle_timeout, ..s3_settings(port, BUCKET) };
    let tier = ObjectTier::new(&settings).unwrap();
    let error = all(tier.read(digest, 0).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, BelowError::TimedOut), "{error:?}");
}
