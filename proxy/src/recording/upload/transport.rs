//! HTTP/1.1 to the store: over verified TLS, or in plaintext to this machine and where the operator has it so. Nothing is
//! sent anywhere else, and no redirect is followed.

use std::{
    error::Error as StdError,
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited, combinators::UnsyncBoxBody};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use object_store::{
    ClientOptions,
    client::{HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService},
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};

use crate::{tls, trust::roots::UpstreamRoots};

/// As long may a connection take.
const CONNECT: Duration = Duration::from_secs(15);
/// As long may nothing move while a request is sent, or answered.
const STALL: Duration = Duration::from_mins(1);
/// As long may a connection take to be ready for the next request.
const LET_GO: Duration = Duration::from_millis(200);
/// An answer is short.
const ANSWER_LIMIT: usize = 1024 * 1024;
/// Connections that are kept: as many as recordings are brought at once, and one for credentials.
const KEPT: usize = 3;
const USER_AGENT: &str = concat!("understudy/", env!("CARGO_PKG_VERSION"));

type BoxError = Box<dyn StdError + Send + Sync>;
/// What is sent.
pub(super) type Sent = UnsyncBoxBody<Bytes, BoxError>;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum TransportError {
    #[error("{0} is no address: see the URL of the store")]
    Address(Uri),
    #[error("{host}: {source}: check the store's name, and that it is up and reachable from this node")]
    Connect { host: String, source: io::Error },
    #[error("TLS with {host}: {source}: check --recording-upload-ca, and whom the store's certificate names")]
    Tls { host: String, source: io::Error },
    #[error("{0} is asked in plaintext and isn't this machine: use https, or --recording-upload-allow-plaintext")]
    Plaintext(String),
    #[error("{host}: {source}: check what ended the connection")]
    Http { host: String, source: hyper::Error },
    #[error("{host}: nothing moves for {}s: check how the store fares", STALL.as_secs())]
    Stalled { host: String },
    #[error("{host}: its answer can't be read ({source}): see that this is the store")]
    Answer { host: String, source: BoxError },
    #[error("the request can't be made: {0}")]
    Request(#[from] http::Error),
}

/// Who vouches for the store.
#[derive(Debug, Clone)]
pub(super) enum Trusted {
    /// A file, which is followed.
    File(UpstreamRoots),
    /// The system's own, as they were at the start.
    System(Arc<ClientConfig>),
}

impl Trusted {
    fn terms(&self) -> Arc<ClientConfig> {
        match self {
            Self::File(roots) => roots.version(),
            Self::System(config) => Arc::clone(config),
        }
    }
}

/// Connections to the store. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    trusted: Trusted,
    allow_plaintext: bool,
    kept: Mutex<Vec<Kept>>,
}

/// A connection that has nothing to do.
#[derive(Debug)]
struct Kept {
    to: Place,
    connection: SendRequest<Measured>,
    /// The terms that it was made under.
    terms: Arc<ClientConfig>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    is_plaintext: bool,
    /// Without brackets.
    host: String,
    port: u16,
}

