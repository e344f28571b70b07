//! A server that says what a test says, and what a test hears.

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinHandle,
    time::timeout,
};

use super::super::{
    Answer, AnswerBody, BodyPiece, Client, Head, Http2Error, Upload,
    fields::HEADER_LIST,
    hpack::decoder::{Decoder, Field, Name},
    stream::STREAM_WINDOW,
};

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const ACK: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
pub(super) const PADDED: u8 = 8;
pub(super) const PRIORITISED: u8 = 32;

/// `:status: 200`, by the table.
pub(super) const OK: &[u8] = &[0x88];
pub(super) const LONG: Duration = Duration::from_secs(10);

pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

pub(super) fn setting(name: u16, value: u32) -> Vec<u8> {
    [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

pub(super) fn widen(stream: u32, more: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, more.to_be_bytes())
}

pub(super) fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A head with fields that are in no table.
pub(super) fn head(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags, stream, [OK, &literal(fields)].concat())
}

pub(super) fn literal(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("it is short"));
            block.extend(text.as_bytes());
        }
    }
    block
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) struct Server {
    pub(super) io: DuplexStream,
    decoder: Decoder,
}

impl Server {
    pub(super) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.io.write_all(bytes.as_ref()).await.unwrap();
    }

    /// None where the client has closed the connection.
    pub(super) async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = timeout(LONG, self.io.read_exact(&mut head))
            .await
            .expect("a frame comes");
        read.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.io.read_exact(&mut payload).await.unwrap();
        Some(Frame {
            kind: head[3],
            flags: head[4],
            stream: u32::from_be_bytes([head[5], head[6], head[7], head[8]]),
            payload,
        })
    }

    /// The next that is of this kind, and no PING's or SETTINGS' answer before it is anything else.
    pub(super) async fn expect(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.expect("the connection is open");
            if frame.kind == kind {
                return frame;
            }
            assert_eq!(frame.flags, ACK, "{frame:?} came instead");
        }
    }

    /// Nothing more of what was sent is on its way.
    pub(super) async fn is_quiet(&mut self) -> bool {
        self.send(frame(PING, 0, 0, [7; 8])).await;
        loop {
            match self.next().await {
                Some(Frame { kind: PING, .. }) => return true,
                Some(Frame { kind: SETTINGS, .. }) => {}
                _ => return false,
            }
        }
    }

    pub(super) fn fields(&mut self, frame: &Frame) -> Vec<String> {
        let mut fields = Vec::new();
        let each = |field: &Field| {
            let value = field.value.as_ref().unwrap().to_str().unwrap();
            fields.push(match &field.name {
                Name::Field(name) => format!("{name}: {value}"),
                _ => value.to_owned(),
            });
        };
        self.decoder.decode(&frame.payload, each).unwrap();
        fields
    }
}

pub(super) struct Stage {
    pub(super) client: Client,
    pub(super) server: Server,
    pub(super) driver: JoinHandle<Result<(), Http2Error>>,
}

impl Stage {
    pub(super) async fn new(settings: &[Vec<u8>]) -> Self {
        let (near, far) = duplex(1 << 20);
        let mut server = Server {
            io: far,
            decoder: Decoder::new(),
        };
        server.send(frame(SETTINGS, 0, 0, settings.concat())).await;
        let (client, driver) = Client::greet(near).await.unwrap();
        let mut preface = [0; 24];
        server.io.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let sets = server.next().await.unwrap();
        let expected = [
            setting(2, 0),
            setting(4, STREAM_WINDOW),
            setting(5, 1 << 16),
            setting(6, HEADER_LIST),
        ];
        assert_eq!((sets.kind, sets.payload), (SETTINGS, expected.concat()));
        let widens = server.next().await.unwrap();
        assert_eq!((widens.kind, widens.stream), (WINDOW_UPDATE, 0));
        assert_eq!(widens.payload, ((1_u32 << 31) - 1 - 65_535).to_be_bytes());
        Self {
            client,
            server,
            driver: tokio::spawn(driver),
        }
    }

    pub(super) fn get(&self) -> Answer {
        self.client.send(request(&Method::GET, &HeaderMap::new())).unwrap()
    }

    /// An upload, after the server has seen its head.
    pub(super) async fn put(&mut self) -> (Answer, Upload) {
        let put = self.client.send_head(request(&Method::PUT, &HeaderMap::new())).unwrap();
        let head = self.server.expect(HEADERS).await;
        assert_eq!(head.flags, END_HEADERS);
        put
    }
}

pub(super) fn request<'r>(method: &'r Method, fields: &'r HeaderMap) -> Head<'r> {
    static AUTHORITY: HeaderValue = HeaderValue::from_static("10.96.0.1");
    Head {
        method,
        authority: &AUTHORITY,
        path: "/api",
        fields,
    }
}

pub(super) async fn answer(answer: Answer) -> Result<Response<AnswerBody>, Http2Error> {
    timeout(LONG, answer).await.expect("it is answered")
}

/// A body to its end: what came, the fields behind it, and how it ended.
pub(super) async fn read(body: &mut AnswerBody) -> (Vec<u8>, HeaderMap, Option<String>) {
    let (mut data, mut trailers) = (Vec::new(), HeaderMap::new());
    loop {
        let piece = timeout(LONG, std::future::poll_fn(|cx| body.poll_piece(cx)));
        match piece.await.expect("the body ends") {
            Some(Ok(BodyPiece::Data(piece))) => data.extend_from_slice(&piece),
            Some(Ok(BodyPiece::Trailers(fields))) => trailers = fields,
            Some(Err(error)) => return (data, trailers, Some(error.to_string())),
            None => return (data, trailers, None),
        }
    }
}
