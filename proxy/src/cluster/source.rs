//! The watches of one node put together: what they have seen is declared to the store, again whenever it changes.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    ObjectKey,
    addresses::{Addresses, follow_addresses},
    declare::{Fingerprint, declare, namespaces, without_pods},
    departing::{Carried, follow_leaving},
    layout::Layout,
    pods::{self, LABEL, TaggedPod},
    sessions::{ByNamespace, watch_namespaces},
    watch::{Seen, follow},
};
use crate::{
    metrics::Metrics,
    pod::{SessionId, WantedPod},
    sessions::{Declared, spec::Policy},
};

/// How long a start waits for the Sessions of namespaces with pods. Those that can't be read by then are refused, with
/// their pods intercepted.
const SESSIONS_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked how the pods' cgroups are laid out, until the kubelet has made their directory.
const LAYOUT_LOOK: Duration = Duration::from_millis(250);

/// Why a start can't go on.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It would intercept itself.
    #[error(
        "the agent's own pod {0} carries the label {LABEL}: take it away, for an agent can't act in a session itself"
    )]
    OwnPod(ObjectKey),
}

/// What this agent is in the cluster.
#[derive(Debug, Clone)]
pub struct Here {
    /// Its node.
    pub node: String,
    /// Its own pod, where that is known.
    pub own_pod: Option<ObjectKey>,
    /// The root of the pods' cgroups.
    pub cgroup_root: PathBuf,
    /// What sessions may say.
    pub policy: Policy,
    /// The session of the agent's own listener, where it has one.
    pub listener: Option<SessionId>,
}

/// What is declared, and what tells it from another declaration.
#[derive(Debug)]
pub struct Declaration {
    /// For the store.
    pub sessions: Vec<Declared>,
    /// For [`Source::run`].
    pub fingerprint: Fingerprint,
    /// Whether it was known how the pods' cgroups are laid out.
    is_settled: bool,
}

/// The watches.
#[derive(Debug, Clone)]
pub struct Source {
    here: Here,
    /// This node's pods with a session.
    pub pods: watch::Receiver<Seen<Arc<TaggedPod>>>,
    /// These, and those that are leaving.
    carried: watch::Receiver<Carried>,
    /// The namespaces of those with a session.
    pub namespaces: watch::Receiver<BTreeSet<String>>,
    /// The Sessions there.
    pub sessions: watch::Receiver<ByNamespace>,
    /// The API server's addresses.
    pub addresses: watch::Receiver<Option<Addresses>>,
}

impl Source {
    /// Starts the watches; `fixed` are addresses known otherwise.
    #[must_use]
    pub fn start(client: &kube::Client, here: Here, fixed: BTreeSet<SocketAddr>, metrics: &Metrics) -> Self {
        let own = here.own_pod.clone();
        let pods = follow(
            client.clone(),
            pods::query(&here.node),
            metrics,
            Arc::new(Notify::new()),
            |object| Arc::new(TaggedPod::read(&object)),
        );
        let always = here.listener.as_ref().map(|session| session.namespace().to_owned());
        let namespaces = follow_namespaces(pods.clone(), own, always);
        let carried = follow_leaving(client.clone(), pods.clone(), here.cgroup_root.clone());
        Self {
            sessions: watch_namespaces(client.clone(), namespaces.clone(), here.policy, metrics.clone()),
            addresses: follow_addresses(client.clone(), fixed, metrics),
            pods,
            carried,
            namespaces,
            here,
        }
    }

