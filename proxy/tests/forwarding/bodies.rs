//! Bodies pass as they come, whole, and a truncation stays one.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{sync::mpsc, time::timeout};

use crate::stage::{Answer, Stage, Terms, get, get1, text, whole};

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
