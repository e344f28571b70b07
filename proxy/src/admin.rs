//! What an operator asks the agent: `/livez`, `/readyz` and `/metrics`, over plain HTTP on an address of their
//! choosing. It only answers; nothing can be changed through it.

mod readiness;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time,
};
use tokio_util::sync::CancellationToken;

pub use self::readiness::{Condition, Readiness};
use crate::metrics;

/// So many clients at once; further ones wait in the kernel's queue.
const CLIENTS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than any scrape interval that makes sense, so that a scraper keeps its connection.
const CONNECTION_LIFETIME: Duration = Duration::from_mins(10);
const TEXT: &str = "text/plain; charset=utf-8";

/// Why the admin server can't start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The address can't be listened on.
    #[error(
        "cannot listen on the admin address {address} ({source}): choose another with --admin-address, or end what holds it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The admin server, listening already.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
}

#[derive(Debug)]
struct Answers {
    readiness: Readiness,
    registry: Arc<RwLock<Registry>>,
}

impl Admin {
    /// Listens on `address`.
    ///
    /// # Errors
    /// If the address can't be had.
    pub async fn bind(address: SocketAddr) -> Result<Self, AdminError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| AdminError::Listen { address, source })?;
        Ok(Self { listener })
    }

    /// The address listened on, its port known also where 0 was asked for.
    ///
    /// # Errors
    /// If the operating system doesn't say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop` is cancelled. Stop it last: readiness is asked for while the agent drains. What is entered
    /// in the registry later is shown as well.
    pub async fn serve(self, readiness: Readiness, registry: Arc<RwLock<Registry>>, stop: CancellationToken) {
        let answers = Arc::new(Answers { readiness, registry });
        let clients = Arc::new(Semaphore::new(CLIENTS));
        loop {
            let accept = async {
                // The semaphore is never closed.
                let permit = Arc::clone(&clients).acquire_owned().await.ok();
                (permit, self.listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                accepted = accept => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (answers, stop) = (Arc::clone(&answers), stop.clone());
                    tokio::spawn(async move {
                        answers.serve_client(stream, stop).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin server cannot accept a connection");
                    // Out of file descriptors, most likely: leave others the time to close theirs.
                    time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Answers {
    async fn serve_client(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let service = service_fn(move |request| {
            let answers = Arc::clone(&self);
            async move { Ok::<_, Infallible>(answers.answer(&request)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = time::timeout(CONNECTION_LIFETIME, connection) => if let Ok(Err(error)) = served {
                tracing::debug!(%error, "an admin connection broke");
            },
            () = stop.cancelled() => {}
        }
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n");
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok"),
            "/readyz" => {
                let verbose = request.uri().query().unwrap_or_default();
                self.readiness(
                    verbose
                        .split('&')
                        .any(|pair| pair == "verbose" || pair.starts_with("verbose=")),
                )
            }
            "/metrics" => match metrics::text(&self.registry.read().unwrap_or_else(PoisonError::into_inner)) {
                Ok(metrics) => answer(StatusCode::OK, metrics, metrics::OPENMETRICS),
                Err(error) => {
                    tracing::error!(%error, "the metrics cannot be written");
                    text(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "the metrics cannot be written; see the agent's log\n",
                    )
                }
            },
            _ => text(StatusCode::NOT_FOUND, "try /livez, /readyz?verbose or /metrics\n"),
        }
    }

    /// In kube-apiserver's form: `ok`, or every condition with `[+]` or `[-]`.
    fn readiness(&self, verbose: bool) -> Response<Full<Bytes>> {
        let report = self.readiness.report();
        if report.ready && !verbose {
            return text(StatusCode::OK, "ok");
        }
        let code = if report.ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        text(code, report.to_string())
    }
}

fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(code, body, TEXT)
}

fn answer(code: StatusCode, body: impl Into<Bytes>, content_type: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::metrics::Metrics;

    async fn ask(readiness: Readiness, method: &str, target: &str) -> (String, String) {
        let registry = Arc::new(RwLock::new(Metrics::new().registry()));
        let admin = Admin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = admin.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(admin.serve(readiness, registry, stop.clone()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {target} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        stop.cancel();
        server.await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_ascii_lowercase(), body.to_owned())
    }

    #[rstest]
    #[case("GET", "/livez", "200", "ok")]
    #[case("HEAD", "/livez", "200", "")]
    #[case("GET", "/readyz", "200", "ok")]
    #[case("GET", "/readyz?verbose", "200", "[+]sessions ok\nreadyz check passed\n")]
    #[case("GET", "/readyz?a=b&verbose=true", "200", "[+]sessions ok\nreadyz check passed\n")]
    #[case("GET", "/", "404", "try /livez, /readyz?verbose or /metrics\n")]
    #[case("POST", "/livez", "405", "only GET and HEAD are answered here\n")]
    #[tokio::test]
    async fn answers_when_ready(#[case] method: &str, #[case] target: &str, #[case] code: &str, #[case] says: &str) {
        let readiness = Readiness::default();
        let condition = readiness.condition("sessions");
        condition.ready();
        let (head, body) = ask(readiness, method, target).await;
        assert_eq!((head.split(' ').nth(1).unwrap(), body.as_str()), (code, says));
    }

    #[tokio::test]
    async fn says_what_is_not_ready() {
        let readiness = Readiness::default();
        let (token, kernel) = (readiness.condition("token"), readiness.condition("kernel"));
        kernel.ready();
        token.not_ready("expired");
        let (head, body) = ask(readiness.clone(), "GET", "/readyz").await;
        assert!(head.starts_with("http/1.1 503"), "{head}");
        assert_eq!(body, "[+]kernel ok\n[-]token failed: expired\nreadyz check failed\n");
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let (head, body) = ask(Readiness::default(), "GET", "/metrics").await;
        assert!(
            head.contains("content-type: application/openmetrics-text; version=1.0.0"),
            "{head}"
        );
        assert!(body.ends_with("# EOF\n"), "{body}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let held = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = held.local_addr().unwrap();
        let refused = Admin::bind(address).await;
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains(&address.to_string()) && error.contains("--admin-address"),
            "{error}"
        );
    }
}
