//! Bearer tokens: a type that can't carry anything but one, and the file that the kubelet keeps one in. Whose token
//! goes on which request is decided elsewhere.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    str::{self, FromStr},
    sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::sync::watch;

use crate::{
    audit::User,
    clock::Clock,
    files::{self, FileWatch, ReadError},
};

/// How long a token that says nothing of its expiry is used after its file could no longer be read.
///
/// It may have been withdrawn together with its file, so it isn't kept for good; ten minutes outlast any swap of a
/// volume or restart of the kubelet.
pub const OPAQUE_GRACE: SignedDuration = SignedDuration::from_mins(10);

/// Why a text isn't a bearer token. It never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is nothing in it.
    #[error("the token is empty: put a bearer token there")]
    Empty,
    /// A space, a control character, or something outside ASCII.
    #[error(
        "the token holds a character at byte {0} that no bearer token may hold: put the token there alone, on one line"
    )]
    Character(usize),
}

/// Why there is no token to send.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredentialError {
    /// The file couldn't be read, and no good token is left from before.
    #[error("no token: {0}")]
    Unreadable(Arc<ReadError>),
    /// The Secret, or its key, isn't there or can't be read.
    #[error("no token: Secret {secret}: {reason}")]
    Secret {
        /// `namespace/name`.
        secret: String,
        /// What is missing, and what to do.
        reason: String,
    },
    /// What the file holds isn't a token.
    #[error("no token: {path}: {source}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenError,
    },
    /// The expiry of a session's own token has passed.
    #[error(
        "the token of session {session} expired at {expiry}: give the session another, or check this machine's clock"
    )]
    Outlived {
        /// `namespace/name`.
        session: String,
        /// When.
        expiry: Timestamp,
    },
    /// The token's own expiry has passed.
    #[error("the token in {path} expired at {expiry}: check that the kubelet renews it, and this machine's clock")]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        expiry: Timestamp,
    },
}

/// A bearer token that is safe to put in a header, and whose expiry is known if it names one.
#[derive(Clone)]
pub struct BearerToken(Arc<Inner>);

struct Inner {
    secret: SecretString,
    // Made once, so that a request can't fail for it.
    authorization: HeaderValue,
    expiry: Option<Timestamp>,
    user: Option<Arc<User>>,
}

impl BearerToken {
    /// Takes visible ASCII characters without a space; what is around the token isn't trimmed.
    ///
    /// # Errors
    /// Says what is wrong without quoting the text.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.is_empty() {
            return Err(TokenError::Empty);
        }
        if let Some(position) = text.bytes().position(|byte| !byte.is_ascii_graphic()) {
            return Err(TokenError::Character(position));
        }
        let secret = SecretString::from(text);
        let header = SecretString::from(format!("Bearer {text}"));
        let mut authorization = HeaderValue::from_str(header.expose_secret()).map_err(|_| TokenError::Character(0))?;
        // Keeps it out of Debug and out of HPACK's table of repeated headers.
        authorization.set_sensitive(true);
        Ok(Self(Arc::new(Inner {
            expiry: jwt_claims(text).and_then(Expiring::expiry),
            user: jwt_claims(text).and_then(Claims::user).map(Arc::new),
            secret,
            authorization,
        })))
    }

    /// The value of an `Authorization` header.
    #[must_use]
    pub fn header_value(&self) -> HeaderValue {
        self.0.authorization.clone()
    }

    /// When it expires, if it is a JWT that says so.
    #[must_use]
    pub fn expiry(&self) -> Option<Timestamp> {
        self.0.expiry
    }

    /// Whose it says that it is, if it is a service account's. Unverified, and for the audit log alone: the API server
    /// judges it.
    #[must_use]
    pub fn user(&self) -> Option<&Arc<User>> {
        self.0.user.as_ref()
    }

    fn is_expired(&self, now: Timestamp) -> bool {
        self.0.expiry.is_some_and(|expiry| expiry <= now)
    }
}

impl FromStr for BearerToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl PartialEq for BearerToken {
    fn eq(&self, other: &Self) -> bool {
        self.0.secret.expose_secret() == other.0.secret.expose_secret()
    }
}

impl Eq for BearerToken {}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken([redacted])")
    }
}

impl fmt::Display for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// What a token says of itself. Unverified: it decides only how long we go on sending what we were given, and what is
/// written down.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(default)]
    jti: Option<String>,
    #[serde(default, rename = "kubernetes.io")]
    bound: Bound,
}

/// By itself: a token expires, however odd its other claims are.
#[derive(Deserialize)]
struct Expiring {
    exp: f64,
}

/// What a service account's token is bound to (`k8s.io/kubernetes/pkg/serviceaccount`, `claims.go`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Bound {
    serviceaccount: Object,
    pod: Object,
    node: Object,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    name: String,
    uid: String,
}

impl Expiring {
    fn expiry(self) -> Option<Timestamp> {
        let exp = SignedDuration::try_from_secs_f64(self.exp).ok()?;
        // Beyond the calendar's end is as good as never.
        Some(Timestamp::from_duration(exp).unwrap_or(Timestamp::MAX))
    }
}