impl Place {
    fn of(uri: &Uri) -> Result<Self, TransportError> {
        let wrong = || TransportError::Address(uri.clone());
        let is_plaintext = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(wrong()),
        };
        let host = uri.host().ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        Ok(Self {
            is_plaintext,
            host: bare.unwrap_or(host).to_owned(),
            port: uri.port_u16().unwrap_or(if is_plaintext { 80 } else { 443 }),
        })
    }

    /// As it stands in `Host`: without a port that goes without saying, for that is what is signed.
    fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.is_plaintext, self.port) {
            (true, 80) | (false, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl Transport {
    pub(super) fn new(trusted: Trusted, allow_plaintext: bool) -> Self {
        Self(Arc::new(Inner {
            trusted,
            allow_plaintext,
            kept: Mutex::default(),
        }))
    }

    /// Sends a request, and reads the answer. Of one that isn't well only the cause is left, for the rest may say what was
    /// sent.
    pub(super) async fn send(&self, request: Request<Sent>) -> Result<Response<Bytes>, TransportError> {
        let place = Place::of(request.uri())?;
        let host = place.authority();
        let (mut parts, body) = request.into_parts();
        parts
            .headers
            .insert(header::HOST, HeaderValue::from_str(&host).map_err(http::Error::from)?);
        parts
            .headers
            .entry(header::USER_AGENT)
            .or_insert(HeaderValue::from_static(USER_AGENT));
        let path = parts.uri.path_and_query().cloned();
        parts.uri = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        let moved = Arc::<AtomicU64>::default();
        let mut request = Request::from_parts(parts, Measured::new(body, &moved));
        let http = |source| TransportError::Http {
            host: host.clone(),
            source,
        };
        let terms = self.0.trusted.terms();
        let (mut connection, answer) = loop {
            let kept = self.kept(&place, &terms);
            let is_kept = kept.is_some();
            let mut connection = match kept {
                Some(connection) => connection,
                None => self.connect(&place, &terms).await?,
            };
            let sent = async {
                if let Err(error) = connection.ready().await {
                    return Err((error, Some(request)));
                }
                connection
                    .try_send_request(request)
                    .await
                    .map_err(|mut error| (error.take_message(), error.into_error()))
                    .map_err(|(message, error)| (error, message))
            };
            match unless_stalled(&moved, &host, Box::pin(sent)).await? {
                Ok(answer) => break (connection, answer),
                // It was closed while it had nothing to do: the request never left.
                Err((_, Some(unsent))) if is_kept => request = unsent,
                Err((error, _)) => return Err(http(error)),
            }
        };
        let (head, body) = answer.into_parts();
        let read = Limited::new(body, ANSWER_LIMIT).collect();
        let body = unless_stalled(&moved, &host, Box::pin(read)).await?;
        let body = body
            .map_err(|source| TransportError::Answer {
                host: host.clone(),
                source,
            })?
            .to_bytes();
        // One that answered before it had all isn't worth waiting for.
        if matches!(timeout(LET_GO, connection.ready()).await, Ok(Ok(()))) {
            self.keep(place, connection, terms);
        }
        let body = if head.status.is_success() { body } else { cause(&body) };
        Ok(Response::from_parts(head, body))
    }

    fn kept(&self, place: &Place, terms: &Arc<ClientConfig>) -> Option<SendRequest<Measured>> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| !kept.connection.is_closed() && Arc::ptr_eq(&kept.terms, terms));
        let index = kept.iter().position(|kept| kept.to == *place)?;
        Some(kept.swap_remove(index).connection)
    }

    fn keep(&self, to: Place, connection: SendRequest<Measured>, terms: Arc<ClientConfig>) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(Kept { to, connection, terms });
        }
    }

    async fn connect(&self, place: &Place, terms: &Arc<ClientConfig>) -> Result<SendRequest<Measured>, TransportError> {
        let late = |_| TransportError::Connect {
            host: place.authority(),
            source: io::ErrorKind::TimedOut.into(),
        };
        timeout(CONNECT, self.dial(place, terms)).await.map_err(late)?
    }

    async fn dial(&self, place: &Place, terms: &Arc<ClientConfig>) -> Result<SendRequest<Measured>, TransportError> {
        let host = || place.authority();
        let connect = |source| TransportError::Connect { host: host(), source };
        let mut addresses: Vec<SocketAddr> = lookup_host((place.host.as_str(), place.port))
            .await
            .map_err(connect)?
            .collect();
        if place.is_plaintext && !self.0.allow_plaintext {
            // What a name leads to, not what it is called.
            addresses.retain(|address| address.ip().to_canonical().is_loopback());
            if addresses.is_empty() {
                return Err(TransportError::Plaintext(host()));
            }
        }
        let tcp = TcpStream::connect(addresses.as_slice()).await.map_err(connect)?;
        let http = |source| TransportError::Http { host: host(), source };
        if place.is_plaintext {
            let (sender, connection) = http1::handshake(TokioIo::new(tcp)).await.map_err(http)?;
            drive(connection);
            return Ok(sender);
        }
        let tls = |source| TransportError::Tls { host: host(), source };
        let name = ServerName::try_from(place.host.clone())
            .map_err(|error| tls(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let stream = tls::connect(tcp, Arc::clone(terms), name).await.map_err(tls)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        drive(connection);
        Ok(sender)
    }
}

fn drive<I>(connection: http1::Connection<I, Measured>)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the recordings' store broke");
        }
    });
}

