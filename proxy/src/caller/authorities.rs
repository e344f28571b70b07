//! The CAs that vouch for client certificates: a session's own and the cluster's, each followed, so that what is asked
//! is always what is in force now.

use std::{fmt, path::Path, sync::Arc};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject};
use prometheus_client::metrics::counter::Counter;
use rustls::{
    RootCertStore,
    pki_types::CertificateDer,
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use tokio::sync::{Notify, watch};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::x509::Validity;
use crate::{
    cluster::{
        ObjectKey,
        watch::{Query, Seen, follow},
    },
    files::{self, FileWatch},
    metrics::{Metrics, Watched},
    trust::{TrustError, pem_certificates, provider},
};

/// Where kube-apiserver publishes the CA of its clients (`--client-ca-file`).
const CLIENT_CA: (&str, &str, &str) = ("kube-system", "extension-apiserver-authentication", "client-ca-file");

/// One CA.
pub struct Authority {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    pub(super) valid: Validity,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("valid", &self.valid)
            .finish_non_exhaustive()
    }
}

/// The CAs of one source; `None` while it can't be read yet.
pub type Bundle = Option<Arc<[Authority]>>;

/// The CAs of a session, as they change.
#[derive(Debug, Clone, Default)]
pub struct Authorities(Vec<watch::Receiver<Bundle>>);

impl Authorities {
    /// All of these.
    #[must_use]
    pub fn union(sources: impl IntoIterator<Item = watch::Receiver<Bundle>>) -> Self {
        Self(sources.into_iter().collect())
    }

    /// Those in force now.
    #[must_use]
    pub fn in_force(&self) -> InForce {
        InForce(self.0.iter().map(|source| source.borrow().clone()).collect())
    }
}

/// The CAs in force at one moment.
#[derive(Debug, Clone)]
pub struct InForce(Vec<Bundle>);

impl InForce {
    /// Every one that is known.
    pub(super) fn all(&self) -> impl Iterator<Item = &Authority> {
        self.0.iter().flatten().flat_map(|bundle| bundle.iter())
    }

    /// Whether it is known that there is none.
    pub(super) fn is_none(&self) -> bool {
        !self.is_incomplete() && self.all().next().is_none()
    }

    /// Whether some source can't be read yet.
    pub(super) fn is_incomplete(&self) -> bool {
        self.0.iter().any(Option::is_none)
    }

    /// Whether they are the same reading of the same sources.
    pub(super) fn same(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).all(|pair| match pair {
                (Some(one), Some(another)) => Arc::ptr_eq(one, another),
                (None, None) => true,
                _ => false,
            })
    }
}

/// Reads CA certificates in PEM form; each must be able to vouch for clients.
///
/// # Errors
/// If there is none, or one can't be used. The error begins with `place`.
pub fn parse(place: &str, pem: &[u8]) -> Result<Arc<[Authority]>, TrustError> {
    let place = Path::new(place);
    pem_certificates(pem, place)?
        .into_iter()
        .map(|certificate| authority(certificate).ok_or_else(|| TrustError::BadCertificate(place.to_owned())))
        .collect()
}

/// CA certificates that stand in a session itself. Two of the same text are the same.
#[derive(Clone)]
pub struct SignerBundle {
    pem: Arc<str>,
    authorities: Arc<[Authority]>,
}

impl SignerBundle {
    /// Reads certificates in PEM form.
    ///
    /// # Errors
    /// As [`parse()`].
    pub fn parse(field: &str, pem: &str) -> Result<Self, TrustError> {
        Ok(Self {
            authorities: parse(field, pem.as_bytes())?,
            pem: Arc::from(pem),
        })
    }

    /// They don't change.
    #[must_use]
    pub fn authorities(&self) -> watch::Receiver<Bundle> {
        // The last value stays with the receiver.
        watch::channel(Some(Arc::clone(&self.authorities))).1
    }
}

impl PartialEq for SignerBundle {
    fn eq(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

impl Eq for SignerBundle {}

impl fmt::Debug for SignerBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignerBundle({} bytes)", self.pem.len())
    }
}

fn authority(certificate: CertificateDer<'static>) -> Option<Authority> {
    let valid = Validity::of(&X509Certificate::from_der(&certificate).ok()?.1);
    let mut roots = RootCertStore::empty();
    roots.add(certificate).ok()?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .ok()?;
    Some(Authority { verifier, valid })
}

/// Follows a file of CAs. While it can't be used, the last ones that could be stay in force; readings that fail are
/// counted.
#[must_use]
pub fn in_file(path: std::path::PathBuf, failures: Counter) -> watch::Receiver<Bundle> {
    let (publish, bundle) = watch::channel(None);
    tokio::spawn(async move {
        let mut watch = FileWatch::new([&path]).await;
        loop {
            match read(&path).await {
                Ok(authorities) => {
                    tracing::info!(path = %path.display(), count = authorities.len(), "judging client certificates by these CAs");
                    publish.send_replace(Some(authorities));
                }
                Err(error) => {
                    failures.inc();
                    tracing::error!(%error, "a client CA file cannot be used; what was read before stays in force");
                }
            }
            tokio::select! {
                () = watch.changed() => {}
                () = publish.closed() => return,
            }
        }
    });
    bundle
}

async fn read(path: &Path) -> Result<Arc<[Authority]>, TrustError> {
    parse(&path.display().to_string(), &files::read(path).await?)
}

/// Follows the cluster's own client CA, where kube-apiserver publishes it. A cluster that takes no client certificates
/// publishes none.
#[must_use]
pub fn of_cluster(client: kube::Client, metrics: &Metrics) -> watch::Receiver<Bundle> {
    let (namespace, name, _) = CLIENT_CA;
    let query = Query {
        what: Watched::ClientCa,
        resource: ApiResource::erase::<ConfigMap>(&()),
        namespace: Some(namespace.to_owned()),
        labels: None,
        fields: Some(format!("metadata.name={name}")),
    };
    let changed = Arc::new(Notify::new());
    let seen = follow(client, query, metrics, Arc::clone(&changed), |object| {
        client_ca(&object)
    });
    let (publish, bundle) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = changed.notified() => {}
                () = publish.closed() => return,
            }
            let found = judge(&seen.borrow());
            publish.send_if_modified(|last| take(last, found));
        }
    });
    bundle
}

/// What the `ConfigMap` says: PEM, or nothing.
fn client_ca(object: &DynamicObject) -> Option<Arc<str>> {
    let (_, _, key) = CLIENT_CA;
    object.data["data"][key]
        .as_str()
        .filter(|pem| !pem.is_empty())
        .map(Arc::from)
}

/// `None`: nothing is known, and what was known stays.
fn judge(seen: &Seen<Option<Arc<str>>>) -> Option<Result<Arc<[Authority]>, TrustError>> {
    let (namespace, name, key) = CLIENT_CA;
    let objects = seen.objects.as_ref()?;
    let found = objects.get(&ObjectKey {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    });
    Some(match found.and_then(Option::as_ref) {
        None => Ok(Arc::from([])),
        Some(pem) => parse(&format!("ConfigMap {namespace}/{name}, {key}"), pem.as_bytes()),
    })
}

fn take(last: &mut Bundle, found: Option<Result<Arc<[Authority]>, TrustError>>) -> bool {
    match found {
        None => false,
        Some(Ok(authorities)) => {
            tracing::info!(
                count = authorities.len(),
                "judging client certificates by the cluster's CAs"
            );
            *last = Some(authorities);
            true
        }
        Some(Err(error)) => {
            tracing::error!(%error, "the cluster's client CA cannot be used; what was read before stays in force");
            false
        }
    }
}
