//! Who is measured: Understudy, what people would run instead, a raw relay, and no proxy at all.
//!
//! Each proxy does the same work: it ends TLS with the same P-256 certificate, takes off what a client says of its
//! identity, puts the same bearer token and `Impersonate-*` on, and forwards over TLS to the same upstream, which it
//! verifies. Each has one worker. What follows from that for each is a configuration, a plain function of [`Terms`].

mod envoy;
mod go;
mod haproxy;
mod nginx;
mod relay;

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, bail};
use understudy_tests::node::binaries;

pub use relay::relay;

/// What people would run instead, and what bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// The client dials the upstream itself.
    Direct,
    /// Bytes are copied, and nothing is looked at.
    Relay,
    /// The agent, with its kernel side, as it runs on a node.
    Understudy,
    /// Another build of the agent, given by `--against`.
    Against,
    /// nginx, HTTP/1.1 to the upstream: it has no other.
    Nginx,
    /// `HAProxy`, HTTP/1.1 to the upstream.
    Haproxy,
    /// `HAProxy`, HTTP/2 to the upstream.
    HaproxyH2,
    /// Envoy, HTTP/1.1 to the upstream.
    Envoy,
    /// Go's `httputil.ReverseProxy`, HTTP/2 to the upstream but for upgrades.
    Go,
}

/// What a peer is called in the report.
pub const NAMES: [(Peer, &str); 9] = [
    (Peer::Direct, "direct"),
    (Peer::Relay, "relay"),
    (Peer::Understudy, "understudy"),
    (Peer::Against, "against"),
    (Peer::Nginx, "nginx"),
    (Peer::Haproxy, "haproxy"),
    (Peer::HaproxyH2, "haproxy-h2"),
    (Peer::Envoy, "envoy"),
    (Peer::Go, "go"),
];

/// Header fields that a client may not say, by name, for peers that know no prefixes.
pub(crate) const STRIPPED: [&str; 14] = [
    "Authorization",
    "Impersonate-User",
    "Impersonate-Group",
    "Impersonate-Uid",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Uid",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Proto",
    "X-Forwarded-Uri",
    "Forwarded",
    "Audit-ID",
];
/// And by prefix, for those that do.
pub(crate) const STRIPPED_PREFIXES: [&str; 3] = ["Impersonate-", "X-Remote-", "X-Forwarded-"];

/// What a proxy is told.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the upstream listens.
    pub upstream: SocketAddr,
    /// The name in the upstream's certificate.
    pub name: String,
    /// The CA that signed it.
    pub ca: PathBuf,
    /// The certificate that it shows, PEM.
    pub certificate: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// Header fields that it sets, in order; a name may come again.
    pub headers: Vec<(String, String)>,
    /// Where its files go.
    pub directory: PathBuf,
    /// How many files it may have open.
    pub open_files: u64,
}

/// The executables of peers that have no fixed place.
#[derive(Debug, Clone, Default)]
pub struct Executables {
    /// Envoy.
    pub envoy: Option<PathBuf>,
    /// The program of tests/bench/reverseproxy.
    pub go: Option<PathBuf>,
    /// The agent.
    pub understudy: Option<PathBuf>,
    /// The agent that it is compared with.
    pub against: Option<PathBuf>,
}

/// How a peer is started: program and arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

impl Peer {
    /// Whether it reads requests, and so sets the identity.
    #[must_use]
    pub fn is_proxy(self) -> bool {
        !matches!(self, Self::Direct | Self::Relay)
    }

    /// Whether it is a build of the agent.
    #[must_use]
    pub fn is_understudy(self) -> bool {
        matches!(self, Self::Understudy | Self::Against)
    }

    /// Whether it opens an upstream connection for each stream that is open.
    #[must_use]
    pub fn doubles_connections(self) -> bool {
        matches!(self, Self::Relay | Self::Nginx | Self::Haproxy | Self::Envoy)
    }

    /// The last part of its port's number, so that all can run at once.
    #[must_use]
    pub fn port(self) -> u16 {
        let place = NAMES.iter().position(|(peer, _)| *peer == self).unwrap_or_default();
        8001 + u16::try_from(place).unwrap_or_default()
    }

