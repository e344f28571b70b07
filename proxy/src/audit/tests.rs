//! The audit log against sinks that stall, fail and vanish.

mod events;

use std::{
    fs, io,
    path::Path,
    sync::{Mutex, mpsc as blocking},
};

use jiff::Timestamp;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{sink::Pending, *};
use crate::{admin::Readiness, metrics::SinkMetrics, pod::EnrolledPod, request_info::RequestInfo};

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
        bodies: BodyTerms::default(),
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
        recording: None,
        refused: None,
        bodies: None,
        bodies_left_out: false,
    }
}

pub(crate) fn to(uri: &str) -> Event {
    event(asked(uri))
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
async fn one_that_discards_admits_all() {
    let audit = Audit::discarding();
    log(&audit, "/").await;
    written(&audit).await;
}

#[tokio::test]
async fn its_task_ends_when_nobody_is_left_and_all_is_written() {
    let (audit, orders, kept) = told(&Metrics::default());
    let open = audit.admit().await.unwrap();
    log(&audit, "/a").await;
    drop(audit);
    open.finish(to("/b"));
    let ends = async {
        // The sink goes with the task.
        while orders.send(Ok(usize::MAX)).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, ends).await.unwrap();
    assert_eq!(uris(&*kept.lock().unwrap()), ["/a", "/b"]);
}

#[tokio::test]
async fn what_waited_behind_a_stalled_sink_is_not_one_write() {
    let metrics = Metrics::default();
    let (audit, orders, kept) = told(&metrics);
    // The first is stuck before the others come.
    log(&audit, "/first").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for n in 1..2000 {
        log(&audit, &format!("/{n}")).await;
    }
    for (write, counted) in [(1, 1), (2, 1 + 512), (3, 1 + 2 * 512)] {
        orders.send(Ok(usize::MAX)).unwrap();
        let counts = async {
            while figures(&metrics).events.get() < counted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, counts).await.unwrap();
        assert_eq!(figures(&metrics).events.get(), counted, "after {write} writes");
        assert_eq!(figures(&metrics).backlog.get(), 2000 - i64::try_from(counted).unwrap());
    }
    drop(orders);
    written(&audit).await;
    let uris = uris(&*kept.lock().unwrap());
    assert_eq!(uris.len(), 2000);
    assert!(
        uris.iter()
            .skip(1)
            .enumerate()
            .all(|(n, uri)| *uri == format!("/{}", n + 1)),
        "in order"
    );
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

#[tokio::test(start_paused = true)]
async fn a_sink_that_takes_a_little_at_a_time_is_not_kept_waiting() {
    const TURNS: u32 = 40;
    let (audit, orders, kept) = told(&Metrics::default());
    for _ in 0..TURNS {
        orders.send(Ok(10)).unwrap();
        orders.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
    }
    drop(orders);
    log(&audit, "/a").await;
    let began = time::Instant::now();
    written(&audit).await;
    assert_eq!(uris(&*kept.lock().unwrap()), ["/a"]);
    assert!(
        began.elapsed() < Duration::from_millis(100) * (TURNS + 1),
        "{:?}",
        began.elapsed()
    );
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

#[tokio::test]
async fn bodies_that_wait_take_no_more_room_than_they_may() {
    const EACH: usize = 40 << 20;
    let (audit, orders, kept) = told(&Metrics::default());
    let terms = BodyTerms {
        limit: EACH,
        ..BodyTerms::default()
    };
    let body = format!("\"{}\"", "x".repeat(EACH - 2));
    // Three before the writer has its turn, of which one has room; then one more.
    for n in 0..4 {
        let capture = Capture::of(&http::HeaderMap::new(), EACH);
        capture.passes(body.as_bytes());
        let bodies = Bodies::take([Some(&capture), None], &terms, false);
        audit.admit().await.unwrap().finish(Event {
            bodies: bodies.map(Arc::new),
            ..to(&format!("/api/v1/namespaces/a/pods/{n}"))
        });
        if n == 2 {
            orders.send(Ok(usize::MAX)).unwrap();
            written(&audit).await;
        }
    }
    drop(orders);
    written(&audit).await;
    let kept = String::from_utf8(kept.lock().unwrap().clone()).unwrap();
    let said: Vec<(bool, bool)> = kept
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let left_out = line["annotations"]["understudy.dev/request-object"] == "left out: too many events wait";
            (line["requestObject"].is_string(), left_out)
        })
        .collect();
    assert_eq!(said, [(true, false), (false, true), (false, true), (true, false)]);
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
