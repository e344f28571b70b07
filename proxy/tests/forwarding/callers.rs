//! `caller-identity` over real TLS: who a caller proves to be is whom the upstream is told, or nothing is sent.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, request::Parts};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rstest::rstest;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use understudy_cases::{Area, seen};

use crate::stage::{Answer, Stage, Terms, get, whole};

/// A signer of client certificates.
pub(crate) struct Signer {
    pub(crate) pem: String,
    issuer: Issuer<'static, KeyPair>,
}

pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl Signer {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        (vec![certificate.der().clone()], key)
    }

    /// Jane, of the group devs.
    fn jane(&self) -> Identity {
        self.client(|params| {
            params.distinguished_name.push(DnType::CommonName, "jane");
            params.distinguished_name.push(DnType::OrganizationName, "devs");
        })
    }
}

/// What the upstream was asked to judge, by path and body.
#[derive(Default)]
pub(crate) struct Reviews(Mutex<Vec<Value>>);

impl Reviews {
    pub(crate) fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    pub(crate) fn all(&self) -> Vec<Value> {
        self.0.lock().unwrap().clone()
    }
}

/// An upstream that judges tokens and rights as `judge` says, and answers everything else with 200.
pub(crate) async fn stage_that_judges(
    caller: Value,
    judge: impl Fn(&Value) -> Option<Value> + Send + Sync + 'static,
) -> (Stage, Arc<Reviews>) {
    let terms = Terms {
        spec: json!({"authMethod": "caller-identity", "callerIdentity": caller}),
        ..Terms::default()
    };
    let (reviews, judge) = (Arc::new(Reviews::default()), Arc::new(judge));
    let kept = Arc::clone(&reviews);
    let stage = Stage::new(terms, move |request: Request<Incoming>| {
        let (kept, judge) = (Arc::clone(&kept), Arc::clone(&judge));
        async move {
            if !is_review(request.uri().path()) {
                return whole("pods");
            }
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mut review: Value = serde_json::from_slice(&body).unwrap();
            kept.0.lock().unwrap().push(review.clone());
            if let Some(status) = judge(&review) {
                review["status"] = status;
                created(&review)
            } else {
                let mut answer = whole("{}");
                *answer.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                answer
            }
        }
    })
    .await;
    (stage, reviews)
}

fn created(review: &Value) -> Answer {
    let mut answer = whole(review.to_string());
    *answer.status_mut() = http::StatusCode::CREATED;
    answer
}

fn is_review(path: &str) -> bool {
    path.ends_with("/tokenreviews") || path.ends_with("/subjectaccessreviews")
}

/// Of what the upstream saw, what came from clients.
pub(crate) fn forwarded(stage: &Stage) -> Vec<Parts> {
    let heads = stage.seen.heads.lock().unwrap();
    heads
        .iter()
        .filter(|head| !is_review(head.uri.path()))
        .cloned()
        .collect()
}

/// A token is its owner's name; `bad` is nobody's, and of `away` there is no answer.
fn by_name(review: &Value) -> Option<Value> {
    match review["spec"]["token"].as_str().unwrap() {
        "bad" => Some(json!({"authenticated": false, "error": "invalid bearer token"})),
        "away" => None,
        name => Some(
            json!({"authenticated": true, "audiences": review["spec"]["audiences"], "user": {
                "username": name, "uid": "u-1", "groups": ["devs", "system:authenticated"],
                "extra": {"authentication.kubernetes.io/pod-uid": ["pod-1"], "example.org/scopes": ["view", "edit"]},
            }}),
        ),
    }
}

pub(crate) async fn send(stage: &Stage, identity: Option<&Identity>, fields: &[(&str, &str)]) -> Response<Incoming> {
    let terms = stage.client_terms();
    let config = match identity {
        None => terms.with_no_client_auth(),
        Some((chain, key)) => terms.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap(),
    };
    let io = TokioIo::new(stage.tls_under(config, "h2").await.unwrap());
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(asking(fields)).await.unwrap()
}

