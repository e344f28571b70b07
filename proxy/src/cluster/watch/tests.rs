//! Following against a mocked API server, on a paused clock.

use std::sync::Mutex;

use kube::core::gvk::GroupVersionKind;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};

use super::*;
use crate::cluster::mock::{Answer, Asked, Mock, event, list};

fn object(name: &str, version: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "a", "resourceVersion": version}})
}

fn query() -> Query {
    Query {
        what: Watched::Pods,
        resource: ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Pod"), "pods"),
        namespace: None,
        labels: Some("understudy.dev/session".into()),
        fields: Some("spec.nodeName=one".into()),
    }
}

fn start(mock: &Mock) -> watch::Receiver<Seen<String>> {
    follow(
        mock.client(),
        query(),
        &Metrics::new(),
        Arc::new(Notify::new()),
        |object| object.metadata.name.unwrap_or_default(),
    )
}

fn names(seen: &Seen<String>) -> Option<Vec<String>> {
    seen.objects.as_ref().map(|objects| objects.values().cloned().collect())
}

async fn until(seen: &mut watch::Receiver<Seen<String>>, expected: &[&str]) {
    let wait = seen.wait_for(|seen| names(seen).is_some_and(|names| names == expected));
    timeout(Duration::from_mins(10), wait)
        .await
        .expect("it is never seen")
        .unwrap();
}

fn is_watch(asked: &Asked) -> bool {
    asked.query.contains("watch=true")
}

/// Answers of a kind in their order; the last of each again and again.
struct Script {
    lists: Vec<Answer>,
    watches: Vec<Answer>,
}

fn scripted(script: Script) -> Mock {
    let script = Mutex::new(script);
    Mock::new(move |asked| {
        let mut script = script.lock().unwrap();
        let answers = if is_watch(asked) {
            &mut script.watches
        } else {
            &mut script.lists
        };
        if answers.is_empty() {
            return Answer::Nothing;
        }
        answers.remove(0)
    })
}

#[tokio::test(start_paused = true)]
async fn what_is_listed_and_then_changes_is_seen() {
    let (say, watching) = Answer::watch([]);
    let mock = scripted(Script {
        lists: vec![Answer::json(200, list("1", &[object("x", "1")]))],
        watches: vec![watching],
    });
    let mut seen = start(&mock);
    assert!(seen.borrow().objects.is_none());
    until(&mut seen, &["x"]).await;
    say.send(event("ADDED", &object("y", "2"))).unwrap();
    until(&mut seen, &["x", "y"]).await;
    say.send(event("DELETED", &object("x", "3"))).unwrap();
    until(&mut seen, &["y"]).await;
    let asked = mock.seen();
    assert!(
        asked[0].query.contains("labelSelector=understudy.dev%2Fsession"),
        "{}",
        asked[0].query
    );
    assert!(
        asked[0].query.contains("fieldSelector=spec.nodeName%3Done"),
        "{}",
        asked[0].query
    );
    assert!(
        asked[1].query.contains("allowWatchBookmarks=true"),
        "{}",
        asked[1].query
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_breaks_is_resumed_where_it_was() {
    let bookmark = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"resourceVersion": "7"}});
    let (first, broken) = Answer::watch([event("BOOKMARK", &bookmark)]);
    drop(first);
    let (say, watching) = Answer::watch([]);
    let mock = scripted(Script {
        lists: vec![Answer::json(200, list("1", &[object("x", "1")]))],
        watches: vec![broken, Answer::Nothing, watching],
    });
    let mut seen = start(&mock);
    until(&mut seen, &["x"]).await;
    say.send(event("ADDED", &object("y", "8"))).unwrap();
    until(&mut seen, &["x", "y"]).await;
    let watches: Vec<_> = mock.seen().into_iter().filter(is_watch).collect();
    assert_eq!(watches.len(), 3);
    assert!(watches[2].query.contains("resourceVersion=7"), "{}", watches[2].query);
    assert_eq!(
        mock.seen().iter().filter(|asked| !is_watch(asked)).count(),
        1,
        "nothing is listed anew"
    );
}

#[tokio::test(start_paused = true)]
async fn after_gone_a_new_list_takes_the_old_ones_place_at_once() {
    let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "code": 410, "reason": "Expired",
        "message": "too old resource version", "status": "Failure"});
    let (_first, broken) = Answer::watch([event("ERROR", &gone)]);
    let (_say, watching) = Answer::watch([]);
    let mock = scripted(Script {
        lists: vec![
            Answer::json(200, list("1", &[object("x", "1"), object("y", "1")])),
            Answer::json(500, json!({})),
            Answer::json(200, list("9", &[object("y", "1"), object("z", "9")])),
        ],
        watches: vec![broken, watching],
    });
    let mut seen = start(&mock);
    // Every state that is published on the way.
    let (state, mut states) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while seen.changed().await.is_ok() {
            let now = names(&seen.borrow_and_update());
            if state.send(now).is_err() {
                return;
            }
        }
    });
    let mut all: Vec<Vec<String>> = Vec::new();
    while all.last().is_none_or(|last| last != &["y", "z"]) {
        let next = timeout(Duration::from_mins(10), states.recv())
            .await
            .expect("it is never listed")
            .unwrap();
        all.extend(next);
    }
    all.dedup();
    assert_eq!(all, [["x", "y"], ["y", "z"]], "what stayed was never missing");
}

#[tokio::test(start_paused = true)]
async fn a_lost_api_server_leaves_what_was_seen_and_is_asked_ever_more_slowly() {
    let (say, watching) = Answer::watch([]);
    let mock = scripted(Script {
        lists: vec![Answer::json(200, list("1", &[object("x", "1")]))],
        watches: vec![watching],
    });
    let mut seen = start(&mock);
    until(&mut seen, &["x"]).await;
    let before = mock.seen().len();
    drop(say);
    sleep(Duration::from_mins(5)).await;
    assert_eq!(names(&seen.borrow()).unwrap(), ["x"]);
    assert!(seen.borrow().failing.is_some());
    let tries = mock.seen().len() - before;
    // 0.8 s doubled up to 10 s, and up to as much again of jitter.
    assert!((14..=36).contains(&tries), "{tries} tries in five minutes");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_read_any_more_is_not_followed_any_more() {
    let mock = scripted(Script {
        lists: vec![],
        watches: vec![],
    });
    let mut seen = start(&mock);
    seen.changed().await.unwrap();
    assert!(seen.borrow().failing.is_some());
    assert!(
        seen.borrow().objects.is_none(),
        "before the first list nothing is known"
    );
    drop(seen);
    let before = mock.seen().len();
    sleep(Duration::from_mins(5)).await;
    assert!(mock.seen().len() <= before + 1, "{:?}", mock.seen().len() - before);
}
