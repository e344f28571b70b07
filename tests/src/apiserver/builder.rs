//! How a server is configured and started.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{
    auth::TokenTableError,
    certificates,
    client_ca::{self, Acceptors},
    connection, control,
    event::EventType,
    fault::Faults,
    rbac::{Rules, RulesError},
    record::Recorder,
    reload::{ReloadError, Reloaded},
    server::{ApiServer, EffectiveRules, Settings, Shared},
    service_accounts::{TokenKey, TokenKeyError},
    state_file,
    status::Status,
    store::Store,
    tls::{Authority, Identity, TlsError},
};

/// Names that the certificate is always good for.
const NAMES: [&str; 5] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
    "localhost",
];

/// Why the server doesn't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address can't be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
    /// The control socket can't be made.
    #[error("cannot make the control socket {0}: {1}")]
    Control(PathBuf, std::io::Error),
    /// No address was given.
    #[error("no address to listen on was given")]
    NoAddress,
    /// The certificate is the trouble.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token or rules file is the trouble.
    #[error(transparent)]
    File(#[from] ReloadError),
    /// The rules given by hand are the trouble.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The tokens given by hand are the trouble.
    #[error(transparent)]
    Tokens(#[from] TokenTableError),
    /// The key to sign tokens is the trouble.
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    /// A fixture is the trouble.
    #[error("fixture {0}: {1}")]
    Fixture(PathBuf, String),
    /// The file of the state is the trouble.
    #[error("the state in {0} cannot be used: {1}; remove it to begin anew")]
    State(PathBuf, String),
    /// The CA's certificate can't be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, std::io::Error),
}

/// How a server is to be.
#[derive(Debug, Default)]
pub struct Builder {
    listen: Vec<SocketAddr>,
    control: Option<PathBuf>,
    identity: Option<Identity>,
    ca_file: Option<PathBuf>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    token_file: Option<PathBuf>,
    tokens: String,
    rules_file: Option<PathBuf>,
    rules: Option<String>,
    fixtures: Vec<PathBuf>,
    state: Option<PathBuf>,
    signing: Option<Signing>,
    client_ca_file: Option<PathBuf>,
    token_key: Option<PathBuf>,
    settings: Settings,
}

/// The CA that signs what is approved, in PEM.
#[derive(Debug)]
struct Signing {
    certificate: String,
    key: SecretKey,
    longest: Duration,
}

/// A key that no formatting shows.
struct SecretKey(String);

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey")
    }
}

