//! What events say, and how.

use std::os::unix::fs::PermissionsExt;

use http::Request;

use super::*;
use crate::{
    forward::Origin,
    identity::ActsAs,
    pod::{ClientAddr, OriginalDst},
    status::Refusal,
};

fn line(event: &Event) -> String {
    let mut out = Vec::new();
    Scribe::default().event(&mut out, event);
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn an_event_says_who_did_what_as_whom() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let audit = to_file(&path).await;
    let viewer = User::impersonated(&ActsAs::service_account("prod", "viewer").unwrap(), None);
    let event = Event {
        acts_as: Some(Arc::clone(viewer.json())),
        code: 101,
        request_bytes: 3,
        response_bytes: 42,
        elapsed: Duration::from_millis(1500),
        cut_short: true,
        upgrade: Some("websocket"),
        recording: Some("20260601T120000Z_support_alice_d9f2.cast".into()),
        ..event(Asked {
            auth_method: "gateway-kubernetes-auth",
            method: "POST".into(),
            source: Some("127.0.0.1".parse().unwrap()),
            user_agent: Some("kubectl/v1.36".into()),
            ..asked("/apis/apps/v1/namespaces/prod/deployments/web/scale?x=1")
        })
    };
    audit.admit().await.unwrap().finish(event);
    written(&audit).await;
    let expected = concat!(
        r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","#,
        r#""auditID":"d9f2c3a4-0000-4000-8000-0123456789ab","stage":"ResponseComplete","#,
        r#""requestURI":"/apis/apps/v1/namespaces/prod/deployments/web/scale?x=1","verb":"create","#,
        r#""user":{"username":"system:serviceaccount:support:runner","#,
        r#""groups":["system:serviceaccounts","system:serviceaccounts:support","system:authenticated"],"#,
        r#""extra":{"authentication.kubernetes.io/pod-name":["shell-0"],"authentication.kubernetes.io/pod-uid":["0b7c"]}},"#,
        r#""impersonatedUser":{"username":"system:serviceaccount:prod:viewer","#,
        r#""groups":["system:serviceaccounts","system:serviceaccounts:prod","system:authenticated"]},"#,
        r#""sourceIPs":["127.0.0.1"],"userAgent":"kubectl/v1.36","#,
        r#""objectRef":{"resource":"deployments","namespace":"prod","name":"web","apiGroup":"apps","apiVersion":"v1","#,
        r#""subresource":"scale"},"responseStatus":{"metadata":{},"code":101},"#,
        r#""requestReceivedTimestamp":"2026-06-01T12:00:00.250000Z","stageTimestamp":"2026-06-01T12:00:01.750000Z","#,
        r#""annotations":{"understudy.dev/node":"node-1","understudy.dev/pod":"support/shell-0","#,
        r#""understudy.dev/session":"support/alice","understudy.dev/auth-method":"gateway-kubernetes-auth","#,
        r#""understudy.dev/http-method":"POST","understudy.dev/upgrade":"websocket","#,
        r#""understudy.dev/recording":"20260601T120000Z_support_alice_d9f2.cast","understudy.dev/cut-short":"true","#,
        r#""understudy.dev/request-bytes":"3","understudy.dev/response-bytes":"42"}}"#,
        "\n",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[rstest]
#[case::refused(
    Event { refused: Some(Refusal::Impersonation), code: 403, ..to("/") },
    json!({"responseStatus": {"metadata": {}, "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": Refusal::Impersonation.message()}, "annotations": {"refused": "impersonation"}})
)]
#[case::abandoned(to("/"), json!({"annotations": {}}))]
#[case::hostile(to("/\n\"\u{1b}é"), json!({"annotations": {}}))]
#[case::doubtful(to("/api/v1//pods"), json!({"annotations": {"doubt": "an empty segment"}}))]
#[case::cluster_wide(
    to("/api/v1/nodes?watch=1"),
    json!({"verb": "watch", "objectRef": {"resource": "nodes", "apiVersion": "v1"}, "annotations": {}})
)]
#[case::a_named_list(
    to("/api/v1/namespaces/a/pods?fieldSelector=metadata.name%3Dweb"),
    json!({"verb": "list", "objectRef": {"resource": "pods", "namespace": "a", "name": "web", "apiVersion": "v1"},
        "annotations": {}})
)]
#[case::no_resource(event(Asked { method: "BREW".into(), ..asked("/healthz") }), json!({"verb": "brew", "annotations": {}}))]
#[case::a_caller(
    Event { caller: Some(CallerText { json: Arc::clone(User::anonymous().json()), proof: "none" }), ..to("/") },
    json!({"user": {"username": "system:anonymous", "groups": ["system:unauthenticated"]},
        "annotations": {"proof": "none"}})
)]
fn an_event_is_one_line_and_says_no_more_than_there_is(#[case] event: Event, #[case] beside: Value) {
    let text = line(&event);
    assert_eq!((text.lines().count(), text.ends_with('\n')), (1, true));
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["requestURI"], event.asked.uri);
    for name in [
        "impersonatedUser",
        "sourceIPs",
        "userAgent",
        "objectRef",
        "responseStatus",
    ] {
        assert_eq!(line.get(name), beside.get(name), "{name}");
    }
    for name in ["verb", "user"] {
        assert!(beside[name].is_null() || line[name] == beside[name], "{name}: {line}");
    }
    for name in [
        "auth-method",
        "proof",
        "upgrade",
        "refused",
        "doubt",
        "cut-short",
        "uri-truncated",
    ] {
        let value = line["annotations"].get(format!("understudy.dev/{name}"));
        assert_eq!(value, beside["annotations"].get(name), "{name}");
    }
}

