//! Invariant 2: what clients say of who they are, where the session says it, and each way in which they try.

use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, StreamBody};
use rstest::rstest;
use serde_json::{Value, json};
use understudy_cases::{Area, seen};

use crate::stage::{Stage, Terms, get1, text, whole};

async fn ask(stage: &Stage, fields: &[(&str, &str)]) -> (u16, String) {
    let mut request = get1("/api/v1/pods");
    request.headers_mut().remove("authorization");
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        request
            .headers_mut()
            .append(name, HeaderValue::from_str(value).unwrap());
    }
    let response = stage.http1().await.send_request(request).await.unwrap();
    (response.status().as_u16(), text(response).await)
}

async fn stage() -> Stage {
    Stage::new(Terms::default(), |_| async { whole("pods") }).await
}

/// What of the one request that was sent tells who it is from.
fn sent(stage: &Stage) -> String {
    let head = stage.seen.only();
    assert_eq!(
        head.headers.get_all("authorization").iter().collect::<Vec<_>>(),
        ["Bearer agent-token"]
    );
    assert_eq!(
        head.headers.get_all("impersonate-user").iter().collect::<Vec<_>>(),
        ["system:serviceaccount:prod:viewer"]
    );
    assert_eq!(head.headers.get_all("impersonate-group").iter().count(), 3);
    let ours = ["authorization", "impersonate-user", "impersonate-group", "audit-id"];
    let foreign: Vec<&str> = head
        .headers
        .keys()
        .map(HeaderName::as_str)
        .filter(|name| !ours.contains(name) && *name != "accept")
        .filter(|name| {
            ["auth", "impersonate", "x-", "forwarded", "sec-", "connection"]
                .iter()
                .any(|part| name.starts_with(part))
        })
        .collect();
    assert_eq!(foreign, Vec::<&str>::new());
    "200; sent with the session's identity alone".to_owned()
}

#[rstest]
#[case("`Impersonate-User`", &[("Impersonate-User", "root")])]
#[case("`IMPERSONATE-GROUP`, in upper case", &[("IMPERSONATE-GROUP", "system:masters")])]
#[case("`impersonate-uid`, in lower case", &[("impersonate-uid", "0")])]
#[case("`Impersonate-Anything`, an unknown suffix", &[("Impersonate-Anything", "x")])]
#[case("`Impersonate-User` twice", &[("Impersonate-User", "a"), ("Impersonate-User", "b")])]
#[case("`Impersonate_User`, with an underscore", &[("Impersonate_User", "root")])]
#[case("`Impersonate-Extra-a%2Fb`, a percent-encoded key", &[("Impersonate-Extra-a%2Fb", "x")])]
#[case("`Impersonate-User` without a value", &[("Impersonate-User", "")])]
#[tokio::test]
async fn a_client_that_impersonates_is_refused(#[case] case: &str, #[case] fields: &[(&str, &str)]) {
    let stage = stage().await;
    let (code, body) = ask(&stage, fields).await;
    let status: Value = serde_json::from_str(&body).unwrap();
    let outcome = format!(
        "{code} `{}` {}; {} requests upstream",
        status["kind"].as_str().unwrap(),
        status["reason"].as_str().unwrap(),
        stage.seen.count()
    );
    assert_eq!(outcome, "403 `Status` Forbidden; 0 requests upstream");
    seen(Area::Identity, case, "403 `Status` Forbidden; nothing upstream");
}

#[rstest]
#[case("`Connection: Authorization`", &[("Connection", "Authorization")])]
#[case("`Connection: Impersonate-User`", &[("Connection", "Impersonate-User")])]
#[case("`Connection` naming several, in lower case, on two lines",
    &[("Connection", "authorization, impersonate-user"), ("connection", "impersonate-group,audit-id")])]
#[case("`X-Remote-User`, `X-Remote-Group` and `X-Remote-Extra-*`",
    &[("X-Remote-User", "root"), ("X-Remote-Group", "system:masters"), ("X-Remote-Extra-Scopes", "all")])]
#[case("`X-Forwarded-For` and `Forwarded`", &[("X-Forwarded-For", "127.0.0.1"), ("Forwarded", "for=127.0.0.1")])]
#[case("Two Authorization headers", &[("Authorization", "Bearer a"), ("Authorization", "Bearer b")])]
#[case("The WebSocket bearer sub-protocol",
    &[("Sec-WebSocket-Protocol", "base64url.bearer.authorization.k8s.io.cm9vdA")])]
