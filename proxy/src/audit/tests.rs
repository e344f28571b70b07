//! The audit log against sinks that stall, fail and vanish.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, mpsc as blocking},
};

use http::Request;
use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{sink::Pending, *};
use crate::{
    admin::Readiness,
    forward::Origin,
    identity::ActsAs,
    metrics::SinkMetrics,
    pod::{ClientAddr, EnrolledPod, OriginalDst},
    request_info::RequestInfo,
    status::Refusal,
};

const SOON: Duration = Duration::from_secs(30);

/// A sink that does with each write as it's told, and keeps what it took.
struct Told {
    orders: blocking::Receiver<io::Result<usize>>,
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Sink for Told {
    fn prepare(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Without orders any more, it takes all.
        let most = self.orders.recv().unwrap_or(Ok(usize::MAX))?;
        let taken = &bytes[..most.min(bytes.len())];
        self.kept.lock().unwrap().extend_from_slice(taken);
        Ok(taken.len())
    }

    fn close(&mut self) {}
}

type Orders = blocking::Sender<io::Result<usize>>;

fn terms(failure: AuditFailure, patience: Duration) -> Terms {
    Terms {
        failure,
        patience,
        node: Arc::from("node-1"),
        policy: Policy::default(),
        clock: Clock::system(),
    }
}

fn told(metrics: &Metrics) -> (Audit, Orders, Arc<Mutex<Vec<u8>>>) {
    told_by(metrics, terms(AuditFailure::Block, SOON))
}

fn told_by(metrics: &Metrics, terms: Terms) -> (Audit, Orders, Arc<Mutex<Vec<u8>>>) {
    told_beside(metrics, terms, &Readiness::default())
}

fn told_beside(metrics: &Metrics, terms: Terms, readiness: &Readiness) -> (Audit, Orders, Arc<Mutex<Vec<u8>>>) {
    let (sink, orders, kept) = told_sink();
    let lane = lane(AuditSink::Log, readiness.condition("audit"), metrics);
    (Audit::with_sinks(vec![(sink, lane)], terms, metrics), orders, kept)
}

fn told_sink() -> (Box<dyn Sink>, Orders, Arc<Mutex<Vec<u8>>>) {
    let (orders, receiver) = blocking::channel();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sink = Told {
        orders: receiver,
        kept: Arc::clone(&kept),
    };
    (Box::new(sink), orders, kept)
}

fn figures(metrics: &Metrics) -> SinkMetrics {
    metrics.audit(AuditSink::Log)
}

async fn to_file(path: &Path) -> Audit {
    try_file(path).await.unwrap()
}

async fn try_file(path: &Path) -> Result<Audit, AuditError> {
    let destination = Destination::new(path.into(), Rotation::default());
    let sinks = Sinks {
        log: Some((destination, Readiness::default().condition("audit"))),
        webhook: None,
    };
    Audit::start(sinks, terms(AuditFailure::Block, SOON), &Metrics::default()).await
}

async fn log(audit: &Audit, uri: &str) {
    audit.admit().await.unwrap().finish(to(uri));
}

/// Of a pod in session support/alice.
fn asked(uri: &str) -> Asked {
    let mut pod = EnrolledPod::outside("support/alice".parse().unwrap());
    pod.wanted.name = Arc::from("support/shell-0");
    pod.wanted.uid = Some(Arc::from("0b7c"));
    pod.wanted.service_account = Some(Arc::from("runner"));
    Asked {
        audit_id: "d9f2c3a4-0000-4000-8000-0123456789ab".parse().unwrap(),
        received: "2026-06-01T12:00:00.25Z".parse().unwrap(),
        pod: Arc::new(pod),
        node: Arc::from("node-1"),
        auth_method: "",
        method: "GET".into(),
        uri: uri.to_owned(),
        uri_truncated: false,
        source: None,
        user_agent: None,
    }
}

fn event(asked: Asked) -> Event {
    let target = asked.uri.parse();
    Event {
        reading: target.map_or(Ok(RequestInfo::NonResource), |target| {
            RequestInfo::parse(&asked.method.parse().unwrap(), &target)
        }),
        asked: Arc::new(asked),
        stage: Stage::ResponseComplete,
        level: Level::Metadata,
        elapsed: Duration::ZERO,
        acts_as: None,
        caller: None,
        code: 0,
        request_bytes: 0,
        response_bytes: 0,
        cut_short: false,
        upgrade: None,
        refused: None,
    }
}

fn to(uri: &str) -> Event {
    event(asked(uri))
}

fn line(event: &Event) -> String {
    let mut out = Vec::new();
    Scribe::default().event(&mut out, event);
    String::from_utf8(out).unwrap()
}

async fn written(audit: &Audit) {
    audit.drain(SOON).await.unwrap();
}

fn uris(lines: impl AsRef<[u8]>) -> Vec<String> {
    let lines = String::from_utf8(lines.as_ref().to_vec()).unwrap();
    lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["requestURI"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[tokio::test]
async fn an_event_says_who_did_what_as_whom() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = to_file(&path).await;
    let viewer = User::impersonated(&ActsAs::service_account("prod", "viewer").unwrap(), None);
    let event = Event {
        acts_as: Some(Arc::clone(viewer.json())),
        code: 101,
        request_bytes: 3,
        response_bytes: 42,
        elapsed: Duration::from_millis(1500),
        cut_short: true,
        upgrade: Some("websocket"),
        ..event(Asked {
            auth_method: "gateway-kubernetes-auth",
            method: "POST".into(),
            source: Some("127.0.0.1".parse().unwrap()),
            user_agent: Some("kubectl/v1.36".into()),
            ..asked("/apis/apps/v1/namespaces/prod/deployments/web/scale?x=1")
        })
    };
    audit.admit().await.unwrap().finish(event);
    written(&audit).await;
    let expected = concat!(
        r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","#,
        r#""auditID":"d9f2c3a4-0000-4000-8000-0123456789ab","stage":"ResponseComplete","#,
        r#""requestURI":"/apis/apps/v1/namespaces/prod/deployments/web/scale?x=1","verb":"create","#,
        r#""user":{"username":"system:serviceaccount:support:runner","#,
        r#""groups":["system:serviceaccounts","system:serviceaccounts:support","system:authenticated"],"#,
        r#""extra":{"authentication.kubernetes.io/pod-name":["shell-0"],"authentication.kubernetes.io/pod-uid":["0b7c"]}},"#,
        r#""impersonatedUser":{"username":"system:serviceaccount:prod:viewer","#,
        r#""groups":["system:serviceaccounts","system:serviceaccounts:prod","system:authenticated"]},"#,
        r#""sourceIPs":["127.0.0.1"],"userAgent":"kubectl/v1.36","#,
        r#""objectRef":{"resource":"deployments","namespace":"prod","name":"web","apiGroup":"apps","apiVersion":"v1","#,
        r#""subresource":"scale"},"responseStatus":{"metadata":{},"code":101},"#,
        r#""requestReceivedTimestamp":"2026-06-01T12:00:00.250000Z","stageTimestamp":"2026-06-01T12:00:01.750000Z","#,
        r#""annotations":{"understudy.dev/node":"node-1","understudy.dev/pod":"support/shell-0","#,
        r#""understudy.dev/session":"support/alice","understudy.dev/auth-method":"gateway-kubernetes-auth","#,
        r#""understudy.dev/http-method":"POST","understudy.dev/upgrade":"websocket","understudy.dev/cut-short":"true","#,
        r#""understudy.dev/request-bytes":"3","understudy.dev/response-bytes":"42"}}"#,
        "\n",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[rstest]
#[case::refused(
    Event { refused: Some(Refusal::Impersonation), code: 403, ..to("/") },
    json!({"responseStatus": {"metadata": {}, "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": Refusal::Impersonation.message()}, "annotations": {"refused": "impersonation"}})
)]
#[case::abandoned(to("/"), json!({"annotations": {}}))]
#[case::hostile(to("/\n\"\u{1b}é"), json!({"annotations": {}}))]
#[case::doubtful(to("/api/v1//pods"), json!({"annotations": {"doubt": "an empty segment"}}))]
#[case::cluster_wide(
    to("/api/v1/nodes?watch=1"),
    json!({"verb": "watch", "objectRef": {"resource": "nodes", "apiVersion": "v1"}, "annotations": {}})
)]
#[case::a_named_list(
    to("/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dweb"),
    json!({"verb": "list", "objectRef": {"resource": "pods", "namespace": "a", "name": "web", "apiVersion": "v1"},
        "annotations": {}})
)]
#[case::no_resource(event(Asked { method: "BREW".into(), ..asked("/healthz") }), json!({"verb": "brew", "annotations": {}}))]
#[case::a_caller(
    Event { caller: Some(CallerText { json: Arc::clone(User::anonymous().json()), proof: "none" }), ..to("/") },
    json!({"user": {"username": "system:anonymous", "groups": ["system:unauthenticated"]},
        "annotations": {"proof": "none"}})
)]
fn an_event_is_one_line_and_says_no_more_than_there_is(#[case] event: Event, #[case] beside: Value) {
    let text = line(&event);
    assert_eq!((text.lines().count(), text.ends_with('\n')), (1, true));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["requestURI"], event.asked.uri);
    for name in [
        "impersonatedUser",
        "sourceIPs",
        "userAgent",
        "objectRef",
        "responseStatus",
    ] {
        assert_eq!(line.get(name), beside.get(name), "{name}");
    }
    for name in ["verb", "user"] {
        assert!(beside[name].is_null() || line[name] == beside[name], "{name}: {line}");
    }
    for name in [
        "auth-method",
        "proof",
        "upgrade",
        "refused",
        "doubt",
        "cut-short",
        "uri-truncated",
    ] {
        let value = line["annotations"].get(format!("understudy.dev/{name}"));
        assert_eq!(value, beside["annotations"].get(name), "{name}");
    }
}

