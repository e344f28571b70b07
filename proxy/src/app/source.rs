//! Where sessions and their pods come from: files, or the cluster. What follows from it is the same for both.

use std::{collections::BTreeSet, net::SocketAddr, path::PathBuf, sync::Arc};

use anyhow::Context;
use tokio::sync::{mpsc, watch};

use super::agent::Cluster;
use crate::{
    admin::Readiness,
    cli::AgentOptions,
    clock::Clock,
    cluster::{
        ObjectKey,
        addresses::Addresses,
        declare::Fingerprint,
        events::Events,
        news::tell_pods,
        rights::{OwnRights, tell_rights},
        settle::settle,
        source::{Here, Source as ClusterSource},
        writer::StatusWriter,
    },
    enrol::{Leftovers, PodStatus},
    files::FileWatch,
    metrics::{Followed, Metrics},
    pod::WantedPod,
    sessions::{
        Declared,
        files::{Reading, SessionFiles},
        spec::Policy,
        store::SessionLookup,
    },
};

/// A source that has been read once.
pub(super) struct Source {
    /// What it declares at first.
    pub(super) first: Vec<Declared>,
    /// What that means for pods of an earlier agent that it doesn't name.
    pub(super) leftovers: watch::Receiver<Leftovers>,
    /// The API server's addresses: always some.
    pub(super) addresses: watch::Receiver<Option<Addresses>>,
    rest: Rest,
}

/// What goes on after the first reading.
enum Rest {
    Files(SessionFiles, FileWatch, watch::Sender<Leftovers>),
    Cluster(ClusterSource, Fingerprint),
}

/// Tells the cluster how its pods and Sessions fare, where they come from there.
pub(super) struct Teller(Option<(kube::Client, ClusterSource, watch::Sender<Leftovers>)>);

impl Source {
    /// Reads the source that the options name. A cluster is waited for, and `readiness` says so.
    pub(super) async fn open(
        options: &AgentOptions,
        cgroup_root: PathBuf,
        cluster: &Cluster,
        readiness: &Readiness,
        metrics: &Metrics,
    ) -> anyhow::Result<(Self, Teller)> {
        let policy = Policy {
            allow_insecure_servers: options.allow_insecure_servers,
        };
        if let Some(path) = &options.sessions {
            return Self::of_files(path.clone(), policy, &cluster.addresses).await;
        }
        let here = Here {
            node: options.node_name.clone(),
            own_pod: options.pod_name.as_ref().map(|name| ObjectKey {
                namespace: options.namespace.clone(),
                name: name.clone(),
            }),
            cgroup_root,
            policy,
            listener: options.listen.listen_session.clone(),
        };
        Self::of_cluster(&cluster.client, here, &cluster.addresses, readiness, metrics).await
    }

    async fn of_files(
        path: PathBuf,
        policy: Policy,
        addresses: &BTreeSet<SocketAddr>,
    ) -> anyhow::Result<(Self, Teller)> {
        let files = SessionFiles::new(path).under(policy);
        let watch = FileWatch::new([files.path()]).await;
        let (files, first) = read(files).await?;
        let first = first.context("the agent can't start without its sessions")?;
        let (settle, leftovers) = watch::channel(leftovers_of(&first));
        // The sender may go: the addresses are those of the command line.
        let (_, addresses) = watch::channel(Some(Arc::new(addresses.clone())));
        let source = Self {
            first: first.sessions,
            leftovers,
            addresses,
            rest: Rest::Files(files, watch, settle),
        };
        Ok((source, Teller(None)))
    }

    async fn of_cluster(
        client: &kube::Client,
        here: Here,
        addresses: &BTreeSet<SocketAddr>,
        readiness: &Readiness,
        metrics: &Metrics,
    ) -> anyhow::Result<(Self, Teller)> {
        let condition = readiness.condition("cluster");
        let mut source = ClusterSource::start(client, here, addresses.clone(), metrics);
        source.known(|waiting| condition.not_ready(waiting)).await?;
        condition.ready();
        // Readiness isn't lost with the API server: sessions stay in force.
        condition.keep();
        let declaration = source.declared();
        // What has been listed may be older than what the agent before knew.
        let (settle, leftovers) = watch::channel(Leftovers::Refuse);
        let opened = Self {
            first: declaration.sessions,
            leftovers,
            addresses: source.addresses.clone(),
            rest: Rest::Cluster(source.clone(), declaration.fingerprint),
        };
        Ok((opened, Teller(Some((client.clone(), source, settle)))))
    }

