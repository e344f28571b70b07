//! HTTP/2 (RFC 9113), as a client speaks it, for the way upstream, and as a server, for pods.
//!
//! Of a crate for every purpose this one uses little, and what it would use costs too much: a request that is forwarded carries a
//! bearer token of a thousand bytes, always the same, and codes that keep no credentials in their tables spend more on it
//! than on all the rest of the request. Here the token goes by its place in the table ([`hpack`]), what is said is written where all
//! that is ready goes out with one write, and what comes goes straight to whoever waits for it.
//!
//! [`frame`] is the form of frames, [`parser`] takes them apart, [`stream`] judges what comes on one stream, [`streams`] and
//! [`uploads`] hold them all and the windows, [`driver`] reads and writes. Of the one that asks, [`fields`] has the answers' heads,
//! [`asking`] what it says and hears, and [`client`] is what others see; of the one that answers, [`serving`] and [`server`]. Whatever breaks
//! a rule ends the stream or the connection, and what a peer may have the agent keep is bounded: a server's certificate was
//! verified, and still.

mod asking;
pub(crate) mod client;
mod driver;
mod fields;
mod frame;
pub(crate) mod hpack;
mod parser;
mod serving;
pub(crate) mod server;
mod stream;
mod streams;
mod uploads;
#[cfg(test)]
mod tests;

use std::{fmt, io, sync::Arc};

use self::hpack::Malformed;
pub(crate) use self::{
    asking::Asking,
    client::{Answer, AnswerBody, BodyPiece, Client, Head, Pinger, Upload},
    driver::Driver,
};

/// An error code of HTTP/2 (RFC 9113, section 7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorCode(u32);

impl ErrorCode {
    /// Nothing is wrong.
    pub const NO_ERROR: Self = Self(0);
    /// A rule was broken that has no code of its own.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// Something went wrong that isn't the peer's fault.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// More was sent than was allowed.
    pub const FLOW_CONTROL_ERROR: Self = Self(3);
    /// Something came for a stream that had ended.
    pub const STREAM_CLOSED: Self = Self(5);
    /// A frame has a length that it can't have.
    pub const FRAME_SIZE_ERROR: Self = Self(6);
    /// The server did nothing with the request.
    pub const REFUSED_STREAM: Self = Self(7);
    /// The stream isn't wanted any more.
    pub const CANCEL: Self = Self(8);
    /// The fields can't be decoded.
    pub const COMPRESSION_ERROR: Self = Self(9);
    /// The peer is more trouble than it may be.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);

    const NAMES: [&'static str; 14] = [
        "NO_ERROR",
        "PROTOCOL_ERROR",
        "INTERNAL_ERROR",
        "FLOW_CONTROL_ERROR",
        "SETTINGS_TIMEOUT",
        "STREAM_CLOSED",
        "FRAME_SIZE_ERROR",
        "REFUSED_STREAM",
        "CANCEL",
        "COMPRESSION_ERROR",
        "CONNECT_ERROR",
        "ENHANCE_YOUR_CALM",
        "INADEQUATE_SECURITY",
        "HTTP_1_1_REQUIRED",
    ];
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "code {:#x}", self.0),
        }
    }
}

/// A rule that the peer broke, and the code that it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    pub(crate) code: ErrorCode,
    pub(crate) rule: &'static str,
}

impl Fault {
    const fn new(code: ErrorCode, rule: &'static str) -> Self {
        Self { code, rule }
    }

    const fn protocol(rule: &'static str) -> Self {
        Self::new(ErrorCode::PROTOCOL_ERROR, rule)
    }
}

impl From<Malformed> for Fault {
    /// What comes next couldn't be decoded either (RFC 9113, section 4.3).
    fn from(_: Malformed) -> Self {
        Self::new(ErrorCode::COMPRESSION_ERROR, "a head can't be decoded")
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.rule, self.code)
    }
}

/// Why a stream, or a connection with all its streams, came to no good end.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Http2Error {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(Arc<io::Error>),
    /// The peer closed the connection with streams open.
    #[error("the peer closed the connection")]
    Closed,
    /// The server ends the connection, and did nothing with the request.
    #[error("the server ends the connection and didn't take the request ({0})")]
    GoAway(ErrorCode),
    /// The peer reset the stream.
    #[error("the peer reset the stream ({0})")]
    Reset(ErrorCode),
    /// The peer broke a rule.
    #[error("the peer doesn't keep to HTTP/2: {0}")]
    Fault(Fault),
    /// The stream was reset by [`Upload::give_up`].
    #[error("the request was given up")]
    GivenUp,
    /// The connection was given up with streams open.
    #[error("the connection was given up")]
    Dropped,
}

impl Http2Error {
    /// Whether the server says that it did nothing with the request, so that it may be sent again (RFC 9113, section 8.7).
    pub(crate) fn is_unprocessed(&self) -> bool {
        matches!(self, Self::GoAway(_) | Self::Reset(ErrorCode::REFUSED_STREAM))
    }
}

impl From<io::Error> for Http2Error {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

impl From<Fault> for Http2Error {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}
