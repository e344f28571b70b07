//! Watches, and the limit of streams that they press against.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rstest::rstest;
use serde_json::{Value, json};
use tokio::time::timeout;
use understudy_tests::apiserver::{EventType, Settings};

use crate::{
    ADMIN, Fixture,
    client::{Client, Version, bearer, request},
};

const LIMIT: Duration = Duration::from_secs(20);

async fn watch(client: &mut Client, path: &str) -> Response<Incoming> {
    let token = bearer(ADMIN);
    let request = request(Method::GET, path, &[("authorization", &token)], "");
    client.send(request).await.unwrap()
}

/// The next event of a watch; `None` at its end.
async fn event(body: &mut Incoming) -> Option<Value> {
    loop {
        let frame = timeout(LIMIT, body.frame()).await.expect("an event in time")?;
        let data: Bytes = frame.unwrap().into_data().unwrap();
        // The end of an HTTP/2 stream may be a frame without data.
        if !data.is_empty() {
            assert!(data.ends_with(b"\n"), "one event, one chunk");
            return Some(serde_json::from_slice(&data).unwrap());
        }
    }
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}})
}

#[rstest]
#[tokio::test]
async fn events_arrive_one_by_one(#[values(Version::Http1, Version::Http2)] version: Version) {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, version).await;
    fixture
        .control
        .push(EventType::Added, config_map("before"))
        .await
        .unwrap();
    let path = "/api/v1/namespaces/default/configmaps?watch=true";
    let mut body = watch(&mut client, path).await.into_body();
    assert_eq!(event(&mut body).await.unwrap()["object"]["metadata"]["name"], "before");
    let mut changed = config_map("before");
    changed["data"] = json!({"a": "1"});
    for (kind, object, name) in [
        (EventType::Added, config_map("one"), "ADDED"),
        (EventType::Modified, changed, "MODIFIED"),
        (EventType::Deleted, config_map("one"), "DELETED"),
    ] {
        fixture.control.push(kind, object).await.unwrap();
        assert_eq!(event(&mut body).await.unwrap()["type"], name);
    }
}

#[tokio::test]
async fn a_watch_resumes_ends_and_is_told_what_is_gone() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let start = fixture.control.overview().await.unwrap().resource_version;
    fixture.control.push(EventType::Added, config_map("one")).await.unwrap();
    let path = format!("/api/v1/configmaps?watch=1&timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion={start}");
    let mut body = watch(&mut client, &path).await.into_body();
    assert_eq!(event(&mut body).await.unwrap()["type"], "ADDED");
    assert_eq!(event(&mut body).await, None);

    let settings = Settings {
        bookmark_interval_ms: 50,
        ..Settings::default()
    };
    fixture.control.change_settings(&settings).await.unwrap();
    let now = fixture.control.overview().await.unwrap().resource_version;
    let path = format!("/api/v1/configmaps?watch=1&allowWatchBookmarks=true&resourceVersion={now}");
    let mut body = watch(&mut client, &path).await.into_body();
    let bookmark = event(&mut body).await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], now.to_string());

    fixture.control.compact().await.unwrap();
    let path = format!("/api/v1/configmaps?watch=1&resourceVersion={start}");
    let mut body = watch(&mut client, &path).await.into_body();
    assert_eq!(event(&mut body).await.unwrap()["object"]["code"], 410);
    assert_eq!(event(&mut body).await, None);
}

