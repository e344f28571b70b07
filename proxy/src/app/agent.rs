//! The agent on one node: its parts, in the order in which they are started and taken down.
//!
//! The order is part of the design. Nothing is turned in the kernel before what it is turned to is there, and what an
//! earlier agent left in force stays so until then (invariants 1 and 6).

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
    time::Duration,
};

use rustls::ServerConfig;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    audit::audit_log,
    certificate::{Surroundings, serving_certificate},
    confine::syscalls,
    intercept::{Interception, intercept, retire, succeed},
    operate::{Counter, Desk},
    outfit::{ClientCa, Outfit},
    report::{register, register_kernel, report_full_pods, report_pods, report_token},
    source::Source,
    upload::uploads,
};
use crate::{
    admin::{Admin, Condition, Readiness},
    audit::Audit,
    cli::{AgentOptions, ListenOptions},
    clock::Clock,
    cluster::{addresses::Addresses, client::client},
    credentials::TokenFile,
    enrol::Enrolment,
    environment::ApiServerUrl,
    forward::Forwarder,
    handover::{Incumbent, Predecessor},
    inbound::{self, outside::Outside},
    kernel::{self, cgroup},
    limits::{
        Limits,
        memory::{self, Pressure},
    },
    metrics::{Followed, Metrics},
    pod::Inbound,
    recording::{recorder::Recordings, upload::Uploads},
    sessions::store::Store,
    traces::Traces,
    trust::{
        ServedNames,
        roots::UpstreamRoots,
        serving::{ServingCert, asking_server_config, server_config},
    },
    upstream::{
        Upstream,
        pool::{Bounds, DialCounts},
        roots::Roots,
        target::Target,
    },
};

/// Connections accepted and not yet served. Small: all that is left to do for one is to spawn its task.
const INBOUND_BACKLOG: usize = 128;
/// How long the last audit events may take to be written.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);
/// And the last recordings to be brought to their store.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(5);

/// And the last spans to be sent.
const TRACES_PATIENCE: Duration = Duration::from_secs(2);

