//! ByteStream resource names: parsed from the left, because an instance name may be empty or have
//! several segments but never contains a keyword. Must never be used as a path.

use engine::digest::{BadDigest, Digest, DigestFunction};

/// Longest name taken, in bytes.
const NAME_BYTES_MAX: usize = 4096;
/// Segments that cannot be part of an instance name (REAPI, `instance_name`).
pub(crate) const KEYWORDS: [&str; 7] = [
    "blobs",
    "uploads",
    "actions",
    "actionResults",
    "operations",
    "capabilities",
    "compressed-blobs",
];

/// What a ByteStream name names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResourceName {
    pub(crate) instance: String,
    pub(crate) digest: Digest,
}

/// Why a name is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadName {
    /// Not of the form the protocol gives.
    #[error("resource name {0:?} is not of the form {1}")]
    Form(String, &'static str),
    /// The digest in it is not one.
    #[error(transparent)]
    Digest(#[from] BadDigest),
    /// A compressor or a digest function that is not served.
    #[error("resource name {0:?}: {1} is not supported")]
    Unsupported(String, String),
}

const READ_FORM: &str = "[instance/]blobs/hash/size";
const WRITE_FORM: &str = "[instance/]uploads/uuid/blobs/hash/size[/metadata]";

/// The name of a download.
///
/// # Errors
/// [`BadName`].
pub(crate) fn parse_read(name: &str) -> Result<ResourceName, BadName> {
    let (instance, rest) = split(name, READ_FORM)?;
    match rest.as_slice() {
        ["blobs", rest @ ..] => blob(name, instance, rest, true, READ_FORM),
        ["compressed-blobs", ..] => Err(unsupported(name, "compression")),
        _ => Err(BadName::Form(shorten(name), READ_FORM)),
    }
}

/// The name of an upload. What follows the size is the client's own note.
///
/// # Errors
/// [`BadName`].
pub(crate) fn parse_write(name: &str) -> Result<ResourceName, BadName> {
    let (instance, rest) = split(name, WRITE_FORM)?;
    match rest.as_slice() {
        ["uploads", uuid, "blobs", rest @ ..] if !uuid.is_empty() => {
            blob(name, instance, rest, false, WRITE_FORM)
        }
        ["uploads", _, "compressed-blobs", ..] => Err(unsupported(name, "compression")),
        _ => Err(BadName::Form(shorten(name), WRITE_FORM)),
    }
}

/// The instance, and the segments from the first keyword on.
fn split<'a>(name: &'a str, form: &'static str) -> Result<(String, Vec<&'a str>), BadName> {
    if name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(BadName::Form(shorten(name), form));
    }
    let segments: Vec<&str> = name.split('/').collect();
    let keyword = segments.iter().position(|segment| KEYWORDS.contains(segment));
    let Some(keyword) = keyword else { return Err(BadName::Form(shorten(name), form)) };
    let (instance, rest) = segments.split_at(keyword);
    if instance.iter().any(|segment| segment.is_empty()) {
        return Err(BadName::Form(shorten(name), form));
    }
    Ok((instance.join("/"), rest.to_vec()))
}

fn blob(
    name: &str,
    instance: String,
    rest: &[&str],
    exact: bool,
    form: &'static str,
) -> Result<ResourceName, BadName> {
    if let [function, _, _, ..] = rest
        && ["blake3", "sha256tree", "gitsha1"].contains(function)
    {
        return Err(unsupported(name, function));
    }
    let (hash, size) = match rest {
        [hash, size] => (hash, size),
        [hash, size, ..] if !exact => (hash, size),
        _ => return Err(BadName::Form(shorten(name), form)),
    };
    let plain = size.bytes().all(|byte| byte.is_ascii_digit());
    let canonical = plain && (size.len() == 1 || !size.starts_with('0'));
    let size = size.parse::<i64>().ok().filter(|_| canonical);
    let size = size.ok_or_else(|| BadName::Form(shorten(name), form))?;
    let digest = Digest::parse(DigestFunction::Sha256, hash, size)?;
    Ok(ResourceName { instance, digest })
}

fn unsupported(name: &str, what: &str) -> BadName {
    BadName::Unsupported(shorten(name), what.to_owned())
}

/// What of a name is fit for an error message.
fn shorten(name: &str) -> String {
    name.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb";

    fn check(parsed: Result<ResourceName, BadName>, expect: Option<&str>) {
        match (&parsed, expect) {
            (Ok(name), Some(instance)) => {
                assert_eq!(name.instance, instance);
                assert_eq!(name.digest, Digest::of(b"a"));
            }
            (Err(_), None) => {}
            _ => panic!("{parsed:?}, expected {expect:?}"),
        }
    }

    #[test]
    fn downloads_have_any_instance_and_one_form() {
        for (name, expect) in [
            (format!("blobs/{HASH}/1"), Some("")),
            (format!("main/blobs/{HASH}/1"), Some("main")),
            (format!("a/b/c/blobs/{HASH}/1"), Some("a/b/c")),
            (format!("/blobs/{HASH}/1"), None),
            (format!("a//blobs/{HASH}/1"), None),
            (format!("blobs/{HASH}/1/more"), None),
            (format!("blobs/{HASH}/01"), None),
            (format!("blobs/{HASH}/+1"), None),
            (format!("blobs/{HASH}/-1"), None),
            (format!("blobs/{HASH}/99999999999999999999"), None),
            (format!("blobs/{}/1", HASH.to_uppercase()), None),
            (format!("blobs/{HASH}"), None),
            (format!("blobs/blake3/{HASH}/1"), None),
            (format!("compressed-blobs/zstd/{HASH}/1"), None),
            (format!("actions/{HASH}/1"), None),
            (format!("a\0/blobs/{HASH}/1"), None),
            (format!("{}/blobs/{HASH}/1", "x".repeat(5000)), None),
            (String::new(), None),
            ("../../etc/passwd".to_owned(), None),
        ] {
            check(parse_read(&name), expect);
        }
    }

    #[test]
    fn uploads_may_carry_a_note() {
        for (name, expect) in [
            (format!("uploads/u/blobs/{HASH}/1"), Some("")),
            (format!("main/uploads/u/blobs/{HASH}/1"), Some("main")),
            (format!("main/uploads/u/blobs/{HASH}/1/foo/bar.cc"), Some("main")),
            (format!("main/uploads/u/blobs/{HASH}/1/blobs/x"), Some("main")),
            (format!("uploads//blobs/{HASH}/1"), None),
            (format!("uploads/u/compressed-blobs/zstd/{HASH}/1"), None),
            (format!("blobs/{HASH}/1"), None),
            (format!("uploads/u/blobs/{HASH}"), None),
        ] {
            check(parse_write(&name), expect);
        }
    }
}
