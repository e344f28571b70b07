//! What checks rules for Prometheus.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use super::apt;
use crate::command::{is_executable, on_path};
use crate::workspace;

/// promtool: the one on `PATH`, else Debian's, unpacked below `target`, for its package would start a server.
///
/// # Errors
/// Where there is none and it can't be brought.
pub(crate) fn promtool() -> Result<PathBuf> {
    if let Some(path) = on_path("promtool") {
        return Ok(path);
    }
    let directory = workspace::tools().join("prometheus");
    let ours = directory.join("usr/bin/promtool");
    if !is_executable(&ours) {
        apt::unpack("prometheus", &directory)?;
    }
    ensure!(is_executable(&ours), "{} isn't in Debian's package", ours.display());
    Ok(ours)
}
