//! Invariant 5: a session's end ends what is open under it within one second. Invariant 7, as far as one slow
//! reader goes.

use std::time::Duration;

use http_body_util::BodyExt;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::{
    bodies::fed,
    stage::{Stage, Terms, get, get1},
};

const WATCH: &str = "/api/v1/pods?watch=true";

async fn watching(alpn: &'static str) -> (Stage, hyper::body::Incoming, mpsc::Sender<&'static str>) {
    let (chunks, receiver) = mpsc::channel(1);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let stage = Stage::new(Terms::default(), move |_| {
        let receiver = receiver.lock().unwrap().take().unwrap();
        async { fed(receiver) }
    })
    .await;
    let response = match alpn {
        "h2" => stage.http2().await.send_request(get(WATCH)).await.unwrap(),
        _ => stage.http1().await.send_request(get1(WATCH)).await.unwrap(),
    };
    let mut body = response.into_body();
    chunks.send("event").await.unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    (stage, body, chunks)
}

#[tokio::test]
async fn a_watch_ends_with_its_session() {
    for alpn in ["h2", "http/1.1"] {
        let (stage, mut body, _chunks) = watching(alpn).await;
        let ended = Instant::now();
        stage.declare(None).await;
        let last = timeout(Duration::from_secs(20), body.frame())
            .await
            .expect("the watch ends");
        assert!(
            last.unwrap().is_err(),
            "over {alpn} it ends as a truncation, not as a clean end"
        );
        assert!(
            ended.elapsed() < Duration::from_secs(1),
            "over {alpn}: {:?}",
            ended.elapsed()
        );
    }
}

#[tokio::test]
async fn a_watch_ends_when_its_session_acts_as_another() {
    let (stage, mut body, _chunks) = watching("h2").await;
    let spec = serde_json::json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}});
    stage.declare(Some(spec)).await;
    let last = timeout(Duration::from_secs(20), body.frame())
        .await
        .expect("the watch ends");
    assert!(last.unwrap().is_err());
}

#[tokio::test]
async fn a_watch_outlives_a_longer_term() {
    let (stage, mut body, chunks) = watching("h2").await;
    let mut spec = Terms::default().spec;
    spec["expiresAt"] = "2999-01-01T00:00:00Z".into();
    stage.declare(Some(spec)).await;
    chunks.send("after").await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "after");
}

#[tokio::test]
async fn a_watch_ends_when_its_session_expires() {
    let (stage, mut body, _chunks) = watching("h2").await;
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_millis(700);
    let mut spec = Terms::default().spec;
    spec["expiresAt"] = at.to_string().into();
    stage.declare(Some(spec)).await;
    let last = timeout(Duration::from_secs(20), body.frame())
        .await
        .expect("the watch ends");
    assert!(last.unwrap().is_err());
    assert!(jiff::Timestamp::now() >= at);
}

