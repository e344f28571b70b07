//! The webhook: batches of events as kube-apiserver sends them (an `EventList`, in a POST), over verified TLS.
//!
//! Events wait in a [queue on disk](super::spool), in order. A batch is sent until the webhook answers that it has it,
//! and only then the next: each event arrives at least once, whoever restarts meanwhile. One that was taken but whose
//! answer was lost comes again; its `auditID` and `stage` say so.

mod config;

use std::{collections::VecDeque, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task,
    time::{self, Instant},
};

pub use self::config::{Endpoint, WebhookError};
use super::spool::{Batch, Spool};
use crate::{backoff::Backoff, clock, metrics::WebhookMetrics, tls};

/// As many events go together, as kube-apiserver has it (`--audit-webhook-batch-max-size`).
const BATCH_EVENTS: usize = 400;
/// And about as many bytes of them.
const BATCH_BYTES: usize = 2 * 1024 * 1024;
/// How long to gather before a batch is sent.
const GATHER: Duration = Duration::from_millis(500);
/// How long the webhook may take for a connection, or for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look for what another agent left behind.
const LOOK_AROUND: Duration = Duration::from_secs(10);
const RETRY: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(30);
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// An answer is read so far, so that the connection can be used again.
const ANSWER_LIMIT: usize = 64 * 1024;

const HEAD: &[u8] = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
const TAIL: &[u8] = b"]}\n";

/// Where to send events, and where they wait.
#[derive(Debug)]
pub struct Webhook {
    /// Where to.
    pub endpoint: Endpoint,
    /// The directory that they wait in.
    pub queue: PathBuf,
    /// The most that may wait there, in bytes.
    pub queue_size: u64,
}

