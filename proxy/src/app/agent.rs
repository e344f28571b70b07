//! The agent on one node: its parts, in the order in which they are started and taken down.
//!
//! The order is part of the design. Nothing is turned in the kernel before what it is turned to is there, and what an
//! earlier agent left in force stays so until then (invariants 1 and 6).

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use prometheus_client::registry::Registry;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    outfit::Outfit,
    report::{register, report_pods, report_token},
};
use crate::{
    admin::{Admin, Condition, Readiness},
    audit::Audit,
    cli::{AgentOptions, KernelOptions, TrustMode, TrustOptions},
    clock::Clock,
    credentials::TokenFile,
    enrol::{self, Enrolment, Leftovers, PodStatus, Steward},
    environment::ApiServerUrl,
    files::FileWatch,
    forward::Forwarder,
    handover::{Incumbent, Predecessor},
    inbound,
    kernel::{
        InstallError, Kernel, Options as KernelInstallation, PinError,
        cgroup::{self, CgroupRoot},
    },
    metrics::{Followed, Metrics, register_counts},
    pod::{Inbound, WantedPod},
    sessions::{
        Declared,
        files::{Reading, SessionFiles},
        store::{SessionLookup, Store},
    },
    trust::{
        own_ca::{ServedNames, serve_own_ca},
        pair::serve_pair,
        roots::UpstreamRoots,
        serving::{ServingCert, server_config},
    },
    upstream::{pool::DialCounts, roots::Roots, target::Target},
};

/// Connections accepted and not yet served. Small: all that is left to do for one is to spawn its task.
const INBOUND_BACKLOG: usize = 128;
/// How long the last audit events may take to be written.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
/// How long an agent that holds the pin directory is waited for.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);

/// A running agent.
pub(super) struct Agent {
    audit: Audit,
    readiness: Condition,
    enrolment: Enrolment,
    connections: TaskTracker,
    streams: TaskTracker,
    /// Cancelled in this order.
    no_new_connections: CancellationToken,
    no_new_requests: CancellationToken,
    end_sessions: CancellationToken,
    stop_admin: CancellationToken,
}

impl Agent {
    /// Starts everything, and returns once tagged pods are served.
    ///
    /// # Errors
    /// What stands in the way. Nothing is left half in force: what was pinned before stays, and refuses.
    pub(super) async fn start(options: AgentOptions) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let metrics = Metrics::new();
        let mut registry = metrics.registry();
        let readiness = Readiness::default();
        let serving = readiness.condition("serving");
        let no_new_connections = CancellationToken::new();
        let no_new_requests = CancellationToken::new();
        let end_sessions = CancellationToken::new();
        let stop_admin = CancellationToken::new();

        let cluster = Cluster::discover(&options, &clock, &metrics).await?;
        let certificate = serving_certificate(&options.trust, &cluster, &clock, &metrics).await?;
        let audit = Audit::start(options.audit_log.to_string_lossy().parse()?, &metrics).await?;
        let dials = Arc::new(DialCounts::default());
        let sessions = Sessions::start(&options, &cluster, &dials, &clock, &metrics, end_sessions.clone()).await?;

        register(
            &mut registry,
            &sessions.lookup,
            &dials,
            &cluster.own_token,
            &certificate,
        );
        let token_ready = readiness.condition("token");
        let pods_ready = readiness.condition("pods");

        let tls = server_config(certificate)?;
        let admin = Admin::bind(options.admin_address).await?;
        let incumbent = Incumbent::bind(&options.run_dir, &options.kernel.pin_dir)?;
        let predecessor = Predecessor::ask(&options.run_dir, &options.kernel.pin_dir).await?;

        // The kernel last, when nothing else can fail: from here on tagged pods are turned to us.
        let (accept, accepted) = mpsc::channel(INBOUND_BACKLOG);
        let enrolment = intercept(
            (&options.kernel, predecessor.is_some()),
            &cluster.addresses,
            sessions.wanted,
            sessions.leftovers,
            accept,
            no_new_connections.clone(),
            &mut registry,
        )
        .await?;
        tokio::spawn(admin.serve(readiness, registry, stop_admin.clone()));
        tokio::spawn(report_pods(enrolment.pods.clone(), pods_ready));
        tokio::spawn(report_token(cluster.own_token, token_ready));

