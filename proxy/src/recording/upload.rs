//! Recordings brought to a store elsewhere, once they have come to their end.
//!
//! The file on the node is what counts until the store has said that it has it all: whatever fails is done again, by this
//! agent or the next, after longer and longer waits. `destination` says where recordings go and what they are called there,
//! `shelf` which wait on the node; `store` brings one, over `transport`, as whom `credentials` say.

mod credentials;
pub mod destination;
mod shelf;
mod store;
mod transport;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use object_store::{
    BackoffConfig, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
};
use rustls::RootCertStore;
use secrecy::SecretString;
use tokio::{
    sync::Notify,
    task::{self, JoinHandle, JoinSet},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

pub use self::{credentials::UploadCredentialsError, destination::Destination};
use self::{
    credentials::{AccessKey, CredentialFile, Fixed},
    destination::{Kind, Origin},
    shelf::{Shelf, Waiting},
    store::{HttpStore, PutError, Store, shown},
    transport::{Transport, Trusted},
};
use crate::{
    backoff::Backoff,
    clock,
    metrics::{Followed, Metrics, UploadCounts},
    trust::{
        TrustError,
        roots::{UpstreamRoots, client_config},
    },
    upstream::target::is_here,
};

/// So many are brought at once, and take as many parts of memory.
const AT_ONCE: usize = 2;
/// How often to look for what another agent left behind.
const LOOK_AROUND: Duration = Duration::from_secs(10);
const RETRY: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_mins(2);
/// What S3 may be asked anew by itself: a part of a long recording, without the rest of it.
const RETRIES: usize = 3;
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// How recordings are brought to a store.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to.
    pub destination: Destination,
    /// Whether they are removed from the node once they are there.
    pub remove: bool,
    /// A CA of the store's; without, those that the system trusts.
    pub ca: Option<PathBuf>,
    /// As whom.
    pub login: Login,
    /// For a store that isn't Amazon's: where it is.
    pub endpoint: Option<Origin>,
    /// The bucket's region.
    pub region: String,
    /// Whether the bucket stands in the path, or in the host's name.
    pub path_style: bool,
    /// Whether TLS may be done without to another machine.
    pub allow_plaintext: bool,
}

impl Options {
    /// Where the store is; unknown where Amazon's own is asked.
    fn asked(&self) -> Option<&Origin> {
        match &self.destination.kind {
            Kind::Http(origin) => self.endpoint.as_ref().or(Some(origin)),
            Kind::S3 { .. } => self.endpoint.as_ref(),
        }
    }
}

/// As whom a store is asked.
#[derive(Debug, Clone)]
pub enum Login {
    /// As nobody.
    Anonymous,
    /// As a file says.
    File(PathBuf),
    /// With an access key of the environment's.
    Key {
        /// `AWS_ACCESS_KEY_ID`.
        id: String,
        /// `AWS_SECRET_ACCESS_KEY`.
        secret: SecretString,
        /// `AWS_SESSION_TOKEN`.
        session: Option<SecretString>,
    },
    /// With a token that STS gives keys for.
    WebIdentity {
        /// `AWS_WEB_IDENTITY_TOKEN_FILE`.
        token_file: String,
        /// `AWS_ROLE_ARN`.
        role: String,
        /// `AWS_ROLE_SESSION_NAME`.
        session_name: Option<String>,
    },
}

/// Why recordings can't be brought anywhere.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// No credentials, and none isn't asked for.
    #[error(
        "there are no credentials for --recording-upload: give --recording-upload-credentials, or the variables AWS_ACCESS_KEY_ID and \
         AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN; or --recording-upload-anonymous"
    )]
    NoLogin,
    /// The credentials can't be used.
    #[error(transparent)]
    Credentials(#[from] UploadCredentialsError),
    /// The CA can't be used.
    #[error("--recording-upload-ca: {0}")]
    Ca(TrustError),
    /// The system trusts nobody.
    #[error(
        "this system has no CA certificates to verify the store by ({0}): give --recording-upload-ca, or mount the node's and name the file in SSL_CERT_FILE"
    )]
    NoSystemRoots(String),
    /// In plaintext to another machine.
    #[error("{0} is plaintext to another machine: use https, or --recording-upload-allow-plaintext")]
    Plaintext(String),
    /// Another option doesn't go with it.
    #[error("--recording-upload: {0}")]
    Store(String),
    /// No marks can be made.
    #[error("marks of what is stored can't be kept in {directory} ({source}): make it writable for the agent")]
    Directory {
        /// The directory of recordings.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Objects of two nodes would be one.
    #[error("--recording-upload needs this node's name, for what recordings are called in the store: give --node-name")]
    NoNode,
}

/// Brings what is on the node, and comes, until it is [drained](Self::drain).
#[derive(Debug)]
pub struct Uploads {
    task: JoinHandle<()>,
    last_round: CancellationToken,
}

