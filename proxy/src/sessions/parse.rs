//! From what is written in a session to what it says. One parser for both forms, files and resources, so that they
//! can't come to mean different things.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;

use super::{
    duration,
    manifest::{ImpersonateManifest, SecretRefManifest, ServerManifest, SpecManifest, without_values},
    refuse::RequestRules,
    spec::{
        AuthMethod, GATEWAY_KUBERNETES_AUTH, Policy, SERVICE_ACCOUNT_TOKEN, Server, SessionSpec, SpecError,
        TokenSource, VerifiedBy,
    },
};
use crate::{
    credentials::BearerToken,
    identity::ActsAs,
    pod::is_dns1123_subdomain,
    trust::{roots::CaBundle, unverified::Unverified},
    upstream::target::Target,
};

/// The key in a Secret's data where none is named.
const TOKEN_KEY: &str = "token";

/// Where a session is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Form {
    /// In a file of the node's.
    File,
    /// In a Session resource, made at this time.
    Resource {
        /// `metadata.creationTimestamp`.
        created: Option<Timestamp>,
    },
}

/// Parses a `spec`.
pub(super) fn spec(written: serde_json::Value, form: Form, policy: Policy) -> Result<SessionSpec, SpecError> {
    let written = if written.is_null() {
        serde_json::Value::Object(serde_json::Map::new())
    } else {
        written
    };
    let manifest: SpecManifest =
        serde_json::from_value(written).map_err(|error| SpecError::Shape(without_values(&error.to_string())))?;
    is_of_the_form(&manifest, form)?;
    let expires_at = expires_at(&manifest, form)?;
    let idle_timeout = manifest
        .idle_timeout
        .as_deref()
        .map(|text| duration::parse("spec.idleTimeout", text))
        .transpose()?;
    let tell_session = manifest.tell_session.unwrap_or_default();
    let method = method(&manifest, form, policy)?;
    if tell_session && method.acts_as().is_none() {
        return Err(SpecError::Conflict {
            field: "spec.tellSession",
            with: SERVICE_ACCOUNT_TOKEN,
        });
    }
    Ok(SessionSpec {
        method,
        expires_at,
        idle_timeout,
        refuse: RequestRules::parse(manifest.refuse)?,
        tell_session,
    })
}

/// A resource names nothing on a node, and a file nothing in a cluster.
fn is_of_the_form(manifest: &SpecManifest, form: Form) -> Result<(), SpecError> {
    let server = manifest.server.as_ref();
    let has_ca_file = server.is_some_and(|server| server.ca_file.is_some());
    let has_ca_bundle = server.is_some_and(|server| server.ca_bundle.is_some());
    let (form, others) = match form {
        Form::File => (
            "a session file",
            [
                (
                    "spec.tokenSecretRef",
                    "spec.tokenFile",
                    manifest.token_secret_ref.is_some(),
                ),
                ("spec.ttl", "spec.expiresAt", manifest.ttl.is_some()),
                ("spec.server.caBundle", "spec.server.caFile", has_ca_bundle),
            ],
        ),
        Form::Resource { .. } => (
            "a Session resource",
            [
                ("spec.token", "spec.tokenSecretRef", manifest.token.is_some()),
                ("spec.tokenFile", "spec.tokenSecretRef", manifest.token_file.is_some()),
                ("spec.server.caFile", "spec.server.caBundle", has_ca_file),
            ],
        ),
    };
    match others.into_iter().find(|(_, _, given)| *given) {
        None => Ok(()),
        Some((field, instead, _)) => Err(SpecError::OtherForm { field, form, instead }),
    }
}

fn expires_at(manifest: &SpecManifest, form: Form) -> Result<Option<Timestamp>, SpecError> {
    let (Some(ttl), Form::Resource { created }) = (&manifest.ttl, form) else {
        return Ok(manifest.expires_at);
    };
    if manifest.expires_at.is_some() {
        return Err(SpecError::Conflict {
            field: "spec.ttl",
            with: "spec.expiresAt",
        });
    }
    let ttl = duration::parse("spec.ttl", ttl)?;
    let created = created.ok_or(SpecError::Empty("metadata.creationTimestamp"))?;
    let end = SignedDuration::try_from(ttl)
        .ok()
        .and_then(|ttl| created.checked_add(ttl).ok());
    // Beyond the calendar's end is as good as never.
    Ok(Some(end.unwrap_or(Timestamp::MAX)))
}

