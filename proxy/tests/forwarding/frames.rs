//! HTTP/2 frame by frame, as no library would send it.

use std::fmt;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::client::TlsStream;

use crate::{
    stage::Stage,
    wire::{Answered, PATIENCE},
};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS; of SETTINGS and PING it is ACK.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 32;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Fields as HPACK writes them without a table and without Huffman (RFC 7541, section 6.2.2).
pub(crate) fn hpack(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541, section 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let Some(mut rest) = length.checked_sub(127) else {
        return block.push(u8::try_from(length).unwrap());
    };
    block.push(127);
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// A request's fields, as everyone sends them.
pub(crate) const GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", "k"),
    (":path", "/api"),
];
pub(crate) const POST: [(&str, &str); 4] = [
    (":method", "POST"),
    (":scheme", "https"),
    (":authority", "k"),
    (":path", "/api"),
];

/// A whole request without a body.
pub(crate) fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, hpack(&GET))
}

/// The head of a request with a body.
pub(crate) fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, hpack(&POST))
}

/// What came of what was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Answered(Answered),
    Reset(u32),
    GoAway(u32),
    Closed,
    /// None came.
    Open,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |code: u32| format!("{:?}", h2::Reason::from(code));
        match self {
            Self::Answered(answered) => answered.fmt(f),
            Self::Reset(code) => write!(f, "stream reset, {}", name(*code)),
            Self::GoAway(code) => write!(f, "GOAWAY {}", name(*code)),
            Self::Closed => f.write_str("connection closed"),
            Self::Open => write!(f, "nothing in {PATIENCE:?}"),
        }
    }
}

/// Kind, flags, stream and payload.
type Frame = (u8, u8, u32, Vec<u8>);

/// A connection that was greeted as it should be, unless said otherwise.
pub(crate) struct Raw {
    io: TlsStream<TcpStream>,
    received: Vec<u8>,
    code: Option<u16>,
    body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn new(stage: &Stage) -> Self {
        let mut raw = Self::ungreeted(stage).await;
        raw.send([PREFACE, &frame(SETTINGS, 0, 0, [])].concat()).await;
        raw
    }

    pub(crate) async fn ungreeted(stage: &Stage) -> Self {
        Self {
            io: stage.tls("h2").await,
            received: Vec::new(),
            code: None,
            body: Vec::new(),
        }
    }

    /// Sends, also where the agent no longer listens. Says whether it does.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.io.write_all(bytes.as_ref()).await.is_ok() && self.io.flush().await.is_ok()
    }

    /// The next frame; none where the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.try_next().await.expect("a frame")
    }

    async fn try_next(&mut self) -> Result<Option<Frame>, Elapsed> {
        loop {
            if self.received.len() >= 9 {
                let length = u32::from_be_bytes([0, self.received[0], self.received[1], self.received[2]]) as usize;
                if self.received.len() >= 9 + length {
                    let frame: Vec<u8> = self.received.drain(..9 + length).collect();
                    let stream = u32::from_be_bytes([frame[5], frame[6], frame[7], frame[8]]);
                    return Ok(Some((frame[3], frame[4], stream, frame[9..].to_vec())));
                }
            }
            let read = timeout(PATIENCE, self.io.read_buf(&mut self.received));
            if !matches!(read.await?, Ok(1..)) {
                return Ok(None);
            }
        }
    }

    /// Reads on until it is clear what became of a stream; 0 is the connection, whose end is awaited.
    pub(crate) async fn end_of(&mut self, stream: u32) -> End {
        let number = |payload: &[u8], at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        loop {
            let (kind, flags, on, payload) = match self.try_next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return End::Closed,
                Err(_) => return End::Open,
            };
            match kind {
                GOAWAY => return End::GoAway(number(&payload, 4)),
                RST_STREAM if on == stream => return End::Reset(number(&payload, 0)),
                HEADERS if on == stream && stream != 0 && self.code.is_none() => self.code = code(&payload),
                DATA if on == stream => self.body.extend(payload),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && on == stream && stream != 0 && flags & END_STREAM != 0 {
                let body = std::mem::take(&mut self.body);
                return End::Answered(Answered::new(self.code.take().unwrap_or(0), false, body));
            }
        }
    }

    /// Whether the connection still answers: a PING comes back.
    pub(crate) async fn lives(&mut self) -> bool {
        self.until_pong().await.is_some()
    }

    /// The frames that come before the answer to a PING, by kind and stream; none where the connection has ended.
    pub(crate) async fn until_pong(&mut self) -> Option<Vec<(u8, u32)>> {
        self.send(frame(PING, 0, 0, b"alive???")).await;
        let mut seen = Vec::new();
        loop {
            match self.next().await {
                None | Some((GOAWAY, ..)) => return None,
                Some((PING, flags, _, payload)) if flags & ACK != 0 && payload == b"alive???" => return Some(seen),
                Some((kind, _, stream, _)) => seen.push((kind, stream)),
            }
        }
    }
}

/// The code of an answer, its first field: from the static table, or three digits as HPACK's Huffman code has them.
fn code(block: &[u8]) -> Option<u16> {
    // The table's size may be set first.
    let block = if block[0] & 0xe0 == 0x20 { &block[1..] } else { block };
    match block[0] {
        0x88..=0x8e => [200, 204, 206, 304, 400, 404, 500]
            .get(usize::from(block[0] - 0x88))
            .copied(),
        0x08 | 0x18 | 0x48 => {
            let length = usize::from(block[1] & 0x7f);
            let text = &block[2..2 + length];
            if block[1] & 0x80 == 0 {
                return std::str::from_utf8(text).ok()?.parse().ok();
            }
            let bits = text
                .iter()
                .map(|byte| format!("{byte:08b}"))
                .collect::<Vec<_>>()
                .concat();
            let (mut at, mut digits) = (0, 0);
            for _ in 0..3 {
                let short = u16::from_str_radix(&bits[at..at + 5], 2).ok()?;
                let (digit, taken) = if short <= 2 {
                    (short, 5)
                } else {
                    (u16::from_str_radix(&bits[at..at + 6], 2).ok()?.checked_sub(22)?, 6)
                };
                digits = digits * 10 + digit;
                at += taken;
            }
            Some(digits)
        }
        _ => None,
    }
}