#[test]
fn a_request_that_runs_long_is_told_of_when_it_begins() {
    let begun = line(&Event {
        stage: Stage::ResponseStarted,
        ..to("/api/v1/pods?watch=1")
    });
    let begun: Value = serde_json::from_str(&begun).unwrap();
    assert_eq!(begun["stage"], "ResponseStarted");
    assert_eq!(
        begun["annotations"].get("understudy.dev/response-bytes"),
        None,
        "it isn't known"
    );
}

#[rstest]
#[case("/short".to_owned(), "GET", 6, None)]
#[case(format!("/{}", "x".repeat(10_000)), "GET", 4096, Some("true"))]
#[case(format!("/{}", "é".repeat(10_000)), "GET", 4095, Some("true"))]
#[case("/".to_owned(), "A-METHOD-OF-A-LENGTH-THAT-NO-METHOD-HAS", 1, None)]
fn what_is_long_is_cut(
    #[case] uri: String,
    #[case] method: &str,
    #[case] length: usize,
    #[case] truncated: Option<&str>,
) {
    let request = Request::builder()
        .uri(uri)
        .method(method)
        .header("user-agent", "x".repeat(2000))
        .body(())
        .unwrap();
    let origin = Origin {
        pod: Arc::clone(&asked("/").pod),
        original_dst: OriginalDst("10.96.0.1:443".parse().unwrap()),
        client: ClientAddr("127.0.0.1:4000".parse().unwrap()),
        certificate: None,
    };
    let asked = Asked::new(&origin, Arc::from("node-1"), Timestamp::UNIX_EPOCH, "", &request);
    let line: Value = serde_json::from_str(&line(&event(asked))).unwrap();
    let told = line["annotations"]
        .get("understudy.dev/uri-truncated")
        .and_then(Value::as_str);
    assert_eq!((line["requestURI"].as_str().unwrap().len(), told), (length, truncated));
    assert!(
        line["annotations"]["understudy.dev/http-method"]
            .as_str()
            .unwrap()
            .len()
            <= 32
    );
    let agent = line["userAgent"].as_str().unwrap();
    assert_eq!((agent.len(), &agent[1023..]), (1024 + 12, "x...TRUNCATED"));
}

