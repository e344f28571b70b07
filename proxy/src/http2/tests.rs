//! Against a server that writes each frame by hand.

mod stage;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use rstest::rstest;
use tokio::{
    io::{AsyncWriteExt, duplex},
    time::timeout,
};

use self::stage::*;
use super::*;

#[tokio::test]
async fn a_request_is_answered() {
    let mut stage = Stage::new(&[setting(3, 100)]).await;
    assert_eq!(stage.client.limit(), 100);
    let fields = HeaderMap::from_iter([
        (header::HOST, HeaderValue::from_static("other")),
        (header::ACCEPT, HeaderValue::from_static("x")),
    ]);
    let asked = stage.client.send(request(&Method::DELETE, &fields)).unwrap();
    let sent = stage.server.expect(HEADERS).await;
    assert_eq!((sent.flags, sent.stream), (END_HEADERS | END_STREAM, 1));
    let sent = stage.server.fields(&sent);
    assert_eq!(sent, ["DELETE", "https", "10.96.0.1", "/api", "accept: x"]);
    let answers = [
        frame(HEADERS, END_HEADERS, 1, [&[0x08, 3][..], b"100"].concat()),
        head(END_HEADERS, 1, &[("content-length", "5"), ("a", "b")]),
        frame(DATA, PADDED, 1, b"\x02he\0\0"),
        frame(0xbe, 0xef, 1, "of a kind that nobody knows"),
        frame(DATA, 0, 1, b"llo"),
        frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(&[("t", "v")])),
    ];
    stage.server.send(answers.concat()).await;
    let (head, mut body) = answer(asked).await.unwrap().into_parts();
    assert_eq!((head.status, head.headers["a"].as_bytes()), (StatusCode::OK, &b"b"[..]));
    let (data, trailers, error) = read(&mut body).await;
    assert_eq!(
        (&data[..], trailers["t"].as_bytes(), error),
        (&b"hello"[..], &b"v"[..], None)
    );
    assert!(body.is_end());
    drop(body);
    assert!(stage.server.is_quiet().await, "what is over isn't reset");
}

/// What the server is told, and what whoever waits is.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Reset(u32),
    GoAway(u32),
}

