//! HTTP/1.1 as nobody should write it. Each case has one outcome, and the document has it from here.

use std::sync::{Arc, Mutex};

use http::Request;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{io::AsyncReadExt, time::timeout};
use understudy::{limits::Limits, metrics::Limit};
use understudy_cases::{Area, seen};

use crate::{
    stage::{Stage, Terms, get, text, whole},
    wire::{PATIENCE, answers, play, write},
};

const REFUSED: &str = "400 `Status` BadRequest, connection closed; nothing upstream";
/// What an attacker would have served if it were taken for a request.
pub(crate) const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n";

/// How each upload ended that the upstream saw: its length, or none where it broke off.
pub(crate) type Uploads = Arc<Mutex<Vec<Option<usize>>>>;

pub(crate) async fn stage() -> Stage {
    stage_with(Limits::default()).await.0
}

pub(crate) async fn stage_with(limits: Limits) -> (Stage, Uploads) {
    let uploads = Uploads::default();
    let told = Arc::clone(&uploads);
    let terms = Terms {
        limits,
        ..Terms::default()
    };
    let stage = Stage::new(terms, move |request: Request<Incoming>| {
        let told = Arc::clone(&told);
        async move {
            let body = request.into_body().collect().await;
            told.lock().unwrap().push(body.ok().map(|body| body.to_bytes().len()));
            whole("served")
        }
    })
    .await;
    (stage, uploads)
}

async fn is_refused(case: &str, bytes: impl AsRef<[u8]>, expected: &str) {
    let stage = stage().await;
    let outcome = play(&stage, bytes).await;
    assert_eq!(outcome.to_string(), expected, "{case}");
    assert!(outcome.answers.last().unwrap().says_close, "{case}");
    seen(Area::Http1, case, outcome.to_string());
}

/// Invariant 2: what two readers could take for different requests is none.
#[tokio::test]
async fn what_can_be_framed_in_two_ways_is_refused() {
    for (case, fields, body) in [
        (
            "Content-Length with Transfer-Encoding",
            "content-length: 4\r\ntransfer-encoding: chunked",
            "0\r\n\r\n",
        ),
        (
            "Transfer-Encoding with Content-Length",
            "transfer-encoding: chunked\r\ncontent-length: 4",
            "0\r\n\r\n",
        ),
        (
            "two Content-Lengths that differ",
            "content-length: 4\r\ncontent-length: 0",
            "abcd",
        ),
        (
            "two Content-Lengths alike",
            "content-length: 4\r\ncontent-length: 4",
            "abcd",
        ),
        ("a list of Content-Lengths", "content-length: 4, 4", "abcd"),
        ("Content-Length: +5", "content-length: +5", "abcde"),
        ("Content-Length: 0x5", "content-length: 0x5", "abcde"),
        (
            "a Content-Length over 64 bits",
            "content-length: 18446744073709551617",
            "a",
        ),
        (
            "two Transfer-Encodings",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity",
            "0\r\n\r\n",
        ),
        (
            "a list of Transfer-Encodings",
            "transfer-encoding: gzip, chunked",
            "0\r\n\r\n",
        ),
        (
            "an unknown Transfer-Encoding",
            "transfer-encoding: xchunked",
            "0\r\n\r\n",
        ),
        (
            "a Transfer-Encoding behind a vertical tab",
            "transfer-encoding: \u{b}chunked",
            "0\r\n\r\n",
        ),
        (
            "a chunk size over 2^64",
            "transfer-encoding: chunked",
            "10000000000000005\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk size of 0x5",
            "transfer-encoding: chunked",
            "0x5\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk size with a sign",
            "transfer-encoding: chunked",
            "+5\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk longer than its size",
            "transfer-encoding: chunked",
            "3\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk size that ends with a bare LF",
            "transfer-encoding: chunked",
            "5\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk extension with a bare LF",
            "transfer-encoding: chunked",
            "5;a\nbcde\r\nabcde\r\n0\r\n\r\n",
        ),
        (
            "a chunk extension of 300 bytes",
            "transfer-encoding: chunked",
            &format!("0;{}\r\n\r\n", "a".repeat(300)),
        ),
        (
            "a trailer with a bare LF",
            "transfer-encoding: chunked",
            "0\r\na: b\n\r\n\r\n",
        ),
    ] {
        let request = format!("POST /api HTTP/1.1\r\nhost: k\r\n{fields}\r\n\r\n{body}{SMUGGLED}");
        is_refused(case, request, REFUSED).await;
    }
}