        let connections = TaskTracker::new();
        let streams = TaskTracker::new();
        let metrics = Arc::new(metrics);
        let server = inbound::Server {
            forwarder: Arc::new(Forwarder {
                sessions: sessions.lookup,
                clock,
                audit: audit.clone(),
                metrics: Arc::clone(&metrics),
                node: options.node_name.into(),
                streams: streams.clone(),
            }),
            tls,
            allow_plain_http: options.allow_plain_http,
            metrics,
            drain: no_new_requests.clone(),
        };
        tokio::spawn(server.run(accepted, connections.clone()));
        if let Some(predecessor) = predecessor {
            succeed(predecessor, enrolment.pods.clone()).await?;
        }
        let incumbent = incumbent.publish(&options.kernel.pin_dir)?;
        tokio::spawn(incumbent.serve(enrolment.steward.clone(), no_new_connections.clone()));
        tokio::spawn(retire(enrolment.steward.clone(), no_new_requests.clone()));
        serving.ready();
        tracing::info!(api_server = %cluster.target, addresses = ?cluster.addresses, "the agent serves");
        Ok(Self {
            audit,
            readiness: serving,
            enrolment,
            connections,
            streams,
            no_new_connections,
            no_new_requests,
            end_sessions,
            stop_admin,
        })
    }

    /// Closes the audit log and opens it by its name again.
    pub(super) fn reopen_audit_log(&self) {
        self.audit.reopen();
    }

    /// Takes the agent down: no new connection, then no new request; open streams until the deadline; the audit log
    /// to its end. The kernel side stays, and refuses.
    pub(super) async fn drain(self, deadline: Duration) {
        let deadline = Instant::now() + deadline;
        self.readiness.not_ready("draining");
        self.no_new_connections.cancel();
        if let Err(error) = self.enrolment.task.await {
            tracing::error!(%error, "enrolment didn't end well");
        }
        self.no_new_requests.cancel();
        self.connections.close();
        self.streams.close();
        let all = async { tokio::join!(self.connections.wait(), self.streams.wait()) };
        if timeout_at(deadline, all).await.is_err() {
            tracing::warn!(
                connections = self.connections.len(),
                streams = self.streams.len(),
                "the drain deadline has passed: what is open is cut"
            );
        }
        self.end_sessions.cancel();
        let rest = async { tokio::join!(self.connections.wait(), self.streams.wait()) };
        let _ = timeout_at(Instant::now() + AUDIT_PATIENCE, rest).await;
        if let Err(error) = self.audit.drain(AUDIT_PATIENCE).await {
            tracing::error!(%error, "the audit log is not complete");
        }
        self.stop_admin.cancel();
    }
}

/// The cluster that the agent serves: where its API server is, who vouches for it, and the agent's own token there.
struct Cluster {
    target: Target,
    roots: UpstreamRoots,
    own_token: TokenFile,
    /// What to intercept.
    addresses: BTreeSet<SocketAddr>,
}

impl Cluster {
    async fn discover(options: &AgentOptions, clock: &Clock, metrics: &Metrics) -> anyhow::Result<Self> {
        let api_server = ApiServerUrl::from_environment(|variable| std::env::var(variable).ok())?;
        let target = Target::parse(&api_server.to_string(), None)?;
        let files = &options.cluster;
        let roots = UpstreamRoots::follow(&files.ca_file, metrics.reload_failures(Followed::UpstreamCa)).await?;
        let failures = metrics.reload_failures(Followed::Token);
        let own_token = TokenFile::follow(&files.token_file, clock.clone(), failures).await;
        if let Err(error) = own_token.current() {
            tracing::error!(%error, "sessions that impersonate are refused until the agent has a token");
        }
        let named = options.api_addresses.iter().copied();
        let addresses: BTreeSet<_> = api_server.socket_addr().into_iter().chain(named).collect();
        anyhow::ensure!(
            !addresses.is_empty(),
            "{api_server} is not an IP address: name the addresses to intercept with --api-address"
        );
        Ok(Self {
            target,
            roots,
            own_token,
            addresses,
        })
    }
}

/// The sessions, followed from their files.
struct Sessions {
    lookup: SessionLookup,
    wanted: watch::Receiver<Arc<[WantedPod]>>,
    leftovers: watch::Receiver<Leftovers>,
}

impl Sessions {
    async fn start(
        options: &AgentOptions,
        cluster: &Cluster,
        dials: &Arc<DialCounts>,
        clock: &Clock,
        metrics: &Metrics,
        end: CancellationToken,
    ) -> anyhow::Result<Self> {
        let outfit = Outfit {
            cluster: cluster.target.clone(),
            cluster_roots: Roots::followed(cluster.roots.clone()),
            own_token: cluster.own_token.clone(),
            clock: clock.clone(),
            dials: Arc::clone(dials),
            failed_reads: metrics.reload_failures(Followed::Sessions),
        };
        let (mut store, lookup, wanted) = Store::new(outfit, clock.clone());
        let files = SessionFiles::new(options.sessions.clone());
        let watch = FileWatch::new([files.path()]).await;
        let (files, first) = read(files).await?;
        let first = first.context("the agent can't start without its sessions")?;
        let (settle, leftovers) = watch::channel(leftovers_of(&first));
        store.apply(first.sessions).await;
        let (declare, declared) = mpsc::channel(1);
        tokio::spawn(store.run(declared, end));
        tokio::spawn(follow_files(
            files,
            watch,
            declare,
            (wanted.clone(), settle),
            metrics.clone(),
        ));
        Ok(Self {
            lookup,
            wanted,
            leftovers,
        })
    }
}

