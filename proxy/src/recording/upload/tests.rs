//! Recordings on their way to a store that is told how to fare.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::*;
use crate::{
    metrics::UploadOutcome,
    recording::{
        about::About,
        cast::{Cast, End},
    },
};

/// Takes objects in plaintext, by S3's API and by PUT.
#[derive(Debug, Default)]
struct Fake {
    objects: Mutex<BTreeMap<String, Bytes>>,
    parts: Mutex<Vec<Bytes>>,
    requests: Mutex<Vec<String>>,
    /// So many requests are answered 503 first.
    failing: AtomicUsize,
    /// Where not even the collection is there.
    collections: Mutex<Option<Vec<String>>>,
}

impl Fake {
    async fn serve() -> (Arc<Self>, SocketAddr) {
        let fake = Arc::<Self>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let fake = Arc::clone(&fake);
                    async move { Ok::<_, std::convert::Infallible>(fake.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        (fake, address)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let Ok(body) = body.collect().await.map(http_body_util::Collected::to_bytes) else {
            return answer(StatusCode::BAD_REQUEST, "");
        };
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        self.requests.lock().unwrap().push(format!("{} {path}", head.method));
        let failing = self.failing.load(Ordering::SeqCst);
        if failing > 0 {
            self.failing.store(failing - 1, Ordering::SeqCst);
            return answer(
                StatusCode::SERVICE_UNAVAILABLE,
                "<Error><Code>SlowDown</Code>the secret</Error>",
            );
        }
        if head.method.as_str() == "MKCOL" {
            self.collections.lock().unwrap().get_or_insert_default().push(path);
            return answer(StatusCode::CREATED, "");
        }
        match (&head.method, query.as_str()) {
            (&Method::POST, "uploads=") => {
                return answer(
                    StatusCode::OK,
                    "<InitiateMultipartUploadResult><UploadId>7</UploadId></InitiateMultipartUploadResult>",
                );
            }
            (&Method::PUT, query) if query.contains("partNumber=") => self.parts.lock().unwrap().push(body),
            (&Method::POST, "uploadId=7") => {
                let parts = std::mem::take(&mut *self.parts.lock().unwrap());
                self.objects.lock().unwrap().insert(path, parts.concat().into());
                return answer(
                    StatusCode::OK,
                    "<CompleteMultipartUploadResult><ETag>\"1\"</ETag></CompleteMultipartUploadResult>",
                );
            }
            (&Method::PUT, _) => {
                let parent = &path[..=path.rfind('/').unwrap()];
                let is_there = |made: &Vec<String>| made.iter().any(|made| made == parent);
                if self
                    .collections
                    .lock()
                    .unwrap()
                    .as_ref()
                    .is_some_and(|made| !is_there(made))
                {
                    return answer(StatusCode::CONFLICT, "");
                }
                self.objects.lock().unwrap().insert(path, body);
            }
            _ => return answer(StatusCode::METHOD_NOT_ALLOWED, ""),
        }
        answer(StatusCode::OK, "")
    }

    fn has(&self, path: &str) -> Option<Bytes> {
        self.objects.lock().unwrap().get(path).cloned()
    }
}

fn answer(code: StatusCode, body: &str) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(code).header("etag", "\"1\"");
    answer.body(Full::from(body.to_owned())).unwrap()
}

const NAME: &str = "20261122T140501Z_support_alice_6f1c7a52.cast";
const OBJECT: &str = "/recordings/a/20261122/20261122T140501Z_support_alice_6f1c7a52_node-1.cast";

fn options(url: &str) -> Options {
    Options {
        destination: url.parse().unwrap(),
        remove: false,
        ca: None,
        login: Login::Anonymous,
        endpoint: None,
        region: "us-east-1".to_owned(),
        path_style: true,
        allow_plaintext: false,
    }
}

fn by_http(address: SocketAddr) -> Options {
    options(&format!("http://{address}/recordings/a"))
}

fn by_s3(address: SocketAddr) -> Options {
    Options {
        endpoint: Some(format!("http://{address}").parse().unwrap()),
        ..options("s3://recordings/a")
    }
}

/// A directory with one recording, of as many bytes at least.
fn one_recording(bytes: usize) -> (TempDir, Vec<u8>) {
    let directory = tempfile::tempdir().unwrap();
    let about = About {
        session: "x".repeat(bytes),
        ..About::default()
    };
    let mut whole = Vec::new();
    let mut cast = Cast::begin(&mut whole, &about, jiff::Timestamp::UNIX_EPOCH).unwrap();
    cast.end(Duration::ZERO, End::Closed).unwrap();
    fs::write(directory.path().join(NAME), &whole).unwrap();
    (directory, whole)
}

struct Started {
    uploads: Uploads,
    counts: UploadCounts,
    ended: Arc<Notify>,
}

async fn start(directory: &Path, options: Options) -> Started {
    let metrics = Metrics::new();
    let ended = Arc::<Notify>::default();
    let uploads = Uploads::start(directory, "node-1", options, Arc::clone(&ended), &metrics).await;
    Started {
        uploads: uploads.unwrap(),
        counts: metrics.recording().upload().clone(),
        ended,
    }
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[rstest::rstest]
#[case::http(by_http)]
#[case::s3(by_s3)]
#[tokio::test]
async fn a_recording_gets_there_as_it_is(#[case] options: fn(SocketAddr) -> Options) {
    let (fake, address) = Fake::serve().await;
    let (directory, whole) = one_recording(100);
    let started = start(directory.path(), options(address)).await;
    until("it is stored", || fake.has(OBJECT).is_some()).await;
    assert_eq!(fake.has(OBJECT).unwrap(), whole);
    // One that comes later is brought at once, not when somebody looks around next.
    let second = NAME.replace("0501Z", "0502Z");
    fs::copy(directory.path().join(NAME), directory.path().join(&second)).unwrap();
    let before = Instant::now();
    started.ended.notify_one();
    until("the second", || started.counts.attempts(UploadOutcome::Stored) == 2).await;
    assert!(before.elapsed() < LOOK_AROUND / 2);
    started.uploads.drain(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(fs::read(directory.path().join(NAME)).unwrap(), whole);
    let requests = fake.requests.lock().unwrap().len();
    // The next agent has nothing to do.
    let next = start(directory.path(), options(address)).await;
    next.uploads.drain(Instant::now() + Duration::from_secs(5)).await;
    assert_eq!(
        (fake.requests.lock().unwrap().len(), next.counts.backlog()),
        (requests, 0)
    );
}

#[rstest::rstest]
#[case::http(by_http)]
#[case::s3(by_s3)]
#[tokio::test]
async fn a_long_one_gets_there_in_parts(#[case] options: fn(SocketAddr) -> Options) {
    let (fake, address) = Fake::serve().await;
    let size = usize::try_from(store::PART).unwrap() * 2 + 12_345;
    let (directory, whole) = one_recording(size);
    let started = start(directory.path(), options(address)).await;
    until("it is stored", || fake.has(OBJECT).is_some()).await;
    assert_eq!(fake.has(OBJECT).unwrap(), whole);
    until("counted", || started.counts.attempts(UploadOutcome::Stored) == 1).await;
}

#[tokio::test]
async fn a_store_that_fails_is_asked_again_and_nothing_is_removed_before() {
    let (fake, address) = Fake::serve().await;
    let (directory, whole) = one_recording(100);
    fake.failing.store(2, Ordering::SeqCst);
    let options = Options {
        remove: true,
        ..by_http(address)
    };
    let started = start(directory.path(), options).await;
    until("an attempt that failed", || {
        started.counts.attempts(UploadOutcome::Failed) > 0
    })
    .await;
    assert!(directory.path().join(NAME).exists());
    until("it waits", || started.counts.backlog() == 1).await;
    until("it is stored and removed", || !directory.path().join(NAME).exists()).await;
    assert_eq!(fake.has(OBJECT).unwrap(), whole);
    assert_eq!(started.counts.attempts(UploadOutcome::Failed), 2);
    until("none waits", || started.counts.backlog() == 0).await;
}

#[tokio::test]
async fn collections_are_made_where_there_are_none() {
    let (fake, address) = Fake::serve().await;
    *fake.collections.lock().unwrap() = Some(Vec::new());
    let (directory, whole) = one_recording(100);
    let _started = start(directory.path(), by_http(address)).await;
    until("it is stored", || fake.has(OBJECT).is_some()).await;
    assert_eq!(fake.has(OBJECT).unwrap(), whole);
    let made = fake.collections.lock().unwrap().clone().unwrap();
    assert_eq!(made, ["/recordings/", "/recordings/a/", "/recordings/a/20261122/"]);
}

#[tokio::test]
async fn two_agents_bring_each_once() {
    let (fake, address) = Fake::serve().await;
    let (directory, _) = one_recording(100);
    for second in 10..40 {
        let name = NAME.replace("0501Z", &format!("05{second}Z"));
        fs::copy(directory.path().join(NAME), directory.path().join(name)).unwrap();
    }
    let first = start(directory.path(), by_http(address)).await;
    let second = start(directory.path(), by_http(address)).await;
    until("all are stored", || fake.objects.lock().unwrap().len() == 31).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    tokio::join!(first.uploads.drain(deadline), second.uploads.drain(deadline));
    assert_eq!(fake.requests.lock().unwrap().len(), 31);
}

#[tokio::test]
async fn a_drain_has_its_end_though_the_store_answers_nothing() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (directory, _) = one_recording(100);
    let started = start(directory.path(), by_http(silent.local_addr().unwrap())).await;
    let _held = silent.accept().await.unwrap();
    let before = Instant::now();
    started.uploads.drain(before + Duration::from_millis(300)).await;
    assert!(before.elapsed() < Duration::from_secs(5));
    // Whoever comes next has it.
    let (fake, address) = Fake::serve().await;
    let _next = start(directory.path(), by_http(address)).await;
    until("it is stored", || fake.has(OBJECT).is_some()).await;
}

#[rstest::rstest]
#[case::http("http://192.0.2.1/a", None)]
#[case::endpoint("s3://audit", Some("http://minio.example.org:9000"))]
#[case::mapped("http://[::ffff:192.0.2.1]/a", None)]
#[tokio::test]
async fn plaintext_stays_on_this_machine(#[case] url: &str, #[case] endpoint: Option<&str>) {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        endpoint: endpoint.map(|url| url.parse().unwrap()),
        ..options(url)
    };
    let metrics = Metrics::new();
    let refused = Uploads::start(directory.path(), "node-1", options.clone(), Arc::default(), &metrics).await;
    let error = refused.map(drop).unwrap_err().to_string();
    assert!(error.contains("--recording-upload-allow-plaintext"), "{error}");
    let allowed = Options {
        allow_plaintext: true,
        ..options
    };
    Uploads::start(directory.path(), "node-1", allowed, Arc::default(), &metrics)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_a_name_leads_to_counts() {
    // Past what is seen at the start: the connection itself is refused. It would get to this machine, as it happens.
    let config = client_config(RootCertStore::empty(), &[]).unwrap();
    let transport = Transport::new(Trusted::System(Arc::new(config)), false);
    let body = http_body_util::Empty::new()
        .map_err(|never| match never {})
        .boxed_unsync();
    let request = Request::get("http://0.0.0.0:9/a").body(body).unwrap();
    let error = transport.send(request).await.unwrap_err().to_string();
    assert!(error.contains("isn't this machine"), "{error}");
}

#[tokio::test]
async fn a_node_without_a_name_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let started = Uploads::start(
        directory.path(),
        "",
        options("s3://audit"),
        Arc::default(),
        &Metrics::new(),
    )
    .await;
    assert!(started.map(drop).unwrap_err().to_string().contains("--node-name"));
}