pub(crate) fn asking(
    fields: &[(&str, &str)],
) -> Request<http_body_util::combinators::BoxBody<Bytes, std::convert::Infallible>> {
    let mut request = get("/api/v1/pods");
    request.headers_mut().remove("authorization");
    for (name, value) in fields {
        let name: http::HeaderName = name.parse().unwrap();
        request
            .headers_mut()
            .append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    request
}

/// What was seen of an answer of ours, and of the upstream.
pub(crate) async fn refusal(response: Response<Incoming>, stage: &Stage) -> String {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&status["kind"], &status["status"]),
        (&json!("Status"), &json!("Failure"))
    );
    assert_eq!(status["code"], head.status.as_u16());
    let upstream = match forwarded(stage).len() {
        0 => "nothing upstream".to_owned(),
        _ => "forwarded".to_owned(),
    };
    format!(
        "{} `Status` {}; {upstream}",
        head.status.as_u16(),
        status["reason"].as_str().unwrap()
    )
}

/// The identity that the one request was sent with.
pub(crate) fn identity_of(stage: &Stage) -> Vec<(String, String)> {
    let heads = forwarded(stage);
    let [head] = heads.as_slice() else { panic!("{heads:?}") };
    head.headers
        .iter()
        .filter(|(name, _)| *name == "authorization" || name.as_str().starts_with("impersonate"))
        .map(|(name, value)| (name.to_string(), String::from_utf8(value.as_bytes().to_vec()).unwrap()))
        .collect()
}

fn lines(identity: &[(String, String)]) -> Vec<(&str, &str)> {
    identity
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

#[tokio::test]
async fn a_certificates_holder_acts_as_itself() {
    let signer = Signer::new();
    let (stage, reviews) = stage_that_judges(json!({"signerCA": signer.pem}), by_name).await;
    let response = send(&stage, Some(&signer.jane()), &[("authorization", "Bearer bad")]).await;
    assert_eq!((response.status().as_u16(), reviews.count()), (200, 0));
    let identity = identity_of(&stage);
    assert_eq!(
        lines(&identity)[..4],
        [
            ("authorization", "Bearer agent-token"),
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "system:authenticated"),
        ]
    );
    let (name, value) = &identity[4];
    assert_eq!(name, "impersonate-extra-authentication.kubernetes.io%2fcredential-id");
    assert!(identity.len() == 5 && value.starts_with("X509SHA256="), "{identity:?}");
    seen(
        Area::Identity,
        "A certificate and a false token",
        "the certificate's user goes upstream, the token isn't looked at",
    );
}

#[tokio::test]
async fn a_tokens_owner_acts_as_itself() {
    let (stage, reviews) = stage_that_judges(json!({"audiences": ["understudy"]}), by_name).await;
    let response = send(&stage, None, &[("authorization", "Bearer jane")]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(
        lines(&identity_of(&stage)),
        [
            ("authorization", "Bearer agent-token"),
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "system:authenticated"),
            ("impersonate-uid", "u-1"),
            ("impersonate-extra-authentication.kubernetes.io%2fpod-uid", "pod-1"),
            ("impersonate-extra-example.org%2fscopes", "view"),
            ("impersonate-extra-example.org%2fscopes", "edit"),
        ]
    );
    let reviews = reviews.all();
    assert_eq!(
        reviews[0]["spec"],
        json!({"token": "jane", "audiences": ["understudy"]})
    );
    assert_eq!(reviews.len(), 1);
}

#[tokio::test]
async fn who_shows_nothing_goes_as_nobody() {
    let (stage, _) = stage_that_judges(json!({}), by_name).await;
    let response = send(&stage, None, &[("x-remote-user", "root")]).await;
    assert_eq!(response.status(), 200);
    assert_eq!(identity_of(&stage), []);
    assert!(!forwarded(&stage)[0].headers.contains_key("x-remote-user"));
    seen(
        Area::Identity,
        "Neither certificate nor token",
        "sent without any credential, for the API server to judge",
    );
}

