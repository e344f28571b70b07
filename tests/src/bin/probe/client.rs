//! A verified TLS connection to the API server, found as any program in a pod finds it.

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result};
use clap::Args;
use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use rustls::{
    ClientConfig, RootCertStore,
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

impl Server {
    /// Dials, and offers that one protocol by ALPN.
    pub(crate) async fn connect(&self, protocol: &str) -> Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        let ca = self.account.join("ca.crt");
        for certificate in CertificateDer::pem_file_iter(&ca).with_context(|| format!("reading {}", ca.display()))? {
            roots.add(certificate?)?;
        }
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .context("dialling the API server")?;
        let name = ServerName::try_from(self.name.clone().unwrap_or_else(|| self.host.clone()))?;
        TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
            .context("the TLS handshake")
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
