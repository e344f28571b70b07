//! What a session says, parsed so that it can't be wrong any more.

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;

use super::{
    parse::{self, Form},
    refuse::RequestRules,
};
use crate::{
    caller::authorities::SignerBundle,
    credentials::BearerToken,
    identity::{ActsAs, ActsAsError},
    recording::policy::Terms,
    trust::{TrustError, roots::CaBundle, unverified::Unverified},
    upstream::{
        roots::Roots,
        target::{Target, TargetError},
    },
};

/// What the agent's operator allows sessions to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// A server of a session's own may go unverified (`--allow-insecure-servers`).
    pub allow_insecure_servers: bool,
}

/// A session's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// How it authenticates upstream, and as whom.
    pub method: AuthMethod,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// How long it may go unused before it ends.
    pub idle_timeout: Option<Duration>,
    /// Requests that it doesn't carry.
    pub refuse: RequestRules,
    /// Whether the API server is told its name. Only where it impersonates.
    pub tell_session: bool,
    /// Whether each request has to show a token that was made for the very pod that it comes from.
    pub require_pod_token: bool,
    /// How what it execs and attaches to is recorded, where it is.
    pub recording: Option<Terms>,
}

/// The design's table of methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthMethod {
    /// `service-account-token`, or empty: the session's own bearer token, to a server of its own or the cluster's.
    ServiceAccountToken(TokenSource, Option<Server>),
    /// `gateway-kubernetes-auth`: the agent's own pod token, impersonating. It has no place for a server, so that the
    /// agent's token can't go to another than the cluster's (invariant 3).
    GatewayKubernetesAuth(ActsAs),
    /// `caller-identity`: the agent's own pod token, impersonating whoever the caller proves to be. It has no place for a
    /// server either.
    CallerIdentity(CallerIdentity),
}

/// How callers prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CallerIdentity {
    /// Who vouches for client certificates, beside the cluster's own CA.
    pub signer: Option<Signer>,
    /// Whether the cluster's own client CA does.
    pub cluster_client_ca: bool,
    /// For whom bearer tokens must have been made; where nobody is named, for the API server itself.
    pub audiences: Arc<[String]>,
}

/// A CA of client certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signer {
    /// In the session itself.
    Bundle(SignerBundle),
    /// In a file, read again when it changes.
    File(PathBuf),
}

/// Where a session's token stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenSource {
    /// In the session itself.
    Inline(BearerToken),
    /// In a file, read again when it changes.
    File(PathBuf),
    /// In a Secret of the session's namespace, followed.
    Secret {
        /// The Secret's name.
        name: String,
        /// The key in its data.
        key: String,
    },
}

/// A server of the session's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Where it is, and whom its certificate must name.
    pub target: Target,
    /// Who vouches for it.
    pub verified_by: VerifiedBy,
}

/// Who vouches for a session's own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifiedBy {
    /// The cluster's CA.
    Cluster,
    /// The CA in a file, read again when it changes.
    File(PathBuf),
    /// The CA in the session itself.
    Bundle(CaBundle),
    /// Nobody: the session's token goes to whoever answers. The session asked for it, and the agent's operator allowed
    /// it.
    Nobody(Unverified),
}

impl Server {
    /// By what to verify it. Readings of a CA file that fail are counted.
    #[must_use]
    pub fn roots(&self, cluster: &Roots, failures: &Counter) -> Roots {
        match &self.verified_by {
            VerifiedBy::Cluster => cluster.clone(),
            VerifiedBy::File(path) => Roots::in_file(path.clone(), failures.clone()),
            VerifiedBy::Bundle(bundle) => Roots::bundle(bundle),
            VerifiedBy::Nobody(unverified) => Roots::unverified(unverified),
        }
    }
}

