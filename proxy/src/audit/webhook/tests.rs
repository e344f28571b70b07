//! The webhook against one that is slow, fails, is gone, or takes events and doesn't say so.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    path::Path,
    sync::{Mutex, atomic::AtomicUsize, atomic::Ordering},
};

use http::Response;
use hyper::{body::Incoming, service::service_fn};
use prometheus_client::metrics::gauge::Gauge;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rstest::rstest;
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs, pki_types::PrivateKeyDer, server::WebPkiClientVerifier};
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::audit::{sink::Pending, spool::Appender};

const SOON: Duration = Duration::from_secs(30);

/// What it does with a request.
#[derive(Debug, Clone, Copy)]
enum Does {
    Take,
    /// Without a word.
    TakeAndHangUp,
    Refuse(u16),
    /// Those with more events.
    RefuseBeyond(usize),
}

/// A webhook that does with each request as it's told, and takes when it isn't.
#[derive(Debug, Default)]
struct Told {
    orders: Mutex<VecDeque<Does>>,
    /// The events of each request that it took.
    taken: Mutex<Vec<Vec<String>>>,
    tokens: Mutex<Vec<String>>,
    asked: AtomicUsize,
    connections: AtomicUsize,
}

impl Told {
    fn events(&self) -> Vec<String> {
        self.taken.lock().unwrap().concat()
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, io::Error> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(request.method(), "POST");
        assert_eq!(request.uri().path(), "/audit");
        assert_eq!(request.headers()["content-type"], "application/json");
        if let Some(token) = request.headers().get("authorization") {
            self.tokens.lock().unwrap().push(token.to_str().unwrap().to_owned());
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let list: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&list["kind"], &list["apiVersion"]),
            (&"EventList".into(), &"audit.k8s.io/v1".into())
        );
        let items = list["items"].as_array().unwrap().iter();
        let events: Vec<String> = items
            .map(|event| event["auditID"].as_str().unwrap().to_owned())
            .collect();
        let does = self.orders.lock().unwrap().pop_front().unwrap_or(Does::Take);
        let code = match does {
            Does::Refuse(code) => code,
            Does::RefuseBeyond(most) if events.len() > most => {
                // It stays so.
                self.orders.lock().unwrap().push_front(does);
                413
            }
            Does::RefuseBeyond(_) => {
                self.orders.lock().unwrap().push_front(does);
                self.taken.lock().unwrap().push(events);
                200
            }
            Does::Take => {
                self.taken.lock().unwrap().push(events);
                200
            }
            Does::TakeAndHangUp => {
                self.taken.lock().unwrap().push(events);
                return Err(io::Error::other("hangs up"));
            }
        };
        let answer = Response::builder().status(code).body(Full::new(Bytes::from("{}")));
        Ok(answer.unwrap())
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    fn certificate(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }

    fn roots(&self) -> RootCertStore {
        crate::trust::roots::parse_roots(self.pem.as_bytes(), Path::new("ca")).unwrap()
    }
}

/// Serves at `address`, asking clients for a certificate where `asks`.
async fn serve(address: SocketAddr, ca: &Ca, asks: bool, told: Arc<Told>) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let (certificate, key) = ca.certificate("127.0.0.1");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if asks {
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(ca.roots()), provider);
        builder.with_client_cert_verifier(verifier.build().unwrap())
    } else {
        builder.with_no_client_auth()
    };
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, told) = (acceptor.clone(), Arc::clone(&told));
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                told.connections.fetch_add(1, Ordering::SeqCst);
                let service = service_fn(move |request| {
                    let told = Arc::clone(&told);
                    async move { told.answer(request).await }
                });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    (address, serving)
}

fn anywhere() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// A kubeconfig beside its CA.
fn write(directory: &Path, ca: &Ca, address: SocketAddr, user: &str) -> PathBuf {
    std::fs::write(directory.join("ca.crt"), &ca.pem).unwrap();
    let path = directory.join("webhook.yaml");
    let text = format!(
        "apiVersion: v1\nkind: Config\n\
        clusters: [{{name: sink, cluster: {{server: 'https://{address}/audit', certificate-authority: ca.crt}}}}]\n\
        users: [{{name: agent, user: {user}}}]\n\
        contexts: [{{name: default, context: {{cluster: sink, user: agent}}}}]\n\
        current-context: default\n"
    );
    std::fs::write(&path, text).unwrap();
    path
}

