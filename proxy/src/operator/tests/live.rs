//! Those who look on.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{
    audit::tests::to,
    operator::view::NoticeView,
    tools::ask::{Lines, follow, follow_socket},
};

const SOON: Duration = Duration::from_secs(20);

struct Desk {
    directory: tempfile::TempDir,
    audit: Audit,
    stop: CancellationToken,
}

impl Desk {
    async fn open(times: Times) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (audit, stop) = (Audit::discarding(), CancellationToken::new());
        let operator = Operator::with_times(answers(&audit).await, times);
        let socket = Socket::bind(directory.path()).unwrap();
        tokio::spawn(operator.serve_socket(socket, stop.clone()));
        Self { directory, audit, stop }
    }

    async fn follow(&self, path: &str) -> Result<Lines, AskError> {
        follow_socket(&self.directory.path().join(SOCKET), path).await
    }

    async fn happen(&self, uri: &str) {
        self.audit.admit().await.unwrap().finish(to(uri));
    }
}

async fn next(lines: &mut Lines) -> Value {
    let line = time::timeout(SOON, lines.next()).await.unwrap().unwrap().unwrap();
    serde_json::from_slice(&line).unwrap()
}

/// The next line that isn't the answer's own, and that wasn't sent before `what` was asked for.
async fn event(lines: &mut Lines) -> Value {
    loop {
        let line = next(lines).await;
        if line["kind"] != NoticeView::KIND {
            return line;
        }
    }
}

#[tokio::test]
async fn events_are_heard_as_they_come_until_the_agent_ends() {
    let desk = Desk::open(Times::default()).await;
    let mut all = desk.follow("/v1/events").await.unwrap();
    let mut none = desk.follow("/v1/events?session=bob").await.unwrap();
    assert_eq!(next(&mut all).await["node"], "box", "it says that it begins");
    assert_eq!(next(&mut none).await["kind"], "Notice");
    for uri in ["/api", "/version"] {
        desk.happen(uri).await;
        let heard = event(&mut all).await;
        assert_eq!((&heard["requestURI"], &heard["kind"]), (&json!(uri), &json!("Event")));
    }
    let silence = time::timeout(Duration::from_millis(50), none.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    desk.stop.cancel();
    let end = time::timeout(SOON, all.next()).await.unwrap();
    assert!(!matches!(end, Ok(Some(_))), "{end:?}");
}

#[tokio::test]
async fn who_is_on_is_told_again_and_again() {
    let desk = Desk::open(Times::default()).await;
    let mut lines = desk.follow("/v1/sessions?every=1").await.unwrap();
    for _ in 0..2 {
        let view: SessionsView = serde_json::from_value(event(&mut lines).await).unwrap();
        assert_eq!((view.node.as_str(), view.sessions.len()), ("box", 1));
    }
}

#[rstest]
#[case("/v1/sessions?every=0", "from 1 to 60")]
#[case("/v1/sessions?every=61", "from 1 to 60")]
#[case("/v1/sessions?page=2", "from 1 to 60")]
#[case("/v1/events?user=jane", "user")]
#[case("/v1/events?code=4", "4xx")]
#[tokio::test]
async fn what_cannot_be_meant_is_refused(#[case] path: &str, #[case] says: &str) {
    let desk = Desk::open(Times::default()).await;
    let error = desk.follow(path).await.unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[tokio::test]
async fn no_more_look_on_than_may_and_the_others_are_answered() {
    let desk = Desk::open(Times::default()).await;
    let mut looking = Vec::new();
    for _ in 0..LOOKING_ON {
        looking.push(desk.follow("/v1/events").await.unwrap());
    }
    let refused = desk.follow("/v1/sessions?every=1").await.unwrap_err();
    assert!(
        refused.to_string().contains("look on at this agent already"),
        "{refused}"
    );
    let path = desk.directory.path().join(SOCKET);
    ask_socket::<SessionsView>(&path, "/v1/sessions").await.unwrap();
    looking.pop();
    let freed = async {
        while desk.follow("/v1/events").await.is_err() {
            time::sleep(Duration::from_millis(10)).await;
        }
    };
    time::timeout(SOON, freed).await.unwrap();
}

#[tokio::test]
async fn who_looks_on_may_stay_and_who_only_asks_may_not() {
    let desk = Desk::open(Times {
        lifetime: Duration::from_millis(100),
        ..Times::default()
    })
    .await;
    let mut lines = desk.follow("/v1/events").await.unwrap();
    next(&mut lines).await;
    let mut idle = UnixStream::connect(desk.directory.path().join(SOCKET)).await.unwrap();
    let read = time::timeout(SOON, idle.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap(), 0, "it is closed");
    desk.happen("/api").await;
    assert_eq!(event(&mut lines).await["requestURI"], "/api");
}

#[tokio::test]
async fn one_who_reads_nothing_is_cut_off() {
    let desk = Desk::open(Times {
        stall: Duration::from_millis(100),
        ..Times::default()
    })
    .await;
    let mut deaf = UnixStream::connect(desk.directory.path().join(SOCKET)).await.unwrap();
    deaf.write_all(b"GET /v1/events HTTP/1.1\r\nhost: understudy\r\n\r\n")
        .await
        .unwrap();
    let tail = desk.audit.tail();
    let begun = async {
        while !tail.is_heard() {
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(SOON, begun).await.unwrap();
    // Until it is cut off, it takes what the kernel has room for.
    let uri = format!("/{}", "a".repeat(4000));
    let cut = async {
        while tail.is_heard() {
            desk.happen(&uri).await;
            time::sleep(Duration::from_millis(1)).await;
        }
    };
    time::timeout(SOON, cut).await.unwrap();
}

#[tokio::test]
async fn one_whose_right_is_gone_is_told_so_and_hears_no_more() {
    static MAY: AtomicBool = AtomicBool::new(true);
    let mock = Mock::new(|asked| review(asked, MAY.load(Ordering::SeqCst)));
    let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let access = Access::new(mock.client(), "box".into(), Clock::system());
    let audit = Audit::discarding();
    let times = Times {
        recheck: Duration::from_millis(50),
        ..Times::default()
    };
    let operator = Operator::with_times(answers(&audit).await, times);
    tokio::spawn(operator.serve_tcp(listener, access, CancellationToken::new()));
    let stream = TcpStream::connect(address).await.unwrap();
    let bearer = HeaderValue::from_static("Bearer good");
    let mut lines = follow(stream, "/v1/events", Some(bearer), "of box").await.unwrap();
    audit.admit().await.unwrap().finish(to("/api"));
    assert_eq!(event(&mut lines).await["requestURI"], "/api");
    MAY.store(false, Ordering::SeqCst);
    let ended = async {
        loop {
            let notice: NoticeView = serde_json::from_value(next(&mut lines).await).unwrap();
            if let Some(why) = notice.ended {
                return why;
            }
        }
    };
    let why = time::timeout(SOON, ended).await.unwrap();
    assert!(why.contains("jane may not get agents.understudy.dev"), "{why}");
    audit.admit().await.unwrap().finish(to("/api"));
    let end = time::timeout(SOON, lines.next()).await.unwrap();
    assert!(matches!(end, Ok(None)), "{end:?}");
}
