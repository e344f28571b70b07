//! An API server that answers everything at once, with the same object.

use std::{convert::Infallible, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Result;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, crypto::aws_lc_rs};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// Where its CA is, in the directory that both sides share.
pub(crate) const CA: &str = "upstream.crt";
/// What kube-apiserver allows.
const STREAMS: u32 = 100;
/// As long as a small object is.
pub(crate) const OBJECT: Bytes = Bytes::from_static(&[b'x'; 1024]);

/// Listens, and leaves its CA in `directory`.
pub(crate) async fn start(directory: &Path) -> Result<SocketAddr> {
    let tls = TlsAcceptor::from(Arc::new(tls(directory)?));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, tls.clone()));
        }
    });
    Ok(address)
}

async fn serve(stream: TcpStream, tls: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(stream) = tls.accept(stream).await else { return };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let service = service_fn(answer);
    let io = TokioIo::new(stream);
    if is_http2 {
        let mut server = conn::http2::Builder::new(TokioExecutor::new());
        let _ = server
            .max_concurrent_streams(STREAMS)
            .serve_connection(io, service)
            .await;
    } else {
        let _ = conn::http1::Builder::new().serve_connection(io, service).await;
    }
}

/// The fields that kube-apiserver sets.
async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut answer = Response::new(Full::new(OBJECT));
    let fields = [
        (header::CACHE_CONTROL, "no-cache, private"),
        (header::CONTENT_TYPE, "application/json"),
    ];
    for (name, value) in fields {
        answer
            .headers_mut()
            .insert(name, header::HeaderValue::from_static(value));
    }
    Ok(answer)
}

fn tls(directory: &Path) -> Result<ServerConfig> {
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    std::fs::write(directory.join(CA), ca.self_signed(&ca_key)?.pem())?;
    let key = KeyPair::generate()?;
    let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    let leaf = leaf.signed_by(&key, &Issuer::new(ca, ca_key))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
