//! An upstream that does as a test says, the agent's inbound side, and clients of it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{body::Incoming, client::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::metrics::counter::Counter;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig,
    client::WantsClientCert,
    crypto::aws_lc_rs,
    pki_types::{PrivateKeyDer, ServerName},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use understudy::{
    admin::Readiness,
    audit::{self, Audit, AuditFailure, Destination, Sinks},
    caller::{
        Prover,
        authorities::{self, Authorities},
        review::Reviewer,
    },
    clock::Clock,
    cluster::client::client,
    credentials::{BearerToken, CredentialError, TokenFile},
    forward::Forwarder,
    inbound::{Server, outside::Outside},
    limits::{Limits, load::Load},
    metrics::Metrics,
    pod::{CgroupId, ClientAddr, EnrolledPod, Inbound, OriginalDst, WantedPod},
    recording::recorder::Recordings,
    sessions::{
        Declared,
        live::Credential,
        spec::{AuthMethod, Policy, SessionSpec, Signer, SpecError},
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

pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

/// An answer with a whole body.
pub(crate) fn whole(body: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(body.into()).boxed())
}

/// How the upstream is.
#[derive(Clone)]
pub(crate) struct Terms {
    pub(crate) alpn: Vec<&'static str>,
    pub(crate) streams: u32,
    pub(crate) spec: serde_json::Value,
    pub(crate) limits: Limits,
    pub(crate) allow_plain_http: bool,
    /// Where to record.
    pub(crate) recordings: Option<PathBuf>,
    pub(crate) audit_policy: audit::Policy,
    pub(crate) audit_bodies: audit::BodyTerms,
    pub(crate) traces: Traces,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            alpn: vec!["h2", "http/1.1"],
            streams: 100,
            spec: serde_json::json!({
                "authMethod": "gateway-kubernetes-auth",
                "impersonate": {"namespace": "prod", "serviceAccountName": "viewer"},
            }),
            limits: Limits::default(),
            allow_plain_http: false,
            recordings: None,
            audit_policy: audit::Policy::default(),
            audit_bodies: audit::BodyTerms::default(),
            traces: Traces::default(),
        }
    }
}

/// What the upstream saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) heads: Mutex<Vec<Parts>>,
    pub(crate) connections: AtomicUsize,
    /// Has every HTTP/2 connection say GOAWAY.
    pub(crate) go_away: Notify,
}

impl Seen {
    pub(crate) fn count(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    pub(crate) fn only(&self) -> Parts {
        let heads = self.heads.lock().unwrap();
        assert_eq!(heads.len(), 1, "the upstream saw one request");
        heads[0].clone()
    }
}

/// The whole arrangement.
pub(crate) struct Stage {
    pub(crate) seen: Arc<Seen>,
    pub(crate) pod: Arc<EnrolledPod>,
    /// Another pod, in a session of its own that is always in force.
    pub(crate) neighbour: Arc<EnrolledPod>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) dials: Arc<DialCounts>,
    pub(crate) drain: CancellationToken,
    /// Where the upstream is.
    pub(crate) address: SocketAddr,
    /// What any Secret holds.
    pub(crate) secret: watch::Sender<Result<BearerToken, CredentialError>>,
    declare: mpsc::Sender<Vec<Declared>>,
    pub(crate) sessions: SessionLookup,
    audit: Audit,
    listener: TcpListener,
    inbound: mpsc::Sender<Inbound>,
    roots: RootCertStore,
    directory: tempfile::TempDir,
}

struct Outfit {
    target: Target,
    roots: Roots,
    dials: Arc<DialCounts>,
    bounds: Bounds,
    secret: watch::Receiver<Result<BearerToken, CredentialError>>,
    /// What the agent asks the upstream with who callers are.
    client: kube::Client,
    metrics: Metrics,
}

impl Outfitter for Outfit {
    fn upstream(&self, spec: &SessionSpec) -> Upstream {
        let (target, roots) = match spec.server() {
            Some(server) => (server.target.clone(), server.roots(&self.roots, &Counter::default())),
            None => (self.target.clone(), self.roots.clone()),
        };
        Upstream::new(target, roots, Arc::clone(&self.dials), self.bounds)
    }

    fn own_token(&self) -> Credential {
        Credential::Inline("agent-token".parse().unwrap())
    }

