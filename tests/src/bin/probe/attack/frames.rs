//! HTTP/2 frames put together by hand (RFC 9113), headers in the plainest form of HPACK (RFC 7541): a client library
//! would keep the rules that are to be broken.

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
/// CANCEL.
const CANCEL: u32 = 8;
/// Where HPACK's dynamic table begins.
const FIRST_OF_OURS: u8 = 0x3e;
/// What both sides allow until told otherwise.
const FRAME: usize = 16 * 1024;

/// What a client's connection begins with: the preface, and settings of no wish.
pub(crate) fn opening() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &settings(&[])].concat()
}

/// A SETTINGS frame.
pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend(id.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    frame(SETTINGS, 0, 0, &payload)
}

/// A PING.
pub(crate) fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"pingpong")
}

/// A whole GET.
pub(crate) fn get(stream: u32, authority: &str, path: &str) -> Vec<u8> {
    headers(stream, true, &block("GET", authority, path))
}

/// A POST's head, whose body is to come.
pub(crate) fn post(stream: u32, authority: &str, path: &str) -> Vec<u8> {
    let mut block = block("POST", authority, path);
    field(&mut block, "content-type", "application/json");
    headers(stream, false, &block)
}

/// Part of a body.
pub(crate) fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, bytes)
}

/// Takes a request back.
pub(crate) fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// A head that goes on and never ends.
pub(crate) fn endless(stream: u32, authority: &str, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM, stream, &block("GET", authority, path))
}

/// One more piece of such a head.
pub(crate) fn continuation(stream: u32) -> Vec<u8> {
    let mut block = Vec::new();
    while block.len() < FRAME - 200 {
        field(&mut block, "x-more", &"a".repeat(100));
    }
    frame(CONTINUATION, 0, stream, &block)
}

/// A request whose few bytes unpack to megabytes: one large header into the dynamic table, and then again and again.
pub(crate) fn bomb(stream: u32, authority: &str, path: &str) -> Vec<u8> {
    let mut block = block("GET", authority, path);
    // With incremental indexing, a new name: it becomes the first of the dynamic table.
    block.push(0x40);
    text(&mut block, "x-bomb");
    text(&mut block, &"b".repeat(3900));
    block.resize(FRAME - 100, 0x80 | FIRST_OF_OURS);
    headers(stream, true, &block)
}

/// A request's head with many headers, in one frame.
pub(crate) fn many_headers(stream: u32, authority: &str, path: &str, count: usize) -> Vec<u8> {
    let mut block = block("GET", authority, path);
    for index in 0..count {
        field(&mut block, &format!("x-{index}"), "1");
    }
    headers(stream, true, &block)
}

fn block(method: &str, authority: &str, path: &str) -> Vec<u8> {
    // Of the static table: GET or POST, https; then names of it with values of ours.
    let mut block = vec![if method == "GET" { 0x82 } else { 0x83 }, 0x87, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, authority);
    block
}

fn headers(stream: u32, last: bool, block: &[u8]) -> Vec<u8> {
    let end = if last { END_STREAM } else { 0 };
    frame(HEADERS, END_HEADERS | end, stream, block)
}

/// A header that goes into no table.
fn field(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    text(block, name);
    text(block, value);
}

/// A text without Huffman's code, its length before it.
fn text(block: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        block.push(u8::try_from(length).unwrap_or(0));
    } else {
        block.push(127);
        length -= 127;
        while length >= 128 {
            block.push(u8::try_from(length % 128).unwrap_or(0) | 0x80);
            length /= 128;
        }
        block.push(u8::try_from(length).unwrap_or(0));
    }
    block.extend_from_slice(text.as_bytes());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