#[rstest]
#[case::false_token("A token that is nobody's", &[("authorization", "Bearer bad")], "401 `Status` Unauthorized; nothing upstream")]
#[case::no_answer("A token of which the API server says nothing", &[("authorization", "Bearer away")],
    "503 `Status` ServiceUnavailable; nothing upstream")]
#[case::two("Two Authorization headers, where callers act as themselves",
    &[("authorization", "Bearer jane"), ("authorization", "Bearer root")], "400 `Status` BadRequest; nothing upstream")]
#[case::not_ascii("A token that no token can be", &[("authorization", "Bearer jan\u{e9}")], "401 `Status` Unauthorized; nothing upstream")]
#[tokio::test]
async fn what_proves_nothing_is_refused(#[case] case: &str, #[case] fields: &[(&str, &str)], #[case] expected: &str) {
    let (stage, _) = stage_that_judges(json!({}), by_name).await;
    let outcome = refusal(send(&stage, None, fields).await, &stage).await;
    assert_eq!(outcome, expected);
    seen(Area::Identity, case, outcome);
}

#[rstest]
#[case::another_signer("A certificate of another signer", |_: &mut CertificateParams| {}, true)]
#[case::expired("A certificate that has expired", |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1), false)]
#[case::not_yet("A certificate of the future", |params: &mut CertificateParams| params.not_before = rcgen::date_time_ymd(2090, 1, 1), false)]
#[case::for_servers("A certificate for servers", |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], false)]
#[tokio::test]
async fn a_certificate_that_is_not_good_is_refused(
    #[case] case: &str,
    #[case] change: fn(&mut CertificateParams),
    #[case] of_another: bool,
) {
    let (signer, other) = (Signer::new(), Signer::new());
    let (stage, _) = stage_that_judges(json!({"signerCA": signer.pem}), by_name).await;
    let identity = if of_another { &other } else { &signer }.client(|params| {
        params.distinguished_name.push(DnType::CommonName, "jane");
        change(params);
    });
    let outcome = refusal(send(&stage, Some(&identity), &[]).await, &stage).await;
    assert_eq!(outcome, "401 `Status` Unauthorized; nothing upstream");
    seen(Area::Identity, case, outcome);
}

#[rstest]
#[case::ours("A reserved extra key, of the agent's own domain", json!({"username": "jane", "groups": ["system:authenticated"], "extra": {"original-user-info.understudy.dev": ["{}"]}}))]
#[case::upper("An extra key in upper case", json!({"username": "jane", "groups": ["system:authenticated"], "extra": {"Scopes": ["a"]}}))]
#[case::line_break("A line break in a caller's name", json!({"username": "jane\r\nImpersonate-Group: system:masters", "groups": ["system:authenticated"]}))]
#[case::nul("NUL in a caller's group", json!({"username": "jane", "groups": ["a\u{0}b", "system:authenticated"]}))]
#[case::empty("A caller without a name", json!({"username": "", "groups": ["system:authenticated"]}))]
#[case::no_groups("A caller in no group", json!({"username": "jane", "groups": []}))]
#[tokio::test]
async fn who_cannot_be_carried_is_refused(#[case] case: &str, #[case] user: Value) {
    let (stage, _) = stage_that_judges(json!({}), move |_| Some(json!({"authenticated": true, "user": user}))).await;
    let outcome = refusal(send(&stage, None, &[("authorization", "Bearer jane")]).await, &stage).await;
    assert_eq!(outcome, "422 `Status` Invalid; nothing upstream");
    seen(Area::Identity, case, outcome);
}