#[rstest]
#[case::frame_too_large(frame(DATA, 0, 1, vec![0; 65_537]), Told::GoAway(6))]
#[case::stream_zero(frame(HEADERS, END_HEADERS, 0, OK), Told::GoAway(1))]
#[case::data_on_stream_zero(frame(DATA, 0, 0, "x"), Told::GoAway(1))]
#[case::a_stream_of_its_own(frame(HEADERS, END_HEADERS, 2, OK), Told::GoAway(1))]
#[case::a_stream_to_come(frame(HEADERS, END_HEADERS, 3, OK), Told::GoAway(1))]
#[case::a_reset_to_come(frame(RST_STREAM, 0, 3, [0; 4]), Told::GoAway(1))]
#[case::a_window_to_come(widen(3, 1), Told::GoAway(1))]
#[case::push(frame(PUSH_PROMISE, END_HEADERS, 1, [0, 0, 0, 2]), Told::GoAway(1))]
#[case::continues_nothing(frame(CONTINUATION, END_HEADERS, 1, OK), Told::GoAway(1))]
#[case::interrupted([frame(HEADERS, 0, 1, OK), frame(PING, 0, 0, [0; 8])].concat(), Told::GoAway(1))]
#[case::continues_another(
    [frame(HEADERS, 0, 1, OK), frame(CONTINUATION, END_HEADERS, 3, OK)].concat(), Told::GoAway(1)
)]
#[case::all_padding(frame(DATA, PADDED, 1, [1]), Told::GoAway(1))]
#[case::no_padding(frame(DATA, PADDED, 1, []), Told::GoAway(6))]
#[case::head_all_padding(frame(HEADERS, PADDED | END_HEADERS, 1, [2, 0x88]), Told::GoAway(1))]
#[case::head_without_priority(frame(HEADERS, PRIORITISED | END_HEADERS, 1, OK), Told::GoAway(6))]
#[case::undecodable(frame(HEADERS, END_HEADERS, 1, [0xff]), Told::GoAway(9))]
#[case::endless_head(
    [frame(HEADERS, 0, 1, vec![0x88; 65_536]), frame(CONTINUATION, 0, 1, vec![0x88; 65_536]).repeat(4)].concat(),
    Told::GoAway(11)
)]
#[case::short_settings(frame(SETTINGS, 0, 0, [0; 5]), Told::GoAway(6))]
#[case::settings_on_a_stream(frame(SETTINGS, 0, 1, []), Told::GoAway(1))]
#[case::settings_that_push(frame(SETTINGS, 0, 0, setting(2, 1)), Told::GoAway(1))]
#[case::settings_of_a_window(frame(SETTINGS, 0, 0, setting(4, 1 << 31)), Told::GoAway(3))]
#[case::settings_of_frames(frame(SETTINGS, 0, 0, setting(5, 100)), Told::GoAway(1))]
#[case::short_ping(frame(PING, 0, 0, [0; 7]), Told::GoAway(6))]
#[case::short_goaway(frame(GOAWAY, 0, 0, [0; 7]), Told::GoAway(6))]
#[case::short_reset(frame(RST_STREAM, 0, 1, [0; 3]), Told::GoAway(6))]
#[case::no_more(widen(0, 0), Told::GoAway(1))]
#[case::too_much(widen(0, (1 << 31) - 1), Told::GoAway(3))]
#[case::no_more_of_a_stream(widen(1, 0), Told::Reset(1))]
#[case::too_much_of_a_stream(widen(1, (1 << 31) - 1), Told::Reset(3))]
#[case::data_first(frame(DATA, 0, 1, "x"), Told::Reset(1))]
#[case::no_status(frame(HEADERS, END_HEADERS, 1, literal(&[("a", "b")])), Told::Reset(1))]
#[case::status_of_letters(frame(HEADERS, END_HEADERS, 1, b"\x08\x03abc"), Told::Reset(1))]
#[case::two_statuses(frame(HEADERS, END_HEADERS, 1, [0x88, 0x88]), Told::Reset(1))]
#[case::status_behind(frame(HEADERS, END_HEADERS, 1, [&literal(&[("a", "b")]), OK].concat()), Told::Reset(1))]
#[case::a_requests_field(frame(HEADERS, END_HEADERS, 1, [0x88, 0x82]), Told::Reset(1))]
#[case::capitals(head(END_HEADERS, 1, &[("A", "b")]), Told::Reset(1))]
#[case::line_feed(head(END_HEADERS, 1, &[("a", "b\nc")]), Told::Reset(1))]
#[case::a_connections_field(head(END_HEADERS, 1, &[("connection", "close")]), Told::Reset(1))]
#[case::chunked(head(END_HEADERS, 1, &[("transfer-encoding", "chunked")]), Told::Reset(1))]
#[case::two_lengths(head(END_HEADERS, 1, &[("content-length", "1"), ("content-length", "1")]), Told::Reset(1))]
#[case::signed_length(head(END_HEADERS, 1, &[("content-length", "+1")]), Told::Reset(1))]
#[case::interim_and_last(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x08\x03100"), Told::Reset(1))]
#[case::switches(frame(HEADERS, END_HEADERS, 1, b"\x08\x03101"), Told::Reset(1))]
#[case::length_without_a_body(head(END_HEADERS | END_STREAM, 1, &[("content-length", "1")]), Told::Reset(1))]
#[tokio::test]
async fn a_broken_rule_ends_the_stream_or_the_connection(#[case] bytes: Vec<u8>, #[case] expected: Told) {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage.server.send(bytes).await;
    let error = answer(asked).await.unwrap_err();
    assert!(matches!(error, Http2Error::Fault(_)), "{error}");
    let told = loop {
        let told = stage.server.next().await.unwrap();
        let code = |at| u32::from_be_bytes(told.payload[at..at + 4].try_into().unwrap());
        match told.kind {
            RST_STREAM => break Told::Reset(code(0)),
            GOAWAY => break Told::GoAway(code(4)),
            _ => assert_eq!(told.flags, ACK, "{told:?}"),
        }
    };
    assert_eq!(told, expected);
    match told {
        Told::GoAway(_) => assert!(!stage.client.is_open()),
        Told::Reset(_) => {
            let asked = stage.get();
            stage.server.expect(HEADERS).await;
            stage.server.send(head(END_HEADERS | END_STREAM, 3, &[])).await;
            assert!(answer(asked).await.is_ok(), "other streams go on");
        }
    }
}