    fn prover(&self, spec: &SessionSpec) -> Arc<Prover> {
        let (sources, audiences) = match &spec.method {
            AuthMethod::CallerIdentity(caller) => {
                let source = caller.signer.as_ref().map(|signer| match signer {
                    Signer::Bundle(bundle) => bundle.authorities(),
                    Signer::File(path) => authorities::in_file(path.clone(), Counter::default()),
                });
                (source, Arc::clone(&caller.audiences))
            }
            _ => (None, Arc::from([])),
        };
        let reviewer = Reviewer::new(self.client.clone(), audiences, Clock::system());
        Arc::new(Prover::new(Authorities::union(sources), reviewer, self.metrics.clone()))
    }

    async fn token_file(&self, path: &Path) -> Credential {
        Credential::File(TokenFile::follow(path, Clock::system(), Counter::default()).await)
    }

    fn secret_token(&self, _: &str, _: &str, _: &str) -> Credential {
        Credential::Watched(self.secret.clone())
    }
}

impl Stage {
    pub(crate) async fn new<F, R>(terms: Terms, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Send + Sync + 'static,
        R: Future<Output = Answer> + Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let seen = Arc::new(Seen::default());
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        let address = start_upstream(directory.path(), &terms, Arc::clone(&seen), handler).await;
        Self::before(directory, address, terms, seen).await
    }

    /// The agent before an upstream at `address`, whose CA is `upstream.crt` in `directory`.
    pub(crate) async fn before(
        directory: tempfile::TempDir,
        address: SocketAddr,
        terms: Terms,
        seen: Arc<Seen>,
    ) -> Self {
        let failures = Counter::default();
        let upstream_ca = directory.path().join("upstream.crt");
        let roots = UpstreamRoots::follow(upstream_ca, failures.clone()).await.unwrap();
        let dials = Arc::new(DialCounts::default());
        let (secret, in_secret) = watch::channel(Ok("first".parse().unwrap()));
        let target = Target::parse(&format!("https://{address}"), None).unwrap();
        let roots = Roots::followed(roots);
        std::fs::write(directory.path().join("token"), "agent-token").unwrap();
        let own_token = TokenFile::follow(directory.path().join("token"), Clock::system(), failures.clone()).await;
        let upstream = Upstream::new(
            target.clone(),
            roots.clone(),
            Arc::default(),
            Bounds::from(&terms.limits),
        );
        let metrics = Arc::new(Metrics::new());
        let outfit = Outfit {
            secret: in_secret,
            target,
            roots,
            dials: Arc::clone(&dials),
            client: client(upstream, own_token),
            metrics: Metrics::clone(&metrics),
            bounds: Bounds::from(&terms.limits),
        };
        let (store, sessions, _) = Store::new(outfit, Clock::system());
        let (declare, declared) = mpsc::channel(1);
        tokio::spawn(store.run(declared, CancellationToken::new()));

        let (_names, names) = watch::channel(ServedNames::default());
        let certificate = serve_own_ca(directory.path().join("ca"), names, Clock::system(), failures)
            .await
            .unwrap();
        let mut client_roots = RootCertStore::empty();
        let ca = std::fs::read(directory.path().join("ca/ca.crt")).unwrap();
        for certificate in rustls_pem(&ca) {
            client_roots.add(certificate).unwrap();
        }
        let drain = CancellationToken::new();
        let log = Destination::new(directory.path().join("audit.log"), audit::Rotation::default());
        let sinks = Sinks {
            log: Some((log, Readiness::default().condition("audit"))),
            webhook: None,
        };
        let kept = audit::Terms {
            failure: AuditFailure::Block,
            patience: terms.limits.queue_timeout,
            node: Arc::from("node"),
            policy: terms.audit_policy.clone(),
            bodies: terms.audit_bodies.clone(),
            clock: Clock::system(),
        };
        let audit = Audit::start(sinks, kept, &metrics).await.unwrap();
        let server = Server {
            forwarder: Arc::new(Forwarder {
                sessions: sessions.clone(),
                clock: Clock::system(),
                audit: audit.clone(),
                metrics: Arc::clone(&metrics),
                traces: terms.traces,
                node: Arc::from("node"),
                streams: TaskTracker::new(),
                limits: terms.limits.clone(),
                pressure: Arc::default(),
                recordings: match terms.recordings {
                    Some(directory) => Recordings::open(directory, Clock::system(), &metrics).await.unwrap(),
                    None => Recordings::nowhere(&metrics),
                },
            }),
            tls: server_config(certificate.clone()).unwrap(),
            asking_tls: asking_server_config(certificate).unwrap(),
            allow_plain_http: terms.allow_plain_http,
            limits: terms.limits,
            metrics: Arc::clone(&metrics),
            drain: drain.clone(),
        };
        let (inbound, accepted) = mpsc::channel(16);
        tokio::spawn(server.run(accepted, TaskTracker::new()));
        let pod = enrolled("shell-0", "support/alice", 1);
        let neighbour = enrolled("shell-1", "support/bob", 2);
        let stage = Self {
            seen,
            pod,
            neighbour,
            metrics,
            dials,
            drain,
            address,
            secret,
            declare,
            sessions,
            audit,
            listener: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            inbound,
            roots: client_roots,
            directory,
        };
        stage.declare(Some(terms.spec)).await;
        stage
    }