/// Invariant 5, and that a watch is use.
#[tokio::test]
async fn an_unused_session_ends_and_a_watched_one_does_not() {
    let (stage, mut body, chunks) = watching("h2").await;
    let mut spec = Terms::default().spec;
    spec["idleTimeout"] = "400ms".into();
    stage.declare(Some(spec)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    chunks.send("still here").await.unwrap();
    let event = body.frame().await.unwrap().unwrap();
    assert_eq!(event.into_data().unwrap(), "still here");
    drop((body, chunks));
    let id = &stage.pod.wanted.session;
    let ended = async {
        while stage.sessions.snapshot().in_force(id).is_some() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_millis(1500), ended)
        .await
        .expect("it ends within a second of its time");
    let seen = stage.seen.count();
    let refused = stage.http2().await.send_request(get("/api")).await.unwrap();
    assert_eq!(refused.status(), 403);
    assert!(crate::stage::text(refused).await.contains("idle"));
    assert_eq!(stage.seen.count(), seen);
}

#[tokio::test]
async fn a_connection_ends_with_its_pod() {
    let (stage, mut body, _chunks) = watching("h2").await;
    stage.pod.gone.cancel();
    let last = timeout(Duration::from_secs(20), body.frame())
        .await
        .expect("the connection ends");
    assert!(last.unwrap().is_err());
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_off_with_its_session() {
    let chunk: &'static str = Box::leak("x".repeat(64 << 10).into_boxed_str());
    for alpn in ["h2", "http/1.1"] {
        let (stage, unread, chunks) = watching(alpn).await;
        // Until every buffer on the way is full, and the answer's body is polled no more.
        while timeout(Duration::from_millis(300), chunks.send(chunk)).await.is_ok() {}
        stage.declare(None).await;
        let told = timeout(Duration::from_secs(20), chunks.closed()).await;
        assert!(
            told.is_ok(),
            "over {alpn} the stream upstream ends, though nobody reads"
        );
        drop(unread);
    }
}

#[tokio::test]
async fn draining_ends_no_stream_and_takes_no_request() {
    let (stage, mut body, chunks) = watching("h2").await;
    let mut client = stage.http2().await;
    stage.drain.cancel();
    chunks.send("while draining").await.unwrap();
    let event = timeout(Duration::from_secs(20), body.frame())
        .await
        .expect("the watch goes on");
    assert_eq!(event.unwrap().unwrap().into_data().unwrap(), "while draining");
    let refused = async { while client.send_request(get("/watch")).await.is_ok() {} };
    timeout(Duration::from_secs(20), refused)
        .await
        .expect("an idle connection is closed");
}

/// A connection that came while there was no session serves the next one, and ends with it.
#[tokio::test]
async fn a_connection_that_came_before_its_session_ends_with_it() {
    let stage = Stage::new(Terms::default(), |_| async {
        crate::stage::whole(vec![b'x'; 64 << 20])
    })
    .await;
    stage.declare(None).await;
    let mut client = stage.http1().await;
    let refused = client.send_request(get1("/big")).await.unwrap();
    assert_eq!(refused.status(), 403);
    refused.into_body().collect().await.unwrap();
    stage.declare(Some(Terms::default().spec)).await;
    let body = client.send_request(get1("/big")).await.unwrap().into_body();
    tokio::time::sleep(Duration::from_millis(300)).await;
    stage.declare(None).await;
    let rest = timeout(Duration::from_secs(20), body.collect())
        .await
        .expect("the connection ends");
    assert!(rest.is_err(), "cut short");
}

#[tokio::test]
async fn a_silent_watch_ends_upstream_when_its_client_leaves() {
    for alpn in ["h2", "http/1.1"] {
        let (stage, body, chunks) = watching(alpn).await;
        // Both halves of the client go: its connection task ends with the last of them.
        drop(body);
        timeout(Duration::from_secs(20), chunks.closed())
            .await
            .expect("the upstream is told");
        drop(stage);
    }
}

#[tokio::test]
async fn an_upload_that_the_upstream_does_not_take_ends_with_its_session() {
    let (hand_over, mut stalled) = mpsc::channel(1);
    let stage = Stage::new(Terms::default(), move |request| {
        let hand_over = hand_over.clone();
        async move {
            // One chunk is read, and then no more, so that the rest waits for room.
            let mut body = request.into_body();
            body.frame().await.unwrap().unwrap();
            let (feeder, never) = mpsc::channel(1);
            hand_over.send((body, feeder)).await.unwrap();
            fed(never)
        }
    })
    .await;
    let (head, _) = get("/upload").into_parts();
    let payload = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; 16 << 20]));
    let mut request = http::Request::from_parts(head, payload.boxed());
    *request.method_mut() = http::Method::POST;
    let answered = stage.http2().await.send_request(request).await.unwrap();
    let (_unread, feeder) = stalled.recv().await.unwrap();
    // Long enough for the stream's window to fill, so that the upload waits for room and for nothing else.
    tokio::time::sleep(Duration::from_millis(500)).await;
    stage.declare(None).await;
    let reset = timeout(Duration::from_secs(20), feeder.closed()).await;
    assert!(
        reset.is_ok(),
        "the stream upstream is reset, though its server takes nothing"
    );
    drop(answered);
}
