//! What a session says, parsed so that it can't be wrong any more.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use secrecy::ExposeSecret;

use super::manifest::{ImpersonateManifest, ServerManifest, SpecManifest, without_values};
use crate::{
    credentials::BearerToken,
    identity::{ActsAs, ActsAsError},
    upstream::target::{Target, TargetError},
};

/// A session's terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// How it authenticates upstream, and as whom.
    pub method: AuthMethod,
    /// The server that it goes to, where that isn't the cluster's.
    pub server: Option<Server>,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
}

/// The design's table of methods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthMethod {
    /// `service-account-token`, or empty: the session's own bearer token.
    ServiceAccountToken(TokenSource),
    /// `gateway-kubernetes-auth`: the agent's own pod token, impersonating.
    GatewayKubernetesAuth(ActsAs),
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
    /// The CA that signs its certificate; the cluster's where there is none.
    pub ca_file: Option<PathBuf>,
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
        "spec.authMethod {0:?} is unknown: use \"service-account-token\" (or leave it empty) or \"gateway-kubernetes-auth\""
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

const SERVICE_ACCOUNT_TOKEN: &str = "service-account-token";
const GATEWAY_KUBERNETES_AUTH: &str = "gateway-kubernetes-auth";

impl AuthMethod {
    /// Its name in a session.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::ServiceAccountToken(_) => SERVICE_ACCOUNT_TOKEN,
            Self::GatewayKubernetesAuth(_) => GATEWAY_KUBERNETES_AUTH,
        }
    }

    /// Whom it impersonates, where it does.
    #[must_use]
    pub fn acts_as(&self) -> Option<&ActsAs> {
        match self {
            Self::ServiceAccountToken(_) => None,
            Self::GatewayKubernetesAuth(acts_as) => Some(acts_as),
        }
    }
}

impl SessionSpec {
    /// Parses a `spec` as it stands in a file.
    ///
    /// # Errors
    /// Names the field that is unknown, missing, empty or can't be meant.
    pub fn parse(spec: serde_json::Value) -> Result<Self, SpecError> {
        let spec = if spec.is_null() {
            serde_json::Value::Object(serde_json::Map::new())
        } else {
            spec
        };
        let manifest: SpecManifest =
            serde_json::from_value(spec).map_err(|error| SpecError::Shape(without_values(&error.to_string())))?;
        let method = method(&manifest)?;
        if manifest.server.is_some() && method.acts_as().is_some() {
            // The agent's own token goes to the pinned API server and nowhere else (invariant 3).
            return Err(SpecError::Conflict {
                field: "spec.server",
                with: GATEWAY_KUBERNETES_AUTH,
            });
        }
        let server = manifest.server.map(server).transpose()?;
        Ok(Self {
            method,
            server,
            expires_at: manifest.expires_at,
        })
    }

    /// Parses the `spec` of a Session resource, which was made at `created`.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn of_resource(spec: serde_json::Value, created: Option<Timestamp>) -> Result<Self, SpecError> {
        let _ = created;
        Self::parse(spec)
    }

    /// Whether two sessions act alike, so that what is open under one may go on under the other.
    #[must_use]
    pub fn acts_like(&self, other: &Self) -> bool {
        self.method == other.method && self.server == other.server
    }
}

fn method(manifest: &SpecManifest) -> Result<AuthMethod, SpecError> {
    match manifest.auth_method.as_str() {
        "" | SERVICE_ACCOUNT_TOKEN => {
            if manifest.impersonate.is_some() {
                return Err(SpecError::Conflict {
                    field: "spec.impersonate",
                    with: SERVICE_ACCOUNT_TOKEN,
                });
            }
            token(manifest).map(AuthMethod::ServiceAccountToken)
        }
        GATEWAY_KUBERNETES_AUTH => {
            for (field, given) in [
                ("spec.token", manifest.token.is_some()),
                ("spec.tokenFile", manifest.token_file.is_some()),
            ] {
                if given {
                    return Err(SpecError::Conflict {
                        field,
                        with: GATEWAY_KUBERNETES_AUTH,
                    });
                }
            }
            let impersonate = manifest.impersonate.as_ref().ok_or(SpecError::Missing {
                field: "spec.impersonate",
                method: GATEWAY_KUBERNETES_AUTH,
            })?;
            acts_as(impersonate).map(AuthMethod::GatewayKubernetesAuth)
        }
        // A long one may be a token in the wrong place.
        other if other.len() > 32 => Err(SpecError::UnknownMethod("...".to_owned())),
        other => Err(SpecError::UnknownMethod(other.to_owned())),
    }
}

fn token(manifest: &SpecManifest) -> Result<TokenSource, SpecError> {
    match (&manifest.token, &manifest.token_file) {
        (Some(_), Some(_)) => Err(SpecError::Conflict {
            field: "spec.tokenFile",
            with: "spec.token",
        }),
        (Some(token), None) => token
            .expose_secret()
            .parse()
            .map(TokenSource::Inline)
            .map_err(|error: <BearerToken as std::str::FromStr>::Err| SpecError::Token(error.to_string())),
        (None, Some(path)) => absolute("spec.tokenFile", path).map(TokenSource::File),
        (None, None) => Err(SpecError::Missing {
            field: "spec.token (or spec.tokenFile)",
            method: SERVICE_ACCOUNT_TOKEN,
        }),
    }
}