#[tokio::test]
async fn an_open_watch_is_told_that_it_is_too_old_and_a_page_that_its_list_is() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    for name in ["one", "two"] {
        fixture.control.push(EventType::Added, config_map(name)).await.unwrap();
    }
    let mut body = watch(&mut client, "/api/v1/pods?watch=1").await.into_body();
    assert_eq!(event(&mut body).await.unwrap()["type"], "ADDED");
    let token = bearer(ADMIN);
    let headers = [("authorization", token.as_str())];
    let (_, page) = client.get("/api/v1/configmaps?limit=1", &headers).await;
    let next = page["metadata"]["continue"].as_str().unwrap().to_owned();
    fixture
        .control
        .push(EventType::Added, config_map("three"))
        .await
        .unwrap();

    fixture.control.expire_watches().await.unwrap();
    let told = event(&mut body).await.unwrap();
    assert_eq!((&told["type"], &told["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event(&mut body).await, None);
    let path = format!("/api/v1/configmaps?limit=1&continue={next}");
    let (code, gone) = client.get(&path, &headers).await;
    assert_eq!((code, &gone["reason"]), (410, &json!("Expired")));
    let version = page["metadata"]["resourceVersion"].as_str().unwrap();
    let path = format!("/api/v1/configmaps?resourceVersion={version}&resourceVersionMatch=Exact");
    assert_eq!(client.get(&path, &headers).await.0, 410);
}

#[tokio::test]
async fn initial_events_end_with_their_bookmark() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let path = "/api/v1/pods?watch=1&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let mut body = watch(&mut client, path).await.into_body();
    assert_eq!(event(&mut body).await.unwrap()["type"], "ADDED");
    let bookmark = event(&mut body).await.unwrap();
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn an_object_comes_and_goes_with_its_label() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let path = "/api/v1/configmaps?watch=1&labelSelector=session";
    let mut body = watch(&mut client, path).await.into_body();
    let mut labelled = config_map("one");
    labelled["metadata"]["labels"] = json!({"session": "alice"});
    for (kind, object) in [
        (EventType::Added, config_map("one")),
        (EventType::Modified, labelled),
        (EventType::Modified, config_map("one")),
        (EventType::Deleted, config_map("one")),
    ] {
        fixture.control.push(kind, object).await.unwrap();
    }
    fixture
        .control
        .push(EventType::Added, {
            let mut last = config_map("last");
            last["metadata"]["labels"] = json!({"session": "bob"});
            last
        })
        .await
        .unwrap();
    for (kind, name) in [("ADDED", "one"), ("DELETED", "one"), ("ADDED", "last")] {
        let event = event(&mut body).await.unwrap();
        assert_eq!(event["type"], kind);
        assert_eq!(event["object"]["metadata"]["name"], name);
    }
}

#[tokio::test]
async fn no_more_streams_are_open_than_allowed() {
    let settings = Settings {
        max_streams: 3,
        ..Settings::default()
    };
    let fixture = Fixture::with(|builder| builder.tokens(crate::TOKENS).settings(settings)).await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(watch(&mut client, "/api/v1/configmaps?watch=1").await);
    }
    let fourth = watch(&mut client, "/api/v1/configmaps?watch=1");
    tokio::pin!(fourth);
    let waits = timeout(Duration::from_millis(300), &mut fourth).await;
    assert!(waits.is_err(), "a fourth stream was let in");
    let connections = fixture.control.connections().await.unwrap();
    assert_eq!((connections[0].streams, connections[0].peak_streams), (3, 3));
    open.pop();
    timeout(LIMIT, fourth).await.expect("room for the fourth");
    assert_eq!(fixture.control.connections().await.unwrap()[0].peak_streams, 3);
}

#[tokio::test]
async fn a_thousand_watches_get_each_event() {
    const WATCHES: usize = 1000;
    let fixture = Fixture::start().await;
    let mut bodies = Vec::new();
    for _ in 0..WATCHES / 100 {
        let mut client = Client::connect(&fixture, Version::Http2).await;
        for _ in 0..100 {
            bodies.push(watch(&mut client, "/api/v1/configmaps?watch=1").await.into_body());
        }
    }
    assert_eq!(fixture.control.overview().await.unwrap().watches, WATCHES);
    for name in ["one", "two", "three"] {
        fixture.control.push(EventType::Added, config_map(name)).await.unwrap();
    }
    for body in &mut bodies {
        for name in ["one", "two", "three"] {
            assert_eq!(event(body).await.unwrap()["object"]["metadata"]["name"], name);
        }
    }
}
