//! The `ConfigMap` that gives workloads the own CA: `understudy-ca`, with the cluster's CA and ours as its `ca.crt`, in
//! each namespace that has tagged pods on this node. An admission policy mounts it in place of `kube-root-ca.crt`.
//!
//! A pod doesn't start before the `ConfigMap` that it mounts is there, so a namespace that is new here gets it at once.
//! All agents write the same under one field manager, and only where it differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{ObjectMeta, Patch, PatchParams},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::watch,
    time::{self, Instant},
};

use super::{
    TrustError,
    ask::{MANAGED_BY, MANAGER, ask},
    changed,
    own_ca::CaCertificates,
    pem,
};
use crate::{
    backoff::{self, Backoff},
    files::{self, FileWatch},
};

/// The `ConfigMap`'s name in every namespace.
pub const CONFIG_MAP: &str = "understudy-ca";
/// The key in it, as in `kube-root-ca.crt`.
pub const KEY: &str = "ca.crt";

/// How often each is looked at again, in case that somebody changed it.
const LOOK: Duration = Duration::from_mins(10);
/// Between attempts while some fail.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_mins(2);
/// New contents are written within this time, so that not every agent of the cluster looks at once.
const SPREAD: Duration = Duration::from_secs(2);
/// Namespaces that are seen to at the same time.
const AT_ONCE: usize = 8;

/// Keeps the `ConfigMap`s.
pub struct Publisher {
    client: Client,
    ca_file: PathBuf,
    watch: FileWatch,
    own: CaCertificates,
    failures: Counter,
    contents: String,
    /// Namespaces to see to again, for it failed.
    due: BTreeSet<String>,
}

impl Publisher {
    /// Publishes the certificates in `ca_file` and the own CA's. What fails later is logged, counted in `failures`, and
    /// tried again; a bad new `ca_file` leaves the last good one in use.
    ///
    /// # Errors
    /// If `ca_file` can't be read.
    pub async fn start(
        client: Client,
        ca_file: PathBuf,
        own: CaCertificates,
        failures: Counter,
    ) -> Result<Self, TrustError> {
        let watch = FileWatch::new([&ca_file]).await;
        let contents = contents(&ca_file, &own).await?;
        Ok(Self {
            client,
            ca_file,
            watch,
            own,
            failures,
            contents,
            due: BTreeSet::new(),
        })
    }

    /// Keeps the `ConfigMap` of each of `namespaces`, until nobody says any more which there are.
    pub async fn run(mut self, mut namespaces: watch::Receiver<BTreeSet<String>>) {
        let mut known = BTreeSet::new();
        let mut backoff = Backoff::new(RETRY);
        let mut retry = None;
        let mut look = Instant::now() + backoff::around(LOOK);
        let mut renew = None;
        // What is there already is new to us.
        namespaces.mark_changed();
        loop {
            let see_to = tokio::select! {
                wanted = namespaces.changed() => {
                    if wanted.is_err() {
                        return;
                    }
                    let wanted = namespaces.borrow_and_update().clone();
                    self.due.retain(|namespace| wanted.contains(namespace));
                    let new = wanted.difference(&known).cloned().collect();
                    known = wanted;
                    new
                }
                () = self.renewed() => {
                    renew.get_or_insert_with(|| Instant::now() + backoff::within(SPREAD));
                    continue;
                }
                () = at(renew) => {
                    renew = None;
                    if !self.renew().await {
                        continue;
                    }
                    known.clone()
                }
                () = time::sleep_until(look) => {
                    look = Instant::now() + backoff::around(LOOK);
                    known.clone()
                }
                () = at(retry) => self.due.clone(),
            };
            self.see_to(see_to).await;
            retry = if self.due.is_empty() {
                backoff.reset();
                None
            } else {
                Some(Instant::now() + backoff.wait())
            };
        }
    }

    /// Waits until there may be other certificates.
    async fn renewed(&mut self) {
        tokio::select! {
            () = self.watch.changed() => {}
            () = changed(&mut self.own.0) => {}
        }
    }

    /// Whether there are.
    async fn renew(&mut self) -> bool {
        match contents(&self.ca_file, &self.own).await {
            Ok(contents) if contents == self.contents => false,
            Ok(contents) => {
                self.contents = contents;
                true
            }
            Err(error) => {
                self.failures.inc();
                tracing::error!(%error, "workloads are given the CA certificates as they were");
                false
            }
        }
    }

    async fn see_to(&mut self, namespaces: BTreeSet<String>) {
        let this = &*self;
        let outcomes: Vec<_> = stream::iter(namespaces)
            .map(|namespace| async move { (this.keep(&namespace).await, namespace) })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (outcome, namespace) in outcomes {
            match outcome {
                Ok(()) => {
                    self.due.remove(&namespace);
                }
                Err(error) => {
                    self.failures.inc();
                    tracing::error!(%error, namespace, "pods here can't be given the CA yet");
                    self.due.insert(namespace);
                }
            }
        }
    }

    /// Writes the `ConfigMap`, unless it is right.
    async fn keep(&self, namespace: &str) -> Result<(), TrustError> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let there = ask(
            || format!("get ConfigMap {namespace}/{CONFIG_MAP}"),
            api.get_opt(CONFIG_MAP),
        )
        .await?;
        if there.is_some_and(|there| self.is_right(&there)) {
            return Ok(());
        }
        let (label, value) = MANAGED_BY;
        let wanted = ConfigMap {
            metadata: ObjectMeta {
                name: Some(CONFIG_MAP.to_owned()),
                labels: Some(BTreeMap::from([(label.to_owned(), value.to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.to_owned(), self.contents.clone())])),
            ..ConfigMap::default()
        };
        let terms = PatchParams::apply(MANAGER).force();
        ask(
            || format!("patch ConfigMap {namespace}/{CONFIG_MAP}"),
            api.patch(CONFIG_MAP, &terms, &Patch::Apply(wanted)),
        )
        .await?;
        tracing::info!(namespace, "gave the namespace the CA certificates");
        Ok(())
    }

    fn is_right(&self, there: &ConfigMap) -> bool {
        let (label, value) = MANAGED_BY;
        let is = |map: &Option<BTreeMap<String, String>>, key: &str, value: &str| {
            map.as_ref()
                .and_then(|map| map.get(key))
                .is_some_and(|there| there == value)
        };
        is(&there.data, KEY, &self.contents) && is(&there.metadata.labels, label, value)
    }
}

async fn at(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The cluster's CA certificates and ours.
async fn contents(ca_file: &Path, own: &CaCertificates) -> Result<String, TrustError> {
    let cluster = pem::certificates(&files::read(ca_file).await?, ca_file)?;
    let own = own.0.borrow().clone();
    Ok(pem::encode(cluster.iter().chain(own.iter())))
}