/// Why a batch didn't arrive.
#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error(transparent)]
    Config(#[from] WebhookError),
    #[error("connect to {url}: {source}: check that the webhook is up, and reachable from this node")]
    Connect { url: String, source: io::Error },
    #[error("TLS with {url}: {source}: check certificate-authority and tls-server-name")]
    Tls { url: String, source: io::Error },
    #[error("{url} doesn't answer in {}s: check how it fares", PATIENCE.as_secs())]
    Timeout { url: String },
    #[error("{url}: {source}: check what ended the connection")]
    Http { url: String, source: hyper::Error },
    #[error("the request can't be made: {0}")]
    Request(#[from] http::Error),
    #[error("{url} answers {code}: look in its own log for why it takes no events")]
    Refused { url: String, code: StatusCode },
    #[error("the queue can't be read: {0}: check its directory's disk and permissions")]
    Queue(#[from] io::Error),
}

type Connection = SendRequest<Full<Bytes>>;

/// The one reader of the queues.
struct Sender {
    endpoint: Endpoint,
    /// This agent's own.
    spool: Spool,
    /// What earlier ones left behind, oldest first. It is sent before what is this one's own.
    left_behind: VecDeque<Spool>,
    metrics: WebhookMetrics,
    /// Kept from batch to batch.
    connection: Option<Connection>,
    /// As many events go together at the moment: fewer after they were too many.
    most: usize,
    complained: Option<Instant>,
}

impl Webhook {
    /// Begins to send what is in the queue, and comes into it. Ends with the runtime, or when nothing else holds the
    /// queue and all of it has arrived.
    pub(super) fn start(self, spool: Spool, metrics: WebhookMetrics) {
        let sender = Sender {
            endpoint: self.endpoint,
            spool,
            left_behind: VecDeque::new(),
            metrics,
            connection: None,
            most: BATCH_EVENTS,
            complained: None,
        };
        tokio::spawn(sender.run());
    }
}

impl Sender {
    async fn run(mut self) {
        let mut backoff = Backoff::new(RETRY);
        loop {
            if let Err(error) = self.send_all().await {
                // A connection on which something went wrong is in an unknown state.
                self.connection = None;
                self.metrics.failures.inc();
                self.complain(&error);
                time::sleep(backoff.wait()).await;
                continue;
            }
            backoff.reset();
            if self.complained.take().is_some() {
                tracing::info!("the audit webhook takes events again");
            }
            // An earlier agent may only now have ended, while there is nothing else to do.
            match time::timeout_at(clock::moment_in(LOOK_AROUND), self.spool.readable()).await {
                Ok(false) => return,
                Ok(true) => time::sleep(GATHER).await,
                Err(_) => {}
            }
        }
    }

    /// Sends all that there is, the oldest first, until something fails.
    async fn send_all(&mut self) -> Result<(), SendError> {
        if self.left_behind.is_empty() {
            let spool = self.spool.clone();
            self.left_behind = blocking(move || spool.left_behind()).await?.into();
        }
        while let Some(spool) = self.left_behind.front().cloned() {
            self.send_of(&spool).await?;
            self.left_behind.pop_front();
            blocking(move || spool.remove()).await?;
        }
        let spool = self.spool.clone();
        self.send_of(&spool).await
    }

    fn complain(&mut self, error: &SendError) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            let waiting = self.metrics.queue.get();
            tracing::error!(%error, waiting, "the audit webhook takes no events; they wait in its queue");
        }
    }

    async fn send_of(&mut self, spool: &Spool) -> Result<(), SendError> {
        loop {
            let (queue, most) = (spool.clone(), self.most);
            let Some(batch) = blocking(move || queue.read(most, BATCH_BYTES)).await? else {
                return Ok(());
            };
            match self.post(&batch).await {
                Err(SendError::Refused { code, .. }) if code == StatusCode::PAYLOAD_TOO_LARGE && batch.count > 1 => {
                    self.most = batch.count / 2;
                    continue;
                }
                outcome => outcome?,
            }
            self.metrics.sent.inc_by(batch.count as u64);
            self.most = (self.most * 2).min(BATCH_EVENTS);
            let queue = spool.clone();
            blocking(move || queue.taken(&batch)).await?;
        }
    }

    async fn post(&mut self, batch: &Batch) -> Result<(), SendError> {
        let list = event_list(&batch.lines);
        if let Some(connection) = self.connection.take().filter(|connection| !connection.is_closed()) {
            match self.post_on(connection, list.clone()).await {
                // It was closed while it had nothing to do.
                Err(SendError::Http { .. }) => {}
                outcome => return outcome,
            }
        }
        let late = |_| SendError::Timeout {
            url: self.endpoint.target.to_string(),
        };
        let connection = time::timeout(PATIENCE, self.connect()).await.map_err(late)??;
        self.post_on(connection, list).await
    }

    async fn post_on(&mut self, mut connection: Connection, list: Bytes) -> Result<(), SendError> {
        let url = self.endpoint.target.to_string();
        let mut request = Request::post(self.endpoint.path.as_str())
            .header(header::HOST, self.endpoint.target.authority().as_str())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("understudy/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(list))?;
        if let Some(token) = self.endpoint.token().await? {
            request
                .headers_mut()
                .insert(header::AUTHORIZATION, token.header_value());
        }
        let http = |source| SendError::Http {
            url: url.clone(),
            source,
        };
        let answered = time::timeout(PATIENCE, async {
            connection.ready().await.map_err(http)?;
            let answer = connection.send_request(request).await.map_err(http)?;
            let code = answer.status();
            // Whether it is whole says only whether the connection can be used again.
            let whole = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
            Ok::<_, SendError>((code, whole.is_ok()))
        });
        let late = |_| SendError::Timeout { url: url.clone() };
        let (code, whole) = answered.await.map_err(late)??;
        if whole {
            self.connection = Some(connection);
        }
        if code.is_success() {
            Ok(())
        } else {
            Err(SendError::Refused { url, code })
        }
    }

    async fn connect(&self) -> Result<Connection, SendError> {
        let target = &self.endpoint.target;
        let config = Arc::new(self.endpoint.tls().await?);
        let url = || target.to_string();
        let tcp = TcpStream::connect(target.address())
            .await
            .map_err(|source| SendError::Connect { url: url(), source })?;
        let stream = tls::connect(tcp, config, target.server_name().clone())
            .await
            .map_err(|source| SendError::Tls { url: url(), source })?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| SendError::Http { url: url(), source })?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the audit webhook's connection broke");
            }
        });
        Ok(sender)
    }
}

/// Does it where it may block.
async fn blocking<T, F>(act: F) -> io::Result<T>
where
    T: Send + 'static,
    F: FnOnce() -> io::Result<T> + Send + 'static,
{
    task::spawn_blocking(act).await.map_err(io::Error::other)?
}

/// Lines as the items of a list. An event has no line end in itself.
fn event_list(lines: &[u8]) -> Bytes {
    let lines = lines.strip_suffix(b"\n").unwrap_or(lines);
    let mut list = Vec::with_capacity(HEAD.len() + lines.len() + TAIL.len());
    list.extend_from_slice(HEAD);
    list.extend(lines.iter().map(|byte| if *byte == b'\n' { b',' } else { *byte }));
    list.extend_from_slice(TAIL);
    list.into()
}

#[cfg(test)]
mod tests;