#[rstest]
#[case::longer_than_said(frame(DATA, END_STREAM, 1, "123456"), "", "a body is longer than it says")]
#[case::shorter_than_said(frame(DATA, END_STREAM, 1, "1234"), "1234", "a body is shorter than it says")]
#[case::second_head(head(END_HEADERS, 1, &[]), "", "an answer has a second head")]
#[case::trailers_that_go_on(frame(HEADERS, END_HEADERS, 1, literal(&[("a", "b")])), "", "an answer has a second head")]
#[case::reset([frame(DATA, 0, 1, "123"), frame(RST_STREAM, 0, 1, [0, 0, 0, 2])].concat(), "123", "reset the stream (INTERNAL_ERROR)")]
#[tokio::test]
async fn a_body_that_goes_wrong_is_broken_off(#[case] bytes: Vec<u8>, #[case] data: &str, #[case] why: &str) {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage
        .server
        .send([head(END_HEADERS, 1, &[("content-length", "5")]), bytes].concat())
        .await;
    let mut body = answer(asked).await.unwrap().into_body();
    let (read, _, error) = read(&mut body).await;
    let error = error.expect("it broke off");
    assert_eq!(read, data.as_bytes());
    assert!(error.contains(why), "{error}");
    assert!(!body.is_end());
}

/// An answer to HEAD, and some others, say the length of what they don't have.
#[rstest]
#[case::head(Method::HEAD, OK)]
#[case::unchanged(Method::GET, &[0x8b])]
#[tokio::test]
async fn a_length_without_a_body_may_be(#[case] method: Method, #[case] status: &[u8]) {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.client.send(request(&method, &HeaderMap::new())).unwrap();
    stage.server.expect(HEADERS).await;
    let block = [status, &literal(&[("content-length", "5")])].concat();
    stage
        .server
        .send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block))
        .await;
    let mut body = answer(asked).await.unwrap().into_body();
    assert_eq!(read(&mut body).await, (vec![], HeaderMap::new(), None));
}

#[tokio::test]
async fn a_server_has_to_greet_first() {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(&frame(PING, 0, 0, [0; 8])).await.unwrap();
    let error = Client::greet(near).await.unwrap_err();
    assert!(matches!(error, Http2Error::Fault(_)), "{error}");
}

#[tokio::test]
async fn a_reader_that_is_behind_holds_one_window_and_no_more() {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage.server.send(head(END_HEADERS, 1, &[])).await;
    let mut body = answer(asked).await.unwrap().into_body();
    stage.server.send(frame(DATA, 0, 1, vec![1; 1 << 16]).repeat(4)).await;
    assert!(stage.server.is_quiet().await, "nobody has read");
    let mut half = 0;
    while half < 1 << 17 {
        match std::future::poll_fn(|cx| body.poll_piece(cx)).await {
            Some(Ok(BodyPiece::Data(piece))) => half += piece.len(),
            other => panic!("{other:?}"),
        }
    }
    let more = stage.server.expect(WINDOW_UPDATE).await;
    assert_eq!(more.stream, 1);
    let more = u32::from_be_bytes(more.payload.try_into().unwrap()) as usize;
    assert!((1 << 17..=half).contains(&more), "{more} of {half}");
    stage
        .server
        .send(frame(DATA, 0, 1, vec![1; 1 << 16]).repeat(more >> 16))
        .await;
    let beyond = more % (1 << 16) + 1;
    stage.server.send(frame(DATA, 0, 1, vec![1; beyond])).await;
    let told = stage.server.expect(RST_STREAM).await;
    assert_eq!((told.stream, told.payload), (1, vec![0, 0, 0, 3]));
}

