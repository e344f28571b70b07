//! A recording into the store: by S3's API, or by PUT. Each is done or isn't: what broke off leaves nothing under its name.

use std::{error::Error as StdError, fmt, io, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use object_store::{
    Attribute, Attributes, MultipartUpload, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, aws::AmazonS3,
    path::Path as ObjectPath,
};
use tokio::task;

use super::{
    credentials::{Authorization, CredentialFile},
    destination::{Destination, Key, Origin},
    shelf::Claim,
    transport::{Sent, Transport, TransportError},
};

/// A recording that is longer goes to S3 in such parts, one after the other. At least 5 MiB, as S3 has it.
pub(super) const PART: u64 = 8 * 1024 * 1024;
/// S3 has no more parts of one object.
const PARTS: u64 = 10_000;
/// What is handed on at a time: so often is it seen that something moves.
const PIECE: usize = 64 * 1024;
const CONTENT_TYPE: &str = "application/x-asciicast";

/// Why the store hasn't got it.
#[derive(Debug, thiserror::Error)]
pub(super) enum PutError {
    /// Not for the store's fault: others may get there.
    #[error("it can't be read ({0}): see what is wrong with the file, or with the disk")]
    Local(#[source] io::Error),
    #[error("{0}")]
    S3(String),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{url} answers {code}: see that the credentials may write there, and how the store fares")]
    Refused { url: String, code: StatusCode },
}

impl PutError {
    /// Whether others would fare as badly.
    pub(super) fn is_of_the_store(&self) -> bool {
        !matches!(self, Self::Local(_))
    }
}

/// A store.
#[derive(Debug)]
pub(super) enum Store {
    S3(Box<AmazonS3>),
    Http(HttpStore),
}

impl Store {
    /// Brings it there, under this name.
    pub(super) async fn put(&self, key: &Key, claim: &Arc<Claim>) -> Result<(), PutError> {
        match self {
            Self::S3(s3) => put_to_s3(s3, key, claim).await,
            Self::Http(store) => store.put(key, claim).await,
        }
    }
}

async fn put_to_s3(s3: &AmazonS3, key: &Key, claim: &Arc<Claim>) -> Result<(), PutError> {
    let path = ObjectPath::parse(key.as_str()).map_err(|error| PutError::S3(error.to_string()))?;
    let attributes = Attributes::from_iter([(Attribute::ContentType, CONTENT_TYPE)]);
    if claim.bytes <= PART {
        let whole = payload(claim, 0, PART).await?;
        let options = PutOptions::from(attributes);
        s3.put_opts(&path, whole, options).await.map_err(|error| said(&error))?;
        return Ok(());
    }
    let part = part_size(claim.bytes);
    let options = PutMultipartOptions::from(attributes);
    let mut upload = s3
        .put_multipart_opts(&path, options)
        .await
        .map_err(|error| said(&error))?;
    let put = put_parts(upload.as_mut(), claim, part).await;
    if put.is_err()
        && let Err(error) = upload.abort().await
    {
        // It is paid for until the bucket's own rule clears it away.
        tracing::debug!(error = %said(&error), object = key.as_str(), "parts of an upload that broke off stay in the store");
    }
    put
}

async fn put_parts(upload: &mut dyn MultipartUpload, claim: &Arc<Claim>, part: u64) -> Result<(), PutError> {
    let mut at = 0;
    while at < claim.bytes {
        let next = payload(claim, at, part).await?;
        upload.put_part(next).await.map_err(|error| said(&error))?;
        at += part;
    }
    upload.complete().await.map_err(|error| said(&error))?;
    Ok(())
}

/// As few parts as there may be, each of [`PART`] if that is enough.
fn part_size(bytes: u64) -> u64 {
    PART.max(bytes.div_ceil(PARTS))
}

async fn payload(claim: &Arc<Claim>, at: u64, most: u64) -> Result<PutPayload, PutError> {
    let part = part(claim, at, usize::try_from(most).unwrap_or(usize::MAX)).await;
    let part = part.map_err(PutError::Local)?;
    Ok((0..part.len())
        .step_by(PIECE)
        .map(|from| part.slice(from..part.len().min(from + PIECE)))
        .collect())
}

async fn part(claim: &Arc<Claim>, at: u64, most: usize) -> io::Result<Bytes> {
    let claim = Arc::clone(claim);
    let read = task::spawn_blocking(move || claim.read(at, most));
    read.await.map_err(io::Error::other)?.map(Bytes::from)
}

/// The last cause is ours to word, or the store's.
fn said(error: &object_store::Error) -> PutError {
    let mut cause: &dyn StdError = error;
    while let Some(source) = cause.source() {
        if let Some(transport) = cause.downcast_ref::<TransportError>() {
            return PutError::S3(transport.to_string());
        }
        cause = source;
    }
    let what = match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            "see that the credentials may put objects there, and this machine's clock"
        }
        object_store::Error::NotFound { .. } => "see that there is such a bucket, and in that region",
        _ => "see how the store fares, and that its URL, endpoint and region are right",
    };
    PutError::S3(format!("{cause}: {what}"))
}

