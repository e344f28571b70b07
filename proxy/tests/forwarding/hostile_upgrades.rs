//! Upgrades that aren't what they seem: CVE-2018-1002105's shape, and others.

use rstest::rstest;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use understudy_cases::{Area, seen};

use crate::{
    stage::{Stage, Terms, whole},
    upgrades::{ASK, head, raw},
    wire::{PATIENCE, answers, play, upstream, write},
};

/// Behind a request, what an attacker would have the upstream read as its own.
const BEHIND: &str =
    "GET /api/v1/secrets HTTP/1.1\r\nhost: k\r\nimpersonate-user: system:admin\r\nconnection: close\r\n\r\n";

/// Plays an upstream that answers the upgrade so and keeps its connection open: whatever comes on it next, it tells.
async fn refused_upgrade(answer: &'static str) -> (Vec<crate::wire::Answered>, usize) {
    let (told, behind) = tokio::sync::oneshot::channel();
    let (stage, played) = raw(move |mut upstream| async move {
        head(&mut upstream).await;
        write(&mut upstream, answer).await;
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, upstream.read_to_end(&mut rest))
            .await
            .expect("it is closed");
        told.send(rest.len()).unwrap();
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, format!("{ASK}{BEHIND}")).await;
    let answers = answers(&mut client).await;
    played.await.unwrap();
    (answers, behind.await.unwrap())
}

/// Invariant 2, in the shape of CVE-2018-1002105: what follows a refused upgrade is a request like any other, and the
/// upstream connection of the upgrade carries nothing more.
#[rstest]
#[case::refused(
    "an upgrade that is refused, with a request behind it (CVE-2018-1002105)",
    "HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno"
)]
#[case::ok("an upgrade that is answered 200", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")]
#[case::redirect(
    "an upgrade that is answered 302",
    "HTTP/1.1 302 Found\r\nlocation: https://elsewhere/\r\ncontent-length: 2\r\n\r\ngo"
)]
#[tokio::test]
async fn nothing_goes_on_where_there_was_no_upgrade(#[case] case: &str, #[case] answer: &'static str) {
    let (answers, behind) = refused_upgrade(answer).await;
    let expected = [answer[9..12].to_owned(), "403 `Status` Forbidden".to_owned()];
    assert_eq!(answers.iter().map(ToString::to_string).collect::<Vec<_>>(), expected);
    assert_eq!((answers[0].body.len(), behind), (2, 0));
    let outcome = format!(
        "{} from the upstream, whole, and its connection closed; {behind} bytes behind it; the next request: {}",
        answers[0], answers[1]
    );
    seen(Area::Upgrades, case, outcome);
}

#[rstest]
#[case::h2c(
    "an upgrade to h2c",
    "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
)]
#[case::unknown("an upgrade to an unknown protocol", "connection: upgrade\r\nupgrade: echo\r\n")]
#[case::choice(
    "an upgrade to one of two protocols",
    "connection: upgrade\r\nupgrade: websocket, SPDY/3.1\r\n"
)]
#[case::tls("an upgrade to TLS/1.3", "connection: upgrade\r\nupgrade: TLS/1.3\r\n")]
#[case::body(
    "an upgrade with a body",
    "connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\n"
)]
#[tokio::test]
async fn an_upgrade_that_is_not_carried_is_refused(#[case] case: &str, #[case] fields: &str) {
    let stage = Stage::new(Terms::default(), |_| async { whole("served") }).await;
    let body = if fields.contains("length") { "abc" } else { "" };
    let request = format!("GET /exec HTTP/1.1\r\nhost: k\r\nconnection: close\r\n{fields}\r\n{body}");
    let outcome = play(&stage, request).await;
    assert_eq!(
        outcome.to_string(),
        "400 `Status` BadRequest, connection closed; nothing upstream"
    );
    seen(Area::Upgrades, case, outcome.to_string());
}

#[rstest]
#[case::another("an upstream that switches to another protocol", ASK, "SPDY/3.1")]
#[case::unasked(
    "an upstream that switches unasked",
    "GET /api HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n",
    "websocket"
)]
#[tokio::test]
async fn a_switch_that_was_not_asked_for_is_refused(#[case] case: &str, #[case] ask: &str, #[case] protocol: &str) {
    let switch = format!("HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: {protocol}\r\n\r\nglued");
    let (stage, _played) = raw(move |mut upstream| async move {
        head(&mut upstream).await;
        write(&mut upstream, switch).await;
        let _ = upstream.read(&mut [0; 1]).await;
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, ask.replace("keep-alive, Upgrade", "close, Upgrade")).await;
    let answers = answers(&mut client).await;
    assert_eq!(
        (answers.len(), answers[0].to_string().as_str()),
        (1, "502 `Status` InternalError")
    );
    assert!(!answers[0].body.windows(5).any(|bytes| bytes == b"glued"));
    seen(
        Area::Upgrades,
        case,
        format!("{}, connection closed; none of its bytes", answers[0]),
    );
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let stage = Stage::new(Terms::default(), |_| async {
        let mut answer = whole("");
        *answer.status_mut() = http::StatusCode::TEMPORARY_REDIRECT;
        answer
            .headers_mut()
            .insert("location", "https://127.0.0.1:1/".parse().unwrap());
        answer
    })
    .await;
    let outcome = play(
        &stage,
        "POST /api HTTP/1.1\r\nhost: k\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    )
    .await;
    assert_eq!(outcome.to_string(), "307, connection closed; one request upstream");
    seen(
        Area::Upgrades,
        "a redirect",
        format!(
            "{} from the upstream, not followed; {}",
            outcome.answers[0],
            upstream(stage.seen.count())
        ),
    );
}

/// What a client sends before the answer is held until it is known what it is.
#[tokio::test]
async fn bytes_before_the_answer_are_no_request() {
    let (stage, played) = raw(|mut upstream| async move {
        head(&mut upstream).await;
        // Time enough for the client's bytes to be there.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
        write(&mut upstream, switch).await;
        let mut received = Vec::new();
        upstream.read_to_end(&mut received).await.unwrap();
        assert_eq!(String::from_utf8(received).unwrap(), BEHIND.repeat(400));
        upstream.shutdown().await.unwrap();
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, format!("{ASK}{}", BEHIND.repeat(400))).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 101"));
    client.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    played.await.unwrap();
    seen(
        Area::Upgrades,
        "requests behind an upgrade that takes place",
        "101; they go as they are, as bytes of the protocol switched to",
    );
}
