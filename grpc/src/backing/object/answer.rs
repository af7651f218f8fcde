//! What an object store's answers mean. Must never let a library try again: how often, and when,
//! is decided where all tiers are asked.

use engine::tier::BelowError;
use http::{Method, StatusCode, header::RETRY_AFTER};
use http_body_util::BodyExt;
use object_store::{
    ClientOptions,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
        HttpService, ReqwestConnector,
    },
};
use std::{error::Error, time::Duration};

/// Bytes of an error's body that are looked at.
const BODY_BYTES_MAX: usize = 4096;

/// Characters of an error that are passed on.
const TEXT_CHARS_MAX: usize = 200;

/// An HTTP answer that says no, kept whole through the library's own errors: those drop its
/// headers, and don't let their status be asked for.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{status}: {body}")]
struct Answer {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: String,
}

impl Answer {
    fn meaning(&self) -> BelowError {
        let why = shown(&self.to_string());
        match self.status.as_u16() {
            429 | 503 => BelowError::Busy { why, retry_after: self.retry_after },
            408 | 504 => BelowError::TimedOut,
            // S3 says so with 400 when it waited for bytes in vain.
            400 if self.body.contains("RequestTimeout") => BelowError::TimedOut,
            // Shorter than an offset in it: not the object that was asked for.
            416 => BelowError::Absent,
            500.. => BelowError::Unreachable(why),
            _ => BelowError::Refused(why),
        }
    }
}

/// What an error of the library means for who asked.
pub(super) fn meaning(error: &object_store::Error) -> BelowError {
    use object_store::Error as Store;
    if let Some(answer) = cause::<Answer>(error) {
        return answer.meaning();
    }
    let why = shown(&root(error).to_string());
    match error {
        Store::NotFound { source, .. } => {
            // The one outcome of a wrong name that must not look like an empty cache.
            match source.to_string().contains("NoSuchBucket") {
                true => BelowError::Refused("there is no such bucket".to_owned()),
                false => BelowError::Absent,
            }
        }
        Store::Generic { .. } | Store::JoinError { .. } => {
            match cause::<HttpError>(error).map(HttpError::kind) {
                Some(HttpErrorKind::Timeout) => BelowError::TimedOut,
                _ => BelowError::Unreachable(why),
            }
        }
        _ => BelowError::Refused(why),
    }
}

fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(current) = next {
        if let Some(found) = current.downcast_ref() {
            return Some(found);
        }
        next = current.source();
    }
    None
}

/// The innermost cause: what lies around it tells of URLs and of retries that there are none of.
fn root<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut current = error;
    while let Some(next) = current.source() {
        current = next;
    }
    current
}

/// One short line. Of S3's XML the code alone: the rest names keys, hosts and signatures.
fn shown(text: &str) -> String {
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    let line: String = match code {
        Some((code, _)) => code.chars().take(TEXT_CHARS_MAX).collect(),
        None => text.chars().take(TEXT_CHARS_MAX).collect(),
    };
    line.replace(char::is_control, " ")
}

/// Makes HTTP clients with this node's bounds instead of the library's: a time to connect, and no
/// time for a whole body, which may be of any length.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) connect_timeout: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let options = options
            .clone()
            .with_timeout_disabled()
            .with_read_timeout_disabled()
            .with_connect_timeout(self.connect_timeout);
        let client = ReqwestConnector::default().connect(&options)?;
        Ok(HttpClient::new(Answers(client)))
    }
}

#[derive(Debug)]
struct Answers(HttpClient);

impl Answers {
    async fn ask(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let method = request.method().clone();
        let response = self.0.execute(request).await?;
        if is_understood(&method, response.status()) {
            return Ok(response);
        }
        let (parts, mut body) = response.into_parts();
        let retry_after = parts
            .headers
            .get(RETRY_AFTER)
            .and_then(|after| after.to_str().ok()?.trim().parse().ok().map(Duration::from_secs));
        let mut text = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            let Some(bytes) = frame.data_ref() else { continue };
            let room = BODY_BYTES_MAX - text.len();
            text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if text.len() == BODY_BYTES_MAX {
                break;
            }
        }
        let body = String::from_utf8_lossy(&text).into_owned();
        let answer = Answer { status: parts.status, retry_after, body };
        // Of all kinds this one is never tried again by the library.
        Err(HttpError::new(HttpErrorKind::Decode, answer))
    }
}

/// Whether the library gives this status a meaning of its own, which it must be left.
fn is_understood(method: &Method, status: StatusCode) -> bool {
    let dav = method.as_str() == "MKCOL";
    status.is_success() || dav || matches!(status.as_u16(), 304 | 401 | 403 | 404 | 409 | 412)
}

impl HttpService for Answers {
    // What `async_trait` would write.
    fn call<'own, 'call>(
        &'own self,
        request: HttpRequest,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'call>>
    where
        'own: 'call,
        Self: 'call,
    {
        Box::pin(self.ask(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> object_store::Error {
        let status = StatusCode::from_u16(status).unwrap();
        let retry_after = Some(Duration::from_secs(7));
        let answer = Answer { status, retry_after, body: body.to_owned() };
        let source = Box::new(HttpError::new(HttpErrorKind::Decode, answer));
        object_store::Error::Generic { store: "S3", source }
    }

    #[test]
    fn each_answer_has_one_meaning() {
        let cases = [
            (429, "", "it is busy: 429"),
            (503, "<Error><Code>SlowDown</Code></Error>", "it is busy: SlowDown"),
            (500, "", "it can't be reached: 500"),
            (502, "", "it can't be reached: 502"),
            (504, "", "it took too long"),
            (408, "", "it took too long"),
            (400, "<Code>RequestTimeout</Code>", "it took too long"),
            (400, "<Code>InvalidRequest</Code>", "it refuses: InvalidRequest"),
            (301, "<Code>PermanentRedirect</Code>", "it refuses: PermanentRedirect"),
            (416, "", "it does not have it"),
            (413, "", "it refuses: 413"),
        ];
        for (status, body, meant) in cases {
            let text = meaning(&answer(status, body)).to_string();
            assert!(text.starts_with(meant), "{status} {body}: {text}");
        }
    }

    #[test]
    fn a_busy_store_says_when_it_may_be_asked_again() {
        let BelowError::Busy { retry_after, .. } = meaning(&answer(503, "")) else { panic!() };
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
    }

    #[test]
    fn an_error_is_one_short_line() {
        let text = shown(&format!("a\nb\r{}", "c".repeat(9000)));
        assert_eq!(text.chars().count(), TEXT_CHARS_MAX);
        assert!(!text.contains(char::is_control));
    }
}
