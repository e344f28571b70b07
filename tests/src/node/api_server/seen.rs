//! What an API server saw of a request, as far as tests compare it.

use std::{collections::BTreeMap, net::IpAddr};

/// One request, as the API server took it.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    /// The HTTP method.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// Who it was served as; empty where authentication failed.
    pub user: String,
    /// That user's UID; empty if there is none.
    pub uid: String,
    /// That user's groups.
    pub groups: Vec<String>,
    /// That user's extra.
    pub extra: BTreeMap<String, Vec<String>>,
    /// Who impersonated that user.
    pub impersonator: Option<String>,
    /// Where the connection came from.
    pub from: Option<IpAddr>,
    /// The answer's status, once there is one.
    pub code: Option<u16>,
    /// The headers as they came; a real kube-apiserver doesn't tell.
    pub headers: Option<Vec<(String, String)>>,
    /// The connection it came on; a real kube-apiserver doesn't tell.
    pub connection: Option<u64>,
}

impl SeenRequest {
    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.split('?').next().unwrap_or_default()
    }

    /// The bearer token that came with it, where the server tells.
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let (_, value) = self
            .headers
            .as_ref()?
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("authorization"))?;
        value.strip_prefix("Bearer ")
    }

    /// Whether any header holds `text`.
    #[must_use]
    pub fn holds(&self, text: &str) -> bool {
        self.headers.iter().flatten().any(|(_, value)| value.contains(text)) || self.uri.contains(text)
    }
}

/// A point in the order of the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(pub(super) u64);
