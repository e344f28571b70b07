//! The agent's audit log, read back.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// One line of it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// `namespace/name`.
    #[serde(default)]
    pub session: Option<String>,
    /// The pod's name.
    #[serde(default)]
    pub pod: Option<String>,
    /// Who acted upstream.
    #[serde(default)]
    pub acts_as: Option<Value>,
    /// The HTTP method.
    pub verb: String,
    /// The path and query.
    pub uri: String,
    /// The answer's status.
    #[serde(default)]
    pub code: Option<u16>,
    /// Why it was refused; none where it was forwarded.
    #[serde(default)]
    pub refused: Option<String>,
    /// The rest of it.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// The events; what it lacks is for [`gaps`].
pub(crate) fn read(path: &Path) -> Result<Vec<AuditEvent>> {
    lines(path)?
        .into_iter()
        .filter(|line| line.get("gap").is_none())
        .map(|line| serde_json::from_value(line.clone()).with_context(|| format!("this is no audit event: {line}")))
        .collect()
}

/// How many events each gap lacks.
pub(crate) fn gaps(path: &Path) -> Result<Vec<u64>> {
    let lines = lines(path)?;
    let gaps = lines.iter().filter_map(|line| line.get("gap"));
    gaps.map(|gap| gap["lost"].as_u64().with_context(|| format!("this is no gap: {gap}")))
        .collect()
}

fn lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading the audit log {}", path.display()))?;
    // The last line may still be on its way.
    let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("this is no JSON: {line}")))
        .collect()
}
