//! The audit log against sinks that stall, fail and vanish.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Mutex, mpsc as blocking},
};

use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::*;

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
        condition: Readiness::default().condition("audit"),
        clock: Clock::system(),
    }
}

fn told(metrics: &Metrics) -> (Audit, Orders, Arc<Mutex<Vec<u8>>>) {
    told_by(metrics, terms(AuditFailure::Refuse, SOON))
}

fn told_by(metrics: &Metrics, terms: Terms) -> (Audit, Orders, Arc<Mutex<Vec<u8>>>) {
    let (orders, receiver) = blocking::channel();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let sink = Told {
        orders: receiver,
        kept: Arc::clone(&kept),
    };
    (Audit::with_sink(Box::new(sink), terms, metrics), orders, kept)
}

async fn to_file(path: &Path) -> Audit {
    Audit::start(
        Destination::File(path.into()),
        terms(AuditFailure::Refuse, SOON),
        &Metrics::default(),
    )
    .await
    .unwrap()
}

async fn log(audit: &Audit, uri: &str) {
    audit.admit().await.unwrap().finish(to(uri));
}

fn to(uri: &str) -> Event {
    Event {
        uri: uri.to_owned(),
        ..Event::default()
    }
}

async fn written(audit: &Audit) {
    audit.drain(SOON).await.unwrap();
}

fn uris(lines: impl AsRef<[u8]>) -> Vec<String> {
    let lines = String::from_utf8(lines.as_ref().to_vec()).unwrap();
    lines
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["uri"]
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
    let event = Event {
        time: "2026-06-01T12:00:00Z".parse().unwrap(),
        audit_id: "d9f2".to_owned(),
        session: "support/alice".into(),
        pod: "shell-0".into(),
        node: "node-1".into(),
        auth_method: "gateway-kubernetes-auth",
        acts_as: Some("system:serviceaccount:prod:viewer".into()),
        verb: "POST".into(),
        uri: "/api/v1/pods?watch=1".to_owned(),
        code: 101,
        request_bytes: 3,
        response_bytes: 42,
        duration_ms: 1500,
        cut_short: true,
        upgrade: Some("websocket"),
        ..Event::default()
    };
    audit.admit().await.unwrap().finish(event);
    written(&audit).await;
    let line: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let expected = json!({
        "time": "2026-06-01T12:00:00Z", "auditId": "d9f2", "session": "support/alice", "pod": "shell-0",
        "node": "node-1", "authMethod": "gateway-kubernetes-auth", "actsAs": "system:serviceaccount:prod:viewer",
        "verb": "POST", "uri": "/api/v1/pods?watch=1", "code": 101, "requestBytes": 3, "responseBytes": 42,
        "durationMs": 1500, "cutShort": true, "upgrade": "websocket",
    });
    assert_eq!(line, expected);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[rstest]
#[case::refused(Event { refused: Some("impersonation"), code: 403, ..to("/") }, json!({"refused": "impersonation", "code": 403}))]
#[case::abandoned(to("/"), json!({}))]
#[case::hostile(to("/\n\"\u{1b}é"), json!({}))]
#[tokio::test]
async fn an_event_is_one_line(#[case] event: Event, #[case] beside: Value) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = to_file(&path).await;
    audit.admit().await.unwrap().finish(event.clone());
    written(&audit).await;
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().count(), 1);
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["uri"], event.uri);
    for key in [
        "refused",
        "code",
        "actsAs",
        "authMethod",
        "upgrade",
        "cutShort",
        "uriTruncated",
    ] {
        assert_eq!(line.get(key), beside.get(key), "{key}");
    }
}

#[rstest]
#[case("/short".to_owned(), 6, None)]
#[case(format!("/{}", "x".repeat(10_000)), 4096, Some(&json!(true)))]
#[case(format!("/{}", "é".repeat(10_000)), 4095, Some(&json!(true)))]
#[tokio::test]
async fn a_long_uri_is_cut(#[case] uri: String, #[case] length: usize, #[case] truncated: Option<&Value>) {
    let (audit, orders, kept) = told(&Metrics::default());
    drop(orders);
    log(&audit, &uri).await;
    written(&audit).await;
    let line: Value = serde_json::from_slice(&kept.lock().unwrap()).unwrap();
    assert_eq!(
        (line["uri"].as_str().unwrap().len(), line.get("uriTruncated")),
        (length, truncated)
    );
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
        (metrics.audit_backlog().get(), metrics.audit_events().get()),
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
            let time = |name: &str| line["gap"][name].as_str()?.parse::<jiff::Timestamp>().ok();
            assert!(line["gap"].is_null() || line["node"] == "node-1");
            Some((line["gap"]["lost"].as_u64()?, time("since")? <= time("until")?))
        })
        .collect()
}

#[tokio::test]
async fn while_the_log_is_stuck_requests_are_refused_after_their_wait_and_that_is_written_down() {
    let metrics = Metrics::default();
    let terms = terms(AuditFailure::Refuse, Duration::from_millis(100));
    let (audit, orders, kept) = told_by(&metrics, terms);
    for n in 0..BACKLOG {
        log(&audit, &format!("/{n}")).await;
    }
    let began = std::time::Instant::now();
    assert_eq!(audit.admit().await.unwrap_err(), NoRoom);
    assert!(began.elapsed() >= Duration::from_millis(100), "it waited");
    assert_eq!(audit.admit_at_once().unwrap_err(), NoRoom);
    assert_eq!(
        (metrics.audit_events_dropped().get(), metrics.audit_backlog().get()),
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
    let terms = Terms {
        condition: readiness.condition("audit"),
        ..terms(AuditFailure::Continue, SOON)
    };
    let (audit, orders, kept) = told_by(&metrics, terms);
    assert!(readiness.is_ready());
    for n in 0..BACKLOG + 10 {
        log(&audit, &format!("/{n}")).await;
    }
    assert_eq!(metrics.audit_events_dropped().get(), 10);
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
    assert_eq!(metrics.audit_write_failures().get(), 3);
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
    let started = Audit::start(
        Destination::File(path.clone()),
        terms(AuditFailure::Refuse, SOON),
        &Metrics::default(),
    )
    .await;
    let error = started.unwrap_err().to_string();
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

#[rstest]
#[case("-", Destination::Stdout)]
#[case("/var/log/audit.log", Destination::File("/var/log/audit.log".into()))]
fn destinations(#[case] text: &str, #[case] destination: Destination) {
    assert_eq!(text.parse(), Ok(destination));
}