/// Waits for it as long as something moves.
async fn unless_stalled<F: Future + Unpin>(
    moved: &AtomicU64,
    host: &str,
    mut act: F,
) -> Result<F::Output, TransportError> {
    loop {
        let before = moved.load(Ordering::Relaxed);
        if let Ok(done) = timeout(STALL, &mut act).await {
            return Ok(done);
        }
        if moved.load(Ordering::Relaxed) == before {
            return Err(TransportError::Stalled { host: host.to_owned() });
        }
    }
}

/// What a store says is the cause: the `Code` in S3's errors (`AccessDenied`). The rest of such an answer quotes the request.
fn cause(body: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(body);
    let code = text
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    let is_word = |code: &&str| (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let code = code.map(|(code, _)| code).filter(is_word).unwrap_or_default();
    Bytes::copy_from_slice(code.as_bytes())
}

/// A body that says as it is taken.
struct Measured {
    body: Sent,
    moved: Arc<AtomicU64>,
}

impl Measured {
    fn new(body: Sent, moved: &Arc<AtomicU64>) -> Self {
        Self {
            body,
            moved: Arc::clone(moved),
        }
    }
}

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Measured({})", self.moved.load(Ordering::Relaxed))
    }
}

impl Body for Measured {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if polled.is_ready() {
            self.moved.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let request = request.map(|body| body.map_err(BoxError::from).boxed_unsync());
        let answer = self.send(request).await.map_err(|error| {
            let kind = match &error {
                TransportError::Connect { .. } | TransportError::Tls { .. } => HttpErrorKind::Connect,
                TransportError::Http { .. } => HttpErrorKind::Interrupted,
                TransportError::Stalled { .. } => HttpErrorKind::Timeout,
                TransportError::Answer { .. } => HttpErrorKind::Decode,
                TransportError::Address(_) | TransportError::Plaintext(_) | TransportError::Request(_) => {
                    HttpErrorKind::Unknown
                }
            };
            HttpError::new(kind, error)
        })?;
        Ok(answer.map(Into::into))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::denied(
        "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><StringToSign>secret</StringToSign></Error>",
        "AccessDenied"
    )]
    #[case::not_a_word("<Error><Code>a secret</Code></Error>", "")]
    #[case::another("{\"message\": \"secret\"}", "")]
    #[case::torn("<Code>AccessDe", "")]
    fn of_an_error_only_its_cause_is_left(#[case] body: &str, #[case] left: &str) {
        assert_eq!(cause(body.as_bytes()), left);
    }

    #[rstest]
    #[case("https://store.example.org:443/a", "store.example.org", "store.example.org")]
    #[case("https://store.example.org:9000/a", "store.example.org", "store.example.org:9000")]
    #[case("http://[::1]:80/a", "::1", "[::1]")]
    #[case("http://127.0.0.1:443/a", "127.0.0.1", "127.0.0.1:443")]
    fn the_host_is_as_it_is_signed(#[case] uri: &str, #[case] host: &str, #[case] authority: &str) {
        let place = Place::of(&uri.parse().unwrap()).unwrap();
        assert_eq!((place.host.as_str(), place.authority().as_str()), (host, authority));
    }
}
