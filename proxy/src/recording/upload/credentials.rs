//! As whom the store is asked: credentials in a file, which is read anew for each request, or in the environment.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::HeaderValue;
use object_store::{CredentialProvider, aws::AwsCredential};
use prometheus_client::metrics::counter::Counter;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

use crate::{
    credentials::{BearerToken, TokenError},
    files::{self, ReadError},
};

/// Why there are no credentials. It never quotes what the file holds.
#[derive(Debug, thiserror::Error)]
pub enum UploadCredentialsError {
    /// It can't be read.
    #[error("--recording-upload-credentials: {0}")]
    Unreadable(#[from] ReadError),
    /// It isn't in its form.
    #[error("--recording-upload-credentials {path}: line {line} is neither NAME = VALUE nor [default]: write it so")]
    Form {
        /// The file.
        path: PathBuf,
        /// Which line, from one.
        line: usize,
    },
    /// Something isn't in it.
    #[error("--recording-upload-credentials {path}: {wanted} isn't there: put it in, as NAME = VALUE")]
    Missing {
        /// The file.
        path: PathBuf,
        /// What isn't.
        wanted: &'static str,
    },
    /// It can't be sent.
    #[error("--recording-upload-credentials {path}: the token: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TokenError,
    },
}

/// What a file of credentials holds: that of a store as S3, or of one by HTTP.
pub(super) trait Held: Sized + Send + Sync + 'static {
    fn of(values: &Values, path: &Path) -> Result<Self, UploadCredentialsError>;
}

/// An S3 access key.
#[derive(Debug)]
pub(super) struct AccessKey {
    id: String,
    secret: SecretString,
    session: Option<SecretString>,
}

impl Held for AccessKey {
    fn of(values: &Values, path: &Path) -> Result<Self, UploadCredentialsError> {
        Ok(Self {
            id: values.need("aws_access_key_id", path)?.expose_secret().to_owned(),
            secret: values.need("aws_secret_access_key", path)?.clone(),
            session: values.find("aws_session_token").cloned(),
        })
    }
}

impl AccessKey {
    /// Of the environment's variables.
    pub(super) fn new(id: String, secret: SecretString, session: Option<SecretString>) -> Self {
        Self { id, secret, session }
    }

    fn credential(&self) -> AwsCredential {
        AwsCredential {
            key_id: self.id.clone(),
            secret_key: self.secret.expose_secret().to_owned(),
            token: self.session.as_ref().map(|token| token.expose_secret().to_owned()),
        }
    }
}

/// What goes into `Authorization`.
#[derive(Debug)]
pub(super) struct Authorization(HeaderValue);

impl Held for Authorization {
    fn of(values: &Values, path: &Path) -> Result<Self, UploadCredentialsError> {
        if let Some(token) = values.find("token") {
            let token = BearerToken::parse(token.expose_secret()).map_err(|source| UploadCredentialsError::Token {
                path: path.to_owned(),
                source,
            })?;
            return Ok(Self(token.header_value()));
        }
        let user = values.need("username", path)?.expose_secret();
        let password = values.need("password", path)?.expose_secret();
        let pair = Zeroizing::new(format!("{user}:{password}"));
        let basic = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
        let mut header = HeaderValue::from_str(&basic).map_err(|_| UploadCredentialsError::Missing {
            path: path.to_owned(),
            wanted: "password",
        })?;
        header.set_sensitive(true);
        Ok(Self(header))
    }
}

impl Authorization {
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

/// Names and their values.
pub(super) struct Values(Vec<(String, SecretString)>);

impl Values {
    /// As AWS's tools write a file of credentials: what stands before any section, or in `[default]`.
    fn parse(text: &str, path: &Path) -> Result<Self, UploadCredentialsError> {
        let mut values = Vec::new();
        let mut is_ours = true;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                is_ours = section.trim() == "default";
                continue;
            }
            let (name, value) = line.split_once('=').ok_or_else(|| UploadCredentialsError::Form {
                path: path.to_owned(),
                line: index + 1,
            })?;
            if is_ours {
                values.push((name.trim().to_ascii_lowercase(), SecretString::from(value.trim())));
            }
        }
        Ok(Self(values))
    }

    fn find(&self, name: &str) -> Option<&SecretString> {
        let found = self.0.iter().find(|(found, _)| found == name);
        found
            .map(|(_, value)| value)
            .filter(|value| !value.expose_secret().is_empty())
    }

    fn need(&self, name: &'static str, path: &Path) -> Result<&SecretString, UploadCredentialsError> {
        self.find(name).ok_or_else(|| UploadCredentialsError::Missing {
            path: path.to_owned(),
            wanted: name,
        })
    }
}

