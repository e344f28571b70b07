//! Invariant 2, against clients who try: identities that aren't ours, in every dress.

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::json;
use understudy_cases::{Area, seen};

use crate::{
    stage::{Stage, Terms, get, text, whole},
    wire::{Answered, identity_of, play, upstream},
};

async fn stage() -> Stage {
    Stage::new(Terms::default(), |_| async { whole("served") }).await
}

/// Asks over HTTP/2 with these fields.
async fn ask2(stage: &Stage, fields: &[(&str, &str)]) -> Answered {
    let mut request = get("/api");
    for (name, value) in fields {
        let name = name.parse::<http::HeaderName>().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let response = stage.http2().await.send_request(request).await.unwrap();
    Answered::new(response.status().as_u16(), false, text(response).await.into_bytes())
}

/// Over both protocols; what came of it has to be the same.
async fn over_both(case: &str, fields: &[(&str, &str)]) -> (Stage, String) {
    let stage = stage().await;
    let lines = fields
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect::<Vec<_>>()
        .concat();
    let request = format!("GET /api HTTP/1.1\r\nhost: k\r\nconnection: close\r\n{lines}\r\n");
    let http1 = play(&stage, request).await.answers.remove(0);
    let http2 = ask2(&stage, fields).await;
    assert_eq!(
        (http1.code, &http1.reason, &http1.body),
        (http2.code, &http2.reason, &http2.body),
        "{case}"
    );
    (stage, http1.to_string())
}

/// Invariant 2: whoever asks to impersonate is refused, however it is spelt.
#[tokio::test]
async fn every_spelling_of_impersonation_is_refused() {
    for (case, fields) in [
        ("Impersonate-User", &[("Impersonate-User", "root")][..]),
        (
            "IMPERSONATE-GROUP in capitals",
            &[("IMPERSONATE-GROUP", "system:masters")],
        ),
        ("iMpErSoNaTe-UiD in mixed case", &[("iMpErSoNaTe-UiD", "1")]),
        ("Impersonate-Extra-*", &[("impersonate-extra-scopes", "all")]),
        (
            "Impersonate-Extra-* with a percent-encoded key",
            &[("impersonate-extra-acme%2fscopes", "all")],
        ),
        ("Impersonate-* with an unknown suffix", &[("impersonate-anything", "x")]),
        ("Impersonate- without a suffix", &[("impersonate-", "x")]),
        (
            "Impersonate-User twice",
            &[("impersonate-user", "jane"), ("impersonate-user", "root")],
        ),
        ("Impersonate-User without a value", &[("impersonate-user", "")]),
        ("Impersonate_User with an underscore", &[("impersonate_user", "root")]),
        ("Impersonate-Extra_* with both", &[("impersonate-extra_scopes", "all")]),
    ] {
        let (stage, answer) = over_both(case, fields).await;
        assert_eq!(
            (answer.as_str(), stage.seen.count()),
            ("403 `Status` Forbidden", 0),
            "{case}"
        );
        seen(
            Area::Identity,
            case,
            format!("{answer}; {}", upstream(stage.seen.count())),
        );
    }
}

/// Invariant 2: what a client says of itself stays behind.
#[tokio::test]
async fn whatever_else_carries_an_identity_stays_behind() {
    for (case, fields) in [
        ("Authorization", &[("authorization", "Bearer mine")][..]),
        (
            "two Authorizations",
            &[("authorization", "Bearer mine"), ("AUTHORIZATION", "Basic cm9vdDo=")],
        ),
        (
            "Proxy-Authorization and Cookie",
            &[("proxy-authorization", "Basic cm9vdDo="), ("cookie", "token=mine")],
        ),
        (
            "X-Remote-User, X-Remote-Group, X-Remote-Extra-*",
            &[
                ("x-remote-user", "root"),
                ("X-Remote-Group", "system:masters"),
                ("x-remote-extra-acme%2fscopes", "all"),
            ],
        ),
        (
            "X_Remote_User with underscores",
            &[("x_remote_user", "root"), ("x_forwarded-for", "1.2.3.4")],
        ),
        (
            "X-Forwarded-For, Forwarded and their kin",
            &[
                ("x-forwarded-for", "127.0.0.1"),
                ("X-Forwarded-Proto", "https"),
                ("forwarded", "for=127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
                ("x-client-ip", "127.0.0.1"),
                ("x-original-forwarded-for", "127.0.0.1"),
            ],
        ),
        ("Audit-ID", &[("audit-id", "spoofed"), ("Audit-Id", "spoofed")]),
        (
            "the WebSocket bearer sub-protocol",
            &[(
                "sec-websocket-protocol",
                "base64url.bearer.authorization.k8s.io.bWluZQ, v5.channel.k8s.io",
            )],
        ),
    ] {
        let (stage, answer) = over_both(case, fields).await;
        let heads = stage.seen.heads.lock().unwrap().clone();
        let identity = identity_of(&heads[0]);
        assert_eq!(
            (answer.as_str(), identity.as_str()),
            ("200", "only the session's identity upstream"),
            "{case}"
        );
        assert_eq!(identity_of(&heads[1]), identity, "{case}");
        seen(Area::Identity, case, format!("{answer}; {identity}"));
    }
}

/// Invariant 2: nothing of ours can be named away.
#[tokio::test]
async fn connection_names_nothing_of_ours_away() {
    for (case, lines) in [
        ("Connection: Authorization", "connection: Authorization, close"),
        (
            "Connection: impersonate-user in lower case",
            "connection: close, impersonate-user",
        ),
        (
            "several Connections that name all of ours",
            "connection: Authorization,Impersonate-User\r\nCONNECTION: impersonate-group\r\nconnection: audit-id, close",
        ),
    ] {
        let stage = stage().await;
        let outcome = play(&stage, format!("GET /api HTTP/1.1\r\nhost: k\r\n{lines}\r\n\r\n")).await;
        let identity = identity_of(&stage.seen.only());
        assert_eq!(identity, "only the session's identity upstream", "{case}");
        seen(Area::Identity, case, format!("{}; {identity}", outcome.answers[0]));
    }
    let stage = stage().await;
    let fields = "connection: impersonate-user, close\r\nimpersonate-user: root";
    let outcome = play(&stage, format!("GET /api HTTP/1.1\r\nhost: k\r\n{fields}\r\n\r\n")).await;
    assert_eq!(
        outcome.to_string(),
        "403 `Status` Forbidden, connection closed; nothing upstream"
    );
    seen(
        Area::Identity,
        "Impersonate-User that Connection names",
        outcome.to_string(),
    );
}

/// Invariant 2, for what comes behind a body.
#[tokio::test]
async fn trailers_carry_nothing_upstream() {
    let stage = Stage::new(Terms::default(), |request: Request<Incoming>| async move {
        let body = request.into_body().collect().await.unwrap();
        let trailers = body.trailers().map_or(0, HeaderMap::len);
        whole(format!("{} bytes, {trailers} trailers", body.to_bytes().len()))
    })
    .await;
    let trailers = "authorization: Bearer mine\r\nimpersonate-user: root\r\nx-remote-user: root\r\n";
    let http1 = play(
        &stage,
        format!(
            "POST /api HTTP/1.1\r\nhost: k\r\nconnection: close\r\ntrailer: authorization\r\n\
             transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n{trailers}\r\n"
        ),
    )
    .await;
    let mut map = HeaderMap::new();
    map.insert("authorization", "Bearer mine".parse().unwrap());
    map.insert("impersonate-user", "root".parse().unwrap());
    let frames = [Ok(Frame::data(Bytes::from("hi"))), Ok(Frame::trailers(map))];
    let (head, _) = get("/api").into_parts();
    let mut request = Request::from_parts(head, StreamBody::new(futures_util::stream::iter(frames)).boxed());
    *request.method_mut() = http::Method::POST;
    let http2 = text(stage.http2().await.send_request(request).await.unwrap()).await;
    let expected = "2 bytes, 0 trailers";
    assert_eq!(
        (http1.answers[0].body.as_slice(), http2.as_str()),
        (expected.as_bytes(), expected)
    );
    let heads = stage.seen.heads.lock().unwrap().clone();
    let identity = identity_of(&heads[0]);
    assert_eq!(identity_of(&heads[1]), identity);
    assert!(heads.iter().all(|head| !head.headers.contains_key("trailer")));
    let outcome = format!("{}; no trailer upstream, {identity}", http1.answers[0]);
    seen(Area::Identity, "credentials in trailers", outcome);
}

/// Invariant 2: a name that would end its line is in no line.
#[tokio::test]
async fn a_user_who_would_break_the_line_is_nobody() {
    for (case, user) in [
        (
            "CR and LF in a session's user",
            "jane\r\nimpersonate-group: system:masters",
        ),
        ("LF in a session's user", "jane\nimpersonate-group: system:masters"),
        ("NUL in a session's user", "jane\0"),
    ] {
        let spec = json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": user}});
        let policy = understudy::sessions::spec::Policy {
            allow_insecure_servers: false,
        };
        let error = understudy::sessions::spec::SessionSpec::parse(spec.clone(), policy)
            .unwrap_err()
            .to_string();
        assert!(error.contains("spec.impersonate.user"), "{error}");
        let stage = stage().await;
        stage.declare(None).await;
        stage.declare(Some(spec)).await;
        let answer = ask2(&stage, &[]).await;
        assert_eq!(
            (answer.to_string().as_str(), stage.seen.count()),
            ("403 `Status` Forbidden", 0),
            "{case}"
        );
        let outcome = format!(
            "the session is refused where it is loaded, by the field's name; {answer}; {}",
            upstream(stage.seen.count())
        );
        seen(Area::Identity, case, outcome);
    }
}

/// Invariant 2: an identity goes whole, or not at all.
#[tokio::test]
async fn a_large_identity_is_sent_whole() {
    let user = format!("u{}", "x".repeat(8191));
    let groups: Vec<String> = (0..500).map(|group| format!("acme:team-{group:03}")).collect();
    let long = vec![format!("g{}", "y".repeat(8191))];
    for (case, user, groups) in [
        ("500 groups", "jane", &groups),
        ("a user and a group of 8 KB", user.as_str(), &long),
    ] {
        for alpn in ["h2", "http/1.1"] {
            let spec = json!({
                "authMethod": "gateway-kubernetes-auth",
                "impersonate": {"user": user, "groups": groups},
            });
            let terms = Terms {
                alpn: vec![alpn],
                spec,
                ..Terms::default()
            };
            let stage = Stage::new(terms, |_| async { whole("served") }).await;
            let answer = ask2(&stage, &[]).await;
            assert_eq!(answer.code, 200, "{case} over {alpn}");
            let head = stage.seen.only();
            let sent: Vec<_> = head.headers.get_all("impersonate-group").iter().collect();
            assert_eq!(
                (head.headers["impersonate-user"].to_str().unwrap(), sent.len()),
                (user, groups.len())
            );
            assert!(
                sent.iter()
                    .zip(groups)
                    .all(|(sent, group)| sent.as_bytes() == group.as_bytes())
            );
            let outcome = format!("{answer}; sent whole, in {} Impersonate-Group fields", sent.len());
            seen(Area::Identity, case, outcome);
        }
    }
}