#[tokio::test]
async fn five_hundred_groups_and_a_name_of_eight_kilobytes_are_sent_whole() {
    let name = "n".repeat(8192);
    let mut groups: Vec<String> = (0..500).map(|index| format!("group-{index}")).collect();
    groups.push("system:authenticated".to_owned());
    let user = json!({"username": name, "groups": groups});
    let (stage, _) = stage_that_judges(json!({}), move |_| Some(json!({"authenticated": true, "user": user}))).await;
    let response = send(&stage, None, &[("authorization", "Bearer jane")]).await;
    assert_eq!(response.status(), 200);
    let identity = identity_of(&stage);
    let carried: Vec<&str> = lines(&identity)
        .into_iter()
        .filter(|(name, _)| *name == "impersonate-group")
        .map(|(_, value)| value)
        .collect();
    assert_eq!(carried, groups);
    assert_eq!(identity[1].1, name);
    seen(Area::Identity, "500 groups and a name of 8 KB", "sent whole");
}

#[tokio::test]
async fn a_token_for_somebody_else_is_refused() {
    let judge =
        |_: &Value| Some(json!({"authenticated": true, "audiences": ["another"], "user": {"username": "jane"}}));
    let (stage, _) = stage_that_judges(json!({"audiences": ["understudy"]}), judge).await;
    let outcome = refusal(send(&stage, None, &[("authorization", "Bearer jane")]).await, &stage).await;
    assert_eq!(outcome, "401 `Status` Unauthorized; nothing upstream");
    seen(Area::Identity, "A token for another audience", outcome);
}

/// Resumed or open, a connection is worth what its certificate is worth now.
#[tokio::test]
async fn a_signer_that_is_taken_back_ends_what_its_certificates_prove_at_once() {
    let (signer, other) = (Signer::new(), Signer::new());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("signer.crt");
    std::fs::write(&file, &signer.pem).unwrap();
    let (stage, _) = stage_that_judges(json!({"signerCAFile": file}), by_name).await;
    let (chain, key) = signer.jane();
    let config = stage.client_terms().with_client_auth_cert(chain, key).unwrap();
    let connect = async || {
        let io = TokioIo::new(stage.tls_under(config.clone(), "h2").await.unwrap());
        let resumed = io.inner().get_ref().1.handshake_kind();
        let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        (sender, resumed)
    };
    let (mut open, _) = connect().await;
    let status = |response: Response<Incoming>| response.status().as_u16();
    let mut until = async |code: u16| {
        for _ in 0..1000 {
            if status(open.send_request(asking(&[])).await.unwrap()) == code {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("no answer of {code}");
    };
    // The file is read a moment after the session came into force.
    until(200).await;
    std::fs::write(directory.path().join("next"), &other.pem).unwrap();
    std::fs::rename(directory.path().join("next"), &file).unwrap();
    until(401).await;
    let before = forwarded(&stage).len();
    assert_eq!(status(open.send_request(asking(&[])).await.unwrap()), 401);
    let (mut again, kind) = connect().await;
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    assert_eq!(status(again.send_request(asking(&[])).await.unwrap()), 401);
    assert_eq!(forwarded(&stage).len(), before);
    seen(
        Area::Identity,
        "A signer taken back under an open connection, and under a resumed one",
        "401 on both; nothing upstream",
    );
}

#[tokio::test]
async fn only_pods_whose_callers_prove_who_they_are_are_asked_for_a_certificate() {
    let signer = Signer::new();
    let (stage, _) = stage_that_judges(json!({"signerCA": signer.pem}), by_name).await;
    let asked = async |stage: &Stage| {
        let resolver = Arc::new(Asked::default());
        let config = stage
            .client_terms()
            .with_client_cert_resolver(Arc::clone(&resolver) as _);
        let mut stream = stage.tls_under(config, "http/1.1").await.unwrap();
        tokio::io::AsyncWriteExt::flush(&mut stream).await.unwrap();
        resolver.0.load(std::sync::atomic::Ordering::SeqCst)
    };
    assert!(asked(&stage).await);
    stage
        .declare(Some(
            json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}}),
        ))
        .await;
    assert!(!asked(&stage).await);
}