/// Why a session is refused where it is loaded. Each message names the field.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpecError {
    /// Something in `spec` isn't of the form that is expected.
    #[error("spec: {0}")]
    Shape(String),
    /// The file that declared it can't be read any more.
    #[error("{path}: {reason}: mend the file, or remove it to untag its pods")]
    File {
        /// The file.
        path: PathBuf,
        /// What was wrong.
        reason: String,
    },
    /// No such method.
    #[error(
        "spec.authMethod {0:?} is unknown: use \"service-account-token\" (or leave it empty), \"gateway-kubernetes-auth\" or \"caller-identity\""
    )]
    UnknownMethod(String),
    /// A method lacks what it needs.
    #[error("{field} is missing: {method} needs it")]
    Missing {
        /// The field.
        field: &'static str,
        /// The method.
        method: &'static str,
    },
    /// A field that the method doesn't use.
    #[error("{field} doesn't go with {with}: remove one of them")]
    Conflict {
        /// The field.
        field: &'static str,
        /// What it can't stand beside.
        with: &'static str,
    },
    /// A field of the other form of a session.
    #[error("{field} is not for {form}: use {instead}")]
    OtherForm {
        /// The field.
        field: &'static str,
        /// Where it stands.
        form: &'static str,
        /// What to write in its place.
        instead: &'static str,
    },
    /// Not a time.
    #[error("{0} is not a time: write it as RFC 3339 has it, such as 2030-01-01T00:00:00Z")]
    Time(&'static str),
    /// A field that must say something says nothing.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// Not a name that Kubernetes would accept.
    #[error("{field} {value:?} is not a valid name: use what the object is called in Kubernetes")]
    Name {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// Not a length of time.
    #[error("{field} {value:?} is not a length of time: write it as 1h30m, 15m or 90s, and longer than zero")]
    Duration {
        /// The field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// Not a way to record.
    #[error("spec.recording {0:?} is unknown: use \"none\", \"best-effort\" or \"required\"")]
    UnknownRecording(String),
    /// A rule names a verb that there isn't.
    #[error(
        "spec.refuse.verbs {0:?} is unknown: use get, list, watch, create, update, patch, delete, deletecollection or \"*\""
    )]
    UnknownVerb(String),
    /// A rule names a resource in a form that there isn't.
    #[error("spec.refuse.resources {0:?} is not a resource: write it as pods, pods/exec, \"*/scale\" or \"*\"")]
    Resource(String),
    /// A server is to go unverified, and the agent's operator doesn't allow it.
    #[error(
        "spec.server.insecureSkipTLSVerify is not allowed by this agent: say by which CA to verify the server, or start the agents with --allow-insecure-servers"
    )]
    InsecureNotAllowed,
    /// The CA can't be used. The message begins with the field.
    #[error("{0}")]
    CaBundle(String),
    /// The token can't be a bearer token. What it is isn't told.
    #[error("spec.token: {0}")]
    Token(String),
    /// A path that isn't absolute, and so would depend on where the agent was started.
    #[error("{field} {path:?} must be an absolute path")]
    RelativePath {
        /// The field.
        field: &'static str,
        /// What it says.
        path: PathBuf,
    },
    /// The identity can't be impersonated.
    #[error(transparent)]
    ActsAs(#[from] ActsAsError),
    /// The server's URL or name is refused.
    #[error("spec.server.{0}")]
    Server(#[from] TargetError),
    /// Pods name it, and there is no such Session in their namespace.
    #[error("there is no Session of that name in the pods' namespace: make it there, or mend the pods' label")]
    NotFound,
    /// The Sessions of its namespace haven't been read yet.
    #[error(
        "the Sessions of its namespace can't be read yet: see that the API server answers and that the agent may list them"
    )]
    Unknown,
    /// A second declaration of the same session, or of the same pod.
    #[error("{0} is declared twice: remove one of the declarations")]
    Twice(String),
}

pub(super) const SERVICE_ACCOUNT_TOKEN: &str = "service-account-token";
pub(super) const GATEWAY_KUBERNETES_AUTH: &str = "gateway-kubernetes-auth";
pub(super) const CALLER_IDENTITY: &str = "caller-identity";

impl AuthMethod {
    /// Its name in a session.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ServiceAccountToken(..) => SERVICE_ACCOUNT_TOKEN,
            Self::GatewayKubernetesAuth(_) => GATEWAY_KUBERNETES_AUTH,
            Self::CallerIdentity(_) => CALLER_IDENTITY,
        }
    }

    /// Whom it impersonates, where it does and that is the same for all.
    #[must_use]
    pub fn acts_as(&self) -> Option<&ActsAs> {
        match self {
            Self::ServiceAccountToken(..) | Self::CallerIdentity(_) => None,
            Self::GatewayKubernetesAuth(acts_as) => Some(acts_as),
        }
    }

    /// Whether callers act as themselves.
    #[must_use]
    pub fn is_callers_own(&self) -> bool {
        matches!(self, Self::CallerIdentity(_))
    }
}

impl SessionSpec {
    /// Parses a `spec` as it stands in a file.
    ///
    /// # Errors
    /// Names the field that is unknown, missing, empty or can't be meant.
    pub fn parse(spec: serde_json::Value, policy: Policy) -> Result<Self, SpecError> {
        parse::spec(spec, Form::File, policy)
    }

    /// Parses the `spec` of a Session resource, which was made at `created`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_resource(spec: serde_json::Value, created: Option<Timestamp>, policy: Policy) -> Result<Self, SpecError> {
        parse::spec(spec, Form::Resource { created }, policy)
    }

    /// The server that it goes to, where that isn't the cluster's.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        match &self.method {
            AuthMethod::ServiceAccountToken(_, server) => server.as_ref(),
            AuthMethod::GatewayKubernetesAuth(_) | AuthMethod::CallerIdentity(_) => None,
        }
    }

    /// Whether callers have to prove anything.
    #[must_use]
    pub fn needs_proof(&self) -> bool {
        self.require_pod_token || self.method.is_callers_own()
    }

    /// Whether two sessions act alike, so that what is open under one may go on under the other. What one of them
    /// refuses, the other must refuse as well, for what is open isn't judged again.
    #[must_use]
    pub fn acts_like(&self, other: &Self) -> bool {
        self.method == other.method
            && self.refuse == other.refuse
            && self.tell_session == other.tell_session
            && self.require_pod_token == other.require_pod_token
            && self.recording == other.recording
    }
}

impl From<TrustError> for SpecError {
    fn from(error: TrustError) -> Self {
        Self::CaBundle(error.to_string())
    }
}

#[cfg(test)]
mod tests;