/// A server that takes PUT.
pub(super) struct HttpStore {
    origin: Origin,
    credentials: Option<CredentialFile<Authorization>>,
    transport: Transport,
}

impl fmt::Debug for HttpStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpStore({})", self.origin.url())
    }
}

impl HttpStore {
    pub(super) fn new(
        origin: Origin,
        credentials: Option<CredentialFile<Authorization>>,
        transport: Transport,
    ) -> Self {
        Self {
            origin,
            credentials,
            transport,
        }
    }

    async fn put(&self, key: &Key, claim: &Arc<Claim>) -> Result<(), PutError> {
        let mut outcome = self.ask(Method::PUT, key.as_str(), Some(claim)).await?;
        // RFC 4918 has 409 where a collection above isn't there; many servers say 404.
        if matches!(outcome, StatusCode::CONFLICT | StatusCode::NOT_FOUND) {
            self.make_collections(key.as_str()).await?;
            outcome = self.ask(Method::PUT, key.as_str(), Some(claim)).await?;
        }
        if outcome.is_success() {
            Ok(())
        } else {
            Err(self.refused(key.as_str(), outcome))
        }
    }

    /// All above the object, from the top.
    async fn make_collections(&self, key: &str) -> Result<(), PutError> {
        let make = Method::from_bytes(b"MKCOL").map_err(|error| TransportError::Request(http::Error::from(error)))?;
        for (end, _) in key.match_indices('/') {
            let collection = &key[..=end];
            let code = self.ask(make.clone(), collection, None).await?;
            // 405: it is there. Redirects to a name with a slash, and refusals above what is ours, show at the PUT.
            tracing::debug!(%code, collection, "a collection for recordings");
        }
        Ok(())
    }

    async fn ask(&self, method: Method, path: &str, claim: Option<&Arc<Claim>>) -> Result<StatusCode, PutError> {
        let mut request = Request::builder().method(method).uri(self.url(path));
        if let Some(claim) = claim {
            request = request
                .header(header::CONTENT_LENGTH, claim.bytes)
                .header(header::CONTENT_TYPE, CONTENT_TYPE);
        }
        if let Some(credentials) = &self.credentials {
            request = request.header(header::AUTHORIZATION, credentials.current().await.header());
        }
        let body = claim.map_or_else(|| Empty::new().map_err(|never| match never {}).boxed_unsync(), streamed);
        let request = request.body(body).map_err(TransportError::Request)?;
        Ok(self.transport.send(request).await?.status())
    }

    fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.origin.url())
    }

    fn refused(&self, path: &str, code: StatusCode) -> PutError {
        PutError::Refused {
            url: self.url(path),
            code,
        }
    }
}

/// Read as it is sent: none of it is held but the piece on its way.
fn streamed(claim: &Arc<Claim>) -> Sent {
    let pieces = stream::try_unfold((Arc::clone(claim), 0), |(claim, at)| async move {
        if at >= claim.bytes {
            return Ok(None);
        }
        let piece = part(&claim, at, PIECE).await?;
        let next = at + piece.len() as u64;
        Ok::<_, io::Error>(Some((Frame::data(piece), (claim, next))))
    });
    BodyExt::map_err(StreamBody::new(pieces), Into::into).boxed_unsync()
}

/// What an object is called for people.
pub(super) fn shown(destination: &Destination, key: &Key) -> String {
    let Destination { kind, .. } = destination;
    let root = Destination {
        kind: kind.clone(),
        prefix: String::new(),
    };
    format!("{root}/{}", key.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough() {
        const TIB: u64 = 1 << 40;
        assert_eq!(part_size(PART + 1), PART);
        assert_eq!(part_size(PART * PARTS), PART);
        for bytes in [PART * PARTS + 1, TIB, 5 * TIB] {
            let part = part_size(bytes);
            assert!(bytes.div_ceil(part) <= PARTS && part > PART, "{bytes}: {part}");
        }
    }
}
