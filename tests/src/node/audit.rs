//! The agent's audit log, read back.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// What the names of the agent's annotations begin with.
const PREFIX: &str = "understudy.dev/";

/// One event of it, an `audit.k8s.io/v1` `Event`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// How much is written of it.
    pub level: String,
    /// The id that the API server's own audit log has as well.
    #[serde(rename = "auditID")]
    pub audit_id: String,
    /// `ResponseStarted` or `ResponseComplete`.
    pub stage: String,
    /// The path and query.
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// As in RBAC for a resource, else the method in lower case.
    pub verb: String,
    /// Who asked.
    pub user: AuditUser,
    /// Who acted upstream.
    #[serde(default)]
    pub impersonated_user: Option<AuditUser>,
    /// From where.
    #[serde(default, rename = "sourceIPs")]
    pub source_ips: Vec<String>,
    /// What the client calls itself.
    #[serde(default)]
    pub user_agent: Option<String>,
    /// What was asked for.
    #[serde(default)]
    pub object_ref: Option<BTreeMap<String, String>>,
    /// What was answered.
    #[serde(default)]
    pub response_status: Option<Value>,
    /// The request's body, where it is written.
    #[serde(default)]
    pub request_object: Option<Value>,
    /// The answer's body, where it is written.
    #[serde(default)]
    pub response_object: Option<Value>,
    /// What only one of the two logs knows.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A user.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditUser {
    /// The name; empty if it isn't known.
    pub username: String,
    /// The UID.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// The extra values.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl AuditEvent {
    /// What one of the agent's annotations says.
    #[must_use]
    pub fn said(&self, name: &str) -> Option<&str> {
        self.annotations.get(&format!("{PREFIX}{name}")).map(String::as_str)
    }

    /// Its session, `namespace/name`.
    #[must_use]
    pub fn session(&self) -> Option<&str> {
        self.said("session")
    }

    /// The pod's name.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        self.said("pod")
    }

    /// Why it was refused; none where it was forwarded.
    #[must_use]
    pub fn refused(&self) -> Option<&str> {
        self.said("refused")
    }

    /// The answer's status.
    #[must_use]
    pub fn code(&self) -> Option<u64> {
        self.response_status.as_ref()?["code"].as_u64()
    }

    /// Whether its request has come to its end.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.stage == "ResponseComplete"
    }
}

/// The events at their last stage; what it lacks is for [`gaps`].
pub(crate) fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    Ok(stages(path)?.into_iter().filter(AuditEvent::is_complete).collect())
}

/// The events at every stage.
pub(crate) fn stages(path: &Path) -> Result<Vec<AuditEvent>> {
    lines(path)?
        .into_iter()
        .filter(|line| lost(line).is_none())
        .map(|line| serde_json::from_value(line.clone()).with_context(|| format!("this is no audit event: {line}")))
        .collect()
}

/// How many events each gap lacks.
pub(crate) fn gaps(path: &Path) -> Result<Vec<u64>> {
    let lines = lines(path)?;
    let gaps = lines.iter().filter_map(lost);
    gaps.map(|lost| lost.parse().with_context(|| format!("this is no gap: {lost}")))
        .collect()
}

fn lost(line: &Value) -> Option<&str> {
    line["annotations"][format!("{PREFIX}lost")].as_str()
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading the audit log {}", path.display()))?;
    // The last line may still be on its way.
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).with_context(|| format!("this is no JSON: {line}"))?;
            ensure!(
                line["kind"] == "Event" && line["apiVersion"] == "audit.k8s.io/v1",
                "this is no event: {line}"
            );
            Ok(line)
        })
        .collect()
}
