//! Invariant 2, for requests that a session doesn't carry: nothing of them goes upstream.

use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use rstest::rstest;
use serde_json::{Value, json};

use crate::stage::{Stage, Terms, get1, text, whole};

type Outgoing = Request<BoxBody<bytes::Bytes, std::convert::Infallible>>;

fn post(path: &str, over: &str) -> Outgoing {
    let authority = if over == "h2" {
        "https://kubernetes.default.svc"
    } else {
        ""
    };
    Request::builder()
        .method(Method::POST)
        .uri(format!("{authority}{path}"))
        .header("host", "kubernetes.default.svc")
        .body(Full::from("{}").boxed())
        .unwrap()
}

async fn answer(stage: &Stage, request: Outgoing, over: &str) -> Response<Incoming> {
    if over == "h2" {
        stage.http2().await.send_request(request).await.unwrap()
    } else {
        stage.http1().await.send_request(request).await.unwrap()
    }
}

async fn send(stage: &Stage, path: &str, over: &str) -> (StatusCode, Value) {
    let response = answer(stage, post(path, over), over).await;
    let status = response.status();
    let body = text(response).await;
    (status, serde_json::from_str(&body).unwrap_or(Value::Null))
}

#[rstest]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin/token")]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin/%74oken")]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin%2ftoken")]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin/token/")]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin//token")]
#[case("//api/v1/namespaces/prod/serviceaccounts/admin/token")]
#[case("/api/v1/namespaces/prod/pods/../serviceaccounts/admin/token")]
#[case("/api/v1/namespaces/prod/serviceaccounts/admin/%2574oken")]
#[tokio::test]
async fn no_credential_that_outlives_the_session_is_made(#[case] path: &str, #[values("h2", "http/1.1")] over: &str) {
    let stage = Stage::new(Terms::default(), |_| async { whole("{}") }).await;
    let (status, body) = send(&stage, path, over).await;
    assert_eq!((status, &body["reason"]), (StatusCode::FORBIDDEN, &json!("Forbidden")));
    assert!(body["message"].as_str().unwrap().contains("spec.refuse"), "{body}");
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn what_no_rule_speaks_of_passes() {
    let stage = Stage::new(Terms::default(), |_| async { whole("{}") }).await;
    for over in ["h2", "http/1.1"] {
        let (status, _) = send(&stage, "/api/v1/namespaces/prod/serviceaccounts", over).await;
        assert_eq!(status, StatusCode::OK);
    }
    assert_eq!(stage.seen.count(), 2);
    let mut spec = Terms::default().spec;
    spec["refuse"] = json!([]);
    stage.declare(Some(spec)).await;
    let (status, _) = send(&stage, "/api/v1/namespaces/prod/serviceaccounts/admin/token", "h2").await;
    assert_eq!((status, stage.seen.count()), (StatusCode::OK, 3));
}

#[tokio::test]
async fn a_refused_stream_isnt_opened() {
    let mut terms = Terms::default();
    terms.spec["refuse"] = json!([{"verbs": ["create"], "resources": ["pods/exec"]}]);
    let stage = Stage::new(terms, |_| async { whole("") }).await;
    let mut request = get1("/api/v1/namespaces/prod/pods/web/exec?command=sh");
    for (name, value) in [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let response = stage.http1().await.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    assert_eq!(stage.seen.count(), 0);
}

#[tokio::test]
async fn a_refusal_of_head_has_no_content() {
    let mut terms = Terms::default();
    terms.spec["refuse"] = json!([{"verbs": ["get"], "resources": ["secrets"]}]);
    let stage = Stage::new(terms, |_| async { whole("{}") }).await;
    for over in ["h2", "http/1.1"] {
        let mut request = post("/api/v1/namespaces/prod/secrets/token", over);
        *request.method_mut() = Method::HEAD;
        *request.body_mut() = Full::default().boxed();
        let response = answer(&stage, request, over).await;
        assert_eq!(response.status(), StatusCode::FORBIDDEN, "{over}");
        let length = response.headers()["content-length"].to_str().unwrap();
        assert!(length.parse::<usize>().unwrap() > 0, "{over}: {length}");
        assert_eq!(text(response).await, "", "{over}");
    }
}
