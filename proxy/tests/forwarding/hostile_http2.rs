//! HTTP/2 that is sent to wear the agent out. Each flood is met by an end or by not being listened to; memory and tasks
//! stay bounded, and a neighbour is served meanwhile.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::{runtime::Handle, time::timeout};
use understudy::{limits::Limits, metrics::Limit};
use understudy_cases::{Area, seen};

use crate::{
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PADDED, PING, PREFACE, PRIORITY, RST_STREAM,
        Raw, SETTINGS, WINDOW_UPDATE, frame, get, hpack, post,
    },
    stage::{Answer, Stage, Terms, get as ask, whole},
    wire::{PATIENCE, upstream},
};

/// No flood may cost more, the client's own buffers in this process included.
const MOST_MEMORY: usize = 64 << 20;

/// An agent under attack, with a neighbour who isn't to notice.
struct Attacked {
    stage: Stage,
    neighbour: SendRequest<BoxBody<Bytes, Infallible>>,
    tasks: usize,
    memory: usize,
}

impl Attacked {
    async fn new(limits: Limits) -> Self {
        // Reads nothing of an upload to /stalled, and answers it never.
        let terms = Terms {
            limits,
            ..Terms::default()
        };
        let stage = Stage::new(terms, |request: Request<Incoming>| async move {
            if request.uri().path() == "/stalled" {
                std::future::pending::<()>().await;
            }
            let _ = request.into_body().collect().await;
            whole("served")
        })
        .await;
        let mut neighbour = stage.neighbour().await;
        assert_eq!(neighbour.send_request(ask("/neighbour")).await.unwrap().status(), 200);
        Self {
            stage,
            neighbour,
            tasks: tasks(),
            memory: memory(),
        }
    }

    /// While the attacker is still there.
    async fn neighbour_is_served(&mut self) {
        let answered = timeout(PATIENCE, self.neighbour.send_request(ask("/neighbour")));
        assert_eq!(answered.await.expect("in time").unwrap().status(), 200);
        let grown = memory().saturating_sub(self.memory);
        assert!(grown < MOST_MEMORY, "{} KB more", grown / 1024);
    }

    /// When it has gone.
    async fn nothing_is_left(&self) {
        let back = timeout(PATIENCE, async {
            // The upstream connection may be one more than before.
            while tasks() > self.tasks + 4 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        assert!(back.await.is_ok(), "{} tasks, {} before", tasks(), self.tasks);
    }

    /// How many of the attacker's requests went on.
    fn upstream(&self) -> usize {
        let heads = self.stage.seen.heads.lock().unwrap();
        heads.iter().filter(|head| head.uri.path() != "/neighbour").count()
    }
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

fn memory() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// A request for `path` without its end.
fn post_to(stream: u32, path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "k"),
        (":path", path),
    ];
    frame(HEADERS, END_HEADERS, stream, hpack(&fields))
}

fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|index| 2 * index + 1)
}

