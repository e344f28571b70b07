//! Connections from pods: from the first byte to the last request.
//!
//! The kernel has vouched for who dialled before anything here runs. [`tls`] terminates TLS, [`http`] has [`http1`] serve what is
//! strictly HTTP/1.1, and [`http2`] HTTP/2; requests go to [`crate::forward`].

mod http;
pub(crate) mod http1;
mod http2;
pub mod outside;
mod service;
mod tls;

use std::{sync::Arc, time::Duration};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    caller::x509::Certificate,
    forward::{Forwarder, Origin},
    limits::{Limits, load::Place},
    metrics::{Limit, Metrics, What},
    pod::{EnrolledPod, Inbound, SessionId},
    sessions::store::SessionLookup,
};

/// How long a connection whose session has ended may take to say so to its client, of the second that
/// invariant 5 allows.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// How much of a connection may wait in the kernel to be sent, in bytes.
const UNSENT: u32 = 128 * 1024;

/// Serves what the enroller hands over.
pub struct Server {
    /// Serves each request.
    pub forwarder: Arc<Forwarder>,
    /// The certificates and terms of TLS.
    pub tls: Arc<rustls::ServerConfig>,
    /// The same, for pods whose callers may prove by a certificate who they are.
    pub asking_tls: Arc<rustls::ServerConfig>,
    /// Whether HTTP without TLS is served too.
    pub allow_plain_http: bool,
    /// How much a client may ask.
    pub limits: Limits,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Cancelled when no new request should be taken: connections end after the request at hand.
    pub drain: CancellationToken,
}

impl Server {
    /// Serves connections until the enroller is gone. Each is a task in `connections`, which the caller waits for.
    pub async fn run(self, mut inbound: mpsc::Receiver<Inbound>, connections: TaskTracker) {
        let server = Arc::new(self);
        while let Some(accepted) = inbound.recv().await {
            match server.admit(&accepted) {
                Ok(place) => {
                    let server = Arc::clone(&server);
                    connections.spawn(async move { server.connection(accepted, place).await });
                }
                // It is closed before a byte of it is read.
                Err(limit) => {
                    server.metrics.limit_hit(limit);
                    let pod = &accepted.pod.wanted.name;
                    tracing::debug!(%pod, limit = limit.name(), "a connection is closed because of a limit");
                }
            }
        }
    }

    fn asks_for_a_certificate(&self, pod: &EnrolledPod) -> bool {
        let snapshot = self.forwarder.sessions.snapshot();
        let live = snapshot.in_force(&pod.wanted.session);
        pod.is_outside() || live.is_some_and(|live| live.spec.method.is_callers_own())
    }

    fn admit(&self, accepted: &Inbound) -> Result<Place, Limit> {
        let pressure = &self.forwarder.pressure;
        if pressure.refuses(&accepted.pod) {
            return Err(Limit::Memory);
        }
        let place = Place::for_connection(&accepted.pod, &self.limits)?;
        if place.is_first() {
            pressure.notice(&accepted.pod);
        }
        // What waits to be sent to a client that doesn't read is ours to hold, in the kernel as well.
        if let Err(error) = SockRef::from(&accepted.stream).set_tcp_notsent_lowat(UNSENT) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT");
        }
        Ok(place)
    }

    /// The first bytes, for which clients of one pod wait among themselves.
    async fn handshake(
        &self,
        stream: TcpStream,
        pod: &EnrolledPod,
        tls: &Arc<rustls::ServerConfig>,
    ) -> Result<tls::Accepted, tls::HandshakeError> {
        let patience = Instant::now() + self.limits.handshake_timeout;
        let places = pod.load.handshakes(&self.limits);
        let _turn = if let Ok(turn) = places.try_acquire() {
            turn
        } else {
            self.metrics.limit_hit(Limit::HandshakesPerPod);
            match timeout_at(patience, places.acquire()).await {
                Ok(Ok(turn)) => turn,
                _ => return Err(tls::HandshakeError::Crowded),
            }
        };
        let left = patience.saturating_duration_since(Instant::now());
        let accepted = tls::accept(stream, tls, self.allow_plain_http, left).await;
        if matches!(accepted, Err(tls::HandshakeError::Timeout)) {
            self.metrics.limit_hit(Limit::HandshakeTimeout);
        }
        accepted
    }

    async fn connection(&self, accepted: Inbound, _place: Place) {
        let Inbound {
            stream,
            pod,
            original_dst,
            client,
        } = accepted;
        let _open = self.metrics.connection();
        let came = Instant::now();
        let mut origin = Origin {
            pod: Arc::clone(&pod),
            original_dst,
            client,
            certificate: None,
        };
        let asks = self.asks_for_a_certificate(&pod);
        let tls = if asks { &self.asking_tls } else { &self.tls };
        let ended = CancellationToken::new();
        let served = async {
            match self.handshake(stream, &pod, tls).await {
                Ok(stream) => {
                    if let Some(handshake) = stream.handshake() {
                        self.metrics.handshake(&handshake, came.elapsed());
                    }
                    origin.certificate = Certificate::shown(stream.certificates());
                    let terms = http::Terms {
                        forwarder: Arc::clone(&self.forwarder),
                        origin: origin.clone(),
                        limits: &self.limits,
                        drain: &self.drain,
                        ended: &ended,
                    };
                    http::serve(stream, terms).await;
                }
                Err(error) => {
                    self.metrics.handshake_failed(error.label());
                    if error.is_refusal() {
                        let (name, now) = (&pod.wanted.name, self.forwarder.clock.now());
                        self.metrics.lately().refused(name, What::Handshake, error.label(), now);
                    }
                    tracing::debug!(pod = %pod.wanted.name, %error, "a connection was not served");
                }
            }
        };
        // Both ends cut the connection itself, and so what a client that doesn't read would hold open.
        tokio::select! {
            () = served => {}
            () = pod.gone.cancelled() => {}
            () = pod.load.shed.notified() => {}
            () = async {
                session_end(self.forwarder.sessions.clone(), &pod.wanted.session, asks).await;
                ended.cancel();
                tokio::time::sleep(LAST_WORDS).await;
            } => {}
        }
    }
}

/// Waits for the end of the session that the connection serves: the one in force when it came or, while there is
/// none, the next. One that came before its client could be asked for a certificate, `asked`, doesn't serve a session whose
/// callers prove by one who they are: the client comes again, and is asked.
async fn session_end(mut sessions: SessionLookup, id: &SessionId, asked: bool) {
    loop {
        let live = sessions.snapshot().in_force(id).cloned();
        match live {
            Some(live) if live.spec.method.is_callers_own() && !asked => return,
            Some(live) => {
                let ended = live.ended.clone();
                // Its end comes with its last holder as well.
                drop(live);
                return ended.cancelled().await;
            }
            None => sessions.changed().await,
        }
    }
}
