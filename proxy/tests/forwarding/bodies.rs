//! Bodies pass as they come, whole, and a truncation stays one.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rstest::rstest;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    frames::{DATA, END_HEADERS, END_STREAM, HEADERS, POST, RST_STREAM, Raw, frame, hpack},
    stage::{Answer, Stage, Terms, get, get1, text, whole},
};

/// A body fed by the test, chunk by chunk.
pub(crate) fn fed(mut chunks: mpsc::Receiver<&'static str>) -> Answer {
    let stream = futures_util::stream::poll_fn(move |cx| {
        chunks
            .poll_recv(cx)
            .map(|chunk| chunk.map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(chunk)))))
    });
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
}

#[tokio::test]
async fn each_chunk_arrives_before_the_next_is_sent() {
    for alpn in ["h2", "http/1.1"] {
        let (chunks, receiver) = mpsc::channel(1);
        let receiver = std::sync::Mutex::new(Some(receiver));
        let stage = Stage::new(
            Terms {
                alpn: vec![alpn],
                ..Terms::default()
            },
            move |_| {
                let receiver = receiver.lock().unwrap().take().unwrap();
                async { fed(receiver) }
            },
        )
        .await;
        let mut body = stage
            .http1()
            .await
            .send_request(get1("/watch"))
            .await
            .unwrap()
            .into_body();
        for event in ["first", "second", "third"] {
            chunks.send(event).await.unwrap();
            let frame = timeout(Duration::from_secs(20), body.frame())
                .await
                .expect("flushed at once")
                .unwrap()
                .unwrap();
            assert_eq!(frame.into_data().unwrap(), event, "over {alpn}");
        }
        drop(chunks);
        assert!(body.frame().await.is_none());
    }
}

#[tokio::test]
async fn uploads_arrive_whole() {
    let stage = Stage::new(Terms::default(), |request: Request<hyper::body::Incoming>| async move {
        let body = request.into_body().collect().await.unwrap().to_bytes();
        whole(format!(
            "{} {}",
            body.len(),
            body.iter().map(|byte| u64::from(*byte)).sum::<u64>()
        ))
    })
    .await;
    let payload: Bytes = (0..3_000_000u32)
        .map(|index| (index % 251) as u8)
        .collect::<Vec<_>>()
        .into();
    let expected = format!(
        "{} {}",
        payload.len(),
        payload.iter().map(|byte| u64::from(*byte)).sum::<u64>()
    );
    for http2 in [true, false] {
        let (head, _) = get("/upload").into_parts();
        let mut request = Request::from_parts(head, http_body_util::Full::new(payload.clone()).boxed());
        *request.method_mut() = http::Method::POST;
        let response = if http2 {
            stage.http2().await.send_request(request).await.unwrap()
        } else {
            *request.uri_mut() = "/upload".parse().unwrap();
            stage.http1().await.send_request(request).await.unwrap()
        };
        assert_eq!(text(response).await, expected);
    }
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_upload() {
    let stage = Stage::new(Terms::default(), |_| async {
        let mut answer = whole("too large");
        *answer.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
        answer
    })
    .await;
    let (never, chunks) = mpsc::channel::<&'static str>(1);
    let (head, _) = get("/upload").into_parts();
    let mut request = Request::from_parts(head, fed(chunks).into_body());
    *request.method_mut() = http::Method::POST;
    let response = timeout(Duration::from_secs(20), stage.http2().await.send_request(request)).await;
    assert_eq!(response.expect("answered early").unwrap().status(), 413);
    drop(never);
}

/// curl before 8.0 loses an answer whose stream is reset while it still sends.
#[rstest]
#[case::small(Some("5"), false)]
#[case::of_unknown_length(None, false)]
#[case::large(Some("100000"), true)]
#[tokio::test]
async fn a_refused_body_that_is_small_may_come_to_its_end(#[case] length: Option<&str>, #[case] is_reset: bool) {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let mut raw = Raw::new(&stage).await;
    let length = length.map(|length| ("content-length", length));
    let fields: Vec<_> = POST
        .into_iter()
        .chain([("impersonate-user", "root")])
        .chain(length)
        .collect();
    raw.send(frame(HEADERS, END_HEADERS, 1, hpack(&fields))).await;
    assert_eq!(raw.end_of(1).await.to_string(), "403 `Status` Forbidden");
    let seen = raw.until_pong().await.expect("the connection lives");
    assert_eq!(seen.contains(&(RST_STREAM, 1)), is_reset);
    if !is_reset {
        raw.send(frame(DATA, END_STREAM, 1, "hello")).await;
        let seen = raw.until_pong().await.expect("the connection lives");
        assert!(!seen.contains(&(RST_STREAM, 1)));
    }
    assert_eq!(stage.seen.count(), 0);
}

/// What nobody wants isn't read for ever.
#[tokio::test]
async fn a_refused_body_that_goes_on_is_reset() {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let mut raw = Raw::new(&stage).await;
    let fields: Vec<_> = POST.into_iter().chain([("impersonate-user", "root")]).collect();
    raw.send(frame(HEADERS, END_HEADERS, 1, hpack(&fields))).await;
    assert_eq!(raw.end_of(1).await.to_string(), "403 `Status` Forbidden");
    for _ in 0..5 {
        raw.send(frame(DATA, 0, 1, [0; 16_000])).await;
    }
    assert_eq!(raw.end_of(1).await.to_string(), "stream reset, NO_ERROR");
    assert!(raw.lives().await);
}