/// Floods that end the connection: what is sent, frame by frame, and how it ends.
#[expect(clippy::too_many_lines, reason = "it is a table")]
fn floods() -> Vec<(&'static str, Vec<Vec<u8>>, &'static str)> {
    let continuation = |payload: &[u8]| frame(CONTINUATION, 0, 1, payload);
    let opened = frame(HEADERS, END_STREAM, 1, hpack(&GET));
    let padding = frame(DATA, PADDED, 1, [1, 0]);
    // An entry of 4,000 bytes in the table, and 10,000 references to it.
    let mut bomb = hpack(&GET);
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 10_000]);
    let calm = "GOAWAY ENHANCE_YOUR_CALM";
    vec![
        (
            "rapid reset (CVE-2023-44487)",
            streams(1000)
                .flat_map(|stream| [get(stream), frame(RST_STREAM, 0, stream, [0, 0, 0, 8])])
                .collect::<Vec<_>>(),
            calm,
        ),
        (
            "resets that the server is made to send (CVE-2025-8671), by windows",
            streams(200)
                .flat_map(|stream| [post(stream), frame(WINDOW_UPDATE, 0, stream, [0x7f, 0xff, 0xff, 0xff])])
                .collect(),
            calm,
        ),
        (
            "resets that the server is made to send (CVE-2025-8671), by lengths",
            streams(200)
                .flat_map(|stream| {
                    let sized = [
                        (":method", "POST"),
                        (":scheme", "https"),
                        (":authority", "k"),
                        (":path", "/api"),
                        ("content-length", "1"),
                    ];
                    [
                        frame(HEADERS, END_HEADERS, stream, hpack(&sized)),
                        frame(DATA, 0, stream, b"abc"),
                    ]
                })
                .collect(),
            calm,
        ),
        (
            "resets that the server is made to send (CVE-2025-8671), by malformed heads",
            streams(200)
                .map(|stream| frame(HEADERS, END_HEADERS, stream, hpack(&[(":method", "GET")])))
                .collect(),
            calm,
        ),
        (
            "a flood of CONTINUATION without a byte (CVE-2024-27316)",
            std::iter::once(opened.clone())
                .chain(std::iter::repeat_n(continuation(b""), 10_000))
                .collect(),
            calm,
        ),
        (
            "a flood of CONTINUATION with fields (CVE-2024-27316)",
            std::iter::once(opened.clone())
                .chain(std::iter::repeat_n(
                    continuation(&hpack(&[("x", &"y".repeat(1000))])),
                    10_000,
                ))
                .collect(),
            calm,
        ),
        (
            "a flood of CONTINUATION in one string (CVE-2024-27316)",
            [opened, continuation(&[0, 1, b'x', 0x7f, 0xff, 0xff, 0xff, 0x7f])]
                .into_iter()
                .chain(std::iter::repeat_n(continuation(&[b'y'; 16_000]), 1000))
                .collect(),
            calm,
        ),
        (
            "an HPACK bomb",
            vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, bomb)],
            calm,
        ),
        (
            "a flood of empty DATA",
            std::iter::once(post_to(1, "/stalled"))
                .chain(std::iter::repeat_n(frame(DATA, 0, 1, b""), 10_000))
                .collect(),
            calm,
        ),
        (
            "a flood of DATA of padding alone",
            std::iter::once(post_to(1, "/stalled"))
                .chain(std::iter::repeat_n(padding, 10_000))
                .collect(),
            calm,
        ),
        (
            "a flood of one-byte DATA that nobody reads",
            std::iter::once(post_to(1, "/stalled"))
                .chain(std::iter::repeat_n(frame(DATA, 0, 1, b"x"), 100_000))
                .collect(),
            calm,
        ),
        (
            "DATA beyond the connection's window, on streams that keep to theirs",
            streams(20)
                .flat_map(|stream| {
                    let data = frame(DATA, 0, stream, [b'x'; 16_000]);
                    std::iter::once(post_to(stream, "/stalled")).chain(std::iter::repeat_n(data, 16))
                })
                .collect(),
            "GOAWAY FLOW_CONTROL_ERROR",
        ),
    ]
}

