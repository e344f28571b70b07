//! HTTP/1.1 that stops half-way, breaks off or takes its time.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};
use understudy::{limits::Limits, metrics::Limit};
use understudy_cases::{Area, seen};

use crate::{
    hostile_http1::{SMUGGLED, stage, stage_with},
    stage::{Stage, Terms, get, whole},
    wire::{PATIENCE, answer, answers, play, upstream, write},
};

fn in_seconds(header_timeout: u64) -> Limits {
    Limits {
        header_timeout: Duration::from_secs(header_timeout),
        ..Limits::default()
    }
}

/// A part is never taken for the whole.
#[tokio::test]
async fn an_upload_that_breaks_off_ends_as_an_error_upstream() {
    for (case, head, part, wrong) in [
        (
            "a bad chunk in the middle of an upload",
            "transfer-encoding: chunked",
            "5\r\nhello\r\n",
            "0x5\r\n",
        ),
        (
            "a chunk size over 2^64 in the middle of an upload",
            "transfer-encoding: chunked",
            "5\r\nhello\r\n",
            "fffffffffffffffff\r\n",
        ),
    ] {
        let (stage, uploads) = stage_with(Limits::default()).await;
        let mut client = stage.tls("http/1.1").await;
        write(
            &mut client,
            format!("POST /api HTTP/1.1\r\nhost: k\r\n{head}\r\n\r\n{part}"),
        )
        .await;
        while stage.seen.count() == 0 {
            tokio::task::yield_now().await;
        }
        write(&mut client, format!("{wrong}{SMUGGLED}")).await;
        let answers = answers(&mut client).await;
        assert_eq!(
            (answers.len(), answers[0].to_string().as_str()),
            (1, "400 `Status` BadRequest"),
            "{case}"
        );
        let ended = timeout(PATIENCE, async {
            loop {
                if let Some(upload) = uploads.lock().unwrap().first() {
                    break *upload;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert_eq!(ended.await.expect("the upload ends"), None, "{case}");
        let outcome = format!(
            "{}, connection closed; {}, its body broken off",
            answers[0],
            upstream(stage.seen.count())
        );
        seen(Area::Http1, case, outcome);
    }
}

#[tokio::test]
async fn a_refused_request_that_expects_is_not_told_to_continue() {
    let stage = stage().await;
    let head = "POST /api HTTP/1.1\r\nhost: k\r\nexpect: 100-continue\r\ncontent-length: 5\r\n";
    let outcome = play(&stage, format!("{head}impersonate-user: root\r\n\r\n")).await;
    let expected = "403 `Status` Forbidden, connection closed; nothing upstream";
    assert_eq!(outcome.to_string(), expected);
    assert!(
        outcome.answers[0].says_close,
        "what comes next may be the body or another request"
    );
    seen(
        Area::Http1,
        "Expect: 100-continue with a request that is refused",
        outcome.to_string(),
    );

    let mut client = stage.tls("http/1.1").await;
    write(&mut client, format!("{head}connection: close\r\n\r\n")).await;
    assert_eq!(answer(&mut client).await.code, 100);
    write(&mut client, "hello").await;
    assert_eq!(answers(&mut client).await[0].code, 200);
}

#[tokio::test]
async fn an_early_413_reaches_a_client_that_still_uploads() {
    let stage = Stage::new(Terms::default(), |_| async {
        let mut answer = whole("too large");
        *answer.status_mut() = http::StatusCode::PAYLOAD_TOO_LARGE;
        answer
    })
    .await;
    let mut client = stage.tls("http/1.1").await;
    let piece = vec![b'x'; 64 * 1024];
    write(
        &mut client,
        "POST /api HTTP/1.1\r\nhost: k\r\ncontent-length: 1000000000\r\n\r\n",
    )
    .await;
    write(&mut client, &piece).await;
    let early = answer(&mut client).await;
    assert_eq!((early.code, early.body.as_slice()), (413, b"too large".as_slice()));
    // It isn't reset, so that a client that would write on before it reads gets to read.
    for _ in 0..8 {
        write(&mut client, &piece).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(answers(&mut client).await.is_empty());
    let outcome = format!(
        "{early} from the upstream, whole, connection closed; {}",
        upstream(stage.seen.count())
    );
    seen(Area::Http1, "a 413 while the client uploads", outcome);
}

#[tokio::test]
async fn who_takes_too_long_over_a_head_is_told_so() {
    let (stage, _) = stage_with(in_seconds(1)).await;
    let mut neighbour = stage.neighbour().await;
    let mut client = stage.tls("http/1.1").await;
    let (mut read, mut send) = tokio::io::split(client);
    let drips = tokio::spawn(async move {
        for byte in b"GET /api HTTP/1.1\r\nhost: k\r\nx: "
            .iter()
            .chain(std::iter::repeat_n(&b'y', 200))
        {
            if send.write_all(&[*byte]).await.is_err() || send.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let answers = answers(&mut read).await;
    drips.abort();
    assert_eq!(
        (answers.len(), answers[0].to_string().as_str()),
        (1, "408 `Status` Timeout")
    );
    assert_eq!(
        (stage.metrics.limit_hits(Limit::HeaderTimeout), stage.seen.count()),
        (1, 0)
    );
    let events = stage.events().await;
    assert_eq!(
        (
            &events[0]["annotations"]["understudy.dev/refused"],
            &events[0]["requestURI"]
        ),
        (&"request-timeout".into(), &"/api".into())
    );
    let outcome = format!("{}, connection closed; {}", answers[0], upstream(stage.seen.count()));
    seen(Area::Http1, "slowloris: a head byte by byte", outcome);
    assert_eq!(neighbour.send_request(get("/api")).await.unwrap().status(), 200);

    // One who says nothing isn't answered.
    client = stage.tls("http/1.1").await;
    let mut answer = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut answer))
        .await
        .expect("it ends")
        .expect("with a close_notify");
    assert!(answer.is_empty());
    seen(
        Area::Http1,
        "a connection without a request",
        "no answer, connection closed; nothing upstream".to_owned(),
    );
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let stage = Stage::new(
        Terms {
            limits: in_seconds(1),
            ..Terms::default()
        },
        |_| async {
            tokio::time::sleep(Duration::from_millis(2500)).await;
            whole("slow")
        },
    )
    .await;
    let mut client = stage.tls("http/1.1").await;
    for _ in 0..2 {
        write(&mut client, "GET /api HTTP/1.1\r\nhost: k\r\n\r\n").await;
        assert_eq!(answer(&mut client).await.code, 200);
    }
    assert_eq!(
        timeout(PATIENCE, client.read(&mut [0; 1]))
            .await
            .expect("it ends")
            .unwrap(),
        0
    );
}

/// A body that says its length is no stream, and has to come.
#[tokio::test]
async fn a_body_of_known_length_has_to_come_and_a_stream_may_take_its_time() {
    let (stage, uploads) = stage_with(in_seconds(1)).await;
    for (case, length, piece, expected) in [
        (
            "slowloris: a body of known length byte by byte",
            "content-length: 1000",
            "x",
            (408, None),
        ),
        (
            "slowloris: a stream byte by byte",
            "transfer-encoding: chunked",
            "1\r\nx\r\n",
            (200, Some(20)),
        ),
    ] {
        let (mut read, mut send) = tokio::io::split(stage.tls("http/1.1").await);
        let head = format!("POST /api HTTP/1.1\r\nhost: k\r\n{length}\r\nconnection: close\r\n\r\n");
        let before = stage.seen.count();
        let drips = tokio::spawn(async move {
            write(&mut send, head).await;
            for _ in 0..20 {
                if send.write_all(piece.as_bytes()).await.is_err() || send.flush().await.is_err() {
                    return send;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            let _ = send.write_all(b"0\r\n\r\n").await;
            let _ = send.flush().await;
            send
        });
        let answers = answers(&mut read).await;
        drips.await.unwrap();
        let ended = async {
            while uploads.lock().unwrap().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            uploads.lock().unwrap().remove(0)
        };
        let upload = timeout(PATIENCE, ended).await.expect("the upload ends");
        assert_eq!((answers[0].code, upload), expected, "{case}");
        let body = if upload.is_some() { "whole" } else { "broken off" };
        let requests = upstream(stage.seen.count() - before);
        seen(
            Area::Http1,
            case,
            format!("{}; {requests}, its body {body}", answers[0]),
        );
    }
    assert_eq!(stage.metrics.limit_hits(Limit::BodyRate), 1);
}
