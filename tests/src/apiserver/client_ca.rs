//! The CAs of client certificates on their way into force: each handshake hints at those in the file by now, and
//! whoever may read `kube-system/extension-apiserver-authentication` finds them there.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;
use tokio_rustls::TlsAcceptor;

use super::{
    Shared,
    client_certificates::ClientCas,
    event::EventType,
    resources::Resource,
    status::Status,
    sync::lock,
    tls::{Identity, TlsError},
};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";
const KEY: &str = "client-ca-file";
/// How often the file is compared with what is published.
const PERIOD: Duration = Duration::from_millis(200);

/// How handshakes are made: anew for each set of client CAs.
pub(crate) struct Acceptors {
    identity: Identity,
    made: Mutex<(Option<Arc<ClientCas>>, TlsAcceptor)>,
}

impl Acceptors {
    pub(crate) async fn new(identity: Identity, shared: &Shared) -> Result<Self, TlsError> {
        let cas = in_force(shared).await;
        let acceptor = make(&identity, cas.as_ref())?;
        Ok(Self {
            identity,
            made: Mutex::new((cas, acceptor)),
        })
    }

    /// The one for the CAs in force now.
    pub(crate) async fn current(&self, shared: &Shared) -> TlsAcceptor {
        let cas = in_force(shared).await;
        let mut made = lock(&self.made);
        let same = match (&made.0, &cas) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (old, new) => old.is_none() && new.is_none(),
        };
        if !same {
            match make(&self.identity, cas.as_ref()) {
                Ok(acceptor) => *made = (cas, acceptor),
                Err(error) => tracing::warn!(%error, "keeping the last way of handshakes"),
            }
        }
        made.1.clone()
    }
}

async fn in_force(shared: &Shared) -> Option<Arc<ClientCas>> {
    match &shared.client_cas {
        Some(cas) => Some(cas.current().await),
        None => None,
    }
}

fn make(identity: &Identity, cas: Option<&Arc<ClientCas>>) -> Result<TlsAcceptor, TlsError> {
    let asking = cas.map(ClientCas::asking);
    Ok(TlsAcceptor::from(identity.server_config(asking)?))
}

/// Writes the CAs where extension API servers look for them, where that isn't what is there.
pub(crate) async fn publish(shared: &Shared) -> Result<(), Status> {
    let (Some(cas), Some(resource)) = (in_force(shared).await, Resource::find("", "v1", "configmaps")) else {
        return Ok(());
    };
    let found = shared.store.get(resource, NAMESPACE, NAME).ok();
    if found
        .as_ref()
        .is_some_and(|found| found["data"][KEY].as_str() == Some(&cas.pem))
    {
        return Ok(());
    }
    let mut object = found.map_or_else(
        || {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": NAMESPACE, "name": NAME},
            })
        },
        |found| (*found).clone(),
    );
    object["data"][KEY] = json!(cas.pem);
    shared.store.apply(EventType::Added, object).map(drop)
}

/// Publishes them whenever they have changed, or somebody has meddled with them, until the server stops.
pub(crate) async fn keep_published(shared: Arc<Shared>) {
    while shared.client_cas.is_some() {
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(PERIOD) => {}
        }
        if let Err(status) = publish(&shared).await {
            tracing::warn!(%status, "the client CAs can't be published");
        }
    }
}
