//! Where recordings are brought, and what each is called there.

use std::{fmt, fmt::Write as _, str::FromStr};

use http::{Uri, uri::Scheme};

/// What a recording's name on the node ends with, and its object's.
const EXTENSION: &str = ".cast";
/// As long is the time that a recording's name begins with: `20261122T140501Z`.
const TIME: usize = 16;
/// And the day.
const DAY: usize = 8;

/// A place for recordings: `s3://BUCKET/PREFIX`, or `https://HOST/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Of what kind.
    pub kind: Kind,
    /// What names there begin with: words with slashes between them, none at either end. Empty for none.
    pub prefix: String,
}

/// How it is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// As Amazon's S3.
    S3 {
        /// The bucket's name.
        bucket: String,
    },
    /// By PUT, as `WebDAV` has it (RFC 4918, section 9.7).
    Http(Origin),
}

/// The scheme, host and port of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Uri);

/// Why there is no such place.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DestinationError {
    /// Not such a URL. It isn't quoted, for it may have a password in it.
    #[error(
        "not a place for recordings: write s3://BUCKET/PREFIX or https://HOST[:PORT]/PREFIX, without user, query or #"
    )]
    Form,
    /// The bucket isn't called as one may be.
    #[error("{0:?} is not a bucket's name: it has 3 to 63 small letters, digits, dots and hyphens")]
    Bucket(String),
    /// A word of the prefix isn't sent as it is by everybody.
    #[error("{0:?} can't stand in the path: use letters, digits and ._=- between its slashes")]
    Prefix(String),
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(url: &str) -> Result<Self, DestinationError> {
        if let Some(rest) = url.strip_prefix("s3://") {
            let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.contains(['@', '?', '#', ':']) {
                return Err(DestinationError::Form);
            }
            let is_edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
            let is_inner = |byte: u8| is_edge(byte) || byte == b'.' || byte == b'-';
            let bytes = bucket.as_bytes();
            let is_named = (3..=63).contains(&bytes.len())
                && bytes.iter().copied().all(is_inner)
                && [bytes.first(), bytes.last()]
                    .into_iter()
                    .flatten()
                    .copied()
                    .all(is_edge)
                && !bucket.contains("..");
            if !is_named {
                return Err(DestinationError::Bucket(bucket.to_owned()));
            }
            return Ok(Self {
                kind: Kind::S3 {
                    bucket: bucket.to_owned(),
                },
                prefix: prefix(path)?,
            });
        }
        let (origin, path) = split(url)?;
        Ok(Self {
            kind: Kind::Http(origin),
            prefix: prefix(&path)?,
        })
    }
}

impl FromStr for Origin {
    type Err = DestinationError;

    fn from_str(url: &str) -> Result<Self, DestinationError> {
        match split(url)? {
            (origin, path) if path.trim_matches('/').is_empty() => Ok(origin),
            (_, path) => Err(DestinationError::Prefix(path)),
        }
    }
}

impl Origin {
    /// Without a slash at its end.
    #[must_use]
    pub fn url(&self) -> String {
        self.0.to_string().trim_end_matches('/').to_owned()
    }

    /// Whether TLS isn't spoken there.
    #[must_use]
    pub fn is_plaintext(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTP)
    }

    /// The host, IPv6 in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        self.0.host().unwrap_or_default()
    }
}

/// An http or https URL in two: where, and what path.
fn split(url: &str) -> Result<(Origin, String), DestinationError> {
    // A fragment is dropped in silence by the parser.
    if url.contains(['@', '?', '#']) {
        return Err(DestinationError::Form);
    }
    let uri: Uri = url.parse().map_err(|_| DestinationError::Form)?;
    let authority = uri.authority().ok_or(DestinationError::Form)?;
    let names_port = authority.as_str().len() > authority.host().len();
    if names_port && authority.port_u16().is_none_or(|port| port == 0) {
        return Err(DestinationError::Form);
    }
    if ![Some("http"), Some("https")].contains(&uri.scheme_str()) || authority.host().is_empty() {
        return Err(DestinationError::Form);
    }
    let path = uri.path().to_owned();
    let mut parts = uri.into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    let origin = Uri::from_parts(parts).map_err(|_| DestinationError::Form)?;
    Ok((Origin(origin), path))
}

