//! Requests as HTTP has them.

use super::{Case, ask, with};
use crate::frames::{DATA, END_HEADERS, END_STREAM, GET, HEADERS, POST, frame, hpack, post};

/// The cases.
#[expect(clippy::too_many_lines, reason = "it is a table")]
pub(super) fn cases() -> Vec<Case> {
    let malformed = "400 `Status` BadRequest";
    let fields = |more: &[(&str, &str)]| vec![frame(HEADERS, END_HEADERS | END_STREAM, 1, with(&GET, more))];
    let sized = |length: &str, data: &[&[u8]]| {
        let mut frames = vec![frame(
            HEADERS,
            END_HEADERS,
            1,
            with(&POST, &[("content-length", length)]),
        )];
        for (index, part) in data.iter().enumerate() {
            let last = index + 1 == data.len();
            frames.push(frame(DATA, u8::from(last), 1, part));
        }
        frames
    };
    vec![
        ("8.2 a name in upper case", fields(&[("X-TEST", "a")]), 1, malformed, 0),
        ("8.2 NUL in a value", fields(&[("x-test", "a\0b")]), 1, malformed, 0),
        (
            "8.2 LF in a value",
            fields(&[("x-test", "a\nimpersonate-user: root")]),
            1,
            malformed,
            0,
        ),
        ("8.2 a colon in a name", fields(&[("x:test", "a")]), 1, malformed, 0),
        (
            "8.2 space in a name",
            fields(&[("impersonate-user ", "root")]),
            1,
            malformed,
            0,
        ),
        ("8.2 a name without a letter", fields(&[("", "a")]), 1, malformed, 0),
        (
            "8.2.2 Connection",
            fields(&[("connection", "authorization")]),
            1,
            malformed,
            0,
        ),
        (
            "8.2.2 Transfer-Encoding",
            fields(&[("transfer-encoding", "chunked")]),
            1,
            malformed,
            0,
        ),
        ("8.2.2 Upgrade", fields(&[("upgrade", "websocket")]), 1, malformed, 0),
        ("8.2.2 Keep-Alive", fields(&[("keep-alive", "1")]), 1, malformed, 0),
        (
            "8.2.2 Proxy-Connection",
            fields(&[("proxy-connection", "close")]),
            1,
            malformed,
            0,
        ),
        (
            "8.2.2 TE other than trailers",
            fields(&[("te", "trailers, deflate")]),
            1,
            malformed,
            0,
        ),
        ("8.2.2 TE: trailers", fields(&[("te", "trailers")]), 1, "200", 1),
        (
            "8.3 an unknown pseudo-field",
            fields(&[(":test", "a")]),
            1,
            malformed,
            0,
        ),
        (
            "8.3 a pseudo-field of answers",
            fields(&[(":status", "200")]),
            1,
            malformed,
            0,
        ),
        (
            "8.3 a pseudo-field behind a field",
            vec![ask(&[GET[0], GET[1], GET[2], ("x-test", "a"), GET[3]])],
            1,
            malformed,
            0,
        ),
        (
            "8.3 a pseudo-field in the trailers",
            vec![
                post(1),
                frame(HEADERS, END_HEADERS | END_STREAM, 1, hpack(&[(":method", "POST")])),
            ],
            1,
            "stream reset, PROTOCOL_ERROR",
            0,
        ),
        (
            "8.1 trailers that don't end the stream",
            vec![post(1), frame(HEADERS, END_HEADERS, 1, hpack(&[("x-test", "a")]))],
            1,
            "stream reset, PROTOCOL_ERROR",
            0,
        ),
        ("8.3.1 no :method", vec![ask(&GET[1..])], 1, malformed, 0),
        (
            "8.3.1 no :scheme",
            vec![ask(&[GET[0], GET[2], GET[3]])],
            1,
            malformed,
            0,
        ),
        ("8.3.1 no :path", vec![ask(&GET[..3])], 1, malformed, 0),
        (
            "8.3.1 an empty :path",
            vec![ask(&[GET[0], GET[1], GET[2], (":path", "")])],
            1,
            malformed,
            0,
        ),
        (
            "8.3.1 two :methods",
            fields_first(&[(":method", "POST")]),
            1,
            malformed,
            0,
        ),
        (
            "8.3.1 two :paths",
            fields_first(&[(":path", "/other")]),
            1,
            malformed,
            0,
        ),
        (
            "8.3.1 a :path that isn't one",
            vec![ask(&[GET[0], GET[1], GET[2], (":path", "api")])],
            1,
            malformed,
            0,
        ),
        (
            "8.3.1 :authority against Host",
            fields(&[("host", "elsewhere")]),
            1,
            "400 `Status` BadRequest",
            0,
        ),
        (
            "8.3.1 two Hosts",
            fields(&[("host", "k"), ("host", "k")]),
            1,
            "400 `Status` BadRequest",
            0,
        ),
        (
            "8.3.1 :authority with user information",
            vec![ask(&[GET[0], GET[1], (":authority", "root@k"), GET[3]])],
            1,
            "400 `Status` BadRequest",
            0,
        ),
        (
            "8.5 CONNECT",
            vec![frame(
                HEADERS,
                END_HEADERS,
                1,
                hpack(&[(":method", "CONNECT"), (":authority", "k:443")]),
            )],
            1,
            "405 `Status` MethodNotAllowed",
            0,
        ),
        (
            "8.5 CONNECT with :protocol",
            vec![frame(
                HEADERS,
                END_HEADERS,
                1,
                with(&[(":method", "CONNECT"), (":protocol", "websocket")], &GET[1..]),
            )],
            1,
            malformed,
            0,
        ),
        (
            "8.5 TRACE",
            vec![ask(&[(":method", "TRACE"), GET[1], GET[2], GET[3]])],
            1,
            "405 `Status` MethodNotAllowed",
            0,
        ),
        (
            "8.1.1 a Content-Length over the DATA",
            sized("5", &[b"abc"]),
            1,
            "stream reset, PROTOCOL_ERROR",
            0,
        ),
        (
            "8.1.1 a Content-Length under the DATA",
            sized("1", &[b"abc"]),
            1,
            "stream reset, PROTOCOL_ERROR",
            0,
        ),
        (
            "8.1.1 a Content-Length unlike several DATA",
            sized("4", &[b"ab", b"abc"]),
            1,
            "stream reset, PROTOCOL_ERROR",
            0,
        ),
        (
            "8.1.1 a Content-Length without DATA",
            fields(&[("content-length", "5")]),
            1,
            malformed,
            0,
        ),
        (
            "8.1.1 a Content-Length of +5",
            sized("+5", &[b"abcde"]),
            1,
            malformed,
            0,
        ),
        (
            "8.1.1 two Content-Lengths",
            vec![frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                1,
                with(&POST, &[("content-length", "0"), ("content-length", "5")]),
            )],
            1,
            malformed,
            0,
        ),
    ]
}

/// A request with a pseudo-field twice.
fn fields_first(twice: &[(&str, &str)]) -> Vec<Vec<u8>> {
    vec![ask(&[&GET[..], twice].concat())]
}
