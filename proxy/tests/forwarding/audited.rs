//! What the audit log says of bodies that pass, and that passing is all the same to them.

use std::io::Write as _;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use serde_json::{Value, json};
use understudy::audit::{BodyTerms, Policy, mask::Masks};

use crate::stage::{Stage, Terms, text, whole};

const MAPS: &str = "/api/v1/namespaces/prod/configmaps";
const SECRETS: &str = "/api/v1/namespaces/prod/secrets";

async fn terms(rules: &str) -> Terms {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("policy.yaml");
    std::fs::write(
        &path,
        format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{rules}]\n"),
    )
    .unwrap();
    Terms {
        audit_policy: Policy::load(&path).await.unwrap(),
        audit_bodies: BodyTerms {
            limit: 1024,
            masks: Masks::new(vec!["configmaps:data.password".parse().unwrap()]).into(),
        },
        ..Terms::default()
    }
}

fn post(path: &str, body: impl Into<Bytes>) -> Request<BoxBody<Bytes, std::convert::Infallible>> {
    Request::post(format!("https://kubernetes.default.svc{path}"))
        .header("host", "kubernetes.default.svc")
        .header("content-type", "application/json")
        .body(Full::new(body.into()).boxed())
        .unwrap()
}

/// An upstream that sends back what it gets, with its type and encoding.
async fn echo(rules: &str) -> Stage {
    Stage::new(terms(rules).await, |request| async move {
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let mut answer = whole(body);
        for name in ["content-type", "content-encoding"] {
            if let Some(value) = head.headers.get(name) {
                answer
                    .headers_mut()
                    .insert(http::HeaderName::from_static(name), value.clone());
            }
        }
        answer
    })
    .await
}

async fn only_event(stage: &Stage) -> Value {
    let events = stage.events().await;
    assert_eq!(events.len(), 1, "{events:?}");
    events[0].clone()
}

#[tokio::test]
async fn at_metadata_no_body_is_written() {
    let stage = echo("{level: Metadata}").await;
    let answer = stage
        .http2()
        .await
        .send_request(post(MAPS, r#"{"a":1}"#))
        .await
        .unwrap();
    assert_eq!(text(answer).await, r#"{"a":1}"#);
    let event = only_event(&stage).await;
    assert_eq!(event["level"], "Metadata");
    assert_eq!((event.get("requestObject"), event.get("responseObject")), (None, None));
}

#[tokio::test]
async fn bodies_are_written_at_the_level_that_asks_for_them_and_masked() {
    let rules = "{level: Request, resources: [{resources: [secrets]}]}, {level: RequestResponse}";
    let stage = echo(rules).await;
    let mut client = stage.http2().await;
    let map = json!({"kind": "ConfigMap", "data": {"password": "hunter2", "colour": "green"}});
    let answer = client.send_request(post(MAPS, map.to_string())).await.unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&text(answer).await).unwrap(),
        map,
        "it passes as it is"
    );
    let secret = json!({"kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "hunter3"}});
    let answer = client.send_request(post(SECRETS, secret.to_string())).await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text(answer).await).unwrap(), secret);
    drop(client);
    let events = stage.events().await;
    let masked = json!({"kind": "ConfigMap", "data": {"password": "***", "colour": "green"}});
    assert_eq!(
        (&events[0]["level"], &events[0]["requestObject"]),
        (&json!("RequestResponse"), &masked)
    );
    assert_eq!(events[0]["responseObject"], masked);
    let masked = json!({"kind": "Secret", "metadata": {"name": "x"}, "stringData": {"a": "***"}});
    assert_eq!(
        (&events[1]["level"], &events[1]["requestObject"]),
        (&json!("Request"), &masked)
    );
    assert_eq!(events[1].get("responseObject"), None);
    assert!(!format!("{events:?}").contains("hunter"), "{events:?}");
}

#[tokio::test]
async fn gzip_passes_untouched_and_is_understood() {
    let stage = echo("{level: RequestResponse}").await;
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(br#"{"kind":"ConfigMap"}"#).unwrap();
    let zipped = Bytes::from(encoder.finish().unwrap());
    let mut request = post(MAPS, zipped.clone());
    request
        .headers_mut()
        .insert("content-encoding", "gzip".parse().unwrap());
    let answer = stage.http2().await.send_request(request).await.unwrap();
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), zipped);
    let event = only_event(&stage).await;
    for name in ["requestObject", "responseObject"] {
        assert_eq!(event[name], json!({"kind": "ConfigMap"}), "{name}");
    }
}

#[tokio::test]
async fn what_is_too_large_passes_and_is_not_written() {
    let stage = echo("{level: RequestResponse}").await;
    let large = json!({"kind": "ConfigMap", "data": {"a": "x".repeat(300_000)}}).to_string();
    let answer = stage
        .http2()
        .await
        .send_request(post(MAPS, large.clone()))
        .await
        .unwrap();
    assert_eq!(text(answer).await, large);
    let event = only_event(&stage).await;
    assert_eq!((event.get("requestObject"), event.get("responseObject")), (None, None));
    let said = |name: &str| event["annotations"][format!("understudy.dev/{name}")].clone();
    assert_eq!(said("request-object"), "larger than --audit-max-body");
    assert_eq!(said("response-object"), "larger than --audit-max-body");
    assert_eq!(said("request-bytes"), large.len().to_string());
}

#[tokio::test]
async fn a_watch_is_never_kept() {
    let stage = Stage::new(terms("{level: RequestResponse}").await, |_| async {
        let mut answer = Response::new(Full::new(Bytes::from("{\"type\":\"ADDED\"}\n")).boxed());
        answer
            .headers_mut()
            .insert("content-type", "application/json".parse().unwrap());
        answer
    })
    .await;
    let mut request = post(&format!("{MAPS}?watch=1"), "");
    *request.method_mut() = http::Method::GET;
    text(stage.http2().await.send_request(request).await.unwrap()).await;
    let events = stage.events().await;
    let stages: Vec<_> = events.iter().map(|event| event["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
    for event in events {
        assert_eq!(event["level"], "RequestResponse");
        assert_eq!(event.get("responseObject"), None);
    }
}

#[tokio::test]
async fn none_leaves_out_what_reads_and_nothing_else() {
    let stage = echo("{level: None}").await;
    let mut client = stage.http2().await;
    let mut read = post(MAPS, "");
    *read.method_mut() = http::Method::GET;
    text(client.send_request(read).await.unwrap()).await;
    text(client.send_request(post(MAPS, "{}")).await.unwrap()).await;
    let mut impersonating = post(MAPS, "");
    *impersonating.method_mut() = http::Method::GET;
    impersonating
        .headers_mut()
        .insert("impersonate-user", "root".parse().unwrap());
    assert_eq!(client.send_request(impersonating).await.unwrap().status(), 403);
    drop(client);
    let events = stage.events().await;
    let verbs: Vec<_> = events
        .iter()
        .map(|event| (&event["level"], event["verb"].as_str().unwrap()))
        .collect();
    assert_eq!(verbs, [(&json!("Metadata"), "create"), (&json!("Metadata"), "list")]);
    assert_eq!(events[1]["annotations"]["understudy.dev/refused"], "impersonation");
}