/// A prefix without slashes at its ends.
fn prefix(path: &str) -> Result<String, DestinationError> {
    let path = path.trim_matches('/');
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._=-".contains(&byte);
    let is_word = |word: &str| !word.is_empty() && word != "." && word != ".." && word.bytes().all(is_plain);
    match path.split('/').find(|word| !is_word(word)) {
        Some(word) if !path.is_empty() => Err(DestinationError::Prefix(word.to_owned())),
        _ => Ok(path.to_owned()),
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::S3 { bucket } => write!(f, "s3://{bucket}")?,
            Kind::Http(origin) => f.write_str(&origin.url())?,
        }
        if self.prefix.is_empty() {
            Ok(())
        } else {
            write!(f, "/{}", self.prefix)
        }
    }
}

/// What a recording is called at its destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// `PREFIX/DAY/TIME_NAMESPACE_SESSION_AUDITID_NODE.cast` of a recording's name on a node. Sorted, they are in the order
    /// of time, over nodes; no two nodes have the same, whatever they are called. `None`: it isn't called as agents call
    /// recordings, and so isn't one of theirs.
    #[must_use]
    pub fn new(destination: &Destination, file_name: &str, node: &str) -> Option<Self> {
        let stem = file_name.strip_suffix(EXTENSION)?;
        let (time, rest) = stem.split_at_checked(TIME)?;
        let is_time = time.bytes().zip(*b"00000000T000000Z").all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == form,
        });
        if !is_time || !rest.starts_with('_') || rest.len() < 2 {
            return None;
        }
        let mut key = String::new();
        if !destination.prefix.is_empty() {
            key.push_str(&destination.prefix);
            key.push('/');
        }
        key.push_str(&time[..DAY]);
        key.push('/');
        escape(stem, b"_.-", &mut key);
        key.push('_');
        // The last `_` is before the node.
        escape(node, b".-", &mut key);
        key.push_str(EXTENSION);
        Some(Self(key))
    }

    /// As it is sent.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Letters, digits and these stay; of everything else, each byte becomes `=` and two hexadecimal digits.
