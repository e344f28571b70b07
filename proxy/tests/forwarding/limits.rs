//! One pod at its limit: it is told so, and its neighbour doesn't notice.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::StatusCode;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    io::AsyncReadExt,
    sync::watch,
    time::{Instant, timeout},
};
use understudy::{limits::Limits, metrics::Limit};
use understudy_cases::{Area, seen};

use crate::{
    pooling::events_of,
    stage::{Stage, Terms, get, get1, text, whole},
};

const SOON: Duration = Duration::from_secs(20);

/// What a client is told: the code, the reason in the `Status`, and when it may come back.
pub(crate) async fn told(response: http::Response<Incoming>) -> String {
    let code = response.status();
    let retry_after = response.headers().get("retry-after").cloned();
    let body = text(response).await;
    let status: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&status["kind"], &status["code"]),
        (&"Status".into(), &code.as_u16().into())
    );
    let retry_after = retry_after.map_or(String::new(), |seconds| {
        format!(", Retry-After: {}", seconds.to_str().unwrap())
    });
    format!(
        "{} `Status` {}{retry_after}",
        code.as_u16(),
        status["reason"].as_str().unwrap()
    )
}

/// How many of as many requests of the neighbour's are answered.
async fn neighbour_passes(stage: &Stage, requests: usize) -> String {
    let mut client = stage.http2_of(&stage.neighbour).await;
    for _ in 0..requests {
        let response = timeout(SOON, client.send_request(get("/quick"))).await;
        assert_eq!(response.expect("answered").unwrap().status(), StatusCode::OK);
    }
    "all of a neighbour's requests are answered".to_owned()
}

/// A server that holds whatever path begins so, until it is told to go on, and answers the rest.
async fn holding(limits: Limits, alpn: Vec<&'static str>, streams: u32) -> (Stage, watch::Sender<&'static str>) {
    let (events, receiver) = watch::channel("");
    let terms = Terms {
        alpn,
        streams,
        limits,
        ..Terms::default()
    };
    let stage = Stage::new(terms, move |request| {
        let mut receiver = receiver.clone();
        async move {
            match request.uri().path() {
                "/held" => {
                    let _ = receiver.wait_for(|event| *event == "go on").await;
                    whole("held")
                }
                path if path.contains("watch") => events_of(receiver),
                _ => whole("quick"),
            }
        }
    })
    .await;
    (stage, events)
}

fn both() -> Vec<&'static str> {
    vec!["h2", "http/1.1"]
}

async fn until_sent(stage: &Stage, count: usize) {
    let sent = async {
        while stage.seen.count() < count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, sent).await.expect("the upstream sees them");
}

#[tokio::test]
async fn a_pod_with_all_its_requests_in_flight_is_told_to_come_back() {
    let limits = Limits {
        max_requests_per_pod: 3,
        ..Limits::default()
    };
    let (stage, events) = holding(limits, both(), 100).await;
    let client = stage.http2().await;
    let held: Vec<_> = (0..3)
        .map(|_| tokio::spawn(client.clone().send_request(get("/held"))))
        .collect();
    until_sent(&stage, 3).await;
    // Over both protocols, and however many connections it opens.
    let over = told(client.clone().send_request(get("/quick")).await.unwrap()).await;
    assert_eq!(
        told(stage.http1().await.send_request(get1("/quick")).await.unwrap()).await,
        over
    );
    assert_eq!(over, "429 `Status` TooManyRequests, Retry-After: 1");
    assert_eq!(stage.seen.count(), 3, "nothing of it goes upstream");
    assert_eq!(stage.metrics.limit_hits(Limit::RequestsPerPod), 2);
    let neighbour = neighbour_passes(&stage, 20).await;
    // Watches are counted apart.
    let watching = client.clone().send_request(get("/api/v1/watch/pods")).await.unwrap();
    assert_eq!(watching.status(), StatusCode::OK);
    events.send_replace("go on");
    for request in held {
        assert_eq!(text(request.await.unwrap().unwrap()).await, "held");
    }
    let after = client.clone().send_request(get("/quick")).await.unwrap();
    assert_eq!(after.status(), StatusCode::OK);
    seen(
        Area::Limits,
        "A request over the pod's limit on requests in flight",
        format!("{over}; nothing upstream; {neighbour}; 200 once one has ended"),
    );
}

#[tokio::test]
async fn a_pod_with_all_its_watches_open_is_told_to_come_back() {
    let limits = Limits {
        max_long_running_per_pod: 2,
        ..Limits::default()
    };
    let (stage, _events) = holding(limits, both(), 100).await;
    let mut client = stage.http2().await;
    let watch = "/api/v1/pods?watch=true&labelSelector=watch";
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(client.send_request(get("/api/v1/watch/pods")).await.unwrap());
    }
    let over = told(client.send_request(get(watch)).await.unwrap()).await;
    assert_eq!(over, "429 `Status` TooManyRequests, Retry-After: 1");
    assert_eq!(stage.seen.count(), 2);
    assert_eq!(stage.metrics.limit_hits(Limit::LongRunningPerPod), 1);
    let own = client.send_request(get("/quick")).await.unwrap().status();
    assert_eq!(own, StatusCode::OK, "its other requests go on");
    let neighbour = neighbour_passes(&stage, 20).await;
    open.pop();
    let again =
        async { while client.send_request(get("/api/v1/watch/pods")).await.unwrap().status() != StatusCode::OK {} };
    timeout(SOON, again).await.expect("one ended, one begins");
    seen(
        Area::Limits,
        "A watch over the pod's limit on long-running requests",
        format!(
            "{over}; nothing upstream; its other requests are answered {}; {neighbour}",
            own.as_u16()
        ),
    );
}

