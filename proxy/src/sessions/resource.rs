//! The `Session` custom resource, as the API server knows it: its schema with the rules that the API server itself
//! holds to, its columns, and its status.
//!
//! The agent reads a Session's `spec` with [`SessionSpec::of_resource`](super::spec::SessionSpec::of_resource), not
//! with the types here: one object that doesn't fit must be reported on itself and must not keep the others from being
//! read. These types are what the schema is made from, and what is written to `status`.

mod rules;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who the pods of this namespace that carry the label `understudy.dev/session: <name>` act as, until when, and how.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "understudy.dev",
    version = "v1alpha1",
    kind = "Session",
    plural = "sessions",
    namespaced,
    status = "SessionStatus",
    category = "understudy",
    doc = "Who the pods of this namespace that carry the label understudy.dev/session: <name> act as, until when, and how.",
    printcolumn = r#"{"name": "Method", "type": "string", "jsonPath": ".spec.authMethod"}"#,
    printcolumn = r#"{"name": "Acts as", "type": "string", "jsonPath": ".status.actsAs"}"#,
    printcolumn = r#"{"name": "Expires", "type": "string", "jsonPath": ".status.expiresAt"}"#,
    printcolumn = r#"{"name": "Phase", "type": "string", "jsonPath": ".status.phase"}"#,
    printcolumn = r#"{"name": "Pods", "type": "integer", "jsonPath": ".status.pods"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::spec()))]
pub struct SessionResourceSpec {
    /// How it authenticates: service-account-token (also when empty) sends the token of tokenSecretRef;
    /// gateway-kubernetes-auth sends the agent's own token and impersonates; caller-identity does so too, as whoever the
    /// caller proves to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_method: Option<AuthMethodName>,
    /// Whom gateway-kubernetes-auth impersonates: a service account, or a user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub impersonate: Option<Impersonate>,
    /// The Secret, in the Session's namespace, that holds the bearer token of service-account-token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
    /// The server of service-account-token, where it isn't this cluster's API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// How long after its creation it ends, such as 1h30m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-validations" = rules::duration()))]
    pub ttl: Option<String>,
    /// How long it may go unused before it ends, such as 15m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), extend("x-kubernetes-validations" = rules::duration()))]
    pub idle_timeout: Option<String>,
    /// Requests that are refused. Where it is absent: create serviceaccounts/token, which would make a credential
    /// that outlives the session. An empty list refuses none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub refuse: Option<Vec<RequestRule>>,
    /// Whether the API server is told the session's name, as the user's extra session.understudy.dev. The agent needs
    /// the right to impersonate it. Goes with gateway-kubernetes-auth and caller-identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tell_session: Option<bool>,
    /// How callers prove who they are to caller-identity. Where it is absent: by a certificate under the cluster's client
    /// CA, or by a token made for the API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller_identity: Option<CallerIdentity>,
    /// Whether each request has to show a service account token that was made for the very pod that it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_pod_token: Option<bool>,
    /// Whether exec, attach and port-forward are recorded by the agent. Where it is absent they aren't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recording: Option<RecordingName>,
    /// Whether what is typed is recorded as well, passwords included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_stdin: Option<bool>,
}

/// The methods' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMethodName {
    /// The same as service-account-token.
    #[serde(rename = "")]
    Default,
    /// The token of tokenSecretRef.
    ServiceAccountToken,
    /// The agent's own token, impersonating.
    GatewayKubernetesAuth,
    /// The agent's own token, impersonating the caller.
    CallerIdentity,
}

/// Whether exec, attach and port-forward are recorded by the agent: none; best-effort, where it can be done; required, and
/// they are refused where it can't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RecordingName {
    /// They aren't.
    None,
    /// Where that can be done.
    BestEffort,
    /// Or they aren't carried, and end where their recording does.
    Required,
}

/// How callers prove who they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CallerIdentity {
    /// CA certificates, PEM, that vouch for client certificates beside the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "signerCA")]
    #[schemars(length(max = 131_072), extend("x-kubernetes-validations" = rules::signer_ca()))]
    pub signer_ca: Option<String>,
    /// Whether the cluster's own client CA vouches for client certificates. It does where this is absent.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "clusterClientCA")]
    pub cluster_client_ca: Option<bool>,
    /// For whom bearer tokens must have been made, one of these; where there is none, for the API server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512)), extend("x-kubernetes-validations" = rules::audiences()))]
    pub audiences: Vec<String>,
}