fn method(manifest: &SpecManifest, form: Form, policy: Policy) -> Result<AuthMethod, SpecError> {
    match manifest.auth_method.as_str() {
        "" | SERVICE_ACCOUNT_TOKEN => {
            if manifest.impersonate.is_some() {
                return Err(SpecError::Conflict {
                    field: "spec.impersonate",
                    with: SERVICE_ACCOUNT_TOKEN,
                });
            }
            let token = token(manifest, form)?;
            let server = manifest.server.as_ref().map(|written| server(written, policy));
            Ok(AuthMethod::ServiceAccountToken(token, server.transpose()?))
        }
        GATEWAY_KUBERNETES_AUTH => {
            for (field, given) in [
                ("spec.token", manifest.token.is_some()),
                ("spec.tokenFile", manifest.token_file.is_some()),
                ("spec.tokenSecretRef", manifest.token_secret_ref.is_some()),
                // The agent's own token goes to the pinned API server and nowhere else (invariant 3).
                ("spec.server", manifest.server.is_some()),
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

fn token(manifest: &SpecManifest, form: Form) -> Result<TokenSource, SpecError> {
    if let Some(secret) = &manifest.token_secret_ref {
        return in_secret(secret);
    }
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
            field: match form {
                Form::File => "spec.token (or spec.tokenFile)",
                Form::Resource { .. } => "spec.tokenSecretRef",
            },
            method: SERVICE_ACCOUNT_TOKEN,
        }),
    }
}

fn in_secret(secret: &SecretRefManifest) -> Result<TokenSource, SpecError> {
    let key = secret.key.as_deref().unwrap_or(TOKEN_KEY);
    // As `k8s.io/apimachinery/pkg/util/validation` has it (IsConfigMapKey).
    let is_key = key.len() <= 253
        && !matches!(key, "." | "..")
        && key
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    for (field, value, valid) in [
        (
            "spec.tokenSecretRef.name",
            secret.name.as_str(),
            is_dns1123_subdomain(&secret.name),
        ),
        ("spec.tokenSecretRef.key", key, is_key),
    ] {
        if value.is_empty() {
            return Err(SpecError::Empty(field));
        }
        if !valid {
            return Err(SpecError::Name {
                field,
                value: value.chars().take(32).collect(),
            });
        }
    }
    Ok(TokenSource::Secret {
        name: secret.name.clone(),
        key: key.to_owned(),
    })
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

fn server(written: &ServerManifest, policy: Policy) -> Result<Server, SpecError> {
    let target = Target::parse(&written.url, written.server_name.as_deref())?;
    let insecure = written.insecure_skip_tls_verify.unwrap_or_default();
    let verified_by = match (&written.ca_file, &written.ca_bundle) {
        (Some(_), _) if insecure => return Err(insecure_with("spec.server.caFile")),
        (_, Some(_)) if insecure => return Err(insecure_with("spec.server.caBundle")),
        (Some(path), _) => VerifiedBy::File(absolute("spec.server.caFile", path)?),
        (None, Some(pem)) => VerifiedBy::Bundle(CaBundle::parse("spec.server.caBundle", pem)?),
        (None, None) if insecure && !policy.allow_insecure_servers => return Err(SpecError::InsecureNotAllowed),
        (None, None) if insecure => VerifiedBy::Nobody(Unverified::new()?),
        (None, None) => VerifiedBy::Cluster,
    };
    Ok(Server { target, verified_by })
}

fn insecure_with(with: &'static str) -> SpecError {
    SpecError::Conflict {
        field: "spec.server.insecureSkipTLSVerify",
        with,
    }
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