#[tokio::test]
async fn a_flood_ends_its_connection() {
    let mut wrong = Vec::new();
    for (case, frames, expected) in floods() {
        let mut attacked = Attacked::new(Limits::default()).await;
        let mut raw = Raw::new(&attacked.stage).await;
        for frames in frames.chunks(500) {
            if !raw.send(frames.concat()).await {
                break;
            }
        }
        let end = raw.end_of(0).await.to_string();
        attacked.neighbour_is_served().await;
        drop(raw);
        attacked.nothing_is_left().await;
        if end != expected {
            wrong.push(format!("{case}: {end}"));
        }
        seen(Area::Http2, case, format!("{end}; a neighbour is served"));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Floods of what has to be answered: whoever doesn't read the answers isn't read from either.
#[tokio::test]
async fn who_does_not_read_is_not_read_from() {
    for (case, frame) in [
        (
            "a flood of PING that nobody reads the answers of",
            frame(PING, 0, 0, [0; 8]),
        ),
        (
            "a flood of SETTINGS that nobody reads the answers of",
            frame(SETTINGS, 0, 0, [0, 1, 0, 0, 16, 0]),
        ),
    ] {
        let mut attacked = Attacked::new(Limits::default()).await;
        let mut raw = Raw::new(&attacked.stage).await;
        let flood = frame.repeat(4000);
        let mut stalled = false;
        for _ in 0..3000 {
            match timeout(Duration::from_secs(1), raw.send(&flood)).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(_) => {
                    stalled = true;
                    break;
                }
            }
        }
        assert!(stalled, "{case}");
        attacked.neighbour_is_served().await;
        drop(raw);
        attacked.nothing_is_left().await;
        seen(
            Area::Http2,
            case,
            "the client isn't read from until it reads; a neighbour is served".to_owned(),
        );
    }
}

/// Floods of what costs nothing to keep.
#[tokio::test]
async fn what_is_cheap_is_let_pass() {
    for (case, frames) in [
        ("a flood of PING", frame(PING, 0, 0, [0; 8])),
        ("a flood of SETTINGS", frame(SETTINGS, 0, 0, [0, 1, 0, 0, 16, 0])),
        (
            "a flood of acknowledgements that nothing asked for",
            frame(PING, ACK, 0, [0; 8]),
        ),
        ("a flood of WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1])),
        ("a flood of PRIORITY", frame(PRIORITY, 0, 5, [0, 0, 0, 3, 1])),
        ("a flood of frames of an unknown type", frame(0xbe, 0, 0, [0; 64])),
    ] {
        let mut attacked = Attacked::new(Limits::default()).await;
        let mut raw = Raw::new(&attacked.stage).await;
        let mut lives = true;
        for _ in 0..20 {
            lives &= raw.send(frames.repeat(1000)).await && raw.lives().await;
        }
        attacked.neighbour_is_served().await;
        assert!(lives, "{case}");
        drop(raw);
        attacked.nothing_is_left().await;
        seen(
            Area::Http2,
            case,
            "taken in, nothing kept; the connection lives, a neighbour is served".to_owned(),
        );
    }
}

#[tokio::test]
async fn a_head_beyond_a_limit_is_refused_and_counted() {
    let field = |size: usize| ("x-large", "y".repeat(size));
    let many: Vec<_> = (0..257).map(|field| (format!("x-{field}"), "y".to_owned())).collect();
    let large = [field(33_000), field(33_000)].map(|(name, value)| (name.to_owned(), value));
    let larger: Vec<_> = (0..5)
        .map(|_| field(33_000))
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    for (case, fields, limit, expected) in [
        (
            "257 fields, where 256 are allowed, over HTTP/2",
            many,
            Limit::Headers,
            "431 `Status` BadRequest",
        ),
        (
            "a head over 64 KiB, over HTTP/2",
            large.into(),
            Limit::HeaderBytes,
            "431 `Status` BadRequest",
        ),
        (
            "a head over 160 KiB, over HTTP/2",
            larger,
            Limit::HeaderBytes,
            "431 `Status` BadRequest",
        ),
    ] {
        let attacked = Attacked::new(Limits::default()).await;
        let mut raw = Raw::new(&attacked.stage).await;
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let block = hpack(&[&GET[..], &fields].concat());
        let mut parts = block.chunks(16_000).peekable();
        let mut kind = HEADERS;
        while let Some(part) = parts.next() {
            let last = if parts.peek().is_none() { END_HEADERS } else { 0 };
            let first = if kind == HEADERS { END_STREAM } else { 0 };
            raw.send(frame(kind, last | first, 1, part)).await;
            kind = CONTINUATION;
        }
        let end = raw.end_of(1).await.to_string();
        assert_eq!((end.as_str(), attacked.upstream()), (expected, 0), "{case}");
        assert_eq!(attacked.stage.metrics.limit_hits(limit), 1, "{case}");
        seen(Area::Http2, case, format!("{end}; {}", upstream(attacked.upstream())));
    }
}

#[tokio::test]
async fn streams_over_the_limit_are_refused() {
    let limits = Limits {
        max_streams_per_connection: 4,
        ..Limits::default()
    };
    let mut attacked = Attacked::new(limits).await;
    let mut raw = Raw::new(&attacked.stage).await;
    for stream in streams(4) {
        raw.send(post_to(stream, "/stalled")).await;
    }
    // What the settings say is in force when they are acknowledged.
    raw.send(frame(SETTINGS, ACK, 0, [])).await;
    assert!(raw.lives().await);
    raw.send(post_to(9, "/stalled")).await;
    let end = raw.end_of(9).await.to_string();
    assert_eq!(end, "stream reset, REFUSED_STREAM");
    assert!(raw.lives().await);
    attacked.neighbour_is_served().await;
    seen(
        Area::Http2,
        "more streams than are allowed",
        format!("{end}; the others go on, a neighbour is served"),
    );
}

/// How many answers are held up at once.
const STREAMS: usize = 32;

/// Invariant 7: a client whose windows are shut has nothing read for it.
#[tokio::test]
async fn shut_windows_hold_little() {
    let (told, mut pulled) = tokio::sync::mpsc::unbounded_channel::<usize>();
    let stage = Stage::new(Terms::default(), move |request: Request<Incoming>| {
        let told = told.clone();
        async move {
            if request.uri().path() == "/neighbour" {
                return whole("served");
            }
            let endless = futures_util::stream::poll_fn(move |_| {
                told.send(16 * 1024).unwrap();
                std::task::Poll::Ready(Some(Ok::<_, Infallible>(Frame::data(Bytes::from_static(
                    &[0; 16 * 1024],
                )))))
            });
            Response::new(BodyExt::boxed(StreamBody::new(endless))) as Answer
        }
    })
    .await;
    let mut neighbour = stage.neighbour().await;
    let mut raw = Raw::ungreeted(&stage).await;
    // SETTINGS_INITIAL_WINDOW_SIZE of nothing.
    raw.send([PREFACE, &frame(SETTINGS, 0, 0, [0, 4, 0, 0, 0, 0])].concat())
        .await;
    for stream in streams(32) {
        raw.send(get(stream)).await;
    }
    // Until nothing has been read for a while.
    let mut bytes = 0;
    while let Ok(Some(more)) = timeout(Duration::from_millis(500), pulled.recv()).await {
        bytes += more;
        assert!(bytes < STREAMS << 20, "no end");
    }
    assert!(stage.seen.count() >= STREAMS && bytes > 0);
    assert_eq!(neighbour.send_request(ask("/neighbour")).await.unwrap().status(), 200);
    assert!(raw.lives().await);
    seen(
        Area::Http2,
        "zero windows",
        "less than 1 MiB is read for a stream, and the connection lives; a neighbour is served".to_owned(),
    );
}

#[tokio::test]
async fn who_does_not_greet_is_not_waited_for() {
    for (case, greeting, limits) in [
        (
            "a greeting that is none",
            b"GET / HTTP/1.1\r\nhost: k\r\n\r\n".to_vec(),
            Limits::default(),
        ),
        (
            "a client that doesn't greet",
            PREFACE[..10].to_vec(),
            Limits {
                header_timeout: Duration::from_secs(1),
                ..Limits::default()
            },
        ),
    ] {
        let mut attacked = Attacked::new(limits).await;
        let mut raw = Raw::ungreeted(&attacked.stage).await;
        raw.send(greeting).await;
        let end = raw.end_of(0).await.to_string();
        attacked.neighbour_is_served().await;
        let late = attacked.stage.metrics.limit_hits(Limit::HeaderTimeout);
        let expected = match case {
            "a client that doesn't greet" => ("connection closed", 1),
            _ => ("GOAWAY PROTOCOL_ERROR", 0),
        };
        assert_eq!((end.as_str(), late), expected, "{case}");
        seen(Area::Http2, case, format!("{end}; {}", upstream(attacked.upstream())));
    }
}

#[tokio::test]
async fn small_data_that_is_read_is_carried() {
    let attacked = Attacked::new(Limits::default()).await;
    let mut raw = Raw::new(&attacked.stage).await;
    raw.send(post(1)).await;
    for _ in 0..2000 {
        raw.send(frame(DATA, 0, 1, b"x")).await;
        if attacked.upstream() == 0 {
            tokio::task::yield_now().await;
        }
    }
    raw.send(frame(DATA, END_STREAM, 1, b"x")).await;
    assert_eq!(raw.end_of(1).await.to_string(), "200");
    seen(
        Area::Http2,
        "an upload of one-byte DATA that is read",
        "200; it goes on as it comes".to_owned(),
    );
}