/// What of a body has come, piece by piece.
async fn pieces(server: &mut Server, how_many: usize) -> Vec<(u32, usize)> {
    let mut pieces = Vec::new();
    for _ in 0..how_many {
        let data = server.expect(DATA).await;
        pieces.push((data.stream, data.payload.len()));
    }
    pieces
}

#[tokio::test]
async fn an_upload_goes_as_far_as_the_server_lets_it() {
    let mut stage = Stage::new(&[setting(4, 10)]).await;
    let (answered, mut upload) = stage.put().await;
    let uploading = tokio::spawn(async move {
        upload.send(Bytes::from(vec![7; 35])).await?;
        upload.finish()
    });
    assert_eq!(pieces(&mut stage.server, 1).await, [(1, 10)]);
    assert!(stage.server.is_quiet().await);
    stage.server.send(widen(1, 5)).await;
    assert_eq!(pieces(&mut stage.server, 1).await, [(1, 5)]);
    // Five less for every stream: what was widened has been used, and is owed.
    stage.server.send(frame(SETTINGS, 0, 0, setting(4, 5))).await;
    stage.server.send(widen(1, 5)).await;
    assert!(stage.server.is_quiet().await, "the window is at zero");
    stage.server.send(widen(1, 100)).await;
    assert_eq!(pieces(&mut stage.server, 2).await, [(1, 20), (1, 0)]);
    uploading.await.unwrap().unwrap();
    stage.server.send(head(END_HEADERS | END_STREAM, 1, &[])).await;
    assert!(answer(answered).await.is_ok());
}

/// Both get on, though one of them always has something to send.
#[tokio::test]
async fn uploads_take_turns() {
    let mut stage = Stage::new(&[setting(4, 1 << 20)]).await;
    let (first, second) = (stage.put().await, stage.put().await);
    for (_, mut upload) in [first, second] {
        tokio::spawn(async move {
            upload.send(Bytes::from(vec![7; 1 << 17])).await?;
            upload.finish()
        });
    }
    let mut sent = std::collections::HashMap::from([(1, 0), (3, 0)]);
    while sent.values().sum::<usize>() < 65_535 {
        for (stream, length) in pieces(&mut stage.server, 1).await {
            *sent.get_mut(&stream).unwrap() += length;
        }
    }
    for _ in 0..20 {
        stage.server.send(widen(0, 1000)).await;
        for (stream, length) in pieces(&mut stage.server, 1).await {
            *sent.get_mut(&stream).unwrap() += length;
        }
    }
    assert!(sent.values().all(|sent| *sent >= 10_000), "{sent:?}");
}

#[tokio::test]
async fn an_upload_that_is_given_up_is_reset() {
    let mut stage = Stage::new(&[]).await;
    let (answered, mut upload) = stage.put().await;
    upload.send(Bytes::from_static(b"part")).await.unwrap();
    let waiting = tokio::spawn(answer(answered));
    tokio::task::yield_now().await;
    upload.give_up();
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, Http2Error::GivenUp), "{error}");
    stage.server.expect(DATA).await;
    let reset = stage.server.expect(RST_STREAM).await;
    assert_eq!((reset.stream, reset.payload), (1, vec![0, 0, 0, 8]));
    drop(upload);
    assert!(stage.server.is_quiet().await, "it is reset once");
}