    /// Waits until this node's pods and the API server's addresses are known, however long that takes, and a while for
    /// the pods' Sessions. `say` is told what is waited for.
    ///
    /// # Errors
    /// If the agent's own pod carries the label.
    pub async fn known(&mut self, say: impl Fn(String)) -> Result<(), SourceError> {
        loop {
            let seen = self.carried.borrow_and_update().seen.clone();
            if let Some(objects) = seen.objects {
                if let Some(own) = self.here.own_pod.as_ref().filter(|own| objects.contains_key(own)) {
                    return Err(SourceError::OwnPod(own.clone()));
                }
                break;
            }
            say(waiting("this node's pods", seen.failing.as_deref()));
            if self.carried.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        say(waiting("the API server's addresses", None));
        if self.addresses.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        say(waiting("the Sessions of this node's pods", None));
        let listed = async {
            loop {
                let wanted = self.namespaces.borrow_and_update().clone();
                let all_listed = {
                    let sessions = self.sessions.borrow_and_update();
                    wanted
                        .iter()
                        .all(|namespace| sessions.get(namespace).is_some_and(|seen| seen.objects.is_some()))
                };
                if all_listed || self.sessions.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(SESSIONS_PATIENCE, listed).await.is_err() {
            tracing::error!("some namespaces' Sessions can't be read yet: their pods are refused until they are");
        }
        Ok(())
    }

    /// What of these pods is to be enrolled.
    #[must_use]
    pub fn wanted_of(&self, pods: &[Arc<TaggedPod>]) -> Vec<WantedPod> {
        let pods = pods.iter().filter(|pod| Some(&pod.key) != self.here.own_pod.as_ref());
        let declared = declare(pods, iter::empty(), &BTreeMap::new(), &self.layout());
        declared.into_iter().flat_map(|one| one.pods).collect()
    }

    fn layout(&self) -> Layout {
        Layout::below(&self.here.cgroup_root)
    }

    /// What is declared now.
    #[must_use]
    pub fn declared(&self) -> Declaration {
        let layout = self.layout();
        let Carried { seen, leaving } = self.carried.borrow().clone();
        let pods = seen.objects.unwrap_or_default();
        let sessions = self.sessions.borrow().clone();
        let is_another = |pod: &&Arc<TaggedPod>| Some(&pod.key) != self.here.own_pod.as_ref();
        let mut sessions_declared = declare(
            pods.values().filter(is_another),
            leaving.iter().filter(is_another),
            &sessions,
            &layout,
        );
        if let Some(id) = &self.here.listener
            && !sessions_declared.iter().any(|declared| declared.id == *id)
        {
            sessions_declared.push(without_pods(id.clone(), &sessions));
        }
        Declaration {
            fingerprint: Fingerprint::of(&sessions_declared, &sessions),
            sessions: sessions_declared,
            is_settled: layout.is_known(),
        }
    }

    /// Declares what has changed since `first`, until nobody listens.
    pub async fn run(mut self, first: Fingerprint, declare: mpsc::Sender<Vec<Declared>>) {
        let mut last = first;
        let mut complaints = Complaints::default();
        let at_start = self.declared();
        let mut is_settled = at_start.is_settled;
        complaints.log(&at_start.sessions);
        loop {
            tokio::select! {
                changed = self.carried.changed() => if changed.is_err() { return },
                changed = self.sessions.changed() => if changed.is_err() { return },
                () = sleep(LAYOUT_LOOK), if !is_settled => {}
                () = declare.closed() => return,
            }
            self.carried.mark_unchanged();
            self.sessions.mark_unchanged();
            let declared = self.declared();
            is_settled = declared.is_settled;
            if declared.fingerprint == last {
                continue;
            }
            last = declared.fingerprint;
            complaints.log(&declared.sessions);
            if declare.send(declared.sessions).await.is_err() {
                return;
            }
        }
    }
}

fn waiting(what: &str, failing: Option<&str>) -> String {
    match failing {
        None => format!("waiting for {what}"),
        Some(error) => format!("waiting for {what}: {error}"),
    }
}

fn follow_namespaces(
    mut pods: watch::Receiver<Seen<Arc<TaggedPod>>>,
    own: Option<ObjectKey>,
    always: Option<String>,
) -> watch::Receiver<BTreeSet<String>> {
    let (publish, all) = watch::channel(BTreeSet::new());
    tokio::spawn(async move {
        loop {
            let objects = pods.borrow_and_update().objects.clone().unwrap_or_default();
            for pod in objects.values() {
                if Some(&pod.key) == own.as_ref() {
                    tracing::error!(pod = %pod.key, "the agent's own pod carries the label {LABEL}, which is ignored: take it away");
                }
            }
            let mut now = namespaces(objects.values().filter(|pod| Some(&pod.key) != own.as_ref()));
            now.extend(always.clone());
            publish.send_if_modified(|last| {
                let modified = *last != now;
                *last = now;
                modified
            });
            tokio::select! {
                changed = pods.changed() => if changed.is_err() { return },
                () = publish.closed() => return,
            }
        }
    });
    all
}

/// What has been said of sessions in the log, so that it is said once.
#[derive(Debug, Default)]
struct Complaints(BTreeSet<String>);

impl Complaints {
    fn log(&mut self, declared: &[Declared]) {
        let now: BTreeSet<String> = declared
            .iter()
            .filter_map(|one| {
                one.spec
                    .as_ref()
                    .err()
                    .map(|error| format!("session {}: {error}", one.id))
            })
            .collect();
        for complaint in now.difference(&self.0) {
            tracing::warn!(%complaint, "a session is refused");
        }
        self.0 = now;
    }
}