#[test]
fn a_request_that_runs_long_is_told_of_when_it_begins() {
    let begun = line(&Event {
        stage: Stage::ResponseStarted,
        ..to("/api/v1/pods?watch=1")
    });
    let begun: Value = serde_json::from_str(&begun).unwrap();
    assert_eq!(begun["stage"], "ResponseStarted");
    assert_eq!(
        begun["annotations"].get("understudy.dev/response-bytes"),
        None,
        "it isn't known"
    );
}

#[rstest]
#[case("/short".to_owned(), "GET", 6, None)]
#[case(format!("/{}", "x".repeat(10_000)), "GET", 4096, Some("true"))]
#[case(format!("/{}", "é".repeat(10_000)), "GET", 4095, Some("true"))]
#[case("/".to_owned(), "A-METHOD-OF-A-LENGTH-THAT-NO-METHOD-HAS", 1, None)]
fn what_is_long_is_cut(
    #[case] uri: String,
    #[case] method: &str,
    #[case] length: usize,
    #[case] truncated: Option<&str>,
) {
    let request = Request::builder()
        .uri(uri)
        .method(method)
        .header("user-agent", "x".repeat(2000))
        .body(())
        .unwrap();
    let origin = Origin {
        pod: Arc::clone(&asked("/").pod),
        original_dst: OriginalDst("10.96.0.1:443".parse().unwrap()),
        client: ClientAddr("127.0.0.1:4000".parse().unwrap()),
        certificate: None,
    };
    let asked = Asked::new(&origin, Arc::from("node-1"), Timestamp::UNIX_EPOCH, "", &request);
    let line: Value = serde_json::from_str(&line(&event(asked))).unwrap();
    let told = line["annotations"]
        .get("understudy.dev/uri-truncated")
        .and_then(Value::as_str);
    assert_eq!((line["requestURI"].as_str().unwrap().len(), told), (length, truncated));
    assert!(
        line["annotations"]["understudy.dev/http-method"]
            .as_str()
            .unwrap()
            .len()
            <= 32
    );
    let agent = line["userAgent"].as_str().unwrap();
    assert_eq!((agent.len(), &agent[1023..]), (1024 + 12, "x...TRUNCATED"));
}

#[tokio::test]
async fn a_long_name_takes_no_more_room_than_it_may() {
    let (audit, orders, kept) = told(&Metrics::default());
    drop(orders);
    log(&audit, &format!("/api/v1/namespaces/a/pods/{}", "x".repeat(50_000))).await;
    written(&audit).await;
    let line: Value = serde_json::from_slice(&kept.lock().unwrap()).unwrap();
    assert_eq!(line["objectRef"]["name"].as_str().unwrap().len(), 1024);
}