#[tokio::test]
async fn a_pod_with_all_its_connections_open_gets_no_further() {
    let limits = Limits {
        max_connections_per_pod: 2,
        ..Limits::default()
    };
    let (stage, _events) = holding(limits, both(), 100).await;
    let mut first = stage.http2().await;
    let second = stage.http1().await;
    let mut over = stage.tcp().await;
    let mut read = Vec::new();
    let end = timeout(SOON, over.read_to_end(&mut read)).await.expect("it is closed");
    assert!(read.is_empty());
    assert_eq!(stage.metrics.limit_hits(Limit::ConnectionsPerPod), 1);
    let neighbour = neighbour_passes(&stage, 20).await;
    assert_eq!(
        first.send_request(get("/quick")).await.unwrap().status(),
        StatusCode::OK
    );
    drop(second);
    let closed = async {
        while stage.pod.load.total() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, closed)
        .await
        .expect("the count falls with the connection");
    let again = stage.http1().await.send_request(get1("/quick")).await.unwrap();
    assert_eq!(again.status(), StatusCode::OK);
    let end = if end.is_ok() { "closed" } else { "reset" };
    seen(
        Area::Limits,
        "A connection over the pod's limit on connections",
        format!("{end} without a byte; its open connections go on; {neighbour}"),
    );
}

#[tokio::test]
async fn a_pods_handshakes_wait_for_one_another_and_for_nobody_elses() {
    let limits = Limits {
        max_handshakes_per_pod: 2,
        handshake_timeout: Duration::from_secs(3),
        ..Limits::default()
    };
    let (stage, _events) = holding(limits, both(), 100).await;
    let silent = (stage.tcp().await, stage.tcp().await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let neighbour = neighbour_passes(&stage, 20).await;
    let began = Instant::now();
    let late = stage.http1().await.send_request(get1("/quick")).await.unwrap();
    assert_eq!(late.status(), StatusCode::OK, "it has its turn when their time is up");
    assert!(
        began.elapsed() > Duration::from_millis(500),
        "and waits for it: {:?}",
        began.elapsed()
    );
    let hits = [Limit::HandshakeTimeout, Limit::HandshakesPerPod].map(|limit| stage.metrics.limit_hits(limit));
    assert_eq!(hits, [2, 1]);
    drop(silent);
    seen(
        Area::Limits,
        "TLS handshakes that are begun and never finished",
        format!("closed at --handshake-timeout; the pod's further ones wait for a place until then; {neighbour}"),
    );
}

#[tokio::test]
async fn a_session_with_all_its_connections_in_use_queues_and_then_refuses() {
    let limits = Limits {
        max_upstream_connections: 1,
        queue_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    let (stage, events) = holding(limits, both(), 1).await;
    let mut client = stage.http2().await;
    let open = client.send_request(get("/api/v1/watch/pods")).await.unwrap();
    let over = told(client.send_request(get("/quick")).await.unwrap()).await;
    assert_eq!(over, "429 `Status` TooManyRequests, Retry-After: 1");
    let upgrade = told(stage.http1().await.send_request(upgrading()).await.unwrap()).await;
    assert_eq!(upgrade, over, "an upgrade needs a connection as well");
    assert_eq!(stage.metrics.limit_hits(Limit::UpstreamConnections), 2);
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 1);
    let neighbour = neighbour_passes(&stage, 20).await;
    let waiting = tokio::spawn(client.clone().send_request(get("/quick")));
    drop(open);
    let answered = timeout(SOON, waiting)
        .await
        .expect("it gets its turn")
        .unwrap()
        .unwrap();
    assert_eq!(answered.status(), StatusCode::OK);
    drop(events);
    seen(
        Area::Limits,
        "A request when the session has all its connections upstream in use",
        format!("waits its turn; after --queue-timeout {over}; nothing upstream; {neighbour}"),
    );
}

fn upgrading() -> http::Request<http_body_util::combinators::BoxBody<bytes::Bytes, std::convert::Infallible>> {
    let mut request = get1("/api/v1/namespaces/prod/pods/a/exec");
    let headers = request.headers_mut();
    headers.insert("connection", "Upgrade".parse().unwrap());
    headers.insert("upgrade", "websocket".parse().unwrap());
    request
}

#[tokio::test]
async fn over_http1_requests_take_turns_on_as_many_connections_as_there_may_be() {
    let limits = Limits {
        max_upstream_connections: 2,
        ..Limits::default()
    };
    let (stage, _events) = holding(limits, vec!["http/1.1"], 1).await;
    let stage = Arc::new(stage);
    let mut requests = Vec::new();
    let client = stage.http2().await;
    for _ in 0..50 {
        requests.push(tokio::spawn(client.clone().send_request(get("/quick"))));
    }
    for request in requests {
        let answer = timeout(SOON, request).await.expect("its turn comes").unwrap().unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "quick");
    }
    let connections = stage.seen.connections.load(Ordering::SeqCst);
    assert!(connections <= 2, "{connections}");
}
