//! The API server of the demo and the tests as a program. Arguments in, server up, until a signal; everything else
//! is the library's.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use understudy_tests::apiserver::{ApiServer, Identity, Settings};

/// An API server with Kubernetes' own rules for authentication and impersonation, and a memory of every request.
#[derive(Debug, Parser)]
#[command(name = "apiserver")]
struct Arguments {
    /// Listen here; may be repeated.
    #[arg(long, required = true, value_name = "IP:PORT")]
    listen: Vec<SocketAddr>,
    /// Listen for control on this unix socket, which appears once the server is up.
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// The certificate chain to show; without it, one is made under a CA of the server's own.
    #[arg(long, value_name = "PATH", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key.
    #[arg(long, value_name = "PATH", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Write the certificate of the server's own CA here.
    #[arg(long, value_name = "PATH", conflicts_with = "tls_cert")]
    ca_file: Option<PathBuf>,
    /// One more name that the server's own certificate is good for; may be repeated.
    #[arg(long, value_name = "NAME")]
    name: Vec<String>,
    /// One more address that the server's own certificate is good for; may be repeated.
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// Tokens, in kube-apiserver's form: token,user,uid,"group,group". Re-read when it changes.
    #[arg(long, value_name = "PATH")]
    token_auth_file: Option<PathBuf>,
    /// Who may do what. Re-read when it changes.
    #[arg(long, value_name = "PATH")]
    rules: Option<PathBuf>,
    /// Objects to begin with, as YAML documents; may be repeated.
    #[arg(long, value_name = "PATH")]
    fixture: Vec<PathBuf>,
    /// Keep the objects in this file, and begin with them where it is there.
    #[arg(long, value_name = "PATH")]
    state: Option<PathBuf>,
    /// The certificate of the CA that signs approved requests for kubernetes.io/kubelet-serving.
    #[arg(long, value_name = "PATH", requires = "cluster_signing_key_file")]
    cluster_signing_cert_file: Option<PathBuf>,
    /// That CA's key.
    #[arg(long, value_name = "PATH", requires = "cluster_signing_cert_file")]
    cluster_signing_key_file: Option<PathBuf>,
    /// How many seconds what it signs lasts at most.
    #[arg(long, value_name = "SECONDS", default_value_t = 365 * 24 * 3600)]
    cluster_signing_duration: u64,
    /// Believe client certificates under the CAs in this file, and publish them. Re-read when it changes.
    #[arg(long, value_name = "PATH")]
    client_ca_file: Option<PathBuf>,
    /// The key that signs service accounts' tokens; without it, one is made.
    #[arg(long, value_name = "PATH")]
    service_account_signing_key_file: Option<PathBuf>,
    /// Concurrent streams allowed on an HTTP/2 connection.
    #[arg(long, value_name = "N", default_value_t = Settings::default().max_streams)]
    max_streams: u32,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let server = start(arguments).await?;
    tracing::info!(addresses = ?server.addresses(), "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    server.stop();
    server.save().await.context("writing the state")?;
    Ok(())
}

async fn start(arguments: Arguments) -> anyhow::Result<ApiServer> {
    let mut builder = ApiServer::builder().settings(Settings {
        max_streams: arguments.max_streams,
        ..Settings::default()
    });
    if let (Some(certificate), Some(key)) = (&arguments.tls_cert, &arguments.tls_key) {
        builder = builder.identity(Identity::from_files(certificate, key)?);
    }
    for address in arguments.listen {
        builder = builder.listen(address);
    }
    for name in arguments.name {
        builder = builder.name(name);
    }
    for address in arguments.address {
        builder = builder.address(address);
    }
    for path in arguments.fixture {
        builder = builder.fixture(path);
    }
    if let Some(path) = arguments.state {
        builder = builder.state(path);
    }
    if let (Some(certificate), Some(key)) = (
        &arguments.cluster_signing_cert_file,
        &arguments.cluster_signing_key_file,
    ) {
        let read =
            |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
        let longest = Duration::from_secs(arguments.cluster_signing_duration);
        builder = builder.signer(&read(certificate)?, &read(key)?, longest);
    }
    if let Some(path) = arguments.control {
        builder = builder.control(path);
    }
    if let Some(path) = arguments.ca_file {
        builder = builder.ca_file(path);
    }
    if let Some(path) = arguments.token_auth_file {
        builder = builder.token_file(path);
    }
    if let Some(path) = arguments.client_ca_file {
        builder = builder.client_ca_file(path);
    }
    if let Some(path) = arguments.service_account_signing_key_file {
        builder = builder.token_key_file(path);
    }
    if let Some(path) = arguments.rules {
        builder = builder.rules_file(path);
    }
    Ok(builder.start().await?)
}
