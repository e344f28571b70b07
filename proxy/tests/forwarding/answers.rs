//! What a client is told, by the upstream or by us.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::stage::{Stage, Terms, get, get1, text, upstream_tls, whole};

#[tokio::test]
async fn without_a_session_nothing_is_sent() {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    stage.declare(None).await;
    let response = stage.http1().await.send_request(get1("/api")).await.unwrap();
    assert_eq!(response.status(), 403);
    assert_eq!(response.headers()["content-type"], "application/json");
    let status: serde_json::Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!((&status["kind"], &status["code"]), (&"Status".into(), &403.into()));
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn an_unknown_method_is_refused_with_nothing_sent() {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    stage.declare(Some(serde_json::json!({"authMethod": "magic"}))).await;
    let mut client = stage.http1().await;
    // The refusal is in force a moment after it is declared.
    let mut code = StatusCode::OK;
    for _ in 0..100 {
        let before = stage.seen.count();
        code = client.send_request(get1("/api")).await.unwrap().status();
        if code == 403 {
            assert_eq!(stage.seen.count(), before);
            break;
        }
        client = stage.http1().await;
    }
    assert_eq!(code, 403);
}

/// Its claims are `{"exp": 1}`: a second into 1970.
#[tokio::test]
async fn a_sessions_token_that_has_expired_is_not_sent() {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let expired = serde_json::json!({"authMethod": "service-account-token", "token": "e30.eyJleHAiOjF9.c2ln"});
    stage.declare(None).await;
    stage.declare(Some(expired)).await;
    let response = stage.http1().await.send_request(get1("/api")).await.unwrap();
    assert_eq!(response.status(), 500);
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn an_upstream_of_another_ca_gets_no_request() {
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    // Its certificate is under one CA; the agent is given another.
    let _ = upstream_tls(directory.path(), &["h2"]);
    let wrong = upstream_tls(other.path(), &["h2"]);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let refused = tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(wrong));
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Err(_) => 0,
            Ok(mut stream) => stream.read(&mut [0; 64]).await.unwrap_or(0),
        }
    });
    let stage = Stage::before(directory, address, Terms::default(), std::sync::Arc::default()).await;
    let response = stage.http1().await.send_request(get1("/api")).await.unwrap();
    assert_eq!(response.status(), 503);
    let body = text(response).await;
    assert!(!body.contains("127.0.0.1") && !body.contains("certificate"), "{body}");
    assert_eq!(refused.await.unwrap(), 0, "not a byte of the request");
}

#[tokio::test]
async fn plain_http_is_told_to_use_tls() {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let mut client = stage.tcp().await;
    client
        .write_all(b"GET /api HTTP/1.1\r\nhost: k\r\nauthorization: Bearer pod-token\r\n\r\n")
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.contains("HTTPS"), "{answer}");
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn redirects_and_errors_pass_unchanged() {
    let stage = Stage::new(Terms::default(), |request| async move {
        let mut answer = whole("the body");
        *answer.status_mut() = if request.uri().path() == "/moved" {
            StatusCode::FOUND
        } else {
            StatusCode::CONFLICT
        };
        answer
            .headers_mut()
            .insert("location", "https://elsewhere/".parse().unwrap());
        answer
            .headers_mut()
            .insert("x-kubernetes-pf-flowschema-uid", "1".parse().unwrap());
        answer
    })
    .await;
    let mut client = stage.http2().await;
    let moved = client.send_request(get("/moved")).await.unwrap();
    assert_eq!(
        (moved.status(), &moved.headers()["location"]),
        (StatusCode::FOUND, &"https://elsewhere/".parse().unwrap())
    );
    let conflict = client.send_request(get("/conflict")).await.unwrap();
    assert_eq!(conflict.status(), StatusCode::CONFLICT);
    assert!(conflict.headers().contains_key("x-kubernetes-pf-flowschema-uid"));
    assert_eq!(text(conflict).await, "the body");
}