#[tokio::test]
async fn what_a_client_says_of_itself_comes_off(#[case] case: &str, #[case] fields: &[(&str, &str)]) {
    let stage = stage().await;
    assert_eq!(ask(&stage, fields).await.0, 200);
    seen(Area::Identity, case, sent(&stage));
}

#[tokio::test]
async fn the_audit_id_is_ours() {
    let stage = stage().await;
    assert_eq!(ask(&stage, &[("Audit-ID", "mine")]).await.0, 200);
    let head = stage.seen.only();
    let ids: Vec<_> = head.headers.get_all("audit-id").iter().collect();
    assert!(ids.len() == 1 && ids[0] != "mine" && ids[0].len() == 36, "{ids:?}");
    seen(
        Area::Identity,
        "`Audit-ID` spoofed",
        "200; sent with an id of the agent's own",
    );
}

#[tokio::test]
async fn trailers_carry_no_credential() {
    let stage = Stage::new(Terms::default(), |request| async {
        let trailers = request.into_body().collect().await.unwrap();
        whole(format!(
            "{:?}",
            trailers
                .trailers()
                .cloned()
                .unwrap_or_default()
                .keys()
                .collect::<Vec<_>>()
        ))
    })
    .await;
    for over in ["http/1.1", "h2"] {
        let mut trailers = HeaderMap::new();
        trailers.insert("authorization", HeaderValue::from_static("Bearer mine"));
        trailers.insert("impersonate-user", HeaderValue::from_static("root"));
        let frames = [
            Ok(http_body::Frame::data(bytes::Bytes::from_static(b"{}"))),
            Ok(http_body::Frame::trailers(trailers)),
        ];
        let body = StreamBody::new(futures_util::stream::iter(frames)).boxed();
        let authority = if over == "h2" {
            "https://kubernetes.default.svc"
        } else {
            ""
        };
        let request = http::Request::post(format!("{authority}/api/v1/namespaces/prod/pods"))
            .header("host", "kubernetes.default.svc")
            .header("trailer", "authorization, impersonate-user")
            .body(body)
            .unwrap();
        let response = if over == "h2" {
            stage.http2().await.send_request(request).await.unwrap()
        } else {
            stage.http1().await.send_request(request).await.unwrap()
        };
        assert_eq!(response.status(), 200);
        assert_eq!(text(response).await, "[]", "{over}");
    }
    for head in stage.seen.heads.lock().unwrap().iter() {
        assert!(!head.headers.contains_key("trailer"));
        assert_eq!(head.headers["authorization"], "Bearer agent-token");
    }
    seen(
        Area::Identity,
        "Credentials in trailers",
        "200; sent without the trailers",
    );
}

#[rstest]
#[case("CR and LF in a session's user", "jane\r\nImpersonate-Group: system:masters")]
#[case("LF in a session's user", "jane\nx")]
#[case("NUL in a session's user", "jane\u{0}")]
#[tokio::test]
async fn a_session_that_would_break_a_header_is_refused(#[case] case: &str, #[case] user: &str) {
    let stage = stage().await;
    stage
        .declare(Some(
            json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": user}}),
        ))
        .await;
    while stage.sessions.snapshot().in_force(&stage.pod.wanted.session).is_some() {
        tokio::task::yield_now().await;
    }
    let (code, body) = ask(&stage, &[]).await;
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (code, status["reason"].as_str(), stage.seen.count()),
        (403, Some("Forbidden"), 0)
    );
    seen(
        Area::Identity,
        case,
        "the session is refused by its field; 403 `Status` Forbidden; nothing upstream",
    );
}

#[tokio::test]
async fn a_name_of_eight_kilobytes_and_500_groups_of_a_session_are_sent_whole() {
    let groups: Vec<String> = (0..500).map(|index| format!("group-{index}")).collect();
    let name = "n".repeat(8192);
    let terms = Terms {
        spec: json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": name, "groups": groups}}),
        ..Terms::default()
    };
    let stage = Stage::new(terms, |_| async { whole("pods") }).await;
    assert_eq!(ask(&stage, &[]).await.0, 200);
    let head = stage.seen.only();
    assert_eq!(head.headers["impersonate-user"], name.as_str());
    let sent: Vec<_> = head
        .headers
        .get_all("impersonate-group")
        .iter()
        .map(|group| group.to_str().unwrap())
        .collect();
    assert_eq!(sent, groups);
    seen(
        Area::Identity,
        "500 groups and a user of 8 KB in a session",
        "sent whole",
    );
}
