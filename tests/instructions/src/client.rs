//! Clients in a pod, that ask for the same object again and again.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Result, ensure};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{Protocol, agent::AGENT_CA, upstream::OBJECT};

/// How much is asked at once.
const CONNECTIONS: usize = 16;
const STREAMS: usize = 8;

/// Asks so often, on a few connections at once.
pub(crate) async fn ask(directory: &Path, agent: SocketAddr, protocol: Protocol, requests: usize) -> Result<()> {
    let tls = connector(directory, protocol)?;
    let mut clients = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let io = TokioIo::new(connect(&tls, agent).await?);
        match protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                clients.spawn(over_http1(sender, requests / CONNECTIONS));
            }
            Protocol::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                for _ in 0..STREAMS {
                    clients.spawn(over_http2(sender.clone(), requests / CONNECTIONS / STREAMS));
                }
            }
        }
    }
    while let Some(asked) = clients.join_next().await {
        asked??;
    }
    Ok(())
}

async fn over_http1(mut sender: http1::SendRequest<Empty<Bytes>>, requests: usize) -> Result<()> {
    for _ in 0..requests {
        sender.ready().await?;
        check(
            sender
                .send_request(get("/api/v1/namespaces/prod/configmaps/settings")?)
                .await?,
        )
        .await?;
    }
    Ok(())
}

async fn over_http2(mut sender: http2::SendRequest<Empty<Bytes>>, requests: usize) -> Result<()> {
    for _ in 0..requests {
        sender.ready().await?;
        let uri = "https://kubernetes.default.svc/api/v1/namespaces/prod/configmaps/settings";
        check(sender.send_request(get(uri)?).await?).await?;
    }
    Ok(())
}

/// As client-go asks.
fn get(uri: &str) -> Result<Request<Empty<Bytes>>> {
    Ok(Request::get(uri)
        .header("host", "kubernetes.default.svc")
        .header("user-agent", "kubectl/v1.36.0 (linux/amd64) kubernetes/0000000")
        .header("accept", "application/json")
        .header("accept-encoding", "gzip")
        .header("authorization", format!("Bearer {}", "p".repeat(800)))
        .body(Empty::new())?)
}

async fn check(answer: Response<Incoming>) -> Result<()> {
    ensure!(answer.status() == StatusCode::OK, "answered {}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(body == OBJECT, "another body came");
    Ok(())
}

fn connector(directory: &Path, protocol: Protocol) -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(directory.join(AGENT_CA))? {
        roots.add(certificate?)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.alpn().to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn connect(tls: &TlsConnector, agent: SocketAddr) -> Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(agent).await?;
    stream.set_nodelay(true)?;
    Ok(tls
        .connect(ServerName::try_from("kubernetes.default.svc")?, stream)
        .await?)
}