    /// Puts a session in force, or takes it away.
    pub(crate) async fn declare(&self, spec: Option<serde_json::Value>) {
        let id = self.pod.wanted.session.clone();
        let wanted_in_force = spec.is_some();
        let declared = |pod: &EnrolledPod, spec| Declared {
            id: pod.wanted.session.clone(),
            pods: vec![pod.wanted.clone()],
            spec: parse(spec),
            incarnation: None,
            last_used: None,
        };
        let neighbours = declared(&self.neighbour, Terms::default().spec);
        let declared = spec.map(|spec| declared(&self.pod, spec));
        let refused = declared.as_ref().is_some_and(|declared| declared.spec.is_err());
        let all = declared.into_iter().chain([neighbours]).collect();
        self.declare.send(all).await.unwrap();
        if refused {
            return;
        }
        while self.sessions.snapshot().in_force(&id).is_some() != wanted_in_force {
            tokio::task::yield_now().await;
        }
    }

    /// Where the upstream's CA is.
    pub(crate) fn upstream_ca(&self) -> std::path::PathBuf {
        self.directory.path().join("upstream.crt")
    }

    /// A connection of the pod's, as the enroller hands it over.
    pub(crate) async fn tcp(&self) -> TcpStream {
        self.tcp_of(&self.pod).await
    }

    /// A connection of another pod's, in the same session.
    pub(crate) async fn neighbour(&self) -> conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
        let io = self.tls_of(&enrolled("neighbour-0", "support/alice", 3), "h2").await;
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn tcp_of(&self, pod: &Arc<EnrolledPod>) -> TcpStream {
        let (client, accepted) = tokio::join!(
            TcpStream::connect(self.listener.local_addr().unwrap()),
            self.listener.accept()
        );
        let (stream, client_address) = accepted.unwrap();
        let inbound = Inbound {
            stream,
            pod: Arc::clone(pod),
            original_dst: OriginalDst("10.96.0.1:443".parse().unwrap()),
            client: ClientAddr(client_address),
        };
        self.inbound.send(inbound).await.unwrap();
        client.unwrap()
    }

    /// A listener of the agent's own, in the pod's session.
    pub(crate) fn outside(&self) -> SocketAddr {
        let session = self.pod.wanted.session.clone();
        let outside = Outside::bind("127.0.0.1:0".parse().unwrap(), session).unwrap();
        let address = outside.address().unwrap();
        tokio::spawn(outside.run(self.inbound.clone(), self.drain.clone()));
        address
    }

    pub(crate) async fn tls(&self, alpn: &str) -> TlsStream<TcpStream> {
        self.tls_of(&self.pod, alpn).await
    }

    async fn tls_of(&self, pod: &Arc<EnrolledPod>, alpn: &str) -> TlsStream<TcpStream> {
        Self::tls_over(self.tcp_of(pod).await, self.client_config(alpn), alpn)
            .await
            .unwrap()
    }

    /// How a client in a pod speaks TLS.
    pub(crate) fn client_config(&self, alpn: &str) -> ClientConfig {
        let mut config = self.client_terms().with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        config
    }

