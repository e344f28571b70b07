//! A Kubernetes client whose requests take the agent's own way upstream: the pinned server, the followed CA, the
//! token as the kubelet rotates it (invariant 3). kube's own TLS stack isn't built in.

use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use tower::service_fn;

use crate::{
    body::RequestBody,
    credentials::{CredentialError, TokenFile},
    upstream::{Upstream, UpstreamBody, UpstreamError},
};

/// The largest object that the agent sends; etcd takes none of 1.5 MiB.
const OBJECT: usize = 2 * 1024 * 1024;

/// Why a request of the agent's own wasn't answered.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no token to send.
    #[error(transparent)]
    Credential(#[from] CredentialError),
    /// The body couldn't be made, or is too large.
    #[error("the request's body: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The way upstream.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// A client as the agent's own service account.
///
/// Must be called within a Tokio runtime: a task carries the requests.
#[must_use]
pub fn client(upstream: Upstream, token: TokenFile) -> kube::Client {
    let service = service_fn(move |request| send(upstream.clone(), token.clone(), request));
    // The namespace that a request is for is always named.
    kube::Client::new(service, "default")
}

async fn send(
    upstream: Upstream,
    token: TokenFile,
    request: Request<Body>,
) -> Result<Response<UpstreamBody>, ClientError> {
    let (mut head, body) = request.into_parts();
    let body: Bytes = Limited::new(body, OBJECT)
        .collect()
        .await
        .map_err(ClientError::Body)?
        .to_bytes();
    head.headers.insert(AUTHORIZATION, token.current()?.header_value());
    let request = Request::from_parts(head, RequestBody::ours(body));
    Ok(upstream.send(request).await?)
}