/// RFC 9113, section 8.1: a server may answer whole, and ask for no more of the request.
#[tokio::test]
async fn an_upload_may_be_answered_before_its_end() {
    let mut stage = Stage::new(&[]).await;
    let (answered, mut upload) = stage.put().await;
    let answers = [
        head(END_HEADERS, 1, &[]),
        frame(DATA, END_STREAM, 1, "enough"),
        frame(RST_STREAM, 0, 1, [0; 4]),
    ];
    stage.server.send(answers.concat()).await;
    let why = timeout(LONG, upload.stopped()).await.unwrap();
    assert!(matches!(why, Http2Error::Reset(ErrorCode::NO_ERROR)), "{why}");
    let mut body = answer(answered).await.unwrap().into_body();
    assert_eq!(read(&mut body).await, (b"enough".to_vec(), HeaderMap::new(), None));
}

#[tokio::test]
async fn what_nobody_waits_for_is_taken_back() {
    let mut stage = Stage::new(&[]).await;
    drop(stage.get());
    stage.server.expect(HEADERS).await;
    let reset = stage.server.expect(RST_STREAM).await;
    assert_eq!((reset.stream, reset.payload), (1, vec![0, 0, 0, 8]));
    // It crosses with the answer, which still has to be decoded: the next head builds on it.
    let added = [OK, b"\x40\x01a\x01b"].concat();
    let late = [
        frame(HEADERS, END_HEADERS, 1, added),
        frame(DATA, END_STREAM, 1, "late"),
        widen(1, 1),
    ];
    stage.server.send(late.concat()).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage.server.send(frame(HEADERS, END_HEADERS, 3, [0x88, 0xbe])).await;
    let answered = answer(asked).await.unwrap();
    assert_eq!(answered.headers()["a"], "b");
    drop(answered);
    assert_eq!(stage.server.expect(RST_STREAM).await.stream, 3);
}

