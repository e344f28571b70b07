//! What serves requests, over either protocol.

use std::fmt::Display;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;

use crate::{body::client::ClientBody, status::Refusal};

/// Who answers requests.
pub(super) trait Service: Sync {
    /// The body of an answer.
    type Body: Body<Data = Bytes, Error: Display> + Send + Unpin;

    /// Answers one request.
    fn serve(&self, request: Request<ClientBody>) -> impl Future<Output = Response<Self::Body>> + Send;

    /// Answers one that nothing can be relied on of: what is known of it, and why it isn't served.
    fn refuse(&self, refused: &Request<()>, refusal: Refusal) -> Response<Self::Body>;
}