/// A running agent.
pub(super) struct Agent {
    audit: Audit,
    uploads: Option<Uploads>,
    traces: Traces,
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
    #[expect(
        clippy::too_many_lines,
        reason = "the order of a start is its point, and is to be read in one piece"
    )]
    pub(super) async fn start(options: AgentOptions) -> anyhow::Result<Self> {
        let clock = Clock::system();
        let metrics = Arc::new(Metrics::new());
        let registry = Arc::new(RwLock::new(metrics.registry()));
        let readiness = Readiness::default();
        let [serving, token_ready, pods_ready, addresses_ready, in_charge] =
            ["serving", "token", "pods", "addresses", "in-charge"].map(|name| readiness.condition(name));
        let [no_new_connections, no_new_requests, end_sessions, stop_admin]: [CancellationToken; 4] =
            Default::default();

        // The admin address first: a start may wait for the cluster, and says so there.
        let admin = Admin::bind(options.admin_address).await?;
        let counter = Counter::bind(options.operator_address).await?;
        tokio::spawn(admin.serve(readiness.clone(), Arc::clone(&registry), stop_admin.clone()));
        let root = options.kernel.cgroup_root.clone().map_or_else(cgroup::pods_root, Ok)?;
        let dials = Arc::new(DialCounts::default());
        let cluster = Cluster::discover(&options, &dials, &clock, &metrics).await?;
        let (source, teller) = Source::open(&options, root.clone(), &cluster, &readiness, &metrics).await?;
        let around = cluster.surroundings(&source, &options.listen);
        let certificate_ready = readiness.condition("certificate");
        let certificate = serving_certificate(&options, around, &clock, &metrics, certificate_ready).await?;
        let outside = listen_outside(&options.listen)?;
        let audit = audit_log(&options, &readiness, &clock, &metrics).await?;
        let traces = Traces::start(&options.traces, &options.node_name, |name| std::env::var(name).ok()).await?;
        let recordings = recordings(&options, &clock, &metrics).await?;
        let uploads = uploads(&options, &recordings, &metrics).await?;

        let outfit = cluster.outfit(&options, &dials, &clock, &metrics);
        let (mut store, lookup, wanted) = Store::new(outfit, clock.clone());
        let (addresses, leftovers) = (source.addresses.clone(), source.leftovers.clone());
        store.apply(source.first.clone()).await;
        let (declare, declared) = mpsc::channel(1);
        tokio::spawn(store.run(declared, end_sessions.clone()));
        source.follow(declare, wanted.clone(), &metrics);
        let (tls, asking_tls) = terms_of_tls(&certificate)?;
        let incumbent = Incumbent::bind(&options.run_dir, &options.kernel.pin_dir)?;
        let predecessor = Predecessor::ask(&options.run_dir, &options.kernel.pin_dir).await?;

        // The kernel last, when nothing else can fail: from here on tagged pods are turned to us.
        let (accept, accepted) = mpsc::channel(INBOUND_BACKLOG);
        let accept_outside = accept.clone();
        let interception = Interception {
            root: &root,
            installation: installation(&options),
            yielded: predecessor.is_some(),
            addresses: addresses.clone(),
            wanted: wanted.clone(),
            leftovers,
        };
        let (enrolment, kernel) = intercept(interception, accept, no_new_connections.clone(), addresses_ready).await?;
        syscalls::forbid_loading()?;
        tokio::spawn(report_full_pods(Arc::downgrade(&kernel), Arc::clone(&metrics)));
        {
            let mut registry = registry.write().unwrap_or_else(PoisonError::into_inner);
            register(&mut registry, &lookup, &dials, &cluster.own_token, &certificate);
            traces.register(&mut registry);
            register_kernel(&mut registry, Arc::clone(&kernel), &enrolment);
        }
        let desk = Desk {
            node: options.node_name.as_str().into(),
            readiness,
            sessions: lookup.clone(),
            pods: enrolment.pods.clone(),
            kernel,
            certificate: certificate.clone(),
            metrics: Metrics::clone(&metrics),
            own_rights: teller.own_rights(),
            tail: audit.tail(),
            clock: clock.clone(),
            client: cluster.client.clone(),
        };
        tokio::spawn(report_pods(enrolment.pods.clone(), pods_ready));
        tokio::spawn(report_token(cluster.own_token, token_ready));
        let pods = enrolment.pods.clone();
        teller.start(&options, wanted, pods, lookup.clone(), clock.clone(), &metrics);

        let (connections, streams) = (TaskTracker::new(), TaskTracker::new());
        let pressure = watch_memory(&options.limits, &metrics);
        let server = inbound::Server {
            forwarder: Arc::new(Forwarder {
                sessions: lookup,
                clock,
                audit: audit.clone(),
                metrics: Arc::clone(&metrics),
                traces: traces.clone(),
                node: options.node_name.into(),
                streams: streams.clone(),
                limits: options.limits.clone(),
                pressure,
                recordings,
            }),
            tls,
            asking_tls,
            allow_plain_http: options.allow_plain_http,
            limits: options.limits,
            metrics,
            drain: no_new_requests.clone(),
        };
        tokio::spawn(server.run(accepted, connections.clone()));
        serve_outside(outside, accept_outside, no_new_requests.clone());
        if let Some(predecessor) = predecessor {
            succeed(predecessor, enrolment.pods.clone()).await?;
        }
        let incumbent = incumbent.publish(&options.kernel.pin_dir)?;
        tokio::spawn(incumbent.serve(enrolment.steward.clone(), no_new_connections.clone()));
        tokio::spawn(retire(enrolment.steward.clone(), in_charge, no_new_requests.clone()));
        desk.open(&options.run_dir, counter, &stop_admin)?;
        serving.ready();
        tracing::info!(api_server = %cluster.target, addresses = ?*addresses.borrow(), "the agent serves");
        Ok(Self {
            audit,
            uploads,
            traces,
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
    /// to its end, and meanwhile the last recordings to their store. The kernel side stays, and refuses.
    pub(super) async fn drain(self, deadline: Duration) {
        let deadline = Instant::now() + deadline;
        self.readiness.not_ready("draining");
        self.no_new_connections.cancel();
        // Where another agent is taking over, new connections come until it has: they are served meanwhile.
        let handing_over = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
        let ending = self.enrolment.task.abort_handle();
        match timeout_at(handing_over, self.enrolment.task).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "enrolment didn't end well"),
            Err(_) => {
                tracing::error!("enrolment doesn't end: the listeners are closed all the same");
                ending.abort();
            }
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
        let uploads = async {
            if let Some(uploads) = self.uploads {
                uploads.drain(Instant::now() + UPLOAD_PATIENCE).await;
            }
        };
        let traces = self.traces.drain(TRACES_PATIENCE);
        let (audit, (), ()) = tokio::join!(self.audit.drain(AUDIT_PATIENCE), uploads, traces);
        if let Err(error) = audit {
            tracing::error!(%error, "the audit log is not complete");
        }
        self.stop_admin.cancel();
    }
}

async fn recordings(options: &AgentOptions, clock: &Clock, metrics: &Metrics) -> anyhow::Result<Recordings> {
    Ok(match &options.recordings {
        Some(directory) => Recordings::open(directory.clone(), clock.clone(), metrics)
            .await?
            .sealed_for(options.recording_recipients.clone()),
        None => Recordings::nowhere(metrics),
    })
}

fn watch_memory(limits: &Limits, metrics: &Metrics) -> Arc<Pressure> {
    let pressure = Arc::<Pressure>::default();
    let limit = limits.memory_limit;
    tokio::spawn(Arc::clone(&pressure).watch(limit, memory::resident, memory::give_back, metrics.clone()));
    pressure
}

/// Where and how the kernel side is installed.
fn installation(options: &AgentOptions) -> kernel::Options {
    kernel::Options {
        flows_per_pod: options.limits.max_pending_connections,
        ..kernel::Options::new(&options.kernel.pin_dir)
    }
}

/// The cluster that the agent serves: where its API server is, who vouches for it, and the agent's own token there.
pub(super) struct Cluster {
    target: Target,
    roots: UpstreamRoots,
    own_token: TokenFile,
    /// What to intercept, as far as it isn't for the cluster to say.
    pub(super) addresses: BTreeSet<SocketAddr>,
    /// What the agent asks for itself with.
    pub(super) client: kube::Client,
}

impl Cluster {
    /// What the certificate that workloads see depends on.
    fn surroundings(&self, source: &Source, listen: &ListenOptions) -> Surroundings {
        Surroundings {
            client: self.client.clone(),
            names: served_names(&self.target, listen, source.addresses.clone()),
            namespaces: source.namespaces(),
        }
    }

    async fn discover(
        options: &AgentOptions,
        dials: &Arc<DialCounts>,
        clock: &Clock,
        metrics: &Metrics,
    ) -> anyhow::Result<Self> {
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
        let upstream = Upstream::new(
            target.clone(),
            Roots::followed(roots.clone()),
            Arc::clone(dials),
            Bounds::from(&options.limits),
        );
        anyhow::ensure!(
            options.sessions.is_none() || !addresses.is_empty(),
            "{api_server} is not an IP address: name the addresses to intercept with --api-address"
        );
        Ok(Self {
            client: client(upstream, own_token.clone()),
            target,
            roots,
            own_token,
            addresses,
        })
    }

    /// What sessions are given when they come into force.
    fn outfit(&self, options: &AgentOptions, dials: &Arc<DialCounts>, clock: &Clock, metrics: &Metrics) -> Outfit {
        Outfit {
            cluster: self.target.clone(),
            cluster_roots: Roots::followed(self.roots.clone()),
            own_token: self.own_token.clone(),
            clock: clock.clone(),
            dials: Arc::clone(dials),
            bounds: Bounds::from(&options.limits),
            failed_reads: metrics.reload_failures(Followed::Sessions),
            // Session files can't name a Secret.
            secrets: options
                .sessions
                .is_none()
                .then(|| (self.client.clone(), metrics.clone())),
            client: self.client.clone(),
            metrics: metrics.clone(),
            client_ca: ClientCa {
                file: options.cluster.client_ca_file.clone(),
                followed: OnceLock::new(),
            },
        }
    }
}

/// The terms for pods, and for those whose callers may prove themselves by a certificate.
fn terms_of_tls(certificate: &ServingCert) -> anyhow::Result<(Arc<ServerConfig>, Arc<ServerConfig>)> {
    let plain = server_config(certificate.clone())?;
    Ok((plain, asking_server_config(certificate.clone())?))
}

/// The agent's own listener, where there is to be one. Bound early: that it can't be had ends a start that has done nothing.
fn listen_outside(options: &ListenOptions) -> anyhow::Result<Option<Outside>> {
    let bound = options.at().map(|(address, session)| Outside::bind(address, session));
    Ok(bound.transpose()?)
}

/// Serves who comes there until no new request is taken: when another agent has taken over, that one listens.
fn serve_outside(outside: Option<Outside>, inbound: mpsc::Sender<Inbound>, closing: CancellationToken) {
    if let Some(outside) = outside {
        tracing::info!(address = ?outside.address(), "clients outside pods are served as well");
        tokio::spawn(outside.run(inbound, closing));
    }
}

/// What the serving certificate must name, as the addresses come and go.
fn served_names(
    target: &Target,
    listen: &ListenOptions,
    mut addresses: watch::Receiver<Option<Addresses>>,
) -> watch::Receiver<ServedNames> {
    let (listened_at, mut dns_names) = listen.names();
    dns_names.extend(target.dns_name().map(str::to_owned));
    let dns_names: BTreeSet<String> = dns_names.into_iter().collect();
    let names = move |addresses: &Option<Addresses>| ServedNames {
        addresses: addresses
            .iter()
            .flat_map(|all| all.iter())
            .map(SocketAddr::ip)
            .chain(listened_at.iter().copied())
            .collect(),
        dns_names: dns_names.clone(),
    };
    let (publish, served) = watch::channel(names(&addresses.borrow_and_update()));
    tokio::spawn(async move {
        while addresses.changed().await.is_ok() {
            let now = names(&addresses.borrow_and_update());
            publish.send_if_modified(|last| {
                let modified = *last != now;
                *last = now;
                modified
            });
        }
    });
    served
}
