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
    fn start(port: u16, flags: &[&str]) -> Self {
        let program = program().unwrap_or_else(|| panic!("no moto_server: run scripts/install-s3"));
        let mut server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        // It says where it listens, and goes on to tell of each request.
        let log = BufReader::new(server.stderr.take().unwrap());
        std::thread::spawn(move || log.lines().for_each(drop));
        // Ended with this value, whatever comes.
        let s3 = Self { server, port };
        for _ in 0..LOOKS_MAX {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return s3;
            }
            std::thread::sleep(PAUSE);
        }
        panic!("{} does not listen", program.display());
    }

    fn with_bucket(port: u16) -> Self {
        let s3 = Self::start(port, &[]);
        let answer = s3.ask(&format!("PUT /{BUCKET} HTTP/1.1"), "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        s3
    }

    /// From here on the server looks at signatures and at what their owners may do.
    fn close(&self) {
        let closed = self.ask("POST /moto-api/reset-auth HTTP/1.1", "0");
        assert!(closed.starts_with("HTTP/1.1 200"), "{closed}");
    }

    /// A user who may do everything with S3: the key and its secret.
    fn user(&self) -> [String; 2] {
        // The scope names the service; nobody looks at the signature yet.
        let head = "POST / HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n\
                    Authorization: AWS4-HMAC-SHA256 \
                    Credential=x/20300101/us-east-1/iam/aws4_request";
        let policy = "{%22Version%22:%222012-10-17%22,%22Statement%22:[{%22Effect%22:%22Allow%22,\
                      %22Action%22:%22s3:*%22,%22Resource%22:%22*%22}]}";
        let ask = |action: &str, more: &str| {
            let form = format!("Action={action}&Version=2010-05-08&UserName=node{more}");
            let answer = self.ask(head, &form);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            answer
        };
        ask("CreateUser", "");
        ask("PutUserPolicy", &format!("&PolicyName=all&PolicyDocument={policy}"));
        let key = ask("CreateAccessKey", "");
        ["AccessKeyId", "SecretAccessKey"].map(|name| {
            let (_, rest) = key.split_once(&format!("<{name}>")).unwrap();
            rest.split_once('<').unwrap().0.to_owned()
        })
    }

    /// One request in the fewest words.
    fn ask(&self, line: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let (port, size) = (self.port, body.len());
        let more = format!("Host: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Length: {size}");
        write!(connection, "{line}\r\n{more}\r\n\r\n{body}").unwrap();
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
async fn every_request_is_signed_with_the_key() {
    let s3 = S3::with_bucket(port());
    let [key, secret] = s3.user();
    s3.close();
    let mut settings = s3_settings(s3.port, BUCKET);
    settings.options.push(("aws_access_key_id".to_owned(), key));
    settings.options.push(("aws_secret_access_key".to_owned(), secret.clone()));
    contract(&ObjectTier::new(&settings).unwrap()).await;

    let false_secret = secret.chars().rev().collect();
    settings.options.push(("aws_secret_access_key".to_owned(), false_secret));
    let error = ObjectTier::new(&settings).unwrap().probe().await.unwrap_err();
    assert!(matches!(error, BelowError::Refused(_)), "{error:?}");
}

#[tokio::test]
async fn s3_is_spoken_over_tls() {
    let s3 = S3::start(port(), &["-s"]);
    let mut settings = s3_settings(s3.port, BUCKET);
    settings.options.push(("allow_http".to_owned(), "false".to_owned()));
    let endpoint = format!("https://127.0.0.1:{}", s3.port);
    settings.options.push(("aws_endpoint".to_owned(), endpoint));
    let error = ObjectTier::new(&settings).unwrap().probe().await.unwrap_err();
    assert!(matches!(error, BelowError::Unreachable(_)), "nobody vouches for it: {error:?}");

    settings.options.push(("allow_invalid_certificates".to_owned(), "true".to_owned()));
    let error = ObjectTier::new(&settings).unwrap().probe().await.unwrap_err();
    assert_eq!(error.to_string(), "it refuses: there is no such bucket");
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
    s3.close();
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
