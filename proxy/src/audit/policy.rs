//! Kubernetes' audit policy (`audit.k8s.io/v1` `Policy`): how much is written down of which request. Rules are matched as
//! kube-apiserver matches them (`k8s.io/apiserver/pkg/audit/policy`, `checker.go`), the first that does counts; a file is
//! refused for what it refuses one for (`pkg/apis/audit/validation`), and for fields that it doesn't know.
//!
//! In two things a rule has another say here. `users` and `userGroups` are of who asked *or* of who acted upstream: the
//! one is the pod, the other the session. And no rule hides that something was done: what changes the cluster, opens a
//! stream into it, or was refused is written at `Metadata` at least.

mod manifest;

use std::path::{Path, PathBuf};

use http::Method;
use percent_encoding::percent_decode_str;

pub use self::manifest::Fault;
use super::{event, event::Level, user::User};
use crate::{
    files::{self, ReadError},
    request_info::{Reading, RequestInfo, ResourceRequest},
};

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The file can't be read.
    #[error("the audit policy cannot be read: {0}")]
    Unreadable(#[from] ReadError),
    /// It isn't YAML of that form.
    #[error("the audit policy {path}: {reason}: write it as an audit.k8s.io/v1 Policy")]
    Form {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It is, and says what can't be meant.
    #[error("the audit policy {path}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// All that is wrong with it.
        faults: Vec<Fault>,
    },
}

/// How much is written down of which request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
    /// What holds where no rule matches.
    otherwise: Extent,
}

/// How much is written of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The level.
    pub level: Level,
    /// Whether its beginning isn't written.
    pub omit_started: bool,
    /// Whether its end isn't.
    pub omit_complete: bool,
    /// Whether `metadata.managedFields` of objects is left out.
    pub omit_managed_fields: bool,
}

/// A rule; a list without entries asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Rule {
    extent: Extent,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    non_resource_urls: Vec<String>,
}

/// Resources of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What rules ask about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'r> {
    /// Who asked, and who acted upstream, as far as known.
    pub(crate) users: [Option<&'r User>; 2],
    pub(crate) reading: &'r Reading,
    pub(crate) method: &'r str,
    /// Path and query.
    pub(crate) uri: &'r str,
    /// It goes on in another protocol.
    pub(crate) is_upgraded: bool,
    /// The agent answered it itself.
    pub(crate) is_refused: bool,
}

impl Default for Extent {
    /// Metadata, at every stage.
    fn default() -> Self {
        Self {
            level: Level::Metadata,
            omit_started: false,
            omit_complete: false,
            omit_managed_fields: false,
        }
    }
}

impl Extent {
    /// Whether the request leaves no event.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.level == Level::None || self.omit_complete
    }
}

impl Default for Policy {
    /// Metadata for every request.
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            otherwise: Extent::default(),
        }
    }
}

impl Policy {
    /// Reads a policy's file.
    ///
    /// # Errors
    /// If it can't be read, or isn't a policy that kube-apiserver would take; all that is wrong with it is named.
    pub async fn load(path: &Path) -> Result<Self, PolicyError> {
        let text = files::read(path).await?;
        Self::parse(&String::from_utf8_lossy(&text), path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, PolicyError> {
        manifest::read(text)
            .map_err(|reason| PolicyError::Form {
                path: path.to_owned(),
                reason,
            })?
            .map_err(|faults| PolicyError::Invalid {
                path: path.to_owned(),
                faults,
            })
    }

    /// How much is written of a request.
    pub(crate) fn extent(&self, asked: &Attributes<'_>) -> Extent {
        let matching = self.rules.iter().find(|rule| rule.matches(asked));
        let extent = matching.map_or(self.otherwise, |rule| rule.extent);
        if extent.is_silent() && asked.must_be_written() {
            return Extent {
                level: extent.level.max(Level::Metadata),
                omit_complete: false,
                ..extent
            };
        }
        extent
    }
}

impl Rule {
    fn matches(&self, asked: &Attributes<'_>) -> bool {
        let users = || asked.users.into_iter().flatten();
        if !self.users.is_empty() && !users().any(|user| has(&self.users, user.name())) {
            return false;
        }
        let in_group = |user: &User| user.groups().iter().any(|group| has(&self.user_groups, group));
        if !self.user_groups.is_empty() && !users().any(in_group) {
            return false;
        }
        if !self.verbs.is_empty() && !has(&self.verbs, &event::verb(asked.reading, asked.method)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return asked.resource().is_some_and(|request| self.matches_resource(request));
        }
        if !self.non_resource_urls.is_empty() {
            return asked.resource().is_none() && self.matches_path(asked.uri);
        }
        true
    }

    fn matches_resource(&self, request: &ResourceRequest) -> bool {
        if !self.namespaces.is_empty() && !has(&self.namespaces, &request.namespace) {
            return false;
        }
        self.resources.is_empty() || self.resources.iter().any(|group| group.matches(request))
    }

    fn matches_path(&self, uri: &str) -> bool {
        let path = uri.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8_lossy();
        self.non_resource_urls.iter().any(|url| {
            let beneath = url.strip_suffix('*').map(|before| before.trim_end_matches('*'));
            *url == path || beneath.is_some_and(|before| path.starts_with(before))
        })
    }
}

impl GroupResources {
    fn matches(&self, request: &ResourceRequest) -> bool {
        if self.group != request.api_group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        if !self.resource_names.is_empty() && !has(&self.resource_names, &request.name) {
            return false;
        }
        let (resource, subresource) = (request.resource.as_str(), request.subresource.as_str());
        self.resources.iter().any(|pattern| {
            pattern == "*"
                || match pattern.split_once('/') {
                    None => subresource.is_empty() && pattern == resource,
                    Some((of, "*")) => of == resource,
                    Some(("*", part)) => !subresource.is_empty() && part == subresource,
                    Some((of, part)) => of == resource && part == subresource,
                }
        })
    }
}

impl Attributes<'_> {
    fn resource(&self) -> Option<&ResourceRequest> {
        match self.reading {
            Ok(RequestInfo::Resource(request)) => Some(request),
            _ => None,
        }
    }

    /// Whether something was done, tried, or can't be told from it.
    fn must_be_written(&self) -> bool {
        if self.is_refused || self.is_upgraded {
            return true;
        }
        match self.reading {
            Ok(RequestInfo::Resource(request)) => {
                let reads = matches!(request.verb, "get" | "list" | "watch");
                let streams = matches!(
                    request.subresource.as_str(),
                    "exec" | "attach" | "portforward" | "proxy"
                );
                !reads || streams
            }
            Ok(RequestInfo::NonResource) => ![Method::GET, Method::HEAD, Method::OPTIONS]
                .iter()
                .any(|reading| reading.as_str() == self.method),
            Err(_) => true,
        }
    }
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|entry| entry == value)
}

#[cfg(test)]
mod tests;