    /// What a client in the pod trusts.
    pub(crate) fn client_terms(&self) -> ConfigBuilder<ClientConfig, WantsClientCert> {
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots.clone())
    }

    pub(crate) async fn tls_under(&self, config: ClientConfig, alpn: &str) -> std::io::Result<TlsStream<TcpStream>> {
        Self::tls_over(self.tcp().await, config, alpn).await
    }

    pub(crate) async fn tls_over(
        stream: TcpStream,
        mut config: ClientConfig,
        alpn: &str,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let name = ServerName::try_from("kubernetes.default.svc").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// The audit log, once the events of all requests so far are in it.
    pub(crate) async fn events(&self) -> Vec<serde_json::Value> {
        self.audit.drain(std::time::Duration::from_secs(20)).await.unwrap();
        let log = std::fs::read_to_string(self.directory.path().join("audit.log")).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub(crate) async fn http1(&self) -> conn::http1::SendRequest<BoxBody<Bytes, Infallible>> {
        let (sender, connection) = conn::http1::handshake(TokioIo::new(self.tls("http/1.1").await))
            .await
            .unwrap();
        tokio::spawn(connection.with_upgrades());
        sender
    }

    pub(crate) async fn http2(&self) -> conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
        self.http2_of(&self.pod).await
    }

    pub(crate) async fn http2_of(
        &self,
        pod: &Arc<EnrolledPod>,
    ) -> conn::http2::SendRequest<BoxBody<Bytes, Infallible>> {
        let io = TokioIo::new(self.tls_of(pod, "h2").await);
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender
    }
}

fn enrolled(name: &str, session: &str, cgroup: u64) -> Arc<EnrolledPod> {
    Arc::new(EnrolledPod {
        wanted: WantedPod {
            cgroup: format!("kubepods/pod{cgroup}").into(),
            name: Arc::from(name),
            session: session.parse().unwrap(),
            uid: Some(format!("pod-{cgroup}").into()),
            service_account: Some(Arc::from("runner")),
        },
        cgroup_id: CgroupId(cgroup),
        gone: CancellationToken::new(),
        load: Load::default(),
        in_audit: understudy::audit::PodText::default(),
    })
}

/// As a resource where it names a Secret or a CA in itself, as a file says it otherwise.
fn parse(spec: serde_json::Value) -> Result<SessionSpec, SpecError> {
    let policy = Policy {
        allow_insecure_servers: true,
    };
    if spec["tokenSecretRef"].is_object() {
        SessionSpec::of_resource(spec, Some(jiff::Timestamp::now()), policy)
    } else {
        SessionSpec::parse(spec, policy)
    }
}

/// A request without a body, as a client in a pod sends it.
pub(crate) fn get(path: &str) -> Request<BoxBody<Bytes, Infallible>> {
    Request::get(format!("https://kubernetes.default.svc{path}"))
        .header("host", "kubernetes.default.svc")
        .header("authorization", "Bearer pod-token")
        .body(Full::default().boxed())
        .unwrap()
}

/// The same in origin form, for HTTP/1.1.
pub(crate) fn get1(path: &str) -> Request<BoxBody<Bytes, Infallible>> {
    let mut request = get(path);
    *request.uri_mut() = path.parse().unwrap();
    request
}

pub(crate) async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// A server certificate for 127.0.0.1 under a CA whose certificate is written to `upstream.crt`.
pub(crate) fn upstream_tls(directory: &Path, alpn: &[&str]) -> ServerConfig {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join("upstream.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

pub(crate) async fn start_upstream(directory: &Path, terms: &Terms, seen: Arc<Seen>, handler: Handler) -> SocketAddr {
    let tls = TlsAcceptor::from(Arc::new(upstream_tls(directory, &terms.alpn)));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = terms.streams;
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (tls, seen, handler) = (tls.clone(), Arc::clone(&seen), Arc::clone(&handler));
            tokio::spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let told = Arc::clone(&seen);
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let service = service_fn(move |request: Request<Incoming>| {
                    let (head, body) = request.into_parts();
                    seen.heads.lock().unwrap().push(head.clone());
                    let answer = handler(Request::from_parts(head, body));
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let io = TokioIo::new(stream);
                if http2 {
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .max_concurrent_streams(streams)
                        // As much as kube-apiserver takes.
                        .max_header_list_size(1 << 20)
                        .serve_connection(io, service);
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = connection.as_mut() => {}
                        () = told.go_away.notified() => {
                            connection.as_mut().graceful_shutdown();
                            let _ = connection.await;
                        }
                    }
                } else {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .max_headers(1024)
                        .serve_connection(io, service)
                        .with_upgrades()
                        .await;
                }
            });
        }
    });
    address
}

fn rustls_pem(pem: &[u8]) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem)
        .map(Result::unwrap)
        .collect()
}
