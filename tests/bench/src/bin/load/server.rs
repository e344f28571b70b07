//! The server that a load is put on: where it is, how it is verified, and what every request to it carries.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(30);

/// A version of HTTP, as ALPN says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// Where the server is and how to trust it.
#[derive(Debug, Clone, Args)]
pub(crate) struct Server {
    /// The address to dial.
    #[arg(long)]
    address: SocketAddr,
    /// The name to verify.
    #[arg(long, default_value = "kubernetes.default.svc")]
    name: String,
    /// The certificates to trust, in PEM.
    #[arg(long)]
    ca: PathBuf,
    /// A header of every request, as `Name: value`.
    #[arg(long = "header", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The version of HTTP.
    #[arg(long, value_enum, default_value = "http1")]
    pub(crate) protocol: Protocol,
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("a header is `Name: value`")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}

/// How connections are made, again and again.
#[derive(Clone)]
pub(crate) struct Dialler {
    connector: TlsConnector,
    name: ServerName<'static>,
    address: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) host: String,
    pub(crate) headers: Arc<HeaderMap>,
}

impl Server {
    /// How to dial it, with sessions of TLS resumed or not.
    pub(crate) fn dialler(&self, resume: bool) -> Result<Dialler> {
        self.dialler_for(self.protocol, resume)
    }

    /// As [`Server::dialler`], for that version whatever was asked for.
    pub(crate) fn dialler_for(&self, protocol: Protocol, resume: bool) -> Result<Dialler> {
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(&self.ca).with_context(|| format!("reading {}", self.ca.display()))?;
        for certificate in certificates {
            roots.add(certificate?)?;
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![match protocol {
            Protocol::Http1 => b"http/1.1".to_vec(),
            Protocol::Http2 => b"h2".to_vec(),
        }];
        if !resume {
            config.resumption = Resumption::disabled();
        }
        Ok(Dialler {
            connector: TlsConnector::from(Arc::new(config)),
            name: ServerName::try_from(self.name.clone())?,
            address: self.address,
            protocol,
            host: self.name.clone(),
            headers: Arc::new(self.headers.iter().cloned().collect()),
        })
    }
}

impl Dialler {
    /// A connection after its handshake, which speaks the version that was asked for.
    pub(crate) async fn tls(&self) -> Result<TlsStream<TcpStream>> {
        let made = timeout(PATIENCE, async {
            let tcp = TcpStream::connect(self.address).await.context("dialling")?;
            tcp.set_nodelay(true)?;
            let made = self.connector.connect(self.name.clone(), tcp).await;
            made.context("the TLS handshake")
        });
        let stream = made.await.context("no connection within its time")??;
        let agreed = stream.get_ref().1.alpn_protocol();
        if self.protocol == Protocol::Http2 && agreed != Some(b"h2") {
            bail!("the server speaks no HTTP/2");
        }
        Ok(stream)
    }
}
