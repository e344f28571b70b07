//! The running server: what all its connections share, the settings that may change under it, and its end.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::{
    auth::TokenTable,
    builder::Builder,
    client::Control,
    client_certificates::ClientCas,
    connection::Connection,
    fault::Faults,
    rbac::{Rules, RulesError},
    record::Recorder,
    reload::Reloaded,
    resources::Resource,
    service_accounts::TokenKey,
    store::Store,
    sync::lock,
};

/// What may be changed while the server runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Settings {
    /// `SETTINGS_MAX_CONCURRENT_STREAMS` of HTTP/2 connections that are made from now on.
    pub max_streams: u32,
    /// The size, in bytes, of lists of these resources, in place of what is there.
    pub list_sizes: HashMap<String, u64>,
    /// Milliseconds between the lines of a log that is followed.
    pub log_interval_ms: u64,
    /// Milliseconds without an event after which a watch gets a bookmark, if it asked for them.
    pub bookmark_interval_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_streams: 100,
            list_sizes: HashMap::new(),
            log_interval_ms: 200,
            bookmark_interval_ms: 60_000,
        }
    }
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) tokens: Reloaded<TokenTable>,
    pub(crate) rules: Reloaded<EffectiveRules>,
    pub(crate) client_cas: Option<Reloaded<ClientCas>>,
    pub(crate) token_key: TokenKey,
    pub(crate) store: Store,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) faults: Faults,
    pub(crate) settings: Mutex<Settings>,
    pub(crate) connections: Mutex<HashMap<u64, Arc<Connection>>>,
    pub(crate) next_connection: AtomicU64,
    pub(crate) stop: CancellationToken,
    pub(crate) addresses: Vec<SocketAddr>,
}

/// The rules of a file with those of every cluster.
#[derive(Debug)]
pub(crate) struct EffectiveRules(pub(super) Rules);

impl std::str::FromStr for EffectiveRules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, RulesError> {
        Ok(Self(text.parse::<Rules>()?.with_defaults()))
    }
}

impl std::ops::Deref for EffectiveRules {
    type Target = Rules;

    fn deref(&self) -> &Rules {
        &self.0
    }
}

impl Shared {
    pub(crate) fn list_size(&self, resource: &Resource) -> Option<u64> {
        lock(&self.settings).list_sizes.get(resource.plural).copied()
    }

    pub(crate) fn log_interval(&self) -> Duration {
        Duration::from_millis(lock(&self.settings).log_interval_ms.max(1))
    }

    pub(crate) fn bookmark_interval(&self) -> Duration {
        Duration::from_millis(lock(&self.settings).bookmark_interval_ms.max(1))
    }
}

/// A running server; dropping it stops it.
pub struct ApiServer {
    pub(super) shared: Arc<Shared>,
    pub(super) ca: Option<String>,
    pub(super) control: Option<PathBuf>,
    pub(super) state: Option<PathBuf>,
}

impl ApiServer {
    /// How to start one.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where it listens, in the order of [`Builder::listen`].
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.shared.addresses
    }

    /// The certificate, in PEM, of the CA that the server made; `None` if it was given a certificate.
    #[must_use]
    pub fn ca(&self) -> Option<&str> {
        self.ca.as_deref()
    }

    /// Its control interface; `None` if it was started without.
    #[must_use]
    pub fn control(&self) -> Option<Control> {
        self.control.as_ref().map(Control::new)
    }

    /// Completes once the server has stopped.
    pub async fn stopped(&self) {
        self.shared.stop.cancelled().await;
    }

    /// Writes the file of the state, if there is one, as of now.
    ///
    /// # Errors
    /// It can't be written.
    pub async fn save(&self) -> std::io::Result<()> {
        match &self.state {
            Some(path) => super::state_file::write(&self.shared.store, path).await,
            None => Ok(()),
        }
    }

    /// Stops it: every connection is closed at once.
    pub fn stop(&self) {
        self.shared.stop.cancel();
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        if let Some(path) = &self.control {
            // It may be gone already; a new server clears the way by itself.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("addresses", &self.shared.addresses)
            .finish_non_exhaustive()
    }
}
