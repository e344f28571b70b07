//! Requests over kept-alive HTTP/1.1 connections to the server: which go there, and that no answer becomes another's.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, StatusCode, Version};
use http_body_util::BodyExt;
use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    faults::{before, head},
    stage::{Stage, Terms, get, get1, text, whole},
};

const SOON: Duration = Duration::from_secs(30);
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nours";

#[rstest]
#[case::short(Method::GET, "/api/v1/pods", Version::HTTP_11)]
#[case::head(Method::HEAD, "/api/v1/pods", Version::HTTP_11)]
#[case::writes(Method::DELETE, "/api/v1/namespaces/a/pods/b", Version::HTTP_2)]
#[case::watches(Method::GET, "/api/v1/pods?watch=true", Version::HTTP_2)]
#[case::follows(Method::GET, "/api/v1/namespaces/a/pods/b/log?follow=true", Version::HTTP_2)]
#[tokio::test]
async fn what_is_short_and_changes_nothing_goes_over_a_line(
    #[case] method: Method,
    #[case] target: &str,
    #[case] expected: Version,
) {
    let stage = Stage::new(Terms::default(), |_| async { whole("x") }).await;
    let mut request = get1(target);
    *request.method_mut() = method;
    let answer = stage.http1().await.send_request(request).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let seen = stage.seen.only();
    assert_eq!(seen.version, expected);
    assert_eq!(seen.uri.path_and_query().unwrap(), target);
    assert_eq!(seen.headers["authorization"], "Bearer agent-token");
}

#[tokio::test]
async fn what_comes_over_http2_goes_over_http2() {
    let stage = Stage::new(Terms::default(), |_| async { whole("x") }).await;
    let answer = stage.http2().await.send_request(get("/api/v1/pods")).await.unwrap();
    assert_eq!(text(answer).await, "x");
    assert_eq!(stage.seen.only().version, Version::HTTP_2);
}

/// A crowd gets lines as far as there are any, and goes over HTTP/2 beyond.
#[tokio::test]
async fn lines_are_few() {
    let together = Arc::new(tokio::sync::Barrier::new(100));
    let stage = Stage::new(Terms::default(), move |request| {
        let (together, version) = (Arc::clone(&together), request.version());
        async move {
            together.wait().await;
            whole(format!("{version:?}"))
        }
    })
    .await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let mut client = stage.http1().await;
        asked.spawn(async move { text(client.send_request(get1("/api")).await.unwrap()).await });
    }
    let answers = timeout(SOON, asked.join_all()).await.expect("all are answered");
    let lines = answers.iter().filter(|version| *version == "HTTP/1.1").count();
    assert_eq!(lines, 32);
    assert_eq!(stage.seen.connections.load(Ordering::SeqCst), 33);
}

/// A server that closes a connection as the next request comes: the request is sent once more, on a new connection.
#[tokio::test]
async fn an_idle_line_that_the_server_closes_fails_no_request() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let stage = before(&["http/1.1"], move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
            stream.write_all(ANSWER).await.unwrap();
            stream.flush().await.unwrap();
            head(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut client = stage.http1().await;
    for _ in 0..3 {
        let answer = timeout(SOON, client.send_request(get1("/api"))).await.unwrap().unwrap();
        assert_eq!(text(answer).await, "ours");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 5);
}

/// A new connection that is closed without a word has a reason, and the request may have been begun.
#[tokio::test]
async fn a_new_line_that_the_server_closes_is_tried_once() {
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    let stage = before(&["http/1.1"], move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            head(&mut stream).await;
            counted.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let mut client = stage.http1().await;
    let answer = timeout(SOON, client.send_request(get1("/api"))).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

/// What a server says unasked, with an answer or long after it, is nobody's answer.
#[rstest]
#[tokio::test]
async fn nobody_gets_what_the_server_says_unasked(#[values(false, true)] later: bool) {
    let stage = before(&["http/1.1"], move |mut stream| async move {
        head(&mut stream).await;
        let unasked = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen";
        if later {
            stream.write_all(ANSWER).await.unwrap();
            stream.flush().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            stream.write_all(unasked).await.unwrap();
        } else {
            stream.write_all(&[ANSWER, unasked].concat()).await.unwrap();
        }
        stream.flush().await.unwrap();
        // Whatever is asked next here would get it.
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let mut client = stage.http1().await;
    for _ in 0..3 {
        let answer = timeout(SOON, client.send_request(get1("/api"))).await.unwrap().unwrap();
        assert_eq!(text(answer).await, "ours");
        if later {
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// An answer that can be read in two ways is passed on in neither.
#[rstest]
#[case(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")]
#[case(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n\r\nours!")]
#[case(b"nothing of HTTP\r\n\r\n")]
#[tokio::test]
async fn an_answer_that_cannot_be_read_is_the_upstreams_failure(#[case] answer: &'static [u8]) {
    let stage = before(&["http/1.1"], move |mut stream| async move {
        head(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        stream.flush().await.unwrap();
    })
    .await;
    let mut client = stage.http1().await;
    let answer = timeout(SOON, client.send_request(get1("/api"))).await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
}

/// Invariant 5, where the answer is read by no task of its own.
#[tokio::test]
async fn an_answer_over_a_line_ends_with_its_session() {
    let stage = before(&["http/1.1"], |mut stream| async move {
        head(&mut stream).await;
        let part = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\na part";
        stream.write_all(part).await.unwrap();
        stream.flush().await.unwrap();
        let _ = stream.read(&mut [0; 1024]).await;
    })
    .await;
    let mut client = stage.http1().await;
    let mut answer = client.send_request(get1("/api")).await.unwrap();
    let part = answer.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(part.into_data().unwrap(), "a part");
    stage.declare(None).await;
    let end = timeout(Duration::from_secs(1), answer.body_mut().frame()).await;
    assert!(end.expect("within a second").unwrap().is_err(), "a truncation");
}

/// What says how long a body is doesn't reach the server beside a request that has none.
#[tokio::test]
async fn a_length_goes_no_further_than_its_body() {
    let stage = Stage::new(Terms::default(), |_| async { whole("x") }).await;
    let mut request = get1("/api");
    request.headers_mut().insert("content-length", "0".parse().unwrap());
    let answer = stage.http1().await.send_request(request).await.unwrap();
    assert_eq!(text(answer).await, "x");
    let seen = stage.seen.only();
    assert_eq!(seen.version, Version::HTTP_11);
    assert!(!seen.headers.contains_key("content-length"), "{:?}", seen.headers);
}