/// Waits until every pod's entry is this agent's, and lets the one before go.
async fn succeed(predecessor: Predecessor, mut pods: watch::Receiver<Arc<[PodStatus]>>) -> anyhow::Result<()> {
    pods.changed().await.context("enrolment didn't begin")?;
    if let Err(error) = predecessor.done().await {
        tracing::warn!(%error, "the agent before is gone already");
    }
    tracing::info!("the node is taken over from the agent before");
    Ok(())
}

/// When another agent has taken over, clients are told to go, for their next connection is the other's. What streams
/// goes on until this agent is ended.
async fn retire(steward: Steward, no_new_requests: CancellationToken) {
    steward.retired().await;
    no_new_requests.cancel();
}

/// Puts the kernel side in force. An agent that is just ending, and hasn't been able to yield, is waited for.
async fn install(options: &KernelOptions, yielded: bool, root: &CgroupRoot) -> Result<Kernel, InstallError> {
    let installation = KernelInstallation::new(&options.pin_dir);
    let deadline = Instant::now() + PREDECESSOR_PATIENCE;
    loop {
        let installed = if yielded {
            Kernel::succeed(root, &installation)
        } else {
            Kernel::install(root, &installation)
        };
        match installed {
            Err(InstallError::Pin(PinError::InUse(_))) if Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            installed => return installed,
        }
    }
}

/// Puts the kernel side in force, and enrols the pods that are wanted.
async fn intercept(
    (options, yielded): (&KernelOptions, bool),
    addresses: &BTreeSet<SocketAddr>,
    wanted: watch::Receiver<Arc<[WantedPod]>>,
    leftovers: watch::Receiver<Leftovers>,
    accept: mpsc::Sender<Inbound>,
    shutdown: CancellationToken,
    registry: &mut Registry,
) -> anyhow::Result<Enrolment> {
    let path = options.cgroup_root.clone().map_or_else(cgroup::pods_root, Ok)?;
    let root = CgroupRoot::open(&path)?;
    let kernel = Arc::new(install(options, yielded, &root).await?);
    kernel.set_api_servers(addresses)?;
    let counters = Arc::clone(&kernel);
    register_counts(
        registry,
        "kernel_connects",
        "Connects that the kernel programs judged, by verdict",
        "verdict",
        move || {
            counters
                .counters()
                .map(|counters| counters.iter().collect())
                .unwrap_or_default()
        },
    );
    let enrolment = enrol::start(kernel, root, wanted, leftovers, accept, shutdown);
    let refusals = Arc::clone(&enrolment.refusals);
    register_counts(
        registry,
        "inbound_refusals",
        "Connections to the listeners that were closed because the kernel didn't vouch for them, by reason",
        "reason",
        move || refusals.iter().collect(),
    );
    let severed = Arc::clone(&enrolment.severed);
    register_counts(
        registry,
        "connections_severed",
        "Connections to the API server that were ended because they were older than their pod's tag",
        "reason",
        move || vec![("before_tag", severed.total())],
    );
    Ok(enrolment)
}

/// The certificate that workloads see, by the mode that the operator chose.
async fn serving_certificate(
    options: &TrustOptions,
    cluster: &Cluster,
    clock: &Clock,
    metrics: &Metrics,
) -> anyhow::Result<ServingCert> {
    let failures = metrics.reload_failures(Followed::Certificate);
    Ok(match (options.trust, options.files()) {
        (TrustMode::Files, Some((certificate, key))) => serve_pair(certificate, key, clock.clone(), failures).await?,
        (TrustMode::Files, None) => anyhow::bail!("--trust files needs --tls-cert and --tls-key"),
        (TrustMode::OwnCa, _) => {
            // The sender may go: the addresses are those of the command line.
            let names = ServedNames {
                addresses: cluster.addresses.iter().map(SocketAddr::ip).collect(),
                dns_names: cluster.target.dns_name().map(str::to_owned).into_iter().collect(),
            };
            let (_, names) = watch::channel(names);
            serve_own_ca(&options.trust_dir, names, clock.clone(), failures).await?
        }
    })
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