impl Uploads {
    /// Begins to bring recordings. Each wake of `ended` is one that has come to its end. The store needn't be there yet.
    ///
    /// # Errors
    /// If the options can't be used.
    pub async fn start(
        directory: &Path,
        node: &str,
        options: Options,
        ended: Arc<Notify>,
        metrics: &Metrics,
    ) -> Result<Self, UploadError> {
        if node.is_empty() {
            return Err(UploadError::NoNode);
        }
        let store = open(&options, metrics).await?;
        let destination = options.destination.clone();
        let shelf = Shelf::new(directory, destination, node.into(), options.remove).map_err(|source| {
            UploadError::Directory {
                directory: directory.to_owned(),
                source,
            }
        })?;
        tracing::info!(to = %options.destination, remove = options.remove, "recordings are brought to a store");
        let last_round = CancellationToken::new();
        let bearer = Bearer {
            carrier: Arc::new(Carrier {
                shelf: Mutex::new(shelf),
                store,
                destination: options.destination,
                counts: metrics.recording().upload().clone(),
            }),
            ended,
            last_round: last_round.clone(),
            failed_last: Vec::new(),
            complained: None,
        };
        Ok(Self {
            task: tokio::spawn(bearer.run()),
            last_round,
        })
    }

    /// What is at its end is brought once more, as far as that is done by the deadline. The next agent brings the rest.
    pub async fn drain(mut self, deadline: Instant) {
        self.last_round.cancel();
        if timeout_at(deadline, &mut self.task).await.is_err() {
            tracing::warn!("recordings are left that their store hasn't got: the next agent on this node brings them");
            self.task.abort();
        }
    }
}

async fn open(options: &Options, metrics: &Metrics) -> Result<Store, UploadError> {
    let wrong = |why: &str| Err(UploadError::Store(why.to_owned()));
    if let Some(origin) = options.asked()
        && origin.is_plaintext()
        && !options.allow_plaintext
        && !is_here(origin.host())
    {
        return Err(UploadError::Plaintext(origin.url()));
    }
    let transport = Transport::new(trusted(options, metrics).await?, options.allow_plaintext);
    let failures = metrics.reload_failures(Followed::UploadCredentials);
    match &options.destination.kind {
        Kind::Http(origin) => {
            if options.endpoint.is_some() {
                return wrong("--recording-upload-endpoint goes with an s3:// URL only");
            }
            let credentials = match &options.login {
                Login::File(path) => Some(CredentialFile::open(path.clone(), failures).await?),
                // What is in the environment is for S3.
                _ => None,
            };
            Ok(Store::Http(HttpStore::new(origin.clone(), credentials, transport)))
        }
        Kind::S3 { bucket } => {
            let mut builder = AmazonS3Builder::new()
                .with_bucket_name(bucket)
                .with_region(&options.region)
                .with_virtual_hosted_style_request(!options.path_style)
                // What is plaintext is for the transport to judge, which sees the address.
                .with_allow_http(true)
                .with_retry(RetryConfig {
                    backoff: BackoffConfig::default(),
                    max_retries: RETRIES,
                    retry_timeout: Duration::from_mins(2),
                })
                .with_http_connector(transport);
            if let Some(endpoint) = &options.endpoint {
                builder = builder.with_endpoint(endpoint_url(endpoint, bucket, options.path_style));
            }
            builder = match &options.login {
                Login::Anonymous => builder.with_skip_signature(true),
                Login::File(path) => {
                    let file = CredentialFile::<AccessKey>::open(path.clone(), failures).await?;
                    builder.with_credentials(Arc::new(file))
                }
                Login::Key { id, secret, session } => {
                    let key = AccessKey::new(id.clone(), secret.clone(), session.clone());
                    builder.with_credentials(Arc::new(Fixed(key)))
                }
                Login::WebIdentity {
                    token_file,
                    role,
                    session_name,
                } => {
                    let builder = builder
                        .with_config(AmazonS3ConfigKey::WebIdentityTokenFile, token_file)
                        .with_config(AmazonS3ConfigKey::RoleArn, role);
                    match session_name {
                        Some(name) => builder.with_config(AmazonS3ConfigKey::RoleSessionName, name),
                        None => builder,
                    }
                }
            };
            let s3 = builder.build().map_err(|error| UploadError::Store(error.to_string()))?;
            Ok(Store::S3(Box::new(s3)))
        }
    }
}

fn endpoint_url(endpoint: &Origin, bucket: &str, path_style: bool) -> String {
    let url = endpoint.url();
    match url.split_once("://") {
        Some((scheme, rest)) if !path_style => format!("{scheme}://{bucket}.{rest}"),
        _ => url,
    }
}