#[tokio::test]
async fn a_head_that_is_not_strictly_one_is_refused() {
    for (case, head) in [
        ("a bare LF after the request line", "GET /api HTTP/1.1\nhost: k\r\n\r\n"),
        ("a bare LF after a field", "GET /api HTTP/1.1\r\nhost: k\nx: y\r\n\r\n"),
        ("bare LFs alone", "GET /api HTTP/1.1\nhost: k\n\n"),
        (
            "a bare CR in a value",
            "GET /api HTTP/1.1\r\nhost: k\r\nx: a\rimpersonate-user: root\r\n\r\n",
        ),
        ("NUL in a value", "GET /api HTTP/1.1\r\nhost: k\r\nx: a\0b\r\n\r\n"),
        ("NUL in a name", "GET /api HTTP/1.1\r\nhost: k\r\nx\0y: b\r\n\r\n"),
        ("NUL in the target", "GET /a\0pi HTTP/1.1\r\nhost: k\r\n\r\n"),
        (
            "space before the colon",
            "GET /api HTTP/1.1\r\nhost: k\r\nimpersonate-user : root\r\n\r\n",
        ),
        (
            "a folded line",
            "GET /api HTTP/1.1\r\nhost: k\r\nx: a\r\n impersonate-user: root\r\n\r\n",
        ),
        (
            "a folded first line",
            "GET /api HTTP/1.1\r\n host: k\r\nhost: k\r\n\r\n",
        ),
        (
            "a line without a colon",
            "GET /api HTTP/1.1\r\nhost: k\r\nnothing\r\n\r\n",
        ),
        ("no Host", "GET /api HTTP/1.1\r\n\r\n"),
        ("two Hosts", "GET /api HTTP/1.1\r\nhost: k\r\nhost: other\r\n\r\n"),
        ("two Hosts alike", "GET /api HTTP/1.1\r\nhost: k\r\nHOST: k\r\n\r\n"),
        ("HTTP/0.9", "GET /api\r\n"),
        ("HTTP/1.2", "GET /api HTTP/1.2\r\nhost: k\r\n\r\n"),
        (
            "HTTP/1.0 with Transfer-Encoding",
            "POST /api HTTP/1.0\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
        (
            "two spaces in the request line",
            "GET  /api HTTP/1.1\r\nhost: k\r\n\r\n",
        ),
        ("a target that is no URI", "GET /a\\pi<> HTTP/1.1\r\nhost: k\r\n\r\n"),
        ("something else than HTTP", "EHLO k\r\n"),
        (
            "HTTP/2 where HTTP/1.1 was agreed on",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
    ] {
        is_refused(case, format!("{head}{SMUGGLED}"), REFUSED).await;
    }
}

#[tokio::test]
async fn what_a_proxy_does_not_carry_is_refused() {
    let refused = "405 `Status` MethodNotAllowed, connection closed; nothing upstream";
    is_refused(
        "CONNECT",
        format!("CONNECT k:443 HTTP/1.1\r\nhost: k:443\r\n\r\n{SMUGGLED}"),
        refused,
    )
    .await;
    is_refused(
        "TRACE",
        format!("TRACE /api HTTP/1.1\r\nhost: k\r\n\r\n{SMUGGLED}"),
        refused,
    )
    .await;
    let head = "GET https://elsewhere/api HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n";
    is_refused("absolute-form for another host", head, REFUSED).await;
    let head = "GET k:443 HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n";
    is_refused("authority-form without CONNECT", head, REFUSED).await;
    let head = "OPTIONS * HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n";
    is_refused("asterisk-form", head, REFUSED).await;
}

#[tokio::test]
async fn a_head_beyond_a_limit_is_refused_and_counted() {
    let refused = "431 `Status` BadRequest, connection closed; nothing upstream";
    let stage = stage().await;
    let fields = (0..256)
        .map(|field| format!("x-{field}: y\r\n"))
        .collect::<Vec<_>>()
        .concat();
    let outcome = play(&stage, format!("GET /api HTTP/1.1\r\nhost: k\r\n{fields}\r\n")).await;
    assert_eq!(
        (outcome.to_string().as_str(), stage.metrics.limit_hits(Limit::Headers)),
        (refused, 1)
    );
    seen(Area::Http1, "257 fields, where 256 are allowed", outcome.to_string());

    // No end is in sight, and none is waited for.
    let endless = format!("GET /api HTTP/1.1\r\nhost: k\r\nx: {}", "y".repeat(64 * 1024));
    let outcome = play(&stage, endless).await;
    assert_eq!(
        (
            outcome.to_string().as_str(),
            stage.metrics.limit_hits(Limit::HeaderBytes)
        ),
        (refused, 1)
    );
    seen(Area::Http1, "a head over 64 KiB", outcome.to_string());
}

/// A Go client's heads are large.
#[tokio::test]
async fn a_head_of_64_kib_and_256_fields_passes() {
    let stage = stage().await;
    let with = |fields: usize, value: usize| {
        let fields: Vec<_> = (0..fields)
            .map(|field| (format!("x-{field:03}"), "y".repeat(value)))
            .collect();
        assert!(
            fields
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
                <= 64 * 1024
        );
        fields
    };
    // The request line, Host, Connection, and what separates fields, count as well over HTTP/1.
    for (index, (h1, h2)) in [(with(254, 248), with(254, 249)), (with(1, 65_000), with(1, 65_000))]
        .into_iter()
        .enumerate()
    {
        let lines = h1
            .iter()
            .map(|(name, value)| format!("{name}: {value}\r\n"))
            .collect::<Vec<_>>()
            .concat();
        let head = format!("GET /api HTTP/1.1\r\nhost: k\r\nconnection: close\r\n{lines}\r\n");
        assert!(
            head.len() <= 64 * 1024 && head.len() > 64 * 1024 - 600,
            "{}",
            head.len()
        );
        let outcome = play(&stage, head).await;
        assert_eq!(outcome.answers[0].code, 200);
        let mut request = get("/api");
        for (name, value) in &h2 {
            request
                .headers_mut()
                .insert(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
        }
        let answer = stage.http2().await.send_request(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(stage.seen.count(), 2 * index + 2);
    }
    for head in stage.seen.heads.lock().unwrap().iter() {
        let large = head.headers.iter().filter(|(name, _)| name.as_str().starts_with("x-"));
        assert!(large.map(|(_, value)| value.len()).sum::<usize>() > 62_000);
    }
}

#[tokio::test]
async fn a_bad_request_behind_a_good_one_is_refused_in_its_turn() {
    let stage = stage().await;
    let good = "GET /good HTTP/1.1\r\nhost: k\r\n\r\n";
    let bad = "GET /bad HTTP/1.1\r\nhost: k\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n";
    let outcome = play(&stage, format!("{good}{bad}{SMUGGLED}")).await;
    let expected = "200, then 400 `Status` BadRequest, connection closed; one request upstream";
    assert_eq!(outcome.to_string(), expected);
    assert_eq!(stage.seen.only().uri.path(), "/good");
    seen(
        Area::Http1,
        "a bad request pipelined after a good one",
        outcome.to_string(),
    );

    let events = stage.events().await;
    let refused: Vec<_> = events
        .iter()
        .filter(|event| event["annotations"]["understudy.dev/refused"] == "bad-request")
        .collect();
    assert_eq!((events.len(), refused.len()), (2, 1), "{events:?}");
    assert_eq!(
        (&refused[0]["verb"], &refused[0]["requestURI"]),
        (&"get".into(), &"/bad".into())
    );
    assert_eq!(
        (
            &refused[0]["responseStatus"]["code"],
            &refused[0]["annotations"]["understudy.dev/pod"]
        ),
        (&400.into(), &"shell-0".into())
    );
}

#[tokio::test]
async fn a_head_in_pieces_is_the_same_head() {
    let stage = stage().await;
    let mut client = stage.tls("http/1.1").await;
    let two = "POST /a HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n\
        GET /b HTTP/1.1\r\nhost: k\r\nconnection: close\r\n\r\n";
    for byte in two.as_bytes() {
        write(&mut client, [*byte]).await;
    }
    let answers = answers(&mut client).await;
    assert_eq!(answers.iter().map(|answer| answer.code).collect::<Vec<_>>(), [200, 200]);
    assert_eq!(stage.seen.count(), 2);
}

#[tokio::test]
async fn a_refused_head_asked_for_by_head_has_no_body() {
    let stage = stage().await;
    let mut client = stage.tls("http/1.1").await;
    write(&mut client, "HEAD /api HTTP/1.1\r\n\r\n").await;
    let mut answer = String::new();
    timeout(PATIENCE, client.read_to_string(&mut answer))
        .await
        .expect("it ends")
        .unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn plain_http_is_screened_too_where_it_is_allowed() {
    let stage = Stage::new(
        Terms {
            allow_plain_http: true,
            ..Terms::default()
        },
        |_| async { whole("served") },
    )
    .await;
    let mut client = stage.tcp().await;
    write(&mut client, "GET /api HTTP/1.1\r\nhost: k\r\nhost: k\r\n\r\n").await;
    let refused = answers(&mut client).await;
    assert_eq!((refused[0].code, stage.seen.count()), (400, 0));
    let answer = stage.http2().await.send_request(get("/api")).await.unwrap();
    assert_eq!(text(answer).await, "served");
}
