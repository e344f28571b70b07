//! The own CA in a Secret (type `kubernetes.io/tls`), shared by all agents of a cluster. Whoever is first makes it, and
//! whoever is first renews it: the API server lets one write succeed, and the others read.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client, Resource,
    api::{GetParams, ObjectMeta, PartialObjectMeta, PostParams, Request},
    core::Status,
    runtime::{WatchStreamExt, watcher},
};
use prometheus_client::metrics::counter::Counter;
use secrecy::zeroize::{Zeroize, Zeroizing};
use tokio::time::{self, Instant};

use super::{CaSecret, IfEmpty, Keeper};
use crate::{
    admin::Condition,
    backoff::{self, Backoff},
    clock::Clock,
    trust::{
        TrustError,
        ask::{MANAGED_BY, ask, unless},
        authority::{Authority, Written},
    },
};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

/// How often a write is tried anew when another's came first.
const ATTEMPTS: usize = 5;
/// Between attempts to read it while that fails.
const RETRY: std::ops::Range<Duration> = Duration::from_secs(1)..Duration::from_mins(2);
/// A change is taken up within this time, so that not every agent of the cluster reads it at once.
const SPREAD: Duration = Duration::from_secs(2);

type Events = BoxStream<'static, watcher::Result<watcher::Event<PartialObjectMeta<Secret>>>>;

/// The Secret, and what tells of changes to it.
pub(super) struct Followed {
    store: Store,
    /// Metadata alone: a watch that carried the key could show it in an error.
    events: Events,
    /// Whether the listing under way has had it.
    listed: bool,
    /// The version that was read last.
    seen: Option<String>,
    /// When to read it again, whether or not anything was heard.
    again: Option<Instant>,
    backoff: Backoff,
}

impl Followed {
    /// Opens the CA, made where there is none, and follows it from then on.
    ///
    /// # Errors
    /// What won't pass.
    pub(super) async fn start(
        client: Client,
        secret: CaSecret,
        clock: &Clock,
        failures: &Counter,
        readiness: &Condition,
    ) -> Result<(Self, Authority), TrustError> {
        let store = Store { client, secret };
        let mut backoff = Backoff::new(RETRY);
        let (authority, version) = loop {
            match store.open(clock.now(), IfEmpty::Make).await {
                Ok(opened) => break opened,
                Err(error) if error.may_pass() => {
                    failures.inc();
                    tracing::error!(%error, "no certificate can be served yet");
                    readiness.not_ready(error.to_string());
                    time::sleep(backoff.wait()).await;
                }
                Err(error) => return Err(error),
            }
        };
        backoff.reset();
        let named = watcher::Config::default().fields(&format!("metadata.name={}", store.secret.name));
        let metadata = Api::namespaced(store.client.clone(), &store.secret.namespace);
        let events = watcher(metadata, named).default_backoff().boxed();
        let followed = Self {
            store,
            events,
            listed: false,
            seen: version,
            again: None,
            backoff,
        };
        Ok((followed, authority))
    }

    /// Whether there may be another CA after this event.
    fn heard(&mut self, event: &watcher::Event<PartialObjectMeta<Secret>>) -> bool {
        let other = |object: &PartialObjectMeta<Secret>| object.meta().resource_version != self.seen;
        match event {
            watcher::Event::Init => {
                self.listed = false;
                false
            }
            watcher::Event::InitApply(object) => {
                self.listed = true;
                other(object)
            }
            watcher::Event::InitDone => !self.listed,
            watcher::Event::Apply(object) => other(object),
            watcher::Event::Delete(_) => true,
        }
    }
}

impl Keeper for Followed {
    async fn open(&mut self, now: Timestamp) -> Result<Authority, TrustError> {
        self.again = None;
        let opened = self.store.open(now, IfEmpty::Refuse).await;
        match opened {
            Ok((authority, version)) => {
                self.backoff.reset();
                self.seen = version;
                Ok(authority)
            }
            Err(error) => {
                // Whatever it becomes next is another.
                self.seen = None;
                if error.may_pass() {
                    self.again = Some(Instant::now() + self.backoff.wait());
                }
                Err(error)
            }
        }
    }