async fn trusted(options: &Options, metrics: &Metrics) -> Result<Trusted, UploadError> {
    if let Some(path) = &options.ca {
        let followed = UpstreamRoots::follow(path, metrics.reload_failures(Followed::UploadCa)).await;
        return followed.map(Trusted::File).map_err(UploadError::Ca);
    }
    let found = task::spawn_blocking(rustls_native_certs::load_native_certs).await;
    let found = found.map_err(|error| UploadError::NoSystemRoots(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    let needs_none =
        options.asked().is_some_and(Origin::is_plaintext) && !matches!(options.login, Login::WebIdentity { .. });
    if added == 0 && !needs_none {
        let why = found
            .errors
            .first()
            .map_or_else(|| "none found".to_owned(), ToString::to_string);
        return Err(UploadError::NoSystemRoots(why));
    }
    let config = client_config(roots, &[]).map_err(UploadError::Ca)?;
    Ok(Trusted::System(Arc::new(config)))
}

/// What every recording on its way needs.
#[derive(Debug)]
struct Carrier {
    shelf: Mutex<Shelf>,
    store: Store,
    destination: Destination,
    counts: UploadCounts,
}

/// The one task that brings recordings.
struct Bearer {
    carrier: Arc<Carrier>,
    ended: Arc<Notify>,
    last_round: CancellationToken,
    /// They come after the others the next time, that none stands in the way of all.
    failed_last: Vec<Waiting>,
    complained: Option<Instant>,
}

impl Bearer {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY);
        loop {
            // Asked before the round: what ends during it has another.
            let is_last = self.last_round.is_cancelled();
            let went_well = self.round().await;
            if is_last {
                return;
            }
            if went_well {
                backoff.reset();
                if self.complained.take().is_some() {
                    tracing::info!(to = %self.carrier.destination, "the recordings' store takes them again");
                }
            }
            let pause = async {
                if went_well {
                    let _ = timeout_at(clock::moment_in(LOOK_AROUND), self.ended.notified()).await;
                } else {
                    sleep(backoff.wait()).await;
                }
            };
            tokio::select! {
                () = self.last_round.cancelled() => {}
                () = pause => {}
            }
        }
    }

    /// Brings what waits, until the store fails. True if all went well.
    async fn round(&mut self) -> bool {
        let mut waiting = match self.carrier.look().await {
            Ok(waiting) => waiting,
            Err(error) => {
                self.complain(&PutError::Local(error), None);
                return false;
            }
        };
        waiting.sort_by_key(|one| self.failed_last.iter().any(|failed| failed.name == one.name));
        self.failed_last.clear();
        let mut left = waiting.into_iter();
        let mut on_their_way = JoinSet::new();
        let mut is_down = false;
        let mut went_well = true;
        loop {
            while !is_down && on_their_way.len() < AT_ONCE {
                let Some(next) = left.next() else { break };
                on_their_way.spawn(Arc::clone(&self.carrier).bring(next));
            }
            match on_their_way.join_next().await {
                None => break,
                Some(Ok((_, Ok(())))) => {}
                Some(Ok((one, Err(error)))) => {
                    went_well = false;
                    is_down |= error.is_of_the_store();
                    self.complain(&error, Some(&one));
                    self.failed_last.push(one);
                }
                // The runtime is going down.
                Some(Err(_)) => return false,
            }
        }
        // What is left now, for the figures.
        let _ = self.carrier.look().await;
        went_well
    }

    fn complain(&mut self, error: &PutError, of: Option<&Waiting>) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            let recording = of.map(|one| one.name.display().to_string());
            let waiting = self.carrier.counts.backlog();
            tracing::error!(
                %error, recording, waiting, to = %self.carrier.destination,
                "a recording isn't brought to its store; it stays on the node, and is tried again"
            );
        }
    }
}

impl Carrier {
    /// What waits.
    async fn look(self: &Arc<Self>) -> io::Result<Vec<Waiting>> {
        let carrier = Arc::clone(self);
        let waiting = blocking(move || carrier.shelf.lock().unwrap_or_else(PoisonError::into_inner).waiting()).await?;
        let oldest = waiting.iter().map(|one| one.since).min();
        self.counts.waiting(waiting.len(), oldest);
        Ok(waiting)
    }

    /// Brings one.
    async fn bring(self: Arc<Self>, one: Waiting) -> (Waiting, Result<(), PutError>) {
        let outcome = self.try_to_bring(&one).await;
        if outcome.is_err() {
            self.counts.failed();
        }
        (one, outcome)
    }

    async fn try_to_bring(self: &Arc<Self>, one: &Waiting) -> Result<(), PutError> {
        let (carrier, wanted) = (Arc::clone(self), one.clone());
        let claimed = blocking(move || {
            let mut kept = carrier.shelf.lock().unwrap_or_else(PoisonError::into_inner);
            kept.claim(&wanted.name, &wanted.key)
        });
        let claim = match claimed.await {
            Ok(Some(claim)) => Arc::new(claim),
            // Another agent has it, or had it.
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(PutError::Local(error)),
        };
        self.store.put(&one.key, &claim).await?;
        self.counts.stored(claim.bytes);
        tracing::info!(
            recording = %one.name.display(), object = %shown(&self.destination, &one.key), bytes = claim.bytes,
            "a recording is stored"
        );
        let (carrier, wanted) = (Arc::clone(self), one.clone());
        let marked = blocking(move || {
            let mut kept = carrier.shelf.lock().unwrap_or_else(PoisonError::into_inner);
            kept.is_stored(&wanted.name, &wanted.key, &claim)
        });
        match marked.await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PutError::Local(error)),
            _ => Ok(()),
        }
    }
}

/// Does it where it may block.
async fn blocking<T, F>(act: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    task::spawn_blocking(act).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