struct Stage {
    directory: tempfile::TempDir,
    told: Arc<Told>,
    ca: Ca,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
    spool: Spool,
    metrics: WebhookMetrics,
}

impl Stage {
    async fn new(user: &str, asks: bool, orders: impl IntoIterator<Item = Does>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let told = Arc::new(Told::default());
        told.orders.lock().unwrap().extend(orders);
        let ca = Ca::new();
        let (address, serving) = serve(anywhere(), &ca, asks, Arc::clone(&told)).await;
        let (certificate, key) = ca.certificate("agent");
        std::fs::write(directory.path().join("client.crt"), certificate.pem()).unwrap();
        std::fs::write(directory.path().join("client.key"), key.serialize_pem()).unwrap();
        std::fs::write(directory.path().join("token"), "from-a-file\n").unwrap();
        write(directory.path(), &ca, address, user);
        let spool = Spool::begin(&directory.path().join("queue"), 1 << 20, &Gauge::default()).unwrap();
        Self {
            directory,
            told,
            ca,
            address,
            serving,
            spool,
            metrics: WebhookMetrics::default(),
        }
    }

    async fn start(&self) {
        let endpoint = Endpoint::load(&self.directory.path().join("webhook.yaml"))
            .await
            .unwrap();
        let webhook = Webhook {
            endpoint,
            queue: PathBuf::new(),
            queue_size: 0,
        };
        webhook.start(self.spool.clone(), self.metrics.clone());
    }

    async fn until(&self, holds: impl Fn(&Told) -> bool) {
        let waits = async {
            while !holds(&self.told) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let held = timeout(SOON, waits).await.is_ok();
        assert!(held, "in vain waited: {:?}", self.told);
    }
}

fn append(appender: &mut Appender, ids: std::ops::Range<usize>) {
    let lines: Vec<String> = ids.map(|id| format!("{{\"auditID\":\"{id}\"}}\n")).collect();
    Pending::of(lines.concat().as_bytes()).write_to(appender).unwrap();
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|id| id.to_string()).collect()
}

#[rstest]
#[case::nobody("{}", None)]
#[case::token("{token: inline}", Some("Bearer inline"))]
#[case::token_file("{tokenFile: token}", Some("Bearer from-a-file"))]
#[case::certificate("{client-certificate: client.crt, client-key: client.key}", None)]
#[tokio::test]
async fn events_arrive_in_order_over_one_connection(#[case] user: &str, #[case] token: Option<&str>) {
    let stage = Stage::new(user, user.contains("client-key"), []).await;
    let mut appender = stage.spool.appender();
    append(&mut appender, 0..1000);
    stage.start().await;
    stage.until(|told| told.events().len() >= 1000).await;
    append(&mut appender, 1000..1001);
    // Counted once it is known to have arrived, which is after that.
    stage.until(|_| stage.metrics.sent.get() >= 1001).await;
    assert_eq!(stage.told.events(), ids(0..1001));
    let sizes: Vec<usize> = stage.told.taken.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes, [400, 400, 200, 1]);
    assert_eq!(stage.told.connections.load(Ordering::SeqCst), 1);
    assert!(
        stage
            .told
            .tokens
            .lock()
            .unwrap()
            .iter()
            .all(|shown| Some(shown.as_str()) == token)
    );
    assert_eq!(stage.told.tokens.lock().unwrap().is_empty(), token.is_none());
    assert_eq!((stage.metrics.sent.get(), stage.metrics.failures.get()), (1001, 0));
}

#[tokio::test]
async fn what_is_refused_is_sent_again_and_nothing_overtakes_it() {
    let orders = [Does::Refuse(500), Does::Refuse(429), Does::Refuse(401), Does::Take];
    let stage = Stage::new("{}", false, orders).await;
    let mut appender = stage.spool.appender();
    append(&mut appender, 0..3);
    stage.start().await;
    stage.until(|told| told.asked.load(Ordering::SeqCst) >= 1).await;
    append(&mut appender, 3..6);
    stage.until(|told| told.events().len() >= 6).await;
    assert_eq!(stage.told.events(), ids(0..6));
    assert_eq!(stage.metrics.failures.get(), 3);
}

#[tokio::test]
async fn what_was_taken_without_a_word_comes_again() {
    let stage = Stage::new("{}", false, [Does::TakeAndHangUp]).await;
    let mut appender = stage.spool.appender();
    append(&mut appender, 0..2);
    stage.start().await;
    stage.until(|told| told.events().len() >= 4).await;
    assert_eq!(stage.told.events(), ["0", "1", "0", "1"], "at least once, in order");
}

