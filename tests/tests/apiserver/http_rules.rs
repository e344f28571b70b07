//! Authentication, authorization, impersonation, records and large lists.

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt;
use rstest::rstest;
use serde_json::{Value, json};
use understudy_tests::apiserver::Settings;

use crate::{
    ADMIN, AGENT, Fixture, POD, RULES,
    client::{Client, Version, bearer, request},
};

const PODS: &str = "/api/v1/namespaces/default/pods";
const VIEWER: &str = "system:serviceaccount:prod:viewer";

#[rstest]
#[case::admin(Some(ADMIN), PODS, 200, "")]
#[case::bad_token(Some("wrong"), PODS, 401, "Unauthorized")]
#[case::no_token(
    None, PODS, 403,
    r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default""#
)]
#[case::no_right(
    Some(POD), PODS, 403,
    r#"pods is forbidden: User "system:serviceaccount:support:shell" cannot list resource "pods" in API group "" in the namespace "default""#
)]
#[case::version_for_all(None, "/version", 200, "")]
#[case::discovery_for_some(None, "/api", 403, r#"forbidden: User "system:anonymous" cannot get path "/api""#)]
#[case::unknown_resource(
    Some(ADMIN),
    "/apis/batch/v1/jobs",
    404,
    "the server could not find the requested resource"
)]
#[tokio::test]
async fn access(
    #[values(Version::Http1, Version::Http2)] version: Version,
    #[case] token: Option<&str>,
    #[case] path: &str,
    #[case] code: u16,
    #[case] message: &str,
) {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, version).await;
    let authorization = token.map(bearer);
    let headers: Vec<_> = authorization
        .iter()
        .map(|value| ("authorization", value.as_str()))
        .collect();
    let (got, body) = client.get(path, &headers).await;
    assert_eq!(got, code);
    if code >= 400 {
        assert_eq!(body["kind"], "Status");
        assert_eq!(body["message"], message);
    }
}

#[tokio::test]
async fn an_impersonated_request_is_served_as_the_other_and_recorded_as_sent() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let token = bearer(AGENT);
    let headers = [
        ("authorization", token.as_str()),
        ("impersonate-user", VIEWER),
        ("impersonate-group", "system:serviceaccounts"),
        ("impersonate-group", "system:authenticated"),
    ];
    assert_eq!(client.get(PODS, &headers).await.0, 200);
    let recorded = fixture
        .control
        .wait_for(Duration::from_secs(5), |request| {
            request.path() == PODS && request.ended
        })
        .await
        .unwrap();
    assert_eq!(recorded.user.as_ref().unwrap().username, VIEWER);
    assert_eq!(
        recorded.impersonator.as_ref().unwrap().username,
        "system:serviceaccount:understudy:agent"
    );
    assert_eq!(
        recorded.headers("impersonate-group").collect::<Vec<_>>(),
        ["system:serviceaccounts", "system:authenticated"]
    );
    assert_eq!((recorded.version.as_str(), recorded.code), ("HTTP/2.0", Some(200)));

    let (code, body) = client.get(PODS, &[headers[0], headers[2]]).await;
    assert_eq!((code, &body["reason"]), (400, &json!("BadRequest")));
    let (code, _) = client.get(PODS, &[headers[0], ("impersonate-user", "admin")]).await;
    assert_eq!(code, 403);
}

#[tokio::test]
async fn who_one_is_is_said_without_the_headers() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http1).await;
    let token = bearer(AGENT);
    let review = request(
        Method::POST,
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        &[("authorization", &token), ("impersonate-user", VIEWER)],
        r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#,
    );
    let response = client.send(review).await.unwrap();
    assert_eq!(response.status(), 201);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(
        body["status"]["userInfo"],
        json!({
            "username": VIEWER,
            "groups": ["system:serviceaccounts", "system:serviceaccounts:prod", "system:authenticated"],
        })
    );
}

#[tokio::test]
async fn a_rotated_token_counts_from_the_next_request() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens.csv");
    std::fs::write(&file, "old,admin,1,system:masters\n").unwrap();
    let fixture = Fixture::with(|builder| builder.token_file(&file).rules(RULES)).await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    assert_eq!(client.get(PODS, &[("authorization", "Bearer old")]).await.0, 200);
    std::fs::write(&file, "newer,admin,1,system:masters\n").unwrap();
    assert_eq!(client.get(PODS, &[("authorization", "Bearer old")]).await.0, 401);
    assert_eq!(client.get(PODS, &[("authorization", "Bearer newer")]).await.0, 200);
}

#[tokio::test]
async fn a_body_is_recorded_with_its_length() {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let token = bearer(ADMIN);
    let body = "x".repeat(100_000);
    let upload = request(Method::POST, "/understudy/sink", &[("authorization", &token)], &body);
    let response = client.send(upload).await.unwrap();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&bytes[..], b"{\"length\":100000}\n");
    let recorded = fixture
        .control
        .wait_for(Duration::from_secs(5), |request| request.body.complete)
        .await
        .unwrap();
    assert_eq!((recorded.body.length, recorded.body.prefix.len()), (100_000, 4096));
}

#[rstest]
#[case::a_small_body_is_taken_in(60_000, true)]
#[case::a_large_one_is_not(600_000, false)]
#[tokio::test]
async fn a_refused_request(
    #[values(Version::Http1, Version::Http2)] version: Version,
    #[case] length: usize,
    #[case] whole: bool,
) {
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, version).await;
    let refused = request(Method::POST, "/understudy/sink", &[], &"x".repeat(length));
    let response = client.send(refused).await.unwrap();
    assert_eq!(response.status(), 403);
    let recorded = fixture
        .control
        .wait_for(Duration::from_secs(5), |request| request.code.is_some())
        .await
        .unwrap();
    assert_eq!(recorded.body.length == length as u64, whole, "{}", recorded.body.length);
}

#[tokio::test]
async fn a_list_of_any_size_costs_no_memory() {
    const SIZE: u64 = 256 * 1024 * 1024;
    let fixture = Fixture::start().await;
    let mut client = Client::connect(&fixture, Version::Http2).await;
    let before = resident();
    let token = bearer(ADMIN);
    let path = format!("/api/v1/namespaces/big/configmaps?understudySize={SIZE}");
    let list = request(Method::GET, &path, &[("authorization", &token)], "");
    let mut body = client.send(list).await.unwrap().into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.unwrap().into_data().map_or(0, |data| data.len() as u64);
    }
    assert_eq!(length, SIZE);
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024 * 1024, "grown by {grown} bytes");
}

#[tokio::test]
async fn a_large_list_is_compressed_when_asked() {
    let fixture = Fixture::start().await;
    let settings = Settings {
        list_sizes: [("configmaps".to_owned(), 1_000_000)].into(),
        ..Settings::default()
    };
    fixture.control.change_settings(&settings).await.unwrap();
    let mut client = Client::connect(&fixture, Version::Http1).await;
    let token = bearer(ADMIN);
    let headers = [("authorization", token.as_str()), ("accept-encoding", "gzip")];
    let list = request(Method::GET, "/api/v1/configmaps", &headers, "");
    let response = client.send(list).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
    std::io::Read::read_to_end(&mut decoder, &mut plain).unwrap();
    assert_eq!(plain.len(), 1_000_000);
    assert!(serde_json::from_slice::<Value>(&plain).is_ok());
}

fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
