//! A webhook's file, in the form of a kubeconfig as kube-apiserver's `--audit-webhook-config-file` takes it.

use std::path::{Path, PathBuf};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{Uri, uri::PathAndQuery};
use rustls::{
    ClientConfig,
    version::{TLS12, TLS13},
};
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use serde::Deserialize;

use crate::{
    credentials::{BearerToken, TokenError},
    files::{self, ReadError},
    sessions::without_values,
    trust::{TrustError, pem, provider, roots},
    upstream::target::{Target, TargetError},
};

/// Why there is no webhook.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The file can't be read.
    #[error("the audit webhook's file cannot be read: {0}")]
    Unreadable(#[from] ReadError),
    /// It isn't a kubeconfig, or says what the agent doesn't do. The text isn't quoted: it may hold a token.
    #[error("the audit webhook's file {path}: {reason}: write it as a kubeconfig with one cluster, user and context")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Something that it needs isn't there.
    #[error("the audit webhook's file {path}: {field} is missing")]
    Missing {
        /// The file.
        path: PathBuf,
        /// The field.
        field: String,
    },
    /// Where to send isn't a URL of that kind.
    #[error("the audit webhook's file {path}: server: {source}")]
    Server {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TargetError,
    },
    /// An unverified server.
    #[error(
        "the audit webhook's file {0}: insecure-skip-tls-verify is not for the audit log: give certificate-authority in its place"
    )]
    Unverified(PathBuf),
    /// Not base64.
    #[error("the audit webhook's file {path}: {field} is not base64: write the PEM there encoded, or name a file")]
    Base64 {
        /// The file.
        path: PathBuf,
        /// The field.
        field: &'static str,
    },
    /// Not a token.
    #[error("the audit webhook's token: {0}")]
    Token(#[from] TokenError),
    /// The CA, or the client's certificate, can't be used.
    #[error("the audit webhook: {0}")]
    Trust(#[from] TrustError),
}

/// Where to send events, whom to trust there, and as whom to come.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) target: Target,
    pub(super) path: PathAndQuery,
    /// For what is named relative to it, and for errors.
    file: PathBuf,
    authority: Pem,
    client: Option<(Pem, Pem)>,
    token: Option<Token>,
}

/// A PEM text, or where it stands.
enum Pem {
    File(PathBuf),
    Data(Zeroizing<Vec<u8>>),
}

enum Token {
    File(PathBuf),
    Inline(BearerToken),
}

impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Data(data) => write!(f, "{} bytes", data.len()),
        }
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Inline(_) => f.write_str("[redacted]"),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Manifest {
    #[serde(rename = "apiVersion", default)]
    _api_version: String,
    #[serde(rename = "kind", default)]
    _kind: String,
    #[serde(rename = "preferences", default)]
    _preferences: serde_json::Value,
    #[serde(default)]
    clusters: Vec<Named<Cluster>>,
    #[serde(default)]
    users: Vec<Named<User>>,
    #[serde(default)]
    contexts: Vec<Named<Context>>,
    #[serde(default)]
    current_context: String,
}