#[tokio::test]
async fn fewer_go_together_where_they_are_too_many() {
    let stage = Stage::new("{}", false, [Does::RefuseBeyond(30)]).await;
    let mut appender = stage.spool.appender();
    append(&mut appender, 0..200);
    stage.start().await;
    stage.until(|told| told.events().len() >= 200).await;
    assert_eq!(stage.told.events(), ids(0..200));
    assert_eq!(stage.metrics.failures.get(), 0, "it isn't one");
}

#[tokio::test]
async fn events_wait_for_a_webhook_that_is_gone() {
    let stage = Stage::new("{}", false, []).await;
    let mut appender = stage.spool.appender();
    stage.start().await;
    append(&mut appender, 0..2);
    stage.until(|told| told.events().len() >= 2).await;
    stage.serving.abort();
    append(&mut appender, 2..4);
    let waits = async {
        while stage.metrics.failures.get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waits).await.unwrap();
    append(&mut appender, 4..6);
    let _again = serve(stage.address, &stage.ca, false, Arc::clone(&stage.told)).await;
    stage.until(|told| told.events().len() >= 6).await;
    assert_eq!(stage.told.events(), ids(0..6));
}

#[tokio::test]
async fn a_server_of_another_ca_gets_nothing() {
    let stage = Stage::new("{token: inline}", false, []).await;
    std::fs::write(stage.directory.path().join("ca.crt"), Ca::new().pem).unwrap();
    let mut appender = stage.spool.appender();
    append(&mut appender, 0..1);
    stage.start().await;
    let waits = async {
        while stage.metrics.failures.get() == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waits).await.unwrap();
    assert_eq!(stage.told.asked.load(Ordering::SeqCst), 0);
    // Read anew: it is mended without a restart.
    std::fs::write(stage.directory.path().join("ca.crt"), &stage.ca.pem).unwrap();
    stage.until(|told| told.events().len() == 1).await;
}

#[rstest]
#[case("certificate-authority: ca.crt", "certificate-authority: none.crt", "none.crt")]
#[case(", certificate-authority: ca.crt", "", "certificate-authority is missing")]
#[case(
    "certificate-authority: ca.crt",
    "insecure-skip-tls-verify: true",
    "insecure-skip-tls-verify is not for"
)]
#[case("https://", "http://", "server: url")]
#[case(
    "current-context: default",
    "current-context: other",
    "contexts: \"other\" is missing"
)]
#[case("cluster: sink", "cluster: other", "clusters: \"other\" is missing")]
#[case("user: agent", "user: other", "users: \"other\" is missing")]
#[case("user: {}", "user: {exec: {command: x}}", "exec")]
#[case("user: {}", "user: {client-key: client.key}", "client-certificate is missing")]
#[case("user: {}", "user: {client-certificate: client.crt}", "client-key is missing")]
#[case(
    "user: {}",
    "user: {client-certificate-data: '%', client-key: client.key}",
    "client-certificate-data is not base64"
)]
#[case("user: {}", "user: {token: 'a b'}", "token")]
#[tokio::test]
async fn what_cannot_be_used_stops_the_start(#[case] from: &str, #[case] to: &str, #[case] expected: &str) {
    let stage = Stage::new("{}", false, []).await;
    let path = stage.directory.path().join("webhook.yaml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    let error = Endpoint::load(&path).await.unwrap_err().to_string();
    assert!(error.contains(expected) && error.contains("audit webhook"), "{error}");
}

#[tokio::test]
async fn no_error_shows_a_token() {
    let stage = Stage::new("{token: [s3cr3t-t0ken-of-the-webhook]}", false, []).await;
    let error = Endpoint::load(&stage.directory.path().join("webhook.yaml"))
        .await
        .unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
}

#[tokio::test]
async fn what_an_earlier_agent_left_is_sent_first() {
    let stage = Stage::new("{}", false, []).await;
    let root = stage.directory.path().join("queue");
    let earlier = Spool::begin(&root, 1 << 20, &Gauge::default()).unwrap();
    append(&mut earlier.appender(), 0..3);
    let mut appender = stage.spool.appender();
    append(&mut appender, 3..5);
    drop(earlier);
    stage.start().await;
    stage.until(|told| told.events().len() >= 5).await;
    assert_eq!(stage.told.events(), ids(0..5));
    let waits = async {
        while std::fs::read_dir(&root).unwrap().count() > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, waits).await.unwrap();
}
