//! How a node proves to another that it belongs to the cluster: a header with its name and a code
//! over both names and the time, made with the secret that all nodes have. Where there is none, by
//! its certificate. Must never send the secret itself.

use crate::tls::ClientCertificate;
use ring::hmac;
use std::{fmt, time::SystemTime};
use tonic::Status;

/// The header: `v1 FROM SECONDS CODE`.
pub(crate) const HEADER: &str = "ringforge-peer";
/// How far clocks of nodes may differ, and how long a code that was overheard is of use.
const SECONDS_MAX: u64 = 300;
/// What stands for the code where the cluster has no secret.
const NO_CODE: &str = "-";

/// What all nodes of a cluster know.
#[derive(Clone)]
pub(crate) struct Secret(Option<hmac::Key>);

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Secret(…)")
    }
}

impl Secret {
    /// From the configuration; empty = there is none, and everybody is believed.
    pub(crate) fn new(text: &str) -> Self {
        Self((!text.is_empty()).then(|| hmac::Key::new(hmac::HMAC_SHA256, text.as_bytes())))
    }

    /// A key for gossip, made of the secret; `None` where there is none.
    pub(crate) fn gossip_key(&self) -> Option<[u8; 32]> {
        let made = hmac::sign(self.0.as_ref()?, b"ringforge gossip key v1");
        made.as_ref().try_into().ok()
    }

    /// The header by which `from` speaks to `to`.
    pub(crate) fn sign(&self, from: &str, to: &str, now: SystemTime) -> String {
        let seconds = unix_seconds(now);
        let code = match &self.0 {
            Some(key) => {
                let code = hmac::sign(key, said(from, to, seconds).as_bytes());
                engine::digest::hex(code.as_ref())
            }
            None => NO_CODE.to_owned(),
        };
        format!("v1 {from} {seconds} {code}")
    }

    /// Who spoke to `to`.
    ///
    /// # Errors
    /// PERMISSION_DENIED where the header proves nothing.
    pub(crate) fn check<'a>(
        &self,
        header: &'a str,
        to: &str,
        now: SystemTime,
    ) -> Result<&'a str, Status> {
        let denied = |why: &str| Err(Status::permission_denied(format!("{HEADER}: {why}")));
        let mut parts = header.split(' ');
        let all = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let (Some("v1"), Some(from), Some(seconds), Some(code), None) = all else {
            return denied("not of the form that this version knows");
        };
        let Some(key) = &self.0 else { return Ok(from) };
        let Ok(seconds) = seconds.parse::<u64>() else { return denied("no time") };
        if unix_seconds(now).abs_diff(seconds) > SECONDS_MAX {
            return denied("the clocks of the two nodes differ by more than five minutes");
        }
        match unhex(code) {
            Some(code) if hmac::verify(key, said(from, to, seconds).as_bytes(), &code).is_ok() => {
                Ok(from)
            }
            _ => denied("the two nodes have other secrets (cluster.secret)"),
        }
    }
}

/// Checks that a caller is the node it says it is: by the certificate with which that node serves,
/// for which its endpoint is known from gossip.
///
/// # Errors
/// PERMISSION_DENIED where it is another's, or none.
pub(super) fn check_certificate(
    certificate: Option<&ClientCertificate>,
    from: &str,
    endpoint: &str,
) -> Result<(), Status> {
    let host = host(endpoint);
    match certificate {
        Some(certificate) if certificate.is_of_node(host) => Ok(()),
        _ => {
            let why = format!("no certificate of {from}, which stands for {host:?}, was shown");
            Err(Status::permission_denied(crate::status::short(format!("{HEADER}: {why}"))))
        }
    }
}

/// The host of HOST:PORT, without brackets.
pub(crate) fn host(endpoint: &str) -> &str {
    let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn said(from: &str, to: &str, seconds: u64) -> String {
    // No name holds a line break, so that the parts cannot run into each other.
    format!("ringforge peer v1\n{from}\n{to}\n{seconds}")
}

fn unix_seconds(now: SystemTime) -> u64 {
    now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() % 2 == 0)?;
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).ok();
    digits.chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn only_the_secret_the_names_and_the_hour_make_a_proof() {
        let (right, wrong) = (Secret::new("a secret of the cluster"), Secret::new("another one"));
        let now = SystemTime::now();
        let header = right.sign("a", "b", now);
        assert_eq!(right.check(&header, "b", now).unwrap(), "a");
        let later = now + Duration::from_secs(SECONDS_MAX);
        assert_eq!(right.check(&header, "b", later).unwrap(), "a");
        let forged = header.replace("v1 a", "v1 c");
        let cut = &header[..header.len() - 2];
        for (secret, header, to, at) in [
            (&wrong, header.as_str(), "b", now),
            (&right, &header, "c", now),
            (&right, &forged, "b", now),
            (&right, cut, "b", now),
            (&right, &header, "b", later + Duration::from_secs(2)),
            (&right, &header, "b", now - Duration::from_secs(SECONDS_MAX + 2)),
            (&right, &Secret::new("").sign("a", "b", now), "b", now),
            (&right, "", "b", now),
            (&right, "v1 a", "b", now),
            (&right, "v2 a 1 00", "b", now),
            (&right, "v1 a x 00", "b", now),
        ] {
            let denied = secret.check(header, to, at).unwrap_err();
            assert_eq!(denied.code(), tonic::Code::PermissionDenied, "{header}");
            assert!(!denied.message().contains("secret of"), "{denied}");
        }
    }

    #[test]
    fn a_host_is_what_stands_before_the_port() {
        for (endpoint, expect) in [
            ("10.0.0.1:8980", "10.0.0.1"),
            ("[fd77::1]:8980", "fd77::1"),
            ("n1.example:8980", "n1.example"),
        ] {
            assert_eq!(host(endpoint), expect);
        }
    }

    #[test]
    fn without_a_secret_everybody_is_believed() {
        let none = Secret::new("");
        let now = SystemTime::now();
        assert_eq!(none.check(&none.sign("a", "b", now), "b", now).unwrap(), "a");
    }
}