/// Under the key that each kind of entry has for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named<T> {
    name: String,
    #[serde(alias = "cluster", alias = "user", alias = "context")]
    value: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Cluster {
    #[serde(default)]
    server: String,
    #[serde(default)]
    tls_server_name: Option<String>,
    #[serde(default)]
    certificate_authority: Option<PathBuf>,
    #[serde(default)]
    certificate_authority_data: Option<SecretString>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct User {
    token: Option<SecretString>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<SecretString>,
    client_key: Option<PathBuf>,
    client_key_data: Option<SecretString>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
    #[serde(default, rename = "namespace")]
    _namespace: String,
}

impl Endpoint {
    /// Reads the file, and sees that what it names can be used.
    ///
    /// # Errors
    /// Names the field that is wrong or missing.
    pub async fn load(file: &Path) -> Result<Self, WebhookError> {
        let text = files::read(file).await?;
        let endpoint = Self::parse(&String::from_utf8_lossy(&text), file)?;
        endpoint.tls().await?;
        endpoint.token().await?;
        Ok(endpoint)
    }

    fn parse(text: &str, file: &Path) -> Result<Self, WebhookError> {
        let options = serde_saphyr::options! { with_snippet: false };
        let manifest: Manifest =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| WebhookError::Form {
                path: file.to_owned(),
                reason: without_values(&error.to_string()),
            })?;
        let missing = |field: String| WebhookError::Missing {
            path: file.to_owned(),
            field,
        };
        let Manifest {
            clusters,
            users,
            contexts,
            current_context: current,
            ..
        } = manifest;
        // kube-apiserver's examples have one of each; then there is nothing to choose.
        let context = match contexts.len() {
            1 if current.is_empty() => contexts.into_iter().next(),
            _ => contexts.into_iter().find(|context| context.name == current),
        };
        let context = context.ok_or_else(|| missing(format!("contexts: {current:?}")))?.value;
        let cluster = clusters.into_iter().find(|cluster| cluster.name == context.cluster);
        let cluster = cluster
            .ok_or_else(|| missing(format!("clusters: {:?}", context.cluster)))?
            .value;
        let user = match context.user.as_str() {
            "" => User::default(),
            name => {
                let user = users.into_iter().find(|user| user.name == name);
                user.ok_or_else(|| missing(format!("users: {name:?}")))?.value
            }
        };
        if cluster.insecure_skip_tls_verify {
            return Err(WebhookError::Unverified(file.to_owned()));
        }
        let (target, path) = server(&cluster, file)?;
        let authority = pem_of(
            cluster.certificate_authority,
            cluster.certificate_authority_data.as_ref(),
            "certificate-authority-data",
            file,
        )?;
        let certificate = pem_of(
            user.client_certificate,
            user.client_certificate_data.as_ref(),
            "client-certificate-data",
            file,
        )?;
        let key = pem_of(user.client_key, user.client_key_data.as_ref(), "client-key-data", file)?;
        let client = match (certificate, key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (None, Some(_)) => return Err(missing("client-certificate".to_owned())),
            (Some(_), None) => return Err(missing("client-key".to_owned())),
        };
        let token = match (user.token, user.token_file) {
            (_, Some(path)) => Some(Token::File(beside(file, path))),
            (Some(token), None) => Some(Token::Inline(BearerToken::parse(token.expose_secret())?)),
            (None, None) => None,
        };
        Ok(Self {
            target,
            path,
            file: file.to_owned(),
            authority: authority.ok_or_else(|| missing("certificate-authority".to_owned()))?,
            client,
            token,
        })
    }

    /// The terms to dial under now; files are read anew, so that renewed ones hold from the next connection on.
    pub(super) async fn tls(&self) -> Result<ClientConfig, WebhookError> {
        let (authority, name) = self.read(&self.authority).await?;
        let roots = roots::parse_roots(&authority, &name)?;
        let Some((certificate, key)) = &self.client else {
            return Ok(roots::client_config(roots, &[b"http/1.1"])?);
        };
        let (chain, chain_name) = self.read(certificate).await?;
        let (private, key_name) = self.read(key).await?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(TrustError::from)?
            .with_root_certificates(roots)
            .with_client_auth_cert(
                pem::certificates(&chain, &chain_name)?,
                pem::private_key(&private, &key_name)?,
            )
            .map_err(TrustError::from)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// The token to show now.
    pub(super) async fn token(&self) -> Result<Option<BearerToken>, WebhookError> {
        match &self.token {
            None => Ok(None),
            Some(Token::Inline(token)) => Ok(Some(token.clone())),
            Some(Token::File(path)) => {
                let text = files::read(path).await?;
                let text = String::from_utf8_lossy(&text);
                Ok(Some(BearerToken::parse(text.trim_end_matches(['\r', '\n']))?))
            }
        }
    }

    async fn read(&self, pem: &Pem) -> Result<(Zeroizing<Vec<u8>>, PathBuf), WebhookError> {
        match pem {
            Pem::File(path) => Ok((files::read(path).await?, path.clone())),
            Pem::Data(data) => Ok((data.clone(), self.file.clone())),
        }
    }
}

/// The path is ours to send, the rest is where to dial.
fn server(cluster: &Cluster, file: &Path) -> Result<(Target, PathAndQuery), WebhookError> {
    let wrong = |source| WebhookError::Server {
        path: file.to_owned(),
        source,
    };
    let form = || wrong(TargetError::Form(cluster.server.clone()));
    let url: Uri = cluster.server.parse().map_err(|_| form())?;
    let path = url
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut parts = url.into_parts();
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    let base = Uri::from_parts(parts).map_err(|_| form())?;
    let target = Target::parse(&base.to_string(), cluster.tls_server_name.as_deref()).map_err(wrong)?;
    Ok((target, path))
}

/// What stands in the file itself counts before what it names, as in a kubeconfig.
fn pem_of(
    path: Option<PathBuf>,
    data: Option<&SecretString>,
    field: &'static str,
    file: &Path,
) -> Result<Option<Pem>, WebhookError> {
    let Some(data) = data else {
        return Ok(path.map(|path| Pem::File(beside(file, path))));
    };
    let decoded = STANDARD
        .decode(data.expose_secret().trim())
        .map_err(|_| WebhookError::Base64 {
            path: file.to_owned(),
            field,
        })?;
    Ok(Some(Pem::Data(Zeroizing::new(decoded))))
}

/// A relative path is relative to the file that names it.
fn beside(file: &Path, path: PathBuf) -> PathBuf {
    match file.parent() {
        Some(directory) => directory.join(path),
        None => path,
    }
}
