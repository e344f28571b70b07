//! The one body type every answer has, and the few ways to make it. What a body says belongs elsewhere.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full, combinators::UnsyncBoxBody};

/// Any error, boxed: a body's error only ever ends the stream that it is on.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body held whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// Boxes a streaming body.
pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}
