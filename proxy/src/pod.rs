//! The names of things on the way of a connection: pods, sessions, addresses. Plain types that cannot be
//! confused with one another; no behaviour beyond parsing and display.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc};

use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::{audit::PodText, limits::load::Load};

/// A session's name: `namespace/name`, both DNS-1123 labels or subdomains as Kubernetes has them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    text: Arc<str>,
    /// Where the name begins.
    name: usize,
}

/// Why a session's name is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SessionIdError {
    /// The namespace isn't a DNS-1123 label.
    #[error("metadata.namespace {0:?} is not a DNS-1123 label: use lower-case letters, digits and '-', at most 63")]
    Namespace(String),
    /// The name isn't a DNS-1123 subdomain.
    #[error(
        "metadata.name {0:?} is not a DNS-1123 subdomain: use lower-case letters, digits, '-' and '.', at most 253"
    )]
    Name(String),
    /// `namespace/name` was expected.
    #[error("{0:?} is not of the form namespace/name")]
    Form(String),
}

impl SessionId {
    /// Joins a namespace and a name.
    ///
    /// # Errors
    /// Names the part that isn't a valid Kubernetes name.
    pub fn new(namespace: &str, name: &str) -> Result<Self, SessionIdError> {
        if !is_dns1123_label(namespace) {
            return Err(SessionIdError::Namespace(namespace.to_owned()));
        }
        if !is_dns1123_subdomain(name) {
            return Err(SessionIdError::Name(name.to_owned()));
        }
        Ok(Self::join(namespace, name))
    }

    fn join(namespace: &str, name: &str) -> Self {
        Self {
            text: format!("{namespace}/{name}").into(),
            name: namespace.len() + 1,
        }
    }

    /// What a pod's label says where that can't be a session's name: no session will ever have it, so that whoever
    /// carries it is refused.
    #[must_use]
    pub fn of_no_session(namespace: &str, label: &str) -> Self {
        // An upper-case letter is in no valid name, and keeps this from being one whatever the label says.
        let name = if is_dns1123_subdomain(label) {
            format!("NOT-{label}")
        } else {
            label.to_owned()
        };
        Self::join(namespace, &name)
    }

    /// The namespace it lives in.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.text[..self.name - 1]
    }

    /// Its name within the namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text[self.name..]
    }

    /// Both, `namespace/name`.
    #[must_use]
    pub fn text(&self) -> &Arc<str> {
        &self.text
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SessionId {
    type Err = SessionIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| SessionIdError::Form(text.to_owned()))?;
        Self::new(namespace, name)
    }
}

/// RFC 1123 label, as `k8s.io/apimachinery/pkg/util/validation` checks it.
#[must_use]
pub fn is_dns1123_label(text: &str) -> bool {
    let edge = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(edge)
        && bytes.last().is_some_and(edge)
        && bytes.iter().all(|byte| edge(byte) || *byte == b'-')
}

/// RFC 1123 subdomain: labels joined by dots, 253 bytes at most.
#[must_use]
pub fn is_dns1123_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns1123_label)
}

/// A pod that a session source wants tagged on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WantedPod {
    /// Its cgroup, relative to the root that the kernel programs are attached to.
    pub cgroup: PathBuf,
    /// What the audit log calls it.
    pub name: Arc<str>,
    /// The session it acts in.
    pub session: SessionId,
    /// The UID of its object, where its source knows it: what its own tokens say that they were made for.
    pub uid: Option<Arc<str>>,
    /// Its own service account, of its session's namespace, where its source knows it.
    pub service_account: Option<Arc<str>>,
}

/// A pod under interception.
#[derive(Debug)]
pub struct EnrolledPod {
    /// What was asked for.
    pub wanted: WantedPod,
    /// The id of its cgroup (the inode of its directory in cgroup v2).
    pub cgroup_id: CgroupId,
    /// Cancelled when the pod is gone, untagged, or moved to another session: its connections end.
    pub gone: CancellationToken,
    /// What it has open.
    pub load: Load,
    /// What every audit event says of it.
    pub in_audit: PodText,
}

impl EnrolledPod {
    /// What stands for a pod where clients come to the agent's own listener: all of them together, in one session.
    #[must_use]
    pub fn outside(session: SessionId) -> Self {
        Self {
            wanted: WantedPod {
                cgroup: PathBuf::new(),
                name: Arc::from(""),
                session,
                uid: None,
                service_account: None,
            },
            cgroup_id: CgroupId::NONE,
            gone: CancellationToken::new(),
            load: Load::default(),
            in_audit: PodText::default(),
        }
    }

    /// Whether it is no pod: nothing vouches for who dialled.
    #[must_use]
    pub fn is_outside(&self) -> bool {
        self.cgroup_id == CgroupId::NONE
    }
}

/// The kernel's id of a cgroup, as `bpf_get_current_ancestor_cgroup_id` returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CgroupId(pub u64);

impl CgroupId {
    /// No cgroup's: the kernel numbers them from one.
    pub const NONE: Self = Self(0);
}

/// The kernel's cookie of a network namespace, as `SO_NETNS_COOKIE` returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsCookie(pub u64);

/// The address that the pod dialled before the kernel turned the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OriginalDst(pub SocketAddr);

/// The client's end of an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClientAddr(pub SocketAddr);

/// An accepted connection whose pod the kernel has vouched for.
#[derive(Debug)]
pub struct Inbound {
    /// The connection, nothing read from it yet.
    pub stream: TcpStream,
    /// The pod that dialled.
    pub pod: Arc<EnrolledPod>,
    /// What it dialled.
    pub original_dst: OriginalDst,
    /// From where.
    pub client: ClientAddr,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("default/shell", true)]
    #[case("a/b.c-1", true)]
    #[case("default", false)]
    #[case("/shell", false)]
    #[case("default/", false)]
    #[case("Default/shell", false)]
    #[case("default/-x", false)]
    #[case("a.b/x", false)]
    #[case("default/a..b", false)]
    fn session_ids(#[case] text: &str, #[case] good: bool) {
        assert_eq!(text.parse::<SessionId>().is_ok(), good, "{text}");
    }
}