/// Whom to impersonate: namespace and serviceAccountName, or user and what goes with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::impersonate()))]
pub struct Impersonate {
    /// The service account's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), extend("x-kubernetes-validations" = rules::namespace()))]
    pub namespace: Option<String>,
    /// The service account's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = rules::service_account()))]
    pub service_account_name: Option<String>,
    /// The user's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules::carried()))]
    pub user: Option<String>,
    /// The user's groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 512)), extend("x-kubernetes-validations" = rules::all_carried()))]
    pub groups: Vec<String>,
    /// The user's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules::carried()))]
    pub uid: Option<String>,
    /// The user's extra values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "rules::extra")]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A key of a Secret in the Session's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = rules::secret()))]
    pub name: String,
    /// The key in its data; "token" where it isn't said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), extend("x-kubernetes-validations" = rules::secret_key()))]
    pub key: Option<String>,
}

/// A server of the session's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::server()))]
pub struct Server {
    /// https://host:port
    #[schemars(length(max = 512), extend("x-kubernetes-validations" = rules::url()))]
    pub url: String,
    /// The CA certificates that vouch for it, PEM. The cluster's own where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 131_072), extend("x-kubernetes-validations" = rules::ca_bundle()))]
    pub ca_bundle: Option<String>,
    /// The name that its certificate carries, where that isn't the URL's host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
    /// Go without verifying the server. Agents refuse the Session unless they were started with
    /// --allow-insecure-servers.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "insecureSkipTLSVerify")]
    pub insecure_skip_tls_verify: Option<bool>,
}

/// Requests, described as an RBAC rule describes them. "*" stands for anything; a list that is absent as well, save
/// for verbs and resources.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRule {
    /// get, list, watch, create, update, patch, delete, deletecollection, or "*".
    #[schemars(length(max = 16), inner(length(max = 32)), extend("x-kubernetes-validations" = rules::verbs()))]
    pub verbs: Vec<String>,
    /// API groups; "" is the core group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 253)))]
    pub api_groups: Vec<String>,
    /// Resources, or resource/subresource.
    #[schemars(length(max = 32), inner(length(max = 253)), extend("x-kubernetes-validations" = rules::resources()))]
    pub resources: Vec<String>,
    /// Namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 63)))]
    pub namespaces: Vec<String>,
    /// Objects' names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 253)))]
    pub resource_names: Vec<String>,
}

/// What agents report. Each node has its own entry; what stands above them is the sum.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStatus {
    /// Active, Expired, Idle or Refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Whom it acts as, where it impersonates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acts_as: Option<String>,
    /// When it ends, from expiresAt or ttl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// Pods enrolled under it, on all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<i64>,
    /// The generation that the phase and the conditions speak of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Accepted, Ready, Expired.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// An entry for each node that has pods of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub nodes: Vec<NodeStatus>,
}

/// What the agent of one node reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// The node.
    pub node: String,
    /// How the session stands there: Active, Expired, Idle or Refused. Idle time is counted on each node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Pods enrolled there.
    #[serde(default)]
    pub pods: i64,
    /// Pods there that can't be enrolled, or not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<i64>,
    /// Requests and streams open there.
    #[serde(default)]
    pub connections: i64,
    /// When it was last used there or, before that, came into force there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Time>,
}

/// The resource's definition, in YAML: the same text from the same types.
///
/// # Errors
/// If the schema has no form in YAML, which would be a mistake of ours.
pub fn definition() -> Result<String, serde_saphyr::ser::Error> {
    serde_saphyr::to_string(&Session::crd())
}

impl NodeStatus {
    /// When it was last used there or, before that, came into force there.
    #[must_use]
    pub fn last_used(&self) -> Option<Timestamp> {
        self.last_used.as_ref().map(|time| time.0)
    }
}

#[cfg(test)]
mod tests;
