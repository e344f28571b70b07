//! The text of a session as it stands in a file or in a resource: shapes for serde, nothing parsed further.

use std::{collections::BTreeMap, path::PathBuf};

use secrecy::SecretString;
use serde::Deserialize;

use super::refuse::RequestRule;

/// A document's outer layer, read first, so that a bad `spec` leaves the pods known.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Envelope {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: serde_json::Value,
    #[serde(default)]
    pub(super) pods: Vec<PodManifest>,
}

/// Labels, annotations and the like are allowed and not looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PodManifest {
    pub(super) name: Option<String>,
    pub(super) cgroup: PathBuf,
    pub(super) uid: Option<String>,
    pub(super) service_account_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct SpecManifest {
    pub(super) auth_method: String,
    pub(super) impersonate: Option<ImpersonateManifest>,
    pub(super) token: Option<SecretString>,
    pub(super) token_file: Option<PathBuf>,
    pub(super) server: Option<ServerManifest>,
    pub(super) token_secret_ref: Option<SecretRefManifest>,
    /// Parsed by ourselves: the parser of times quotes what it refuses, and that may be a token.
    pub(super) expires_at: Option<String>,
    pub(super) ttl: Option<String>,
    pub(super) idle_timeout: Option<String>,
    pub(super) refuse: Option<Vec<RequestRule>>,
    pub(super) tell_session: Option<bool>,
    pub(super) caller_identity: Option<CallerIdentityManifest>,
    pub(super) require_pod_token: Option<bool>,
    pub(super) recording: Option<String>,
    pub(super) record_stdin: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CallerIdentityManifest {
    #[serde(rename = "signerCA")]
    pub(super) signer_ca: Option<String>,
    #[serde(rename = "signerCAFile")]
    pub(super) signer_ca_file: Option<PathBuf>,
    #[serde(rename = "clusterClientCA")]
    pub(super) cluster_client_ca: Option<bool>,
    pub(super) audiences: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SecretRefManifest {
    pub(super) name: String,
    pub(super) key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ImpersonateManifest {
    pub(super) namespace: Option<String>,
    pub(super) service_account_name: Option<String>,
    pub(super) user: Option<String>,
    pub(super) groups: Vec<String>,
    pub(super) uid: Option<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ServerManifest {
    pub(super) url: String,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) ca_bundle: Option<String>,
    pub(super) server_name: Option<String>,
    #[serde(rename = "insecureSkipTLSVerify")]
    pub(super) insecure_skip_tls_verify: Option<bool>,
}

/// A parser's message without what it quotes of the file: a value in the wrong place may be a token. Short names in
/// back-quotes stay, for they are what is to be mended.
pub(crate) fn without_values(message: &str) -> String {
    const NAME: usize = 24;
    let mut shown = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = rest.find(['"', '`']) {
        let quote = if rest[start..].starts_with('"') { '"' } else { '`' };
        let (before, quoted) = (&rest[..=start], &rest[start + 1..]);
        // A value may hold quotes itself. What follows an unknown name is ours, and begins as serde has it.
        let end = if quote == '"' {
            quoted.rfind(quote)
        } else {
            let after = ["`, expected", "`, there are no"];
            let ours = after.iter().filter_map(|after| quoted.rfind(after)).max();
            ours.or_else(|| quoted.find(quote))
        };
        shown.push_str(before);
        let Some(end) = end else {
            shown.push_str("...");
            return shown;
        };
        shown.push_str(if quote == '`' && end <= NAME {
            &quoted[..end]
        } else {
            "..."
        });
        shown.push(quote);
        rest = &quoted[end + 1..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("unknown field `tokne`, expected `token`", "unknown field `tokne`, expected `token`")]
    #[case("unknown field `eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9.e30.x`", "unknown field `...`")]
    #[case(
        r#"invalid type: string "s3cr3t", expected a map"#,
        r#"invalid type: string "...", expected a map"#
    )]
    #[case(r#"string "a\"b", expected "c""#, r#"string "...""#)]
    #[case("line 3 column 4: no end", "line 3 column 4: no end")]
    #[case(
        "unknown field `to```ken-that-is-a-secret-in-itself``s`, expected one of `token`, `ttl`",
        "unknown field `...`, expected one of `token`, `ttl`"
    )]
    #[case(
        "unknown field `a`b-secret`, there are no fields",
        "unknown field `a`b-secret`, there are no fields"
    )]
    #[case("unknown field `s3cr3t", "unknown field `...")]
    fn quotes_nothing_long(#[case] message: &str, #[case] shown: &str) {
        assert_eq!(without_values(message), shown);
    }
}
