//! gzip as kube-apiserver does it: only for large answers, only when asked, at the lightest level.

use std::io::Write;

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, header};

use super::body::{self, Body};

/// Answers smaller than this are sent as they are.
pub(crate) const THRESHOLD: usize = 128 * 1024;

/// True if the client takes gzip.
pub(crate) fn accepted(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|coding| coding.trim() == "gzip")
}

/// Compresses a whole body.
pub(crate) fn whole(bytes: &[u8]) -> Body {
    let mut stream = GzipStream::new();
    let mut out = stream.push(bytes).to_vec();
    out.extend_from_slice(&stream.finish());
    body::full(out)
}

/// A JSON answer whose body is compressed.
pub(crate) fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Compresses a body piece by piece.
#[derive(Debug)]
pub(crate) struct GzipStream(GzEncoder<Vec<u8>>);

impl GzipStream {
    pub(crate) fn new() -> Self {
        Self(GzEncoder::new(Vec::new(), Compression::fast()))
    }

    /// What has come out by now, often nothing.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Bytes {
        // Writing to memory doesn't fail.
        let _ = self.0.write_all(bytes);
        std::mem::take(self.0.get_mut()).into()
    }

    /// The rest.
    pub(crate) fn finish(self) -> Bytes {
        self.0.finish().unwrap_or_default().into()
    }
}
