//! The labels, each with a bounded set of values.

use std::fmt::{self, Write};

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::status::Refusal;

/// A kind of file that is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Followed {
    /// A bearer token.
    Token,
    /// The serving certificate, its key or its CA.
    Certificate,
    /// The CA that verifies upstreams.
    UpstreamCa,
    /// Session files.
    Sessions,
    /// A CA of clients.
    ClientCa,
    /// The CA that verifies the recordings' store.
    UploadCa,
    /// The credentials for it.
    UploadCredentials,
}

/// What a caller showed to prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProofOf {
    /// A client certificate.
    Certificate,
    /// A bearer token.
    Token,
    /// Nothing.
    Nothing,
    /// A bearer token, of being in the pod that it was made for.
    PodToken,
}

impl ProofOf {
    /// In the audit log and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Token => "token",
            Self::Nothing => "none",
            Self::PodToken => "pod-token",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProofOutcome {
    /// It is good.
    Proved,
    /// It isn't.
    Invalid,
    /// That can't be known at the moment.
    Unknown,
    /// It is good, of somebody who can't be carried.
    Uncarriable,
}

/// A kind of object of the cluster's that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Watched {
    /// This node's pods.
    Pods,
    /// The Sessions of one namespace.
    Sessions,
    /// A Secret with a session's token.
    Secrets,
    /// The API server's Service.
    Service,
    /// Its endpoints.
    EndpointSlices,
    /// The CA of the cluster's clients.
    ClientCa,
}

impl Watched {
    /// Whether every agent begins to follow it as it starts.
    #[must_use]
    pub fn is_followed_from_the_start(self) -> bool {
        matches!(self, Self::Pods | Self::Service | Self::EndpointSlices)
    }

    /// In logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Sessions => "sessions",
            Self::Secrets => "secrets",
            Self::Service => "service",
            Self::EndpointSlices => "endpointslices",
            Self::ClientCa => "client-ca",
        }
    }
}

/// How something that the agent writes to the cluster fared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Written {
    /// The API server took it.
    Done,
    /// It didn't; status is tried again, Events aren't.
    Failed,
    /// There was too much of it.
    Dropped,
}

/// A limit that something came up against. Named after its option, where it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// A request's head was too large.
    HeaderBytes,
    /// A request had too many header fields.
    Headers,
    /// A TLS handshake took too long.
    HandshakeTimeout,
    /// A request's head took too long.
    HeaderTimeout,
    /// A request's body came too slowly.
    BodyRate,
    /// A pod has as many connections as it may.
    ConnectionsPerPod,
    /// A pod has as many connections on their way to its listener as it may.
    PendingConnections,
    /// A pod has as many handshakes under way as it may.
    HandshakesPerPod,
    /// A pod has as many requests in flight as it may.
    RequestsPerPod,
    /// A pod has as many watches, upgrades and followed logs open as it may.
    LongRunningPerPod,
    /// A session has as many connections upstream as it may, and a request waited for one in vain.
    UpstreamConnections,
    /// As many audit events wait as may, and a request waited for room in vain.
    AuditBacklog,
    /// The process has no file descriptor left for a connection upstream.
    OpenFiles,
    /// The agent's memory is nearly used up.
    Memory,
}

impl Limit {
    /// All, as the metric shows them from the start.
    pub(super) const ALL: [Self; 14] = [
        Self::HeaderBytes,
        Self::Headers,
        Self::HandshakeTimeout,
        Self::HeaderTimeout,
        Self::BodyRate,
        Self::ConnectionsPerPod,
        Self::PendingConnections,
        Self::HandshakesPerPod,
        Self::RequestsPerPod,
        Self::LongRunningPerPod,
        Self::UpstreamConnections,
        Self::AuditBacklog,
        Self::OpenFiles,
        Self::Memory,
    ];

    /// In logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::HeaderBytes => "header-bytes",
            Self::Headers => "headers",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::HeaderTimeout => "header-timeout",
            Self::BodyRate => "body-rate",
            Self::ConnectionsPerPod => "connections-per-pod",
            Self::PendingConnections => "pending-connections",
            Self::HandshakesPerPod => "handshakes-per-pod",
            Self::RequestsPerPod => "requests-per-pod",
            Self::LongRunningPerPod => "long-running-per-pod",
            Self::UpstreamConnections => "upstream-connections",
            Self::AuditBacklog => "audit-backlog",
            Self::OpenFiles => "open-files",
            Self::Memory => "memory",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LimitLabels {
    pub(super) limit: Limit,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WatchLabels {
    pub(super) watch: Watched,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct WrittenLabels {
    pub(super) outcome: Written,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) method: MethodLabel,
    pub(super) code: CodeClass,
    pub(super) refused: RefusedLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct HandshakeLabels {
    pub(super) cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReloadLabels {
    pub(super) file: Followed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ProofLabels {
    pub(super) proof: ProofOf,
    pub(super) outcome: ProofOutcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct MethodLabel(&'static str);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct CodeClass(pub(super) u16);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RefusedLabel(pub(super) Option<Refusal>);

impl From<&str> for MethodLabel {
    /// A method that a client made up isn't a label.
    fn from(method: &str) -> Self {
        let known = [
            "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE",
        ];
        Self(known.into_iter().find(|known| *known == method).unwrap_or("other"))
    }
}

macro_rules! label_value {
    ($type:ty, $label:ident => $text:expr) => {
        impl EncodeLabelValue for $type {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                let $label = *self;
                encoder.write_str($text)
            }
        }
    };
}

label_value!(MethodLabel, label => label.0);
label_value!(CodeClass, label => match label.0 { 0 => "none", 1 => "1xx", 2 => "2xx", 3 => "3xx", 4 => "4xx", 5 => "5xx", _ => "other" });
label_value!(RefusedLabel, label => label.0.map_or("", Refusal::as_str));
label_value!(Followed, label => match label {
    Followed::Token => "token",
    Followed::Certificate => "certificate",
    Followed::UpstreamCa => "upstream-ca",
    Followed::Sessions => "sessions",
    Followed::ClientCa => "client-ca",
    Followed::UploadCa => "recording-upload-ca",
    Followed::UploadCredentials => "recording-upload-credentials",
});
label_value!(ProofOf, label => label.name());
label_value!(ProofOutcome, label => match label {
    ProofOutcome::Proved => "proved",
    ProofOutcome::Invalid => "invalid",
    ProofOutcome::Unknown => "unknown",
    ProofOutcome::Uncarriable => "uncarriable",
});
label_value!(Watched, label => label.name());
label_value!(Limit, label => label.name());
label_value!(Written, label => match label { Written::Done => "done", Written::Failed => "failed", Written::Dropped => "dropped" });
