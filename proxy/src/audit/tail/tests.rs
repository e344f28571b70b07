use std::time::Duration;

use rstest::rstest;
use serde_json::Value;
use tokio::time::timeout;

use super::*;
use crate::{
    audit::{Audit, event::Level, tests::to},
    status::Refusal,
};

fn tail() -> Tail {
    Tail::new("node-1".into(), Clock::system(), Counter::default())
}

async fn heard(listener: &mut Listener) -> Vec<Value> {
    let lines = timeout(Duration::from_secs(5), listener.next()).await.unwrap();
    let lines = String::from_utf8(lines).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn event(code: u16, refused: Option<Refusal>) -> Event {
    Event {
        code,
        refused,
        ..to("/apis")
    }
}

#[rstest]
#[case::all("", true)]
#[case::session("session=alice", true)]
#[case::session_in_full("session=support%2Falice", true)]
#[case::another_session("session=bob", false)]
#[case::elsewhere("session=prod%2Falice", false)]
#[case::namespace("namespace=support", true)]
#[case::another_namespace("namespace=prod", false)]
#[case::pod("pod=shell-0", true)]
#[case::pod_in_full("pod=support%2Fshell-0", true)]
#[case::another_pod("pod=shell", false)]
#[case::verb("verb=get", true)]
#[case::one_of_verbs("verb=list&verb=get", true)]
#[case::another_verb("verb=list", false)]
#[case::code("code=403", true)]
#[case::another_code("code=404", false)]
#[case::class("code=4xx", true)]
#[case::one_of_codes("code=200&code=4xx", true)]
#[case::another_class("code=5xx", false)]
#[case::refused("refused=true", true)]
#[case::all_of_it("session=alice&namespace=support&pod=shell-0&verb=get&code=403&refused=true", true)]
#[case::all_but_one("session=alice&verb=get&code=200", false)]
fn what_is_wanted(#[case] query: &str, #[case] expected: bool) {
    let filter = Filter::from_query(query).unwrap();
    assert_eq!(filter.matches(&event(403, Some(Refusal::NoSession))), expected);
    assert_eq!(Filter::from_query(&filter.to_query()).unwrap(), filter);
}

#[test]
fn only_what_the_agent_refused_is_a_refusal() {
    let filter = Filter::from_query("refused").unwrap();
    assert!(!filter.matches(&event(403, None)), "it is the API server's");
    assert!(!filter.matches(&event(0, None)));
}

#[rstest]
#[case("code=4x", "4xx")]
#[case("code=9xx", "4xx")]
#[case("code=40", "403")]
#[case("user=jane", "user")]
#[case("pod=%ff", "pod")]
fn what_cannot_be_meant(#[case] query: &str, #[case] says: &str) {
    let error = Filter::from_query(query).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

#[tokio::test]
async fn each_hears_what_it_wants() {
    let tail = tail();
    tail.tell(&event(200, None));
    let (mut all, mut bad) = (
        tail.listen(Filter::default()),
        tail.listen(Filter::from_query("code=5xx").unwrap()),
    );
    for code in [200, 503] {
        tail.tell(&event(code, None));
    }
    let codes = |events: Vec<Value>| -> Vec<Value> {
        events
            .into_iter()
            .map(|event| event["responseStatus"]["code"].clone())
            .collect()
    };
    assert_eq!(codes(heard(&mut all).await), [200, 503]);
    assert_eq!(codes(heard(&mut bad).await), [503]);
    drop(bad);
    assert_eq!(tail.0.listening.load(Ordering::Relaxed), 1);
    drop(all);
    assert_eq!(tail.0.listening.load(Ordering::Relaxed), 0);
    assert!(tail.0.readers.read().unwrap().is_empty());
}

#[tokio::test]
async fn one_that_does_not_keep_up_is_told_what_it_lost_and_holds_nobody_up() {
    let tail = tail();
    let (mut slow, mut quick) = (tail.listen(Filter::default()), tail.listen(Filter::default()));
    let mut quick_heard = 0;
    for _ in 0..=(QUEUE + 5) / BATCH {
        for _ in 0..BATCH {
            tail.tell(&event(200, None));
        }
        quick_heard += heard(&mut quick).await.len();
    }
    let told = (QUEUE + 5) / BATCH * BATCH + BATCH;
    assert_eq!(quick_heard, told);
    let (mut events, mut lost) = (0, 0);
    while events + lost < told {
        for event in heard(&mut slow).await {
            match event["annotations"]["understudy.dev/lost"].as_str() {
                Some(count) => lost += count.parse::<usize>().unwrap(),
                None => events += 1,
            }
        }
    }
    assert_eq!((events, lost), (QUEUE, told - QUEUE));
}

#[tokio::test]
async fn the_log_is_heard_without_any_sink_and_without_bodies() {
    let audit = Audit::discarding();
    let mut listener = audit.tail().listen(Filter::default());
    let mut event = Event {
        level: Level::RequestResponse,
        ..to("/api")
    };
    event.bodies_left_out = true;
    audit.admit().await.unwrap().finish(event);
    let events = heard(&mut listener).await;
    assert_eq!(events[0]["requestURI"], "/api");
    assert_eq!(events[0]["annotations"]["understudy.dev/request-object"], Value::Null);
    assert_eq!(events[0].get("requestObject"), None);
}

#[tokio::test]
async fn what_the_policy_leaves_out_is_counted_and_not_heard() {
    let audit = Audit::discarding();
    audit.admit().await.unwrap().omit();
    let mut listener = audit.tail().listen(Filter::default());
    assert_eq!(listener.omitted(), 0, "since it listens");
    audit.admit().await.unwrap().omit();
    assert_eq!(listener.omitted(), 1);
    let silence = timeout(Duration::from_millis(50), listener.next()).await;
    assert!(silence.is_err(), "{silence:?}");
}