/// A file of credentials. Read for each request, so that new ones hold from the next on; while it can't be, those in force
/// stay.
#[derive(Debug)]
pub(super) struct CredentialFile<T> {
    path: PathBuf,
    in_force: Mutex<Arc<T>>,
    failures: Counter,
}

impl<T: Held> CredentialFile<T> {
    pub(super) async fn open(path: PathBuf, failures: Counter) -> Result<Self, UploadCredentialsError> {
        let held = read(&path).await?;
        Ok(Self {
            path,
            in_force: Mutex::new(Arc::new(held)),
            failures,
        })
    }

    pub(super) async fn current(&self) -> Arc<T> {
        let read = read(&self.path).await;
        let mut in_force = self.in_force.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(held) => *in_force = Arc::new(held),
            Err(error) => {
                self.failures.inc();
                tracing::error!(%error, "the new credentials for the recordings' store can't be used; those in force stay");
            }
        }
        Arc::clone(&in_force)
    }
}

async fn read<T: Held>(path: &Path) -> Result<T, UploadCredentialsError> {
    let bytes = files::read(path).await?;
    let text = Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned());
    T::of(&Values::parse(&text, path)?, path)
}

#[async_trait::async_trait]
impl CredentialProvider for CredentialFile<AccessKey> {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(Arc::new(self.current().await.credential()))
    }
}

/// One that stays as it is.
#[derive(Debug)]
pub(super) struct Fixed(pub(super) AccessKey);

#[async_trait::async_trait]
impl CredentialProvider for Fixed {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        Ok(Arc::new(self.0.credential()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn held<T: Held>(text: &str) -> Result<T, String> {
        let path = Path::new("/creds");
        Values::parse(text, path)
            .and_then(|values| T::of(&values, path))
            .map_err(|error| error.to_string())
    }

    #[rstest]
    #[case::plain("aws_access_key_id=AK\naws_secret_access_key=s3cr/et=\n", None)]
    #[case::as_aws_has_it(
        "# by hand\n[default]\naws_access_key_id = AK\naws_secret_access_key = s3cr/et=\nregion = eu-west-1\n",
        None
    )]
    #[case::for_a_time(
        "[other]\naws_access_key_id = X\naws_secret_access_key = y\n[default]\nAWS_ACCESS_KEY_ID = AK\naws_secret_access_key = s3cr/et=\naws_session_token = tok\n",
        Some("tok")
    )]
    fn access_keys(#[case] text: &str, #[case] token: Option<&str>) {
        let credential = held::<AccessKey>(text).unwrap().credential();
        assert_eq!(
            (credential.key_id.as_str(), credential.secret_key.as_str()),
            ("AK", "s3cr/et=")
        );
        assert_eq!(credential.token.as_deref(), token);
    }

    #[rstest]
    #[case::token("token = abc.def", "Bearer abc.def")]
    #[case::basic("username = agent\npassword = p=ss", "Basic YWdlbnQ6cD1zcw==")]
    fn headers(#[case] text: &str, #[case] header: &str) {
        let found = held::<Authorization>(text).unwrap().header();
        assert_eq!(found, header);
        assert!(found.is_sensitive());
    }

    #[rstest]
    #[case::nothing("", "aws_access_key_id")]
    #[case::half("aws_access_key_id = AK", "aws_secret_access_key")]
    #[case::empty("aws_access_key_id = AK\naws_secret_access_key =", "aws_secret_access_key")]
    #[case::elsewhere(
        "[other]\naws_access_key_id = AK\naws_secret_access_key = hidden",
        "aws_access_key_id"
    )]
    #[case::no_pair("aws_access_key_id = AK\nhidden", "line 2")]
    fn what_is_wrong_is_told_without_what_it_holds(#[case] text: &str, #[case] says: &str) {
        let error = held::<AccessKey>(text).map(drop).unwrap_err();
        assert!(
            error.contains(says) && error.contains("/creds") && !error.contains("hidden"),
            "{error}"
        );
        let debug = format!(
            "{:?}",
            held::<AccessKey>("aws_access_key_id=AK\naws_secret_access_key=hidden").unwrap()
        );
        assert!(!debug.contains("hidden"), "{debug}");
    }

    #[tokio::test]
    async fn new_ones_hold_from_the_next_request_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        std::fs::write(&path, "token = one").unwrap();
        let failures = Counter::default();
        let file = CredentialFile::<Authorization>::open(path.clone(), failures.clone())
            .await
            .unwrap();
        assert_eq!(file.current().await.header(), "Bearer one");
        std::fs::write(&path, "token = two").unwrap();
        assert_eq!(file.current().await.header(), "Bearer two");
        std::fs::write(&path, "token =").unwrap();
        assert_eq!(
            (file.current().await.header(), failures.get()),
            ("Bearer two".parse().unwrap(), 1)
        );
    }
}