    /// The namespaces with pods of this node; `None` where pods are known by their cgroups alone.
    pub(super) fn namespaces(&self) -> Option<watch::Receiver<BTreeSet<String>>> {
        match &self.rest {
            Rest::Files(..) => None,
            Rest::Cluster(source, _) => Some(source.namespaces.clone()),
        }
    }

    /// Declares the sessions anew whenever they change.
    pub(super) fn follow(
        self,
        declare: mpsc::Sender<Vec<Declared>>,
        wanted: watch::Receiver<Arc<[WantedPod]>>,
        metrics: &Metrics,
    ) {
        match self.rest {
            Rest::Files(files, watch, settle) => {
                let settling = (wanted, settle);
                drop(tokio::spawn(follow_files(
                    files,
                    watch,
                    declare,
                    settling,
                    metrics.clone(),
                )));
            }
            Rest::Cluster(source, fingerprint) => drop(tokio::spawn(source.run(fingerprint, declare))),
        }
    }
}

impl Teller {
    /// What pods' own accounts may do, where the pods are the cluster's.
    pub(super) fn own_rights(&self) -> Option<OwnRights> {
        let (client, source, _) = self.0.as_ref()?;
        Some(OwnRights::new(client.clone(), source.pods.clone()))
    }

    /// Begins to tell. The kernel side has to be in force: pods of an earlier agent may be let go from now on.
    pub(super) fn start(
        self,
        options: &AgentOptions,
        wanted: watch::Receiver<Arc<[WantedPod]>>,
        pods: watch::Receiver<Arc<[PodStatus]>>,
        lookup: SessionLookup,
        clock: Clock,
        metrics: &Metrics,
    ) {
        let Some((client, source, leftovers)) = self.0 else {
            return;
        };
        let node = &options.node_name;
        let listed = source.clone();
        let wanted_of = move |pods: &[_]| listed.wanted_of(pods);
        tokio::spawn(settle(client.clone(), node.clone(), wanted_of, wanted, leftovers));
        let events = Events::start(client.clone(), node, metrics.clone());
        let writer = StatusWriter::new(client.clone(), node, clock, metrics.clone(), events.clone());
        tokio::spawn(writer.run(source.sessions.clone(), pods.clone(), lookup));
        tokio::spawn(tell_rights(client, source.pods.clone(), events.clone()));
        tokio::spawn(tell_pods(source.pods, source.sessions, pods, events));
    }
}

/// What a reading means for pods of an earlier agent that it doesn't name.
fn leftovers_of(reading: &Reading) -> Leftovers {
    if reading.names_every_pod() {
        Leftovers::Untag
    } else {
        Leftovers::Refuse
    }
}

/// Reads session files off the async threads.
async fn read(mut files: SessionFiles) -> anyhow::Result<(SessionFiles, anyhow::Result<Reading>)> {
    Ok(tokio::task::spawn_blocking(move || {
        let reading = files.read().map_err(anyhow::Error::from);
        if let Ok(reading) = &reading {
            for complaint in &reading.complaints {
                tracing::error!(%complaint, "a session file is not right");
            }
        }
        (files, reading)
    })
    .await?)
}

/// Declares the sessions anew whenever their files change.
async fn follow_files(
    mut files: SessionFiles,
    mut watch: FileWatch,
    declare: mpsc::Sender<Vec<Declared>>,
    (mut wanted, settle): (watch::Receiver<Arc<[WantedPod]>>, watch::Sender<Leftovers>),
    metrics: Metrics,
) {
    loop {
        tokio::select! {
            () = watch.changed() => {}
            () = declare.closed() => return,
        }
        let Ok((again, reading)) = read(files).await else {
            return;
        };
        files = again;
        match reading {
            Ok(reading) => {
                if !reading.complaints.is_empty() {
                    metrics.reload_failures(Followed::Sessions).inc();
                }
                let leftovers = leftovers_of(&reading);
                let pods: Vec<WantedPod> = reading.sessions.iter().flat_map(|one| one.pods.clone()).collect();
                if declare.send(reading.sessions).await.is_err() {
                    return;
                }
                // A pod is let go for not being named only once all that are named are wanted (invariant 1).
                let all_wanted = wanted.wait_for(|wanted| pods.iter().all(|pod| wanted.contains(pod)));
                if all_wanted.await.is_err() {
                    return;
                }
                settle.send_if_modified(|last| std::mem::replace(last, leftovers) != leftovers);
            }
            Err(error) => {
                metrics.reload_failures(Followed::Sessions).inc();
                tracing::error!(%error, "the sessions stand as they were");
            }
        }
    }
}