/// A client that has no certificate, and remembers being asked for one.
#[derive(Debug, Default)]
struct Asked(std::sync::atomic::AtomicBool);

impl rustls::client::ResolvesClientCert for Asked {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.store(true, std::sync::atomic::Ordering::SeqCst);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[rstest]
#[case::its_own("A pod's own token, where that is asked for", "pod-1", "200")]
#[case::anothers(
    "Another pod's token, where the pod's own is asked for",
    "pod-2",
    "403 `Status` Forbidden; nothing upstream"
)]
#[case::none(
    "No token, where the pod's own is asked for",
    "",
    "401 `Status` Unauthorized; nothing upstream"
)]
#[case::bad(
    "A false token, where the pod's own is asked for",
    "bad",
    "401 `Status` Unauthorized; nothing upstream"
)]
#[tokio::test]
async fn a_session_may_ask_for_the_pods_own_token(#[case] case: &str, #[case] token: &str, #[case] expected: &str) {
    let judge = |review: &Value| match review["spec"]["token"].as_str().unwrap() {
        "bad" => by_name(review),
        uid => Some(
            json!({"authenticated": true, "user": {"username": "system:serviceaccount:a:b",
            "extra": {"authentication.kubernetes.io/pod-uid": [uid]}}}),
        ),
    };
    let (stage, _) = stage_that_judges(json!({}), judge).await;
    stage
        .declare(Some(
            json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}, "requirePodToken": true}),
        ))
        .await;
    while stage
        .sessions
        .snapshot()
        .in_force(&stage.pod.wanted.session)
        .is_none_or(|live| !live.spec.require_pod_token)
    {
        tokio::task::yield_now().await;
    }
    let bearer = format!("Bearer {token}");
    let fields: &[_] = if token.is_empty() {
        &[]
    } else {
        &[("authorization", bearer.as_str())]
    };
    let response = send(&stage, None, fields).await;
    let outcome = if response.status() == 200 {
        assert_eq!(lines(&identity_of(&stage))[1], ("impersonate-user", "jane"));
        "200".to_owned()
    } else {
        refusal(response, &stage).await
    };
    assert_eq!(outcome, expected);
    seen(Area::Identity, case, outcome);
}

/// Nothing vouches for who comes by the agent's own listener: it is lent no identity, and proves its own.
#[tokio::test]
async fn clients_outside_pods_prove_who_they_are_or_are_nobody() {
    let signer = Signer::new();
    let (stage, _) = stage_that_judges(json!({"signerCA": signer.pem}), by_name).await;
    let outside = stage.outside();
    let ask = async |identity: Option<Identity>| {
        let terms = stage.client_terms();
        let config = match identity {
            None => terms.with_no_client_auth(),
            Some((chain, key)) => terms.with_client_auth_cert(chain, key).unwrap(),
        };
        let stream = tokio::net::TcpStream::connect(outside).await.unwrap();
        let io = TokioIo::new(Stage::tls_over(stream, config, "h2").await.unwrap());
        let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(asking(&[])).await.unwrap()
    };
    assert_eq!(ask(Some(signer.jane())).await.status(), 200);
    assert_eq!(lines(&identity_of(&stage))[1], ("impersonate-user", "jane"));
    assert_eq!(ask(Some(Signer::new().jane())).await.status(), 401);
    assert_eq!(forwarded(&stage).len(), 1);

    stage
        .declare(Some(
            json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}}),
        ))
        .await;
    while stage
        .sessions
        .snapshot()
        .in_force(&stage.pod.wanted.session)
        .is_none_or(|live| live.spec.method.is_callers_own())
    {
        tokio::task::yield_now().await;
    }
    stage.seen.heads.lock().unwrap().clear();
    let outcome = refusal(ask(Some(signer.jane())).await, &stage).await;
    assert_eq!(outcome, "403 `Status` Forbidden; nothing upstream");
    seen(
        Area::Identity,
        "A client of `--listen`, under a session that would lend it an identity",
        outcome,
    );
}
