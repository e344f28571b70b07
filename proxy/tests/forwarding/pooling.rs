//! Connections upstream: reused, and as many as the streams need.

use std::{sync::atomic::Ordering, time::Duration};

use http_body_util::BodyExt;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::stage::{Answer, Stage, Terms, get, get1, text, whole};

#[tokio::test]
async fn connections_upstream_are_reused() {
    for alpn in ["h2", "http/1.1"] {
        let stage = Stage::new(
            Terms {
                alpn: vec![alpn],
                ..Terms::default()
            },
            |_| async { whole("x") },
        )
        .await;
        for _ in 0..20 {
            // A new client connection each time: the upstream's is the session's, not the client's.
            let response = stage.http1().await.send_request(get1("/api")).await.unwrap();
            assert_eq!(text(response).await, "x");
        }
        assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 1, "over {alpn}");
        assert_eq!(stage.seen.count(), 20);
    }
}

#[tokio::test]
async fn a_thousand_watches_over_one_connection_reach_a_server_that_allows_a_hundred() {
    let (events, receiver) = watch::channel("");
    let stage = Stage::new(
        Terms {
            streams: 100,
            ..Terms::default()
        },
        move |_| {
            let receiver = receiver.clone();
            async move { events_of(receiver) }
        },
    )
    .await;
    let client = stage.http2().await;
    let mut watches = Vec::new();
    for index in 0..1_000 {
        let mut client = client.clone();
        watches.push(tokio::spawn(async move {
            let response = client.send_request(get(&format!("/watch/{index}"))).await.unwrap();
            response.into_body()
        }));
    }
    let mut bodies = Vec::new();
    for watch in watches {
        bodies.push(
            timeout(Duration::from_mins(1), watch)
                .await
                .expect("each watch begins")
                .unwrap(),
        );
    }
    assert_eq!(stage.seen.count(), 1_000);
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 10);
    for event in ["first", "second"] {
        events.send_replace(event);
        for body in &mut bodies {
            let frame = timeout(Duration::from_mins(1), body.frame())
                .await
                .expect("each event arrives");
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), event);
        }
    }
}

/// One is kept, and the others make room, here and with the server.
#[tokio::test]
async fn connections_that_a_crowd_has_left_over_are_closed() {
    let (_events, receiver) = watch::channel("");
    let stage = Stage::new(
        Terms {
            streams: 10,
            ..Terms::default()
        },
        move |_| {
            let receiver = receiver.clone();
            async move { events_of(receiver) }
        },
    )
    .await;
    let crowd = async || {
        let client = stage.http2().await;
        let watches = (0..30).map(|index| {
            let mut client = client.clone();
            async move { client.send_request(get(&format!("/watch/{index}"))).await.unwrap() }
        });
        futures_util::future::join_all(watches).await
    };
    drop(crowd().await);
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 3);
    // A busy machine may take longer to notice.
    for _ in 0..20 {
        sleep(Duration::from_secs(2)).await;
        drop(crowd().await);
        let dialled = stage.seen.connections.load(Ordering::SeqCst);
        if dialled > 3 {
            assert_eq!(dialled, 5, "two were closed, and one was kept");
            return;
        }
    }
    panic!("none was closed");
}

#[tokio::test]
async fn a_server_that_allows_one_stream_is_asked_on_many_connections() {
    let (events, receiver) = watch::channel("");
    let stage = Stage::new(
        Terms {
            streams: 1,
            ..Terms::default()
        },
        move |_| {
            let receiver = receiver.clone();
            async move { events_of(receiver) }
        },
    )
    .await;
    let client = stage.http2().await;
    let mut bodies = Vec::new();
    for _ in 0..5 {
        let response = timeout(Duration::from_secs(20), client.clone().send_request(get("/watch"))).await;
        bodies.push(response.expect("begins").unwrap().into_body());
    }
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 5);
    events.send_replace("event");
    for body in &mut bodies {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
    }
}

