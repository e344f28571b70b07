//! A session's own server and its own token: by whom it is verified, and how the token is followed.

use rstest::rstest;
use serde_json::{Value, json};

use crate::stage::{Stage, Terms, get, whole};

async fn status_with(server: impl FnOnce(&Stage) -> Value) -> (u16, usize) {
    let stage = Stage::new(Terms::default(), |_| async { whole("") }).await;
    let server = server(&stage);
    stage
        .declare(Some(json!({"tokenSecretRef": {"name": "t"}, "server": server})))
        .await;
    let response = stage.http2().await.send_request(get("/api")).await.unwrap();
    (response.status().as_u16(), stage.seen.count())
}

fn url(stage: &Stage) -> String {
    format!("https://{}", stage.address)
}

#[tokio::test]
async fn a_ca_in_the_session_verifies_its_server() {
    let with = |stage: &Stage| {
        let pem = std::fs::read_to_string(stage.upstream_ca()).unwrap();
        json!({"url": url(stage), "caBundle": pem})
    };
    assert_eq!(status_with(with).await, (200, 1));
}

#[tokio::test]
async fn under_another_ca_nothing_is_sent() {
    let with = |stage: &Stage| {
        let key = rcgen::KeyPair::generate().unwrap();
        let other = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        json!({"url": url(stage), "caBundle": other.pem()})
    };
    assert_eq!(status_with(with).await, (503, 0));
}

#[rstest]
#[case::unverified(true, (200, 1))]
#[case::verified(false, (503, 0))]
#[tokio::test]
async fn only_who_asks_goes_unverified(#[case] insecure: bool, #[case] expected: (u16, usize)) {
    let with =
        |stage: &Stage| json!({"url": url(stage), "serverName": "another.example", "insecureSkipTLSVerify": insecure});
    assert_eq!(status_with(with).await, expected);
}

#[tokio::test]
async fn a_secrets_token_is_sent_as_it_is_now() {
    let terms = Terms {
        spec: json!({"tokenSecretRef": {"name": "t"}}),
        ..Terms::default()
    };
    let stage = Stage::new(terms, |_| async { whole("") }).await;
    let mut client = stage.http2().await;
    client.send_request(get("/api")).await.unwrap();
    stage.secret.send(Ok("second".parse().unwrap())).unwrap();
    client.send_request(get("/api")).await.unwrap();
    let sent: Vec<_> = stage
        .seen
        .heads
        .lock()
        .unwrap()
        .iter()
        .map(|head| head.headers["authorization"].clone())
        .collect();
    assert_eq!(sent, ["Bearer first", "Bearer second"]);
    let gone = understudy::credentials::CredentialError::Secret {
        secret: "support/t".to_owned(),
        reason: "it isn't there".to_owned(),
    };
    stage.secret.send(Err(gone)).unwrap();
    let refused = client.send_request(get("/api")).await.unwrap();
    assert_eq!((refused.status().as_u16(), stage.seen.count()), (500, 2));
}

#[tokio::test]
async fn the_api_server_is_told_the_session_where_it_asks_for_that() {
    let mut terms = Terms::default();
    terms.spec["tellSession"] = json!(true);
    let stage = Stage::new(terms, |_| async { whole("") }).await;
    stage.http2().await.send_request(get("/api")).await.unwrap();
    let head = stage.seen.only();
    assert_eq!(
        head.headers["impersonate-extra-session.understudy.dev"],
        "support/alice"
    );
    assert_eq!(head.headers["impersonate-user"], "system:serviceaccount:prod:viewer");
}