#[tokio::test]
async fn a_long_name_takes_no_more_room_than_it_may() {
    let (audit, orders, kept) = told(&Metrics::default());
    drop(orders);
    log(&audit, &format!("/api/v1/namespaces/a/pods/{}", "x".repeat(50_000))).await;
    written(&audit).await;
    let line: Value = serde_json::from_slice(&kept.lock().unwrap()).unwrap();
    assert_eq!(line["objectRef"]["name"].as_str().unwrap().len(), 1024);
}

#[tokio::test]
async fn one_that_discards_admits_all() {
    let audit = Audit::discarding();
    log(&audit, "/").await;
    written(&audit).await;
}

#[tokio::test]
async fn a_stalled_sink_holds_new_requests_and_loses_nothing() {
    let metrics = Metrics::default();
    let (audit, orders, kept) = told(&metrics);
    let open_before = audit.admit().await.unwrap();
    for n in 0..BACKLOG {
        log(&audit, &format!("/{n}")).await;
    }
    let waiting = tokio::spawn({
        let audit = audit.clone();
        async move { log(&audit, "/waited").await }
    });
    // What was admitted ends without waiting, also over the bound.
    open_before.finish(to("/before"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "a request was admitted over the bound");
    assert!(matches!(audit.drain(Duration::from_millis(10)).await, Err(AuditError::Unwritten(n)) if n == BACKLOG + 1));

    drop(orders);
    timeout(SOON, waiting).await.unwrap().unwrap();
    written(&audit).await;
    let uris = uris(&*kept.lock().unwrap());
    assert_eq!(uris.len(), BACKLOG + 2);
    assert_eq!(uris.last().unwrap(), "/waited");
    assert_eq!(
        (figures(&metrics).backlog.get(), figures(&metrics).events.get()),
        (0, BACKLOG as u64 + 2)
    );
}

/// The lines that say what was lost: how much, and whether the time goes forward.
fn gaps(lines: &[u8]) -> Vec<(u64, bool)> {
    let lines = String::from_utf8(lines.to_vec()).unwrap();
    lines
        .lines()
        .filter_map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let said = &line["annotations"];
            let time = |name: &str| {
                said[format!("understudy.dev/lost-{name}")]
                    .as_str()?
                    .parse::<Timestamp>()
                    .ok()
            };
            let lost = said["understudy.dev/lost"].as_str()?.parse().ok()?;
            assert_eq!((&line["kind"], &line["verb"]), (&json!("Event"), &json!("gap")));
            assert_eq!(said["understudy.dev/node"], "node-1");
            Some((lost, time("since")? <= time("until")?))
        })
        .collect()
}