fn escape(text: &str, kept: &[u8], into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || kept.contains(&byte) {
            into.push(char::from(byte));
        } else {
            let _ = write!(into, "={byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parsed(url: &str) -> Result<Destination, DestinationError> {
        url.parse()
    }

    #[rstest]
    #[case::bucket("s3://audit", "s3://audit")]
    #[case::prefix(
        "s3://audit.example-1/cluster-a/recordings/",
        "s3://audit.example-1/cluster-a/recordings"
    )]
    #[case::https("https://dav.example.org:8443/recordings", "https://dav.example.org:8443/recordings")]
    #[case::no_prefix("https://dav.example.org/", "https://dav.example.org")]
    #[case::ipv6("https://[fd00::7]:8443/a", "https://[fd00::7]:8443/a")]
    #[case::plaintext("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/a")]
    fn places_are_read(#[case] url: &str, #[case] shown: &str) {
        let place = parsed(url).unwrap();
        assert_eq!(place.to_string(), shown);
        assert_eq!(parsed(shown), Ok(place));
    }

    #[rstest]
    #[case::nothing("", "write s3://")]
    #[case::directory("/var/lib/recordings", "write s3://")]
    #[case::other_scheme("ftp://host/a", "write s3://")]
    #[case::user("https://user:secret@host/a", "write s3://")]
    #[case::user_of_s3("s3://key:secret@bucket/a", "write s3://")]
    #[case::query("https://host/a?sig=secret", "write s3://")]
    #[case::fragment("https://host/a#b", "write s3://")]
    #[case::no_host("https:///a", "write s3://")]
    #[case::port("https://host:0/a", "write s3://")]
    #[case::port_too_high("https://host:99999/a", "write s3://")]
    #[case::no_bucket("s3:///a", "bucket's name")]
    #[case::loud_bucket("s3://Audit/a", "bucket's name")]
    #[case::dots("s3://a..b/c", "bucket's name")]
    #[case::up("https://host/a/../b", "can't stand")]
    #[case::empty_word("s3://bucket/a//b", "can't stand")]
    #[case::escaped("https://host/a%2fb", "can't stand")]
    #[case::space("s3://bucket/a b", "can't stand")]
    fn what_is_none_is_told(#[case] url: &str, #[case] says: &str) {
        let error = parsed(url).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn endpoints_have_no_path() {
        let origin: Origin = "https://minio.example.org:9000/".parse().unwrap();
        assert_eq!(origin.url(), "https://minio.example.org:9000");
        assert!("https://minio.example.org/bucket".parse::<Origin>().is_err());
        assert!("http://127.0.0.1:9000".parse::<Origin>().unwrap().is_plaintext());
    }

    const NAME: &str = "20261122T140501Z_support_alice_6f1c7a52-0000-4000-8000-000000000000.cast";

    #[rstest]
    #[case::plain(
        "s3://audit",
        NAME,
        "node-1",
        Some("20261122/20261122T140501Z_support_alice_6f1c7a52-0000-4000-8000-000000000000_node-1.cast")
    )]
    #[case::prefix(
        "s3://audit/a/b",
        "20261122T140501Z_a.cast",
        "n",
        Some("a/b/20261122/20261122T140501Z_a_n.cast")
    )]
    #[case::escapes(
        "s3://audit",
        "20261122T140501Z_../é%41.cast",
        "a_b/../c",
        Some("20261122/20261122T140501Z_..=2F=C3=A9=2541_a=5Fb=2F..=2Fc.cast")
    )]
    #[case::not_ours("s3://audit", "shell.cast", "n", None)]
    #[case::not_a_time("s3://audit", "2026-1122T14050Z_a.cast", "n", None)]
    #[case::nothing_more("s3://audit", "20261122T140501Z_.cast", "n", None)]
    #[case::not_a_recording("s3://audit", "20261122T140501Z_a.txt", "n", None)]
    #[case::within_a_letter("s3://audit", "20261122T14050\u{e9}_a.cast", "n", None)]
    fn names_are_plain(#[case] url: &str, #[case] name: &str, #[case] node: &str, #[case] key: Option<&str>) {
        let found = Key::new(&parsed(url).unwrap(), name, node);
        assert_eq!(found.as_ref().map(Key::as_str), key);
    }

    fn key(name: &str, node: &str) -> String {
        let place = Destination {
            kind: Kind::S3 { bucket: "b".to_owned() },
            prefix: String::new(),
        };
        Key::new(&place, name, node).unwrap().0
    }

    proptest! {
        /// Two recordings are never one object, and their order is that of their times.
        #[test]
        fn names_tell_apart(
            one in ".{1,40}", other in ".{1,40}", node in ".{0,20}", another in ".{0,20}", second in 0..60_u8, later in 0..60_u8,
        ) {
            let name = |second: u8, rest: &str| format!("20261122T1405{second:02}Z_{rest}.cast");
            let (first, next) = (name(second, &one), name(later, &other));
            let (key_of_first, key_of_next) = (key(&first, &node), key(&next, &another));
            prop_assert_eq!(key_of_first == key_of_next, (&first, &node) == (&next, &another));
            if second != later {
                prop_assert_eq!(key_of_first < key_of_next, second < later);
            }
            prop_assert_eq!(key_of_first.matches('/').count(), 1);
        }
    }
}