#[tokio::test]
async fn a_goaway_leaves_what_was_taken() {
    let mut stage = Stage::new(&[]).await;
    let (taken, refused) = (stage.get(), stage.get());
    stage.server.expect(HEADERS).await;
    stage.server.send(goaway(1, 0)).await;
    let error = answer(refused).await.unwrap_err();
    assert!(error.is_unprocessed(), "{error}");
    assert!(!stage.client.is_open());
    let error = stage.client.send(request(&Method::GET, &HeaderMap::new())).unwrap_err();
    assert!(error.is_unprocessed(), "{error}");
    stage.server.send(head(END_HEADERS | END_STREAM, 1, &[])).await;
    drop(answer(taken).await.unwrap());
    stage.server.expect(HEADERS).await;
    stage.server.expect(GOAWAY).await;
    assert!(stage.server.next().await.is_none(), "the last has ended");
    stage.driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_stream_may_be_sent_again() {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage.server.send(frame(RST_STREAM, 0, 1, [0, 0, 0, 7])).await;
    assert!(answer(asked).await.unwrap_err().is_unprocessed());
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    stage.server.send(frame(RST_STREAM, 0, 3, [0, 0, 0, 2])).await;
    assert!(!answer(asked).await.unwrap_err().is_unprocessed());
}

#[tokio::test]
async fn a_connection_ends_with_its_client_and_its_last_stream() {
    let Stage {
        client,
        mut server,
        driver,
    } = Stage::new(&[]).await;
    let asked = client.send(request(&Method::GET, &HeaderMap::new())).unwrap();
    drop(client);
    server.expect(HEADERS).await;
    server.send(head(END_HEADERS, 1, &[])).await;
    let mut body = answer(asked).await.unwrap().into_body();
    server.send(frame(DATA, END_STREAM, 1, "x")).await;
    read(&mut body).await;
    assert!(!driver.is_finished());
    drop(body);
    server.expect(GOAWAY).await;
    assert!(server.next().await.is_none());
    driver.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_closes_ends_what_is_open() {
    let mut stage = Stage::new(&[]).await;
    let (asked, (answered, mut upload)) = (stage.get(), {
        stage.server.expect(HEADERS).await;
        stage.put().await
    });
    stage.server.send(head(END_HEADERS, 1, &[])).await;
    let mut body = answer(asked).await.unwrap().into_body();
    stage.server.send(frame(DATA, 0, 1, "part")).await;
    stage.server.io.shutdown().await.unwrap();
    let (data, _, error) = read(&mut body).await;
    assert_eq!(
        (&data[..], error.as_deref()),
        (&b"part"[..], Some("the peer closed the connection"))
    );
    assert!(matches!(answer(answered).await, Err(Http2Error::Closed)));
    assert!(upload.send(Bytes::from_static(b"x")).await.is_err());
    assert!(!stage.client.is_open());
    assert!(stage.client.send(request(&Method::GET, &HeaderMap::new())).is_err());
}

#[tokio::test]
async fn a_driver_that_is_dropped_takes_its_streams_along() {
    let stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.driver.abort();
    assert!(matches!(answer(asked).await, Err(Http2Error::Dropped)));
}

#[tokio::test]
async fn the_server_is_asked_whether_it_is_there() {
    let mut stage = Stage::new(&[]).await;
    let pinger = stage.client.pinger();
    let mut asking = tokio::spawn(async move { pinger.ping().await });
    let ping = stage.server.expect(PING).await;
    assert_eq!(ping.flags, 0);
    stage.server.send(frame(PING, ACK, 0, [0xff; 8])).await;
    assert!(stage.server.is_quiet().await);
    assert!(!asking.is_finished(), "that was no answer of ours");
    stage.server.send(frame(PING, ACK, 0, ping.payload)).await;
    timeout(LONG, &mut asking).await.unwrap().unwrap();
}

/// It would have the agent keep an answer to each of them.
#[tokio::test]
async fn a_server_that_does_not_read_is_not_listened_to() {
    let mut stage = Stage::new(&[]).await;
    let pings = frame(PING, 0, 0, [0; 8]).repeat(1 << 12);
    let sending = async {
        for _ in 0..1 << 9 {
            stage.server.io.write_all(&pings).await.unwrap();
        }
    };
    // 34 MB; each way takes one, and the agent keeps a quarter of one and what it reads at a time.
    assert!(timeout(Duration::from_secs(2), sending).await.is_err());
}

#[tokio::test]
async fn a_long_head_goes_in_several_frames() {
    let mut stage = Stage::new(&[]).await;
    let long = "x".repeat(40_000);
    let fields = HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(&long).unwrap())]);
    let _asked = stage.client.send(request(&Method::GET, &fields)).unwrap();
    let mut first = stage.server.expect(HEADERS).await;
    assert_eq!((first.flags, first.payload.len()), (END_STREAM, 1 << 14));
    loop {
        let next = stage.server.next().await.unwrap();
        assert_eq!((next.kind, next.stream), (CONTINUATION, 1));
        first.payload.extend(next.payload);
        if next.flags == END_HEADERS {
            break;
        }
    }
    let fields = stage.server.fields(&first);
    assert_eq!(fields.last().unwrap(), &format!("cookie: {long}"));
}

/// What a connection has that waits for nothing: it matters where there are thousands.
#[test]
fn a_stream_is_small() {
    let size = size_of::<stream::Stream>();
    assert!(size <= 160, "{size} bytes");
}

#[tokio::test]
async fn frames_may_come_byte_by_byte() {
    let mut stage = Stage::new(&[]).await;
    let asked = stage.get();
    stage.server.expect(HEADERS).await;
    let answers = [
        head(END_HEADERS, 1, &[]),
        frame(DATA, PADDED, 1, b"\x03abc\0\0\0"),
        frame(DATA, 0, 1, ""),
        frame(DATA, END_STREAM, 1, b"def"),
    ];
    for byte in answers.concat() {
        stage.server.send([byte]).await;
        tokio::task::yield_now().await;
    }
    let mut body = answer(asked).await.unwrap().into_body();
    assert_eq!(read(&mut body).await, (b"abcdef".to_vec(), HeaderMap::new(), None));
}
