//! From what is written in a session to what it says. One parser for both forms, files and resources, so that they
//! can't come to mean different things.

use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;

use super::{
    duration,
    manifest::{
        CallerIdentityManifest, ImpersonateManifest, SecretRefManifest, ServerManifest, SpecManifest, without_values,
    },
    refuse::RequestRules,
    spec::{
        AuthMethod, CALLER_IDENTITY, CallerIdentity, GATEWAY_KUBERNETES_AUTH, Policy, SERVICE_ACCOUNT_TOKEN, Server,
        SessionSpec, Signer, SpecError, TokenSource, VerifiedBy,
    },
};
use crate::{
    caller::authorities::SignerBundle,
    credentials::BearerToken,
    identity::ActsAs,
    pod::is_dns1123_subdomain,
    recording::policy::Terms,
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
    let recording = recording(&manifest)?;
    let method = method(&manifest, form, policy)?;
    if tell_session && matches!(method, AuthMethod::ServiceAccountToken(..)) {
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
        require_pod_token: manifest.require_pod_token.unwrap_or_default(),
        recording,
    })
}

/// A resource names nothing on a node, and a file nothing in a cluster.
fn is_of_the_form(manifest: &SpecManifest, form: Form) -> Result<(), SpecError> {
    let server = manifest.server.as_ref();
    let has_ca_file = server.is_some_and(|server| server.ca_file.is_some());
    let has_ca_bundle = server.is_some_and(|server| server.ca_bundle.is_some());
    let caller = manifest.caller_identity.as_ref();
    let has_signer_file = caller.is_some_and(|caller| caller.signer_ca_file.is_some());
    let (form, others) = match form {
        Form::File => (
            "a session file",
            vec![
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
            vec![
                ("spec.token", "spec.tokenSecretRef", manifest.token.is_some()),
                ("spec.tokenFile", "spec.tokenSecretRef", manifest.token_file.is_some()),
                ("spec.server.caFile", "spec.server.caBundle", has_ca_file),
                (
                    "spec.callerIdentity.signerCAFile",
                    "spec.callerIdentity.signerCA",
                    has_signer_file,
                ),
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
        let written = manifest.expires_at.as_deref();
        let parsed = written.map(|text| text.parse().map_err(|_| SpecError::Time("spec.expiresAt")));
        return parsed.transpose();
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
            none_of(
                SERVICE_ACCOUNT_TOKEN,
                [
                    ("spec.impersonate", manifest.impersonate.is_some()),
                    ("spec.callerIdentity", manifest.caller_identity.is_some()),
                ],
            )?;
            let token = token(manifest, form)?;
            let server = manifest.server.as_ref().map(|written| server(written, policy));
            Ok(AuthMethod::ServiceAccountToken(token, server.transpose()?))
        }
        GATEWAY_KUBERNETES_AUTH => {
            agents_own_token(GATEWAY_KUBERNETES_AUTH, manifest)?;
            none_of(
                GATEWAY_KUBERNETES_AUTH,
                [("spec.callerIdentity", manifest.caller_identity.is_some())],
            )?;
            let impersonate = manifest.impersonate.as_ref().ok_or(SpecError::Missing {
                field: "spec.impersonate",
                method: GATEWAY_KUBERNETES_AUTH,
            })?;
            acts_as(impersonate).map(AuthMethod::GatewayKubernetesAuth)
        }
        CALLER_IDENTITY => {
            agents_own_token(CALLER_IDENTITY, manifest)?;
            none_of(CALLER_IDENTITY, [("spec.impersonate", manifest.impersonate.is_some())])?;
            let written = manifest.caller_identity.as_ref();
            written
                .map_or_else(|| caller_identity(&CallerIdentityManifest::default()), caller_identity)
                .map(AuthMethod::CallerIdentity)
        }
        // A long one may be a token in the wrong place.
        other if other.len() > 32 => Err(SpecError::UnknownMethod("...".to_owned())),
        other => Err(SpecError::UnknownMethod(other.to_owned())),
    }
}

fn recording(manifest: &SpecManifest) -> Result<Option<Terms>, SpecError> {
    let stdin = manifest.record_stdin.unwrap_or_default();
    let required = match manifest.recording.as_deref() {
        None | Some("none") if stdin => {
            return Err(SpecError::Conflict {
                field: "spec.recordStdin",
                with: "spec.recording none",
            });
        }
        None | Some("none") => return Ok(None),
        Some("best-effort") => false,
        Some("required") => true,
        // A long one may be a token in the wrong place.
        Some(other) if other.len() > 32 => return Err(SpecError::UnknownRecording("...".to_owned())),
        Some(other) => return Err(SpecError::UnknownRecording(other.to_owned())),
    };
    Ok(Some(Terms { required, stdin }))
}

/// The agent's own token goes to the pinned API server and nowhere else (invariant 3), and no other with it.
fn agents_own_token(with: &'static str, manifest: &SpecManifest) -> Result<(), SpecError> {
    none_of(
        with,
        [
            ("spec.token", manifest.token.is_some()),
            ("spec.tokenFile", manifest.token_file.is_some()),
            ("spec.tokenSecretRef", manifest.token_secret_ref.is_some()),
            ("spec.server", manifest.server.is_some()),
        ],
    )
}

fn none_of(with: &'static str, fields: impl IntoIterator<Item = (&'static str, bool)>) -> Result<(), SpecError> {
    match fields.into_iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((field, _)) => Err(SpecError::Conflict { field, with }),
    }
}

fn caller_identity(written: &CallerIdentityManifest) -> Result<CallerIdentity, SpecError> {
    let signer = match (&written.signer_ca, &written.signer_ca_file) {
        (Some(_), Some(_)) => {
            return Err(SpecError::Conflict {
                field: "spec.callerIdentity.signerCAFile",
                with: "spec.callerIdentity.signerCA",
            });
        }
        (Some(pem), None) => Some(Signer::Bundle(SignerBundle::parse(
            "spec.callerIdentity.signerCA",
            pem,
        )?)),
        (None, Some(path)) => Some(Signer::File(absolute("spec.callerIdentity.signerCAFile", path)?)),
        (None, None) => None,
    };
    if written.audiences.iter().any(String::is_empty) {
        return Err(SpecError::Empty("spec.callerIdentity.audiences"));
    }
    Ok(CallerIdentity {
        signer,
        cluster_client_ca: written.cluster_client_ca.unwrap_or(true),
        audiences: written.audiences.as_slice().into(),
    })
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