impl Builder {
    /// Listens on one more address. Port 0 is any; [`ApiServer::addresses`] says which.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen.push(address);
        self
    }

    /// Listens for [`Control`] on this unix socket, which appears once everything else is up.
    #[must_use]
    pub fn control(mut self, path: impl Into<PathBuf>) -> Self {
        self.control = Some(path.into());
        self
    }

    /// Shows this certificate. Without it, one is made under a CA of the server's own.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Writes the certificate of the server's own CA here.
    #[must_use]
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    /// One more name that a certificate of its own is good for.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// One more address that a certificate of its own is good for; those listened on are included.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Self {
        self.addresses.push(address);
        self
    }

    /// Reads tokens from a file in the form of kube-apiserver's `--token-auth-file`, again when it changes.
    #[must_use]
    pub fn token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_file = Some(path.into());
        self
    }

    /// Tokens, in the same form, when there is no file.
    #[must_use]
    pub fn tokens(mut self, csv: &str) -> Self {
        self.tokens.push_str(csv);
        self.tokens.push('\n');
        self
    }

    /// Reads rules from a file, again when it changes.
    #[must_use]
    pub fn rules_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.rules_file = Some(path.into());
        self
    }

    /// Rules, in the same form, when there is no file.
    #[must_use]
    pub fn rules(mut self, yaml: &str) -> Self {
        self.rules = Some(yaml.to_owned());
        self
    }

    /// Objects to begin with: a file of YAML documents.
    #[must_use]
    pub fn fixture(mut self, path: impl Into<PathBuf>) -> Self {
        self.fixtures.push(path.into());
        self
    }

    /// Keeps the objects in this file: read at start where it is there, written after each change and at the end.
    #[must_use]
    pub fn state(mut self, path: impl Into<PathBuf>) -> Self {
        self.state = Some(path.into());
        self
    }

    /// Signs approved requests for `kubernetes.io/kubelet-serving` with this CA's certificate and key, in PEM, for as
    /// long as `longest` at most.
    #[must_use]
    pub fn signer(mut self, certificate: &str, key: &str, longest: Duration) -> Self {
        self.signing = Some(Signing {
            certificate: certificate.to_owned(),
            key: SecretKey(key.to_owned()),
            longest,
        });
        self
    }

    /// Believes client certificates under the CAs in this file, read again when it changes, and publishes them in
    /// `kube-system/extension-apiserver-authentication`.
    #[must_use]
    pub fn client_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.client_ca_file = Some(path.into());
        self
    }

    /// Signs service accounts' tokens with the key in this file; without it, with one of its own.
    #[must_use]
    pub fn token_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.token_key = Some(path.into());
        self
    }

    /// The settings to begin with.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// Starts the server on the current runtime.
    ///
    /// # Errors
    /// Names what is missing or wrong; nothing is left running then.
    pub async fn start(self) -> Result<ApiServer, StartError> {
        if self.listen.is_empty() {
            return Err(StartError::NoAddress);
        }
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &self.listen {
            let failed = |error| StartError::Listen(*address, error);
            let listener = listen(*address).map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let (identity, ca) = if let Some(identity) = self.identity {
            (identity, None)
        } else {
            let authority = Authority::new("understudy-tests-ca")?;
            let mut names: Vec<String> = NAMES.map(ToOwned::to_owned).into();
            names.extend(self.names);
            let mut ips = self.addresses;
            ips.extend(addresses.iter().map(SocketAddr::ip));
            (authority.issue(&names, &ips)?, Some(authority.pem()))
        };
        if let (Some(path), Some(pem)) = (&self.ca_file, &ca) {
            tokio::fs::write(path, pem)
                .await
                .map_err(|error| StartError::Write(path.clone(), error))?;
        }
        let client_cas = match &self.client_ca_file {
            Some(path) => Some(Reloaded::open(path).await?),
            None => None,
        };
        let tokens = match &self.token_file {
            Some(path) => Reloaded::open(path).await?,
            None => Reloaded::fixed(self.tokens.parse()?),
        };
        let rules = match (&self.rules_file, &self.rules) {
            (Some(path), _) => Reloaded::open(path).await?,
            (None, Some(text)) => Reloaded::fixed(text.parse()?),
            (None, None) => Reloaded::fixed(EffectiveRules(Rules::default().with_defaults())),
        };
        let shared = Arc::new(Shared {
            tokens,
            rules,
            client_cas,
            token_key: token_key(self.token_key.as_deref())?,
            store: Store::default(),
            recorder: Arc::new(Recorder::new()),
            faults: Faults::default(),
            settings: Mutex::new(self.settings),
            connections: Mutex::default(),
            next_connection: AtomicU64::new(0),
            stop: CancellationToken::new(),
            addresses,
        });
        let kept = match &self.state {
            Some(path) => state_file::load(&shared.store, path)
                .await
                .map_err(|error| StartError::State(path.clone(), error))?,
            None => false,
        };
        if !kept {
            populate(&shared.store).map_err(|status| StartError::Fixture("built in".into(), status.to_string()))?;
            for path in &self.fixtures {
                load_fixture(&shared.store, path).await?;
            }
        }
        if let Some(signing) = self.signing {
            let signer = certificates::Signer::new(&signing.certificate, &signing.key.0, signing.longest)?;
            tokio::spawn(certificates::run(shared.clone(), signer, shared.stop.clone()));
        }
        if let Some(path) = self.state.clone() {
            tokio::spawn(state_file::keep(shared.clone(), path));
        }
        let acceptors = Arc::new(Acceptors::new(identity, &shared).await?);
        client_ca::publish(&shared)
            .await
            .map_err(|status| StartError::Fixture("built in".into(), status.to_string()))?;
        tokio::spawn(client_ca::keep_published(shared.clone()));
        for listener in listeners {
            tokio::spawn(connection::accept(listener, acceptors.clone(), shared.clone()));
        }
        if let Some(path) = &self.control {
            control::listen(path, &shared)
                .await
                .map_err(|error| StartError::Control(path.clone(), error))?;
        }
        Ok(ApiServer {
            shared,
            ca,
            control: self.control,
            state: self.state,
        })
    }
}

fn token_key(path: Option<&Path>) -> Result<TokenKey, TokenKeyError> {
    path.map_or_else(TokenKey::generate, TokenKey::open)
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // The same port is listened on over IPv4 by itself, if at all.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// The namespaces that every cluster has.
fn populate(store: &Store) -> Result<(), Status> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        store.apply(EventType::Added, namespace)?;
    }
    Ok(())
}

async fn load_fixture(store: &Store, path: &Path) -> Result<(), StartError> {
    let failed = |error: String| StartError::Fixture(path.to_owned(), error);
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| failed(error.to_string()))?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| failed(error.to_string()))?;
    for document in documents {
        store
            .apply(EventType::Added, document)
            .map_err(|status| failed(status.to_string()))?;
    }
    Ok(())
}