    /// How to start it on those terms; its configuration is written. Not for the agent, which the node starts.
    ///
    /// # Errors
    /// It isn't on this machine, or its files can't be written.
    pub fn start(self, terms: &Terms, executables: &Executables) -> Result<Start> {
        match self {
            Self::Direct | Self::Understudy | Self::Against => bail!("{self} is not started here"),
            Self::Relay => relay::start(terms),
            Self::Nginx => nginx::start(terms, &installed("nginx")?),
            Self::Haproxy => haproxy::start(terms, &installed("haproxy")?, haproxy::Upstream::Http1),
            Self::HaproxyH2 => haproxy::start(terms, &installed("haproxy")?, haproxy::Upstream::Http2),
            Self::Envoy => envoy::start(
                terms,
                executables.envoy.as_deref().context("no Envoy was given: --envoy")?,
            ),
            Self::Go => go::start(terms, executables.go.as_deref().context("no Go proxy was given: --go")?),
        }
    }

    /// How to ask it for its version, where it tells.
    #[must_use]
    pub fn version(self, executables: &Executables) -> Option<Start> {
        let (program, argument) = match self {
            Self::Direct | Self::Relay | Self::Against => return None,
            Self::Understudy => (executables.understudy.clone()?, "--version"),
            Self::Nginx => (installed("nginx").ok()?, "-v"),
            Self::Haproxy | Self::HaproxyH2 => (installed("haproxy").ok()?, "-v"),
            Self::Envoy => (executables.envoy.clone()?, "--version"),
            Self::Go => (executables.go.clone()?, "-version"),
        };
        Some(Start {
            program,
            arguments: vec![argument.to_owned()],
        })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES
            .iter()
            .find_map(|(peer, name)| (peer == self).then_some(name))
            .unwrap_or(&"?");
        formatter.pad(name)
    }
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        NAMES
            .iter()
            .find_map(|(peer, name)| (*name == text).then_some(*peer))
            .with_context(|| format!("no peer is called `{text}`"))
    }
}

/// Debian leaves /usr/sbin off a person's own `PATH`.
fn installed(program: &str) -> Result<PathBuf> {
    binaries::on_path(program)
        .or_else(|| Some(Path::new("/usr/sbin").join(program)).filter(|path| path.is_file()))
        .with_context(|| format!("{program} is not installed: apt-get install {program}"))
}

/// Writes a peer's file, and says where it is.
fn write(terms: &Terms, name: &str, text: &str) -> Result<String> {
    std::fs::create_dir_all(&terms.directory).with_context(|| format!("making {}", terms.directory.display()))?;
    let path = terms.directory.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn terms() -> Terms {
        Terms {
            listen: "172.30.0.1:8005".parse().unwrap(),
            upstream: "172.30.0.2:6443".parse().unwrap(),
            name: "kubernetes.default.svc".to_owned(),
            ca: "/box/ca.crt".into(),
            certificate: "/box/tls.crt".into(),
            key: "/box/tls.key".into(),
            headers: [
                ("Authorization", "Bearer agent-token"),
                ("Impersonate-User", "system:serviceaccount:prod:viewer"),
                ("Impersonate-Group", "system:serviceaccounts"),
                ("Impersonate-Group", "system:authenticated"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
            directory: "/box/peer".into(),
            open_files: 20_000,
        }
    }

    #[rstest]
    #[case::nginx(nginx::configuration(&terms()))]
    #[case::haproxy(haproxy::configuration(&terms(), haproxy::Upstream::Http1, "/box/peer/both.pem"))]
    #[case::haproxy_h2(haproxy::configuration(&terms(), haproxy::Upstream::Http2, "/box/peer/both.pem"))]
    #[case::envoy(envoy::configuration(&terms()).to_string())]
    #[case::go(go::configuration(&terms()).to_string())]
    fn every_proxy_is_told_to_do_the_same_work(#[case] configuration: String) {
        let lower = configuration.to_lowercase();
        for name in STRIPPED {
            let prefix = STRIPPED_PREFIXES.iter().find(|prefix| name.starts_with(**prefix));
            let by_name = lower.contains(&name.to_lowercase());
            let by_prefix = prefix.is_some_and(|prefix| lower.contains(&prefix.to_lowercase()));
            assert!(by_name || by_prefix, "{name} is left on\n{configuration}");
        }
        for (name, value) in terms().headers {
            assert!(
                configuration.contains(&value),
                "{name}: {value} isn't set\n{configuration}"
            );
        }
        assert!(
            configuration.contains("/box/ca.crt"),
            "it verifies by the CA\n{configuration}"
        );
        assert!(
            configuration.contains("kubernetes.default.svc"),
            "and by the name\n{configuration}"
        );
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for (peer, name) in NAMES {
            assert_eq!(peer.to_string(), name);
            assert_eq!(name.parse::<Peer>().unwrap(), peer);
        }
        assert!("apache".parse::<Peer>().is_err());
        assert_ne!(Peer::Nginx.port(), Peer::Envoy.port());
    }
}