#[tokio::test]
async fn a_slow_reader_slows_itself_alone() {
    let stage = Stage::new(Terms::default(), |request| async move {
        if request.uri().path() == "/big" {
            whole(vec![b'x'; 64 << 20])
        } else {
            whole("small")
        }
    })
    .await;
    let slow = stage.http1().await.send_request(get1("/big")).await.unwrap();
    for _ in 0..10 {
        let quick = async { text(stage.http2().await.send_request(get("/small")).await.unwrap()).await };
        assert_eq!(
            timeout(Duration::from_secs(20), quick).await.expect("not held up"),
            "small"
        );
    }
    assert_eq!(
        stage.dials.http2.load(Ordering::SeqCst),
        1,
        "on the very connection of the slow one"
    );
    drop(slow);
}

/// Each change of the value, as a chunk.
pub(crate) fn events_of(receiver: watch::Receiver<&'static str>) -> Answer {
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        let event = *receiver.borrow_and_update();
        Some((Ok(http_body::Frame::data(bytes::Bytes::from(event))), receiver))
    });
    http::Response::new(BodyExt::boxed(http_body_util::StreamBody::new(stream)))
}

/// The server says GOAWAY while a watch is open, as kube-apiserver does when it is restarted or rebalanced.
#[tokio::test]
async fn after_a_goaway_writes_go_on_another_connection_and_watches_go_on() {
    let (events, receiver) = watch::channel("");
    let stage = Stage::new(Terms::default(), move |request| {
        let receiver = receiver.clone();
        async move {
            if request.uri().path() == "/watch" {
                events_of(receiver)
            } else {
                whole("written")
            }
        }
    })
    .await;
    let mut client = stage.http2().await;
    let mut watching = client.send_request(get("/watch")).await.unwrap().into_body();
    stage.seen.go_away.notify_waiters();
    for _ in 0..5 {
        let (head, body) = get("/write").into_parts();
        let mut request = http::Request::from_parts(head, body);
        *request.method_mut() = http::Method::POST;
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "written");
    }
    events.send_replace("event");
    let frame = timeout(Duration::from_secs(20), watching.frame())
        .await
        .expect("the watch goes on");
    assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "event");
    assert_eq!(stage.seen.count(), 6, "nothing was sent twice");
}

#[tokio::test]
async fn under_a_new_ca_the_old_connections_carry_nothing_new() {
    let stage = Stage::new(Terms::default(), |_| async { whole("x") }).await;
    let mut client = stage.http2().await;
    client.send_request(get("/api")).await.unwrap();
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 1);
    // The same CA beside another one: a new version, by which the server is still good.
    let other = tempfile::tempdir().unwrap();
    let _ = crate::stage::upstream_tls(other.path(), &["h2"]);
    let bundle = [stage.upstream_ca(), other.path().join("upstream.crt")].map(|path| std::fs::read(path).unwrap());
    let next = other.path().join("next");
    std::fs::write(&next, bundle.concat()).unwrap();
    std::fs::copy(&next, stage.upstream_ca()).unwrap();
    for _ in 0..300 {
        client.send_request(get("/api")).await.unwrap();
        if stage.seen.connections.load(Ordering::SeqCst) == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the connection made under the old CA is still used");
}

#[tokio::test]
async fn when_the_upstream_cannot_be_reached_everyone_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let _ = crate::stage::upstream_tls(directory.path(), &["h2"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let stage = Stage::before(directory, address, Terms::default(), std::sync::Arc::default()).await;
    let client = stage.http2().await;
    for _ in 0..2 {
        let requests: Vec<_> = (0..50)
            .map(|_| tokio::spawn(client.clone().send_request(get("/api"))))
            .collect();
        for request in requests {
            let response = timeout(Duration::from_secs(20), request)
                .await
                .expect("answered")
                .unwrap()
                .unwrap();
            assert_eq!(response.status(), 503);
        }
    }
}