impl Claims {
    /// With the extra values that the API server gives it.
    fn user(self) -> Option<User> {
        let (namespace, name) = self.sub.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        let mut extra = BTreeMap::new();
        for (key, value) in [
            (
                "credential-id",
                self.jti.map(|id| format!("JTI={id}")).unwrap_or_default(),
            ),
            ("node-name", self.bound.node.name),
            ("node-uid", self.bound.node.uid),
            ("pod-name", self.bound.pod.name),
            ("pod-uid", self.bound.pod.uid),
        ] {
            if !value.is_empty() {
                extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
            }
        }
        Some(User::service_account(
            namespace,
            name,
            Some(&self.bound.serviceaccount.uid),
            &extra,
        ))
    }
}

fn jwt_claims<T: DeserializeOwned>(token: &str) -> Option<T> {
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// How long whoever follows a token file waits for its first reading.
const FIRST_READING: Duration = Duration::from_millis(500);

/// A token in a file that is re-read as it is rotated.
///
/// While re-reading fails, the last good token is used until it expires, or for [`OPAQUE_GRACE`] where it doesn't say
/// when. The task behind it ends with the last clone.
#[derive(Debug, Clone)]
pub struct TokenFile {
    path: Arc<PathBuf>,
    clock: Clock,
    reading: watch::Receiver<Reading>,
}

#[derive(Debug, Clone, Default)]
struct Reading {
    good: Option<BearerToken>,
    failing: Option<Failing>,
}

#[derive(Debug, Clone)]
struct Failing {
    since: Timestamp,
    error: CredentialError,
}

impl TokenFile {
    /// Reads the file and follows it from then on. That it can't be read yet is told by [`Self::current`], so that
    /// the caller decides what that means. `failures` counts the readings that failed.
    ///
    /// The first reading is waited for, but not for long: a file system that hangs holds up nobody but who needs it.
    pub async fn follow(path: impl Into<PathBuf>, clock: Clock, failures: Counter) -> Self {
        let path = Arc::new(path.into());
        let (publish, reading) = watch::channel(Reading::default());
        let mut file = Self {
            path: Arc::clone(&path),
            clock: clock.clone(),
            reading,
        };
        tokio::spawn(async move {
            let mut watch = FileWatch::new([path.as_path()]).await;
            loop {
                let read = read_token(&path).await;
                let next = publish.borrow().clone().next(read, clock.now(), &path, &failures);
                publish.send_replace(next);
                tokio::select! {
                    () = watch.changed() => {}
                    () = publish.closed() => return,
                }
            }
        });
        if tokio::time::timeout(FIRST_READING, file.changed()).await.is_err() {
            tracing::warn!(path = %file.path.display(), "a token file isn't read yet; it is used as soon as it is");
        }
        file
    }

    /// The token to send now. It only looks at memory.
    ///
    /// # Errors
    /// Where there is none: it was never readable, or what was read has expired.
    pub fn current(&self) -> Result<BearerToken, CredentialError> {
        self.reading.borrow().at(self.clock.now(), &self.path)
    }

    /// When the token at hand expires, if it says so.
    #[must_use]
    pub fn expiry(&self) -> Option<Timestamp> {
        self.reading.borrow().good.as_ref().and_then(BearerToken::expiry)
    }

    /// Waits until the file has been read anew, well or not.
    pub async fn changed(&mut self) {
        if self.reading.changed().await.is_err() {
            // A task that is gone has nothing to say, and isn't a change.
            std::future::pending::<()>().await;
        }
    }
}

impl Reading {
    fn next(self, read: Result<BearerToken, CredentialError>, now: Timestamp, path: &Path, failures: &Counter) -> Self {
        let error = match read {
            // A file with an expired token must not take the place of a token that still works.
            Ok(token) if token.is_expired(now) && self.good.as_ref().is_some_and(|good| !good.is_expired(now)) => {
                CredentialError::Expired {
                    path: path.to_owned(),
                    expiry: token.expiry().unwrap_or(now),
                }
            }
            Ok(token) => {
                tracing::debug!(path = %path.display(), expiry = ?token.expiry(), "read a token");
                return Self {
                    good: Some(token),
                    failing: None,
                };
            }
            Err(error) => error,
        };
        failures.inc();
        tracing::warn!(%error, keeps_last_good = self.good.is_some(), "a token file cannot be used");
        let since = self.failing.map_or(now, |failing| failing.since);
        Self {
            good: self.good,
            failing: Some(Failing { since, error }),
        }
    }

    fn at(&self, now: Timestamp, path: &Path) -> Result<BearerToken, CredentialError> {
        match (&self.good, &self.failing) {
            (Some(token), _) if token.is_expired(now) => Err(CredentialError::Expired {
                path: path.to_owned(),
                expiry: token.expiry().unwrap_or(now),
            }),
            (Some(token), Some(failing))
                if token.expiry().is_none() && now.duration_since(failing.since) >= OPAQUE_GRACE =>
            {
                Err(failing.error.clone())
            }
            (Some(token), _) => Ok(token.clone()),
            (None, Some(failing)) => Err(failing.error.clone()),
            (None, None) => Err(CredentialError::Unreadable(Arc::new(ReadError::Missing(
                path.to_owned(),
            )))),
        }
    }
}

async fn read_token(path: &Path) -> Result<BearerToken, CredentialError> {
    let malformed = |source| CredentialError::Malformed {
        path: path.to_owned(),
        source,
    };
    let contents = files::read(path)
        .await
        .map_err(|error| CredentialError::Unreadable(Arc::new(error)))?;
    let text = str::from_utf8(&contents).map_err(|error| malformed(TokenError::Character(error.valid_up_to())))?;
    BearerToken::parse(text.trim_end_matches(['\r', '\n'])).map_err(malformed)
}

#[cfg(test)]
mod tests;