fn acts_as(manifest: &ImpersonateManifest) -> Result<ActsAs, SpecError> {
    let service_account = manifest.namespace.is_some() || manifest.service_account_name.is_some();
    let explicit = [
        ("spec.impersonate.user", manifest.user.is_some()),
        ("spec.impersonate.groups", !manifest.groups.is_empty()),
        ("spec.impersonate.uid", manifest.uid.is_some()),
        ("spec.impersonate.extra", !manifest.extra.is_empty()),
    ];
    let given = explicit.iter().find_map(|(field, given)| given.then_some(*field));
    match (service_account, given) {
        (true, Some(field)) => Err(SpecError::Conflict {
            field,
            with: "spec.impersonate.serviceAccountName",
        }),
        (false, None) => Err(SpecError::Missing {
            field: "spec.impersonate.namespace",
            method: GATEWAY_KUBERNETES_AUTH,
        }),
        (true, None) => Ok(ActsAs::service_account(
            manifest.namespace.as_deref().unwrap_or_default(),
            manifest.service_account_name.as_deref().unwrap_or_default(),
        )?),
        (false, Some(_)) => {
            let extra: Vec<_> = manifest.extra.clone().into_iter().collect();
            let user = manifest.user.as_deref().unwrap_or_default();
            Ok(ActsAs::user(user, &manifest.groups, manifest.uid.as_deref(), &extra)?)
        }
    }
}

fn server(manifest: ServerManifest) -> Result<Server, SpecError> {
    let target = Target::parse(&manifest.url, manifest.server_name.as_deref())?;
    let ca_file = manifest
        .ca_file
        .map(|path| absolute("spec.server.caFile", &path))
        .transpose()?;
    Ok(Server { target, ca_file })
}

fn absolute(field: &'static str, path: &Path) -> Result<PathBuf, SpecError> {
    if path.is_absolute() {
        Ok(path.to_owned())
    } else {
        Err(SpecError::RelativePath {
            field,
            path: path.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::empty_method(json!({"token": "t"}), "service-account-token", None)]
    #[case::named(json!({"authMethod": "service-account-token", "tokenFile": "/t"}), "service-account-token", None)]
    #[case::gateway(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": "v"}}),
        "gateway-kubernetes-auth",
        Some("system:serviceaccount:prod:v")
    )]
    #[case::explicit(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane", "groups": ["devs"], "uid": "1"}}),
        "gateway-kubernetes-auth",
        Some("jane")
    )]
    fn parses(#[case] spec: serde_json::Value, #[case] method: &str, #[case] acts_as: Option<&str>) {
        let spec = SessionSpec::parse(spec).unwrap();
        assert_eq!(spec.method.name(), method);
        assert_eq!(spec.method.acts_as().map(ActsAs::name), acts_as);
    }

    #[rstest]
    #[case::unknown_method(json!({"authMethod": "magic"}), "spec.authMethod \"magic\" is unknown")]
    #[case::method_case(json!({"authMethod": "Service-Account-Token", "token": "t"}), "spec.authMethod")]
    #[case::no_token(json!({}), "spec.token (or spec.tokenFile) is missing")]
    #[case::empty_token(json!({"token": ""}), "spec.token")]
    #[case::token_with_line_break(json!({"token": "a\r\nb"}), "spec.token")]
    #[case::both_tokens(json!({"token": "t", "tokenFile": "/t"}), "spec.tokenFile doesn't go with spec.token")]
    #[case::relative(json!({"tokenFile": "t"}), "spec.tokenFile \"t\" must be an absolute path")]
    #[case::token_and_impersonation(
        json!({"token": "t", "impersonate": {"user": "jane"}}), "spec.impersonate doesn't go with"
    )]
    #[case::no_impersonation(json!({"authMethod": "gateway-kubernetes-auth"}), "spec.impersonate is missing")]
    #[case::empty_impersonation(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {}}), "spec.impersonate.namespace is missing"
    )]
    #[case::empty_namespace(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "", "serviceAccountName": "v"}}),
        "spec.impersonate.namespace must not be empty"
    )]
    #[case::no_namespace(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"serviceAccountName": "v"}}),
        "spec.impersonate.namespace must not be empty"
    )]
    #[case::empty_name(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": ""}}),
        "spec.impersonate.serviceAccountName must not be empty"
    )]
    #[case::both_forms(
        json!({"authMethod": "gateway-kubernetes-auth",
               "impersonate": {"namespace": "prod", "serviceAccountName": "v", "user": "jane"}}),
        "spec.impersonate.user doesn't go with spec.impersonate.serviceAccountName"
    )]
    #[case::groups_without_user(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"groups": ["system:masters"]}}),
        "spec.impersonate.user must not be empty"
    )]
    #[case::agent_token_elsewhere(
        json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"},
               "server": {"url": "https://elsewhere"}}),
        "spec.server doesn't go with gateway-kubernetes-auth"
    )]
    #[case::plain_http(json!({"token": "t", "server": {"url": "http://elsewhere"}}), "spec.server.url")]
    #[case::unknown_field(json!({"token": "t", "tokne": "u"}), "spec: unknown field `tokne`")]
    fn refuses_by_name(#[case] spec: serde_json::Value, #[case] message: &str) {
        let error = SessionSpec::parse(spec).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn a_token_is_never_shown() {
        let spec = SessionSpec::parse(json!({"token": "very-secret"})).unwrap();
        assert!(!format!("{spec:?}").contains("very-secret"));
        let error = SessionSpec::parse(json!({"token": "very\nsecret"})).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    }
}
