//! Invariant 2: no request leaves with a header that carries identity and isn't ours.

use http::HeaderValue;
use rstest::rstest;

use crate::stage::{Stage, Terms, get, get1, text, whole};

#[tokio::test]
async fn the_pods_credential_comes_off_and_the_sessions_goes_on() {
    let stage = Stage::new(Terms::default(), |_| async { whole("pods") }).await;
    let mut request = get("/api/v1/pods?limit=5");
    for (name, value) in [
        ("x-remote-user", "root"),
        ("x-forwarded-for", "1.2.3.4"),
        ("audit-id", "mine"),
        ("accept", "application/json"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let response = stage.http2().await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(text(response).await, "pods");

    let head = stage.seen.only();
    assert_eq!(head.uri.path_and_query().unwrap(), "/api/v1/pods?limit=5");
    assert_eq!(head.headers["authorization"], "Bearer agent-token");
    assert_eq!(head.headers.get_all("authorization").iter().count(), 1);
    assert_eq!(head.headers["impersonate-user"], "system:serviceaccount:prod:viewer");
    let groups: Vec<_> = head.headers.get_all("impersonate-group").iter().collect();
    assert_eq!(
        groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:prod",
            "system:authenticated"
        ]
    );
    assert_eq!(head.headers["accept"], "application/json");
    assert_ne!(head.headers["audit-id"], "mine");
    assert!(!head.headers.contains_key("x-remote-user") && !head.headers.contains_key("x-forwarded-for"));
}

#[tokio::test]
async fn connection_cannot_name_our_headers_away() {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let mut request = get1("/api");
    let named = HeaderValue::from_static("authorization, Impersonate-User, impersonate-group");
    request.headers_mut().insert("connection", named);
    assert_eq!(stage.http1().await.send_request(request).await.unwrap().status(), 200);
    let head = stage.seen.only();
    assert_eq!(head.headers["authorization"], "Bearer agent-token");
    assert_eq!(head.headers["impersonate-user"], "system:serviceaccount:prod:viewer");
    assert_eq!(head.headers.get_all("impersonate-group").iter().count(), 3);
}

#[rstest]
#[case("impersonate-user", "root")]
#[case("Impersonate-Group", "system:masters")]
#[case("impersonate-extra-scopes", "all")]
#[case("impersonate_uid", "1")]
#[tokio::test]
async fn a_client_that_impersonates_is_refused(#[case] name: &'static str, #[case] value: &'static str) {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let mut request = get1("/api");
    request.headers_mut().insert(
        http::HeaderName::from_bytes(name.as_bytes()).unwrap(),
        HeaderValue::from_static(value),
    );
    let response = stage.http1().await.send_request(request).await.unwrap();
    assert_eq!(response.status(), 403);
    assert!(text(response).await.contains("\"kind\":\"Status\""));
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn a_sessions_own_token_goes_without_impersonation() {
    let spec = serde_json::json!({"authMethod": "", "token": "viewer-token"});
    let stage = Stage::new(
        Terms {
            spec,
            ..Terms::default()
        },
        |_| async { whole("") },
    )
    .await;
    stage.http2().await.send_request(get("/api")).await.unwrap();
    let head = stage.seen.only();
    assert_eq!(head.headers["authorization"], "Bearer viewer-token");
    assert!(!head.headers.keys().any(|name| name.as_str().starts_with("impersonate")));
}

#[tokio::test]
async fn a_rotated_token_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("token");
    std::fs::write(&path, "first").unwrap();
    let spec = serde_json::json!({"tokenFile": path});
    let stage = Stage::new(
        Terms {
            spec,
            ..Terms::default()
        },
        |_| async { whole("") },
    )
    .await;
    let mut client = stage.http2().await;
    client.send_request(get("/first")).await.unwrap();
    std::fs::write(directory.path().join("next"), "second").unwrap();
    std::fs::rename(directory.path().join("next"), &path).unwrap();
    for _ in 0..300 {
        client.send_request(get("/second")).await.unwrap();
        if stage.seen.heads.lock().unwrap().last().unwrap().headers["authorization"] == "Bearer second" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the rotated token was never sent");
}