    async fn changed(&mut self) {
        loop {
            let again = async {
                match self.again {
                    Some(at) => time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = self.events.next() => event,
                () = again => return,
            };
            match event {
                Some(Ok(event)) => {
                    if self.heard(&event) {
                        self.again
                            .get_or_insert_with(|| Instant::now() + backoff::within(SPREAD));
                    }
                }
                Some(Err(error)) => {
                    tracing::warn!(secret = %self.store, %error, "the own CA's Secret can't be watched for now");
                }
                None => std::future::pending().await,
            }
        }
    }
}

/// The Secret in the API server.
struct Store {
    client: Client,
    secret: CaSecret,
}

/// The Secret as it was read. Wiped when dropped; not shown.
struct Found {
    version: Option<String>,
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    secret: Secret,
}

impl Store {
    /// The CA of now and the version of the Secret that it is from: read, made if there is none, renewed if it is time.
    async fn open(&self, now: Timestamp, if_empty: IfEmpty) -> Result<(Authority, Option<String>), TrustError> {
        for _ in 0..ATTEMPTS {
            let Some(found) = self.read().await? else {
                if if_empty == IfEmpty::Refuse {
                    return Err(TrustError::SecretGone(self.to_string()));
                }
                // Read back either way: what counts is what is there.
                if self.create(&Authority::make(now)?).await? {
                    tracing::info!(secret = %self, "made a CA");
                }
                continue;
            };
            let (certificate, key) = (self.place(CERTIFICATE), self.place(KEY));
            let authority = Authority::parse((&certificate, &found.certificate), (&key, &found.key))?;
            if authority.wants_renewal(now) {
                let renewed = authority.renewed(now)?;
                if self.renew(found, renewed).await? {
                    tracing::warn!(secret = %self, old_expiry = %authority.expiry(), "renewed the CA's certificate");
                }
                continue;
            }
            if authority.expiry() <= now {
                return Err(TrustError::Expired {
                    path: certificate,
                    expiry: authority.expiry(),
                });
            }
            return Ok((authority, found.version));
        }
        Err(TrustError::Contended(self.to_string()))
    }

    async fn read(&self) -> Result<Option<Found>, TrustError> {
        let what = || format!("get {self}");
        let request = self.request().get(&self.secret.name, &GetParams::default());
        let question = async { unless(self.send(request).await, Status::is_not_found) };
        let Some(text) = ask(what, question).await? else {
            return Ok(None);
        };
        // Not by the client: it would log what it can't parse.
        let mut secret: Secret = serde_json::from_str(&text).map_err(|_| TrustError::NotASecret { what: what() })?;
        let mut data = secret.data.take().unwrap_or_default();
        let mut take = |key| data.remove(key).unwrap_or_default().0;
        let (certificate, key) = (take(CERTIFICATE), Zeroizing::new(take(KEY)));
        secret.data = Some(data);
        Ok(Some(Found {
            version: secret.metadata.resource_version.clone(),
            certificate,
            key,
            secret,
        }))
    }

    /// `false`: another was first.
    async fn create(&self, made: &Written) -> Result<bool, TrustError> {
        let (label, value) = MANAGED_BY;
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.secret.name.clone()),
                namespace: Some(self.secret.namespace.clone()),
                labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data(made.certificate.as_bytes(), made.key.as_bytes())),
            ..Secret::default()
        };
        let body = body(&mut secret);
        let request = self.request().create(&PostParams::default(), body?);
        let question = async { unless(self.send(request).await, Status::is_already_exists) };
        Ok(ask(|| format!("create {self}"), question).await?.is_some())
    }

    /// `false`: another was first. Whatever else is in the Secret stays.
    async fn renew(&self, found: Found, renewed: String) -> Result<bool, TrustError> {
        let mut secret = found.secret;
        let kept = secret.data.get_or_insert_default();
        kept.append(&mut data(renewed.as_bytes(), &found.key));
        let body = body(&mut secret);
        let request = self.request().replace(&self.secret.name, &PostParams::default(), body?);
        let question = async { unless(self.send(request).await, Status::is_conflict) };
        Ok(ask(|| format!("update {self}"), question).await?.is_some())
    }

    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> kube::Result<Zeroizing<String>> {
        let request = request.map_err(kube::Error::BuildRequest)?;
        self.client.request_text(request).await.map(Zeroizing::new)
    }

    fn request(&self) -> Request {
        Request::new(Secret::url_path(&(), Some(&self.secret.namespace)))
    }

    /// For errors to name.
    fn place(&self, key: &str) -> PathBuf {
        format!("{self} ({key})").into()
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret {}/{}", self.secret.namespace, self.secret.name)
    }
}

fn data(certificate: &[u8], key: &[u8]) -> BTreeMap<String, ByteString> {
    BTreeMap::from([
        (CERTIFICATE.to_owned(), ByteString(certificate.to_vec())),
        (KEY.to_owned(), ByteString(key.to_vec())),
    ])
}

/// The Secret as it is sent. It has no key afterwards.
fn body(secret: &mut Secret) -> Result<Vec<u8>, TrustError> {
    let body = serde_json::to_vec(secret).map_err(|source| TrustError::Unanswered {
        what: "write down a Secret".to_owned(),
        source: Box::new(kube::Error::SerdeError(source)),
    });
    for ByteString(value) in secret.data.iter_mut().flat_map(BTreeMap::values_mut) {
        value.zeroize();
    }
    body
}
