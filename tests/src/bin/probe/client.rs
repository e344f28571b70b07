//! A verified TLS connection to the API server, found as any program in a pod finds it.

use std::{io, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use clap::Args;
use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where the API server is and how to trust it. The defaults are a pod's.
#[derive(Debug, Args)]
pub(crate) struct Server {
    /// The host to dial and to verify.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    host: String,
    /// Its port.
    #[arg(long, env = "KUBERNETES_SERVICE_PORT_HTTPS")]
    port: u16,
    /// The name to verify, where it isn't the host.
    #[arg(long)]
    name: Option<String>,
    /// The directory with token and ca.crt.
    #[arg(long, default_value = ACCOUNT)]
    account: PathBuf,
}

/// How connections to a server are made, again and again.
#[derive(Clone)]
pub(crate) struct Dialler {
    connector: TlsConnector,
    name: ServerName<'static>,
    address: (String, u16),
}

impl Dialler {
    /// A connection on which nothing has been said.
    pub(crate) async fn tcp(&self) -> io::Result<TcpStream> {
        TcpStream::connect((self.address.0.as_str(), self.address.1)).await
    }

    /// A connection after its handshake.
    pub(crate) async fn tls(&self) -> Result<TlsStream<TcpStream>> {
        let tcp = self.tcp().await.context("dialling the API server")?;
        self.connector
            .connect(self.name.clone(), tcp)
            .await
            .context("the TLS handshake")
    }

    /// The first bytes of a handshake.
    pub(crate) fn client_hello(&self) -> Result<Vec<u8>> {
        let mut client = ClientConnection::new(Arc::clone(self.connector.config()), self.name.clone())?;
        let mut hello = Vec::new();
        client.write_tls(&mut hello)?;
        Ok(hello)
    }

    /// `host:port`, as a request names the server.
    pub(crate) fn authority(&self) -> String {
        let (host, port) = &self.address;
        if host.contains(':') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

impl Server {
    /// Dials, and offers that one protocol by ALPN.
    pub(crate) async fn connect(&self, protocol: &str) -> Result<TlsStream<TcpStream>> {
        self.dialler(protocol)?.tls().await
    }

    /// How to dial, offering that one protocol by ALPN. Sessions of TLS are resumed.
    pub(crate) fn dialler(&self, protocol: &str) -> Result<Dialler> {
        let mut roots = RootCertStore::empty();
        let ca = self.account.join("ca.crt");
        for certificate in CertificateDer::pem_file_iter(&ca).with_context(|| format!("reading {}", ca.display()))? {
            roots.add(certificate?)?;
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(Dialler {
            connector: TlsConnector::from(Arc::new(config)),
            name: ServerName::try_from(self.name.clone().unwrap_or_else(|| self.host.clone()))?,
            address: (self.host.clone(), self.port),
        })
    }

    /// A GET of `path` with the pod's own token.
    pub(crate) async fn get(&self, path: &str) -> Result<Request<Empty<&'static [u8]>>> {
        let token = tokio::fs::read_to_string(self.account.join("token"))
            .await
            .context("reading the token")?;
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim()))?;
        bearer.set_sensitive(true);
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let request = Request::get(format!("https://{host}:{}{path}", self.port))
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json");
        Ok(request.body(Empty::new())?)
    }

    /// As [`Server::get`], in the form of HTTP/1.1: the path alone, and a `Host` header.
    pub(crate) async fn get_http1(&self, path: &str) -> Result<Request<Empty<&'static [u8]>>> {
        let mut request = self.get(path).await?;
        let authority = request
            .uri()
            .authority()
            .context("the URI has an authority")?
            .to_string();
        request
            .headers_mut()
            .insert(header::HOST, HeaderValue::from_str(&authority)?);
        *request.uri_mut() = path.parse()?;
        Ok(request)
    }
}
