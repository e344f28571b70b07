//! The first bytes of a connection: a TLS handshake, or the answer to one who speaks plain HTTP.

use std::{io, sync::Arc, time::Duration};

use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

use crate::{metrics::Handshake, status::Refusal, tls};

/// A TLS record of the type `handshake` (RFC 8446, section 5.1).
const RECORD_HANDSHAKE: u8 = 22;

/// What a client speaks.
pub(super) enum Accepted {
    Tls(Box<tls::Accepted>),
    Plain(TcpStream),
}

impl Accepted {
    /// What kind of handshake it was; none without TLS.
    pub(super) fn handshake(&self) -> Option<Handshake> {
        match self {
            Self::Tls(stream) => Handshake::of(stream.terms()),
            Self::Plain(_) => None,
        }
    }

    /// The certificates that the client showed, its own first.
    pub(super) fn certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Self::Tls(stream) => stream.terms().peer_certificates(),
            Self::Plain(_) => None,
        }
    }
}

/// The ways in which a connection can end before its first request.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error("the client closed before it said anything")]
    Silent,
    #[error("the client took longer than --handshake-timeout allows")]
    Timeout,
    #[error("too many of the pod's other clients were shaking hands (--max-handshakes-per-pod)")]
    Crowded,
    #[error("the client speaks HTTP without TLS: have it use https://")]
    PlainHttp,
    #[error("the client doesn't trust our certificate (alert {0:?}): check the CA in the pod")]
    Distrusted(rustls::AlertDescription),
    #[error("TLS: {0}")]
    Tls(rustls::Error),
    #[error("the connection broke: {0}")]
    Io(io::Error),
}

impl HandshakeError {
    /// For metrics.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Timeout => "timeout",
            Self::Crowded => "crowded",
            Self::PlainHttp => "plain_http",
            Self::Distrusted(_) => "distrusted",
            Self::Tls(_) => "tls",
            Self::Io(_) => "io",
        }
    }

    /// Whether a pod's operator, who asks what went wrong, should hear of it. Who only looks whether somebody listens, as
    /// the gate and checks of a port do, was refused nothing.
    pub(super) fn is_refusal(&self) -> bool {
        !matches!(self, Self::Silent)
    }
}

/// Brings the handshake to its end.
pub(super) async fn accept(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
    allow_plain_http: bool,
    patience: Duration,
) -> Result<Accepted, HandshakeError> {
    let accepted = timeout(patience, async {
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(HandshakeError::Io)? == 0 {
            return Err(HandshakeError::Silent);
        }
        if first[0] == RECORD_HANDSHAKE {
            let accepted = tls::accept(stream, config).await;
            return Ok(Accepted::Tls(Box::new(accepted.map_err(classify)?)));
        }
        if allow_plain_http {
            return Ok(Accepted::Plain(stream));
        }
        answer_plain_http(stream).await;
        Err(HandshakeError::PlainHttp)
    });
    accepted.await.unwrap_or_else(|_: Elapsed| Err(HandshakeError::Timeout))
}

fn classify(error: io::Error) -> HandshakeError {
    use rustls::AlertDescription as Alert;
    match error.downcast::<rustls::Error>() {
        Ok(rustls::Error::AlertReceived(
            alert @ (Alert::UnknownCA | Alert::BadCertificate | Alert::CertificateExpired | Alert::CertificateUnknown),
        )) => HandshakeError::Distrusted(alert),
        Ok(error) => HandshakeError::Tls(error),
        Err(error) => HandshakeError::Io(error),
    }
}

/// Says in HTTP that it takes TLS. Nothing of the request is read: it may hold a token, and none of it matters.
async fn answer_plain_http(mut stream: TcpStream) {
    let (head, body) = Refusal::PlainHttp.response().into_parts();
    let mut answer = format!("HTTP/1.1 {}\r\n", head.status);
    for (name, value) in &head.headers {
        answer.extend([name.as_str(), ": ", value.to_str().unwrap_or_default(), "\r\n"]);
    }
    answer.push_str("connection: close\r\n\r\n");
    let mut answer = answer.into_bytes();
    answer.extend_from_slice(&body);
    if stream.write_all(&answer).await.is_ok() && stream.shutdown().await.is_ok() {
        // A close with bytes unread would reset the connection, and the client would lose the answer.
        let mut unread = [0; 1024];
        while let Ok(1..) = tokio::io::AsyncReadExt::read(&mut stream, &mut unread).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::HANDSHAKE_FAILURES;

    #[test]
    fn each_failure_is_shown_from_the_start() {
        let failures = [
            HandshakeError::Distrusted(rustls::AlertDescription::UnknownCA),
            HandshakeError::Tls(rustls::Error::DecryptError),
            HandshakeError::PlainHttp,
            HandshakeError::Timeout,
            HandshakeError::Crowded,
            HandshakeError::Silent,
            HandshakeError::Io(io::ErrorKind::ConnectionReset.into()),
        ];
        assert_eq!(failures.map(|failure| failure.label()), HANDSHAKE_FAILURES);
    }
}