#[tokio::test]
async fn while_the_log_is_stuck_requests_are_refused_after_their_wait_and_that_is_written_down() {
    let metrics = Metrics::default();
    let terms = terms(AuditFailure::Block, Duration::from_millis(100));
    let (audit, orders, kept) = told_by(&metrics, terms);
    for n in 0..BACKLOG {
        log(&audit, &format!("/{n}")).await;
    }
    let began = std::time::Instant::now();
    assert_eq!(audit.admit().await.unwrap_err(), NoRoom);
    assert!(began.elapsed() >= Duration::from_millis(100), "it waited");
    assert_eq!(audit.admit_at_once().unwrap_err(), NoRoom);
    assert_eq!(
        (figures(&metrics).dropped.get(), figures(&metrics).backlog.get()),
        (2, i64::try_from(BACKLOG).unwrap())
    );
    drop(orders);
    written(&audit).await;
    log(&audit, "/after").await;
    written(&audit).await;
    let kept = kept.lock().unwrap();
    assert_eq!(gaps(&kept), [(2, true)]);
    assert_eq!(String::from_utf8_lossy(&kept).lines().count(), BACKLOG + 2);
}

#[tokio::test]
async fn where_the_operator_says_so_requests_go_on_and_the_gap_is_written_down() {
    let metrics = Metrics::default();
    let readiness = Readiness::default();
    let (audit, orders, kept) = told_beside(&metrics, terms(AuditFailure::Drop, SOON), &readiness);
    assert!(readiness.is_ready());
    for n in 0..BACKLOG + 10 {
        log(&audit, &format!("/{n}")).await;
    }
    assert_eq!(figures(&metrics).dropped.get(), 10);
    assert!(
        readiness
            .report()
            .to_string()
            .contains("the audit log can't be written")
    );
    orders.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    drop(orders);
    written(&audit).await;
    assert!(readiness.is_ready());
    log(&audit, "/after").await;
    written(&audit).await;
    let kept = kept.lock().unwrap();
    assert_eq!(gaps(&kept), [(10, true)]);
    assert_eq!(String::from_utf8_lossy(&kept).lines().count(), BACKLOG + 2);
}

#[tokio::test(start_paused = true)]
async fn a_failing_sink_is_tried_again_from_where_it_stopped() {
    let metrics = Metrics::default();
    let (audit, orders, kept) = told(&metrics);
    let full = || Err(io::ErrorKind::StorageFull.into());
    for order in [
        Ok(10),
        full(),
        full(),
        Ok(0),
        Err(io::ErrorKind::Interrupted.into()),
        Ok(1),
    ] {
        orders.send(order).unwrap();
    }
    drop(orders);
    log(&audit, "/a").await;
    log(&audit, "/b").await;
    written(&audit).await;
    assert_eq!(uris(&*kept.lock().unwrap()), ["/a", "/b"]);
    assert_eq!(figures(&metrics).write_failures.get(), 3);
}

