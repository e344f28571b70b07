//! The agent's way of a request, whole, but for the kernel that hands connections over: a listener of its own stands for
//! the pod's.

use std::{
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result};
use prometheus_client::metrics::counter::Counter;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use understudy::{
    admin::Readiness,
    audit::{self, Audit, AuditFailure, Destination, Sinks},
    caller::{Prover, authorities::Authorities, review::Reviewer},
    clock::Clock,
    cluster::client::client,
    credentials::{CredentialError, TokenFile},
    forward::Forwarder,
    inbound::Server,
    limits::{Limits, load::Load},
    metrics::Metrics,
    pod::{CgroupId, ClientAddr, EnrolledPod, Inbound, OriginalDst, WantedPod},
    recording::recorder::Recordings,
    sessions::{
        Declared,
        live::Credential,
        spec::{Policy, SessionSpec},
        store::{Outfitter, SessionLookup, Store},
    },
    traces::Traces,
    trust::{
        own_ca::{ServedNames, serve_own_ca},
        roots::UpstreamRoots,
        serving::{asking_server_config, server_config},
    },
    upstream::{
        Upstream,
        pool::{Bounds, DialCounts},
        roots::Roots,
        target::Target,
    },
};

use crate::upstream;

/// Where the CA is that the agent's certificate is of.
pub(crate) const AGENT_CA: &str = "ca/ca.crt";
const SESSION: &str = "support/alice";
/// As long as the tokens that the kubelet gives out.
const TOKEN_LENGTH: usize = 1000;

struct Outfit {
    target: Target,
    roots: Roots,
    dials: Arc<DialCounts>,
    bounds: Bounds,
    token: TokenFile,
    metrics: Metrics,
}

impl Outfit {
    fn way_upstream(&self) -> Upstream {
        Upstream::new(
            self.target.clone(),
            self.roots.clone(),
            Arc::clone(&self.dials),
            self.bounds,
        )
    }
}

impl Outfitter for Outfit {
    fn upstream(&self, _: &SessionSpec) -> Upstream {
        self.way_upstream()
    }

    fn own_token(&self) -> Credential {
        Credential::File(self.token.clone())
    }

    fn prover(&self, _: &SessionSpec) -> Arc<Prover> {
        let client = client(self.way_upstream(), self.token.clone());
        let reviewer = Reviewer::new(client, Arc::from([]), Clock::system());
        Arc::new(Prover::new(Authorities::union(None), reviewer, self.metrics.clone()))
    }

    async fn token_file(&self, path: &Path) -> Credential {
        Credential::File(TokenFile::follow(path, Clock::system(), Counter::default()).await)
    }

    fn secret_token(&self, _: &str, _: &str, _: &str) -> Credential {
        Credential::Watched(watch::channel(Err::<_, CredentialError>(no_secret())).1)
    }
}

fn no_secret() -> CredentialError {
    CredentialError::Secret {
        secret: SESSION.to_owned(),
        reason: "there is no cluster here".to_owned(),
    }
}

/// Serves until standard input ends. Says where on standard output.
pub(crate) async fn run(directory: &Path, server: &str) -> Result<()> {
    let metrics = Arc::new(Metrics::new());
    let limits = Limits::default();
    let sessions = sessions(directory, server, &limits, &metrics).await?;
    let kept = audit::Terms {
        failure: AuditFailure::Block,
        patience: limits.queue_timeout,
        node: Arc::from("node"),
        policy: audit::Policy::default(),
        bodies: audit::BodyTerms::default(),
        clock: Clock::system(),
    };
    let log = Destination::new(directory.join("audit.log"), audit::Rotation::default());
    let sinks = Sinks {
        log: Some((log, Readiness::default().condition("audit"))),
        webhook: None,
    };
    let audit = Audit::start(sinks, kept, &metrics).await?;
    let (_names, names) = watch::channel(ServedNames::default());
    let certificate = serve_own_ca(directory.join("ca"), names, Clock::system(), Counter::default()).await?;
    let server = Server {
        forwarder: Arc::new(Forwarder {
            sessions,
            clock: Clock::system(),
            audit,
            metrics: Arc::clone(&metrics),
            traces: Traces::default(),
            node: Arc::from("node"),
            streams: TaskTracker::new(),
            limits: limits.clone(),
            pressure: Arc::default(),
            recordings: Recordings::nowhere(&metrics),
        }),
        tls: server_config(certificate.clone())?,
        asking_tls: asking_server_config(certificate)?,
        allow_plain_http: false,
        limits,
        metrics,
        drain: CancellationToken::new(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let (inbound, accepted) = mpsc::channel(16);
    tokio::spawn(server.run(accepted, TaskTracker::new()));
    let pod = Arc::new(pod()?);
    let mut ended = task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            accepted = listener.accept() => {
                let (stream, client) = accepted?;
                stream.set_nodelay(true)?;
                inbound.send(handed_over(stream, ClientAddr(client), &pod)?).await?;
            }
        }
    }
}

/// As the enroller hands it over.
fn handed_over(stream: TcpStream, client: ClientAddr, pod: &Arc<EnrolledPod>) -> Result<Inbound> {
    Ok(Inbound {
        stream,
        pod: Arc::clone(pod),
        original_dst: OriginalDst("10.96.0.1:443".parse()?),
        client,
    })
}

fn pod() -> Result<EnrolledPod> {
    Ok(EnrolledPod {
        wanted: WantedPod {
            cgroup: "kubepods/pod1".into(),
            name: Arc::from("support/shell-0"),
            session: SESSION.parse()?,
            uid: None,
            service_account: None,
        },
        cgroup_id: CgroupId(1),
        gone: CancellationToken::new(),
        load: Load::default(),
        in_audit: understudy::audit::PodText::default(),
    })
}

/// One session, in force.
async fn sessions(directory: &Path, server: &str, limits: &Limits, metrics: &Metrics) -> Result<SessionLookup> {
    let token = directory.join("token");
    std::fs::write(&token, "t".repeat(TOKEN_LENGTH))?;
    let roots = UpstreamRoots::follow(directory.join(upstream::CA), Counter::default()).await?;
    let outfit = Outfit {
        target: Target::parse(server, None)?,
        roots: Roots::followed(roots),
        dials: Arc::default(),
        bounds: Bounds::from(limits),
        token: TokenFile::follow(&token, Clock::system(), Counter::default()).await,
        metrics: metrics.clone(),
    };
    let spec = serde_json::json!({
        "authMethod": "gateway-kubernetes-auth",
        "impersonate": {"namespace": "prod", "serviceAccountName": "viewer"},
    });
    let (store, mut sessions, _) = Store::new(outfit, Clock::system());
    let (declare, declared) = mpsc::channel(1);
    tokio::spawn(store.run(declared, CancellationToken::new()));
    let session = Declared {
        id: SESSION.parse()?,
        pods: vec![pod()?.wanted],
        spec: SessionSpec::parse(spec, Policy::default()),
        incarnation: None,
        last_used: None,
    };
    let id = session.id.clone();
    declare.send(vec![session]).await.context("the store is gone")?;
    while sessions.snapshot().in_force(&id).is_none() {
        sessions.changed().await;
    }
    Ok(sessions)
}
