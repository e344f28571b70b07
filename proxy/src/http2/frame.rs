//! The form of frames, and how they are written (RFC 9113, sections 4 and 6).

use bytes::{BufMut, BytesMut};

use super::ErrorCode;

/// A frame's head, in bytes.
pub(super) const HEAD: usize = 9;
/// The largest frame that a client may send us, as large as any may be at first,
pub(super) const MAX_FRAME_OF_CLIENT: u32 = 16 * 1024;
/// and that a server may.
pub(super) const MAX_FRAME: u32 = 64 * 1024;
/// The largest that we send, where the peer allows more: others have their turn between two.
pub(super) const MAX_SENT: u32 = 16 * 1024;
/// What a window may be at most (RFC 9113, section 6.9.1).
pub(super) const MAX_WINDOW: u32 = (1 << 31) - 1;
/// What every window is at first.
pub(super) const FIRST_WINDOW: u32 = 65_535;
/// What a client says before anything else (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const PRIORITY: u8 = 2;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const PUSH_PROMISE: u8 = 5;
pub(super) const PING: u8 = 6;
pub(super) const GOAWAY: u8 = 7;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const ACK: u8 = 0x1;
pub(super) const END_STREAM: u8 = 0x1;
pub(super) const END_HEADERS: u8 = 0x4;
pub(super) const PADDED: u8 = 0x8;
pub(super) const PRIORITISED: u8 = 0x20;

pub(super) const HEADER_TABLE_SIZE: u16 = 1;
pub(super) const ENABLE_PUSH: u16 = 2;
pub(super) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(super) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(super) const MAX_FRAME_SIZE: u16 = 5;
pub(super) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// What either side sets, and how far it opens the connection's window, which is [`FIRST_WINDOW`] before.
pub(super) fn put_settings(out: &mut BytesMut, settings: &[(u16, u32)], window: u32) {
    put_head(out, 6 * settings.len(), SETTINGS, 0, 0);
    for (name, value) in settings {
        out.put_u16(*name);
        out.put_u32(*value);
    }
    put_window_update(out, 0, window - FIRST_WINDOW);
}

fn put_head(out: &mut BytesMut, length: usize, kind: u8, flags: u8, stream: u32) {
    out.put_uint(length as u64, 3);
    out.put_u8(kind);
    out.put_u8(flags);
    out.put_u32(stream);
}

/// Writes a head, whose fields `encode` appends: in one frame, or in as many as it needs.
pub(super) fn put_headers(
    out: &mut BytesMut,
    stream: u32,
    is_last: bool,
    max_frame: usize,
    encode: impl FnOnce(&mut BytesMut),
) {
    let start = out.len();
    out.put_bytes(0, HEAD);
    encode(out);
    let mut rest = if out.len() - start - HEAD > max_frame {
        out.split_off(start + HEAD + max_frame)
    } else {
        BytesMut::new()
    };
    let end_stream = if is_last { END_STREAM } else { 0 };
    let end_headers = |rest: &BytesMut| if rest.is_empty() { END_HEADERS } else { 0 };
    let mut head = BytesMut::with_capacity(HEAD);
    let length = out.len() - start - HEAD;
    put_head(&mut head, length, HEADERS, end_stream | end_headers(&rest), stream);
    out[start..start + HEAD].copy_from_slice(&head);
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(max_frame));
        put_head(out, piece.len(), CONTINUATION, end_headers(&rest), stream);
        out.put_slice(&piece);
    }
}

pub(super) fn put_data(out: &mut BytesMut, stream: u32, data: &[u8], is_last: bool) {
    put_head(out, data.len(), DATA, if is_last { END_STREAM } else { 0 }, stream);
    out.put_slice(data);
}

pub(super) fn put_reset(out: &mut BytesMut, stream: u32, code: ErrorCode) {
    put_head(out, 4, RST_STREAM, 0, stream);
    out.put_u32(code.0);
}

/// `last` is the peer's last stream that was begun, or may have been.
pub(super) fn put_goaway(out: &mut BytesMut, last: u32, code: ErrorCode) {
    put_head(out, 8, GOAWAY, 0, 0);
    out.put_u32(last);
    out.put_u32(code.0);
}

pub(super) fn put_window_update(out: &mut BytesMut, stream: u32, more: u32) {
    put_head(out, 4, WINDOW_UPDATE, 0, stream);
    out.put_u32(more);
}

pub(super) fn put_ping(out: &mut BytesMut, payload: u64, is_answer: bool) {
    put_head(out, 8, PING, if is_answer { ACK } else { 0 }, 0);
    out.put_u64(payload);
}

pub(super) fn put_settings_ack(out: &mut BytesMut) {
    put_head(out, 0, SETTINGS, ACK, 0);
}