#[rstest]
#[case::moved(true)]
#[case::removed(false)]
#[tokio::test]
async fn a_file_taken_away_is_made_again(#[case] moved: bool) {
    let directory = tempfile::tempdir().unwrap();
    let (path, old) = (directory.path().join("audit.log"), directory.path().join("audit.log.1"));
    let audit = to_file(&path).await;
    log(&audit, "/a").await;
    written(&audit).await;
    if moved {
        fs::rename(&path, &old).unwrap();
    } else {
        fs::remove_file(&path).unwrap();
    }
    log(&audit, "/b").await;
    written(&audit).await;
    assert_eq!(uris(fs::read(&path).unwrap()), ["/b"]);
    if moved {
        assert_eq!(uris(fs::read(&old).unwrap()), ["/a"]);
    }
}

#[tokio::test]
async fn reopening_goes_on_in_the_same_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = to_file(&path).await;
    for uri in ["/a", "/b"] {
        log(&audit, uri).await;
        written(&audit).await;
        audit.reopen();
    }
    log(&audit, "/c").await;
    written(&audit).await;
    assert_eq!(uris(fs::read(&path).unwrap()), ["/a", "/b", "/c"]);
}

#[test]
fn half_a_line_is_written_whole_in_a_new_file() {
    struct Short(Vec<u8>, usize, bool);
    impl Sink for Short {
        fn prepare(&mut self) -> io::Result<bool> {
            Ok(self.2)
        }
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = (self.1 - self.0.len()).min(bytes.len());
            self.0.extend_from_slice(&bytes[..room]);
            if room == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(room)
            }
        }
        fn close(&mut self) {}
    }
    let mut pending = Pending::of(b"one\ntwo\nthree\n");
    let mut full = Short(Vec::new(), 6, false);
    pending.write_to(&mut full).unwrap_err();
    let mut next = Short(Vec::new(), 99, true);
    pending.write_to(&mut next).unwrap();
    assert_eq!(
        (full.0.as_slice(), next.0.as_slice()),
        (&b"one\ntw"[..], &b"two\nthree\n"[..])
    );
}

#[tokio::test]
async fn says_where_it_cannot_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("none/audit.log");
    let started = try_file(&path).await;
    let error = started.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn destinations() {
    let rotation = Rotation {
        max_size: 1,
        ..Rotation::default()
    };
    assert_eq!(Destination::new("-".into(), rotation), Destination::Stdout);
    let file = Destination::new("/var/log/audit.log".into(), rotation);
    assert_eq!(file, Destination::File("/var/log/audit.log".into(), rotation));
}

#[rstest]
#[case::block(AuditFailure::Block, 0)]
#[case::drop(AuditFailure::Drop, 10)]
#[tokio::test]
async fn sinks_fail_apart(#[case] failure: AuditFailure, #[case] lost: usize) {
    let (metrics, readiness) = (Metrics::default(), Readiness::default());
    let ((good, good_orders, good_kept), (bad, bad_orders, bad_kept)) = (told_sink(), told_sink());
    drop(good_orders);
    let sinks = vec![
        (good, lane(AuditSink::Log, readiness.condition("audit"), &metrics)),
        (
            bad,
            lane(AuditSink::Webhook, readiness.condition("audit-webhook"), &metrics),
        ),
    ];
    let terms = terms(failure, Duration::from_millis(50));
    let audit = Audit::with_sinks(sinks, terms, &metrics);
    for n in 0..BACKLOG {
        log(&audit, &format!("/{n}")).await;
    }
    let good_has = async |events: usize| {
        let has = async {
            while figures(&metrics).events.get() < events as u64 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, has).await.unwrap();
    };
    good_has(BACKLOG).await;
    // The other is full.
    for n in 0..10 {
        match (failure, audit.admit().await) {
            (AuditFailure::Block, Err(NoRoom)) => {}
            (AuditFailure::Drop, Ok(ticket)) => ticket.finish(to(&format!("/more/{n}"))),
            (_, admitted) => panic!("{admitted:?}"),
        }
    }
    good_has(BACKLOG + lost).await;
    let report = readiness.report().to_string();
    assert!(
        report.contains("[+]audit ok") && report.contains("[-]audit-webhook"),
        "{report}"
    );
    let webhook = metrics.audit(AuditSink::Webhook);
    assert_eq!((figures(&metrics).dropped.get(), webhook.dropped.get()), (0, 10));
    assert_eq!(uris(&*good_kept.lock().unwrap()).len(), BACKLOG + lost);
    drop(bad_orders);
    written(&audit).await;
    assert_eq!(gaps(&bad_kept.lock().unwrap()), [(10, true)]);
    assert!(gaps(&good_kept.lock().unwrap()).is_empty());
}
