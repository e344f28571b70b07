//! A small RBAC: which verbs on which resources and paths a user or group may use. Nothing is allowed that no
//! rule allows. The rules come from one YAML file, whose fields are those of a Kubernetes `PolicyRule` with its
//! subjects and namespaces beside it.

use std::str::FromStr;

use serde::Deserialize;

use super::{
    auth::{AUTHENTICATED, UNAUTHENTICATED, UserInfo},
    request::{Attributes, ResourceTarget, Target},
    status::Status,
};

/// The group that may do everything, as in kube-apiserver.
const MASTERS: &str = "system:masters";

/// Why a rules file is refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// It isn't YAML of the right form.
    #[error("the rules are not valid: {0}")]
    Yaml(String),
    /// A rule names nobody.
    #[error("rule {0} names no users, groups or serviceAccounts")]
    Nobody(usize),
}

/// Everything that is allowed.
#[derive(Debug, Clone, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Vec<Rule>,
}

/// One permission. Every list is "any of"; `*` stands for all.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Users by name.
    #[serde(default)]
    pub users: Vec<String>,
    /// Groups by name.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Service accounts as `namespace/name`.
    #[serde(default)]
    pub service_accounts: Vec<String>,
    /// The verbs.
    pub verbs: Vec<String>,
    /// The API groups; not given is all of them.
    #[serde(default = "all")]
    pub api_groups: Vec<String>,
    /// The resources, `pods/log` for a subresource.
    #[serde(default)]
    pub resources: Vec<String>,
    /// The objects by name; not given is all.
    #[serde(default)]
    pub resource_names: Vec<String>,
    /// The namespaces; not given is all, and the cluster scope.
    #[serde(default)]
    pub namespaces: Vec<String>,
    /// Paths, with `*` at the end for "and all below".
    #[serde(default, rename = "nonResourceURLs")]
    pub non_resource_urls: Vec<String>,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

impl FromStr for Rules {
    type Err = RulesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| RulesError::Yaml(error.to_string()))?;
        let nobody = file
            .rules
            .iter()
            .position(|rule| rule.users.is_empty() && rule.groups.is_empty() && rule.service_accounts.is_empty());
        match nobody {
            Some(index) => Err(RulesError::Nobody(index + 1)),
            None => Ok(Self(file.rules)),
        }
    }
}

impl Rules {
    /// What every cluster allows from its start: discovery and reviews of oneself for all who are
    /// authenticated, health and version for everybody, and everything for `system:masters`.
    pub(crate) fn with_defaults(mut self) -> Self {
        let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect::<Vec<_>>();
        self.0.extend([
            Rule {
                groups: list(&[AUTHENTICATED]),
                verbs: list(&["get"]),
                non_resource_urls: list(&["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"]),
                ..Rule::default()
            },
            Rule {
                groups: list(&[AUTHENTICATED]),
                verbs: list(&["*"]),
                non_resource_urls: list(&["/understudy/*"]),
                ..Rule::default()
            },
            Rule {
                groups: list(&[AUTHENTICATED, UNAUTHENTICATED]),
                verbs: list(&["get"]),
                non_resource_urls: list(&[
                    "/healthz",
                    "/livez",
                    "/livez/*",
                    "/readyz",
                    "/readyz/*",
                    "/version",
                    "/version/",
                ]),
                ..Rule::default()
            },
            Rule {
                groups: list(&[AUTHENTICATED]),
                verbs: list(&["create"]),
                api_groups: list(&["authentication.k8s.io", "authorization.k8s.io"]),
                resources: list(&[
                    "selfsubjectreviews",
                    "selfsubjectaccessreviews",
                    "selfsubjectrulesreviews",
                ]),
                ..Rule::default()
            },
        ]);
        self
    }

    /// True if some rule allows it.
    #[must_use]
    pub fn allow(&self, user: &UserInfo, attributes: &Attributes) -> bool {
        user.is_in(MASTERS) || self.0.iter().any(|rule| rule.names(user) && rule.covers(attributes))
    }

    /// Lets through what some rule allows.
    ///
    /// # Errors
    /// 403, in kube-apiserver's words, for everything else.
    pub fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Result<(), Status> {
        if self.allow(user, attributes) {
            Ok(())
        } else {
            Err(Status::forbidden(&user.username, attributes))
        }
    }
}

impl Rule {
    fn names(&self, user: &UserInfo) -> bool {
        contains(&self.users, &user.username)
            || user.groups.iter().any(|group| contains(&self.groups, group))
            || self.service_accounts.iter().any(|account| {
                account.split_once('/').is_some_and(|(namespace, name)| {
                    user.username == format!("system:serviceaccount:{namespace}:{name}")
                })
            })
    }

    fn covers(&self, attributes: &Attributes) -> bool {
        contains(&self.verbs, &attributes.verb)
            && match &attributes.target {
                Target::Path(path) => self.non_resource_urls.iter().any(|allowed| {
                    allowed == path || allowed.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix))
                }),
                Target::Resource(target) => self.covers_resource(target),
            }
    }

    fn covers_resource(&self, target: &ResourceTarget) -> bool {
        let named = |resource: &String| {
            if target.subresource.is_empty() {
                *resource == "*" || *resource == target.resource
            } else {
                // As in Kubernetes, `*` covers subresources, and a resource alone doesn't.
                *resource == "*"
                    || resource.split_once('/').is_some_and(|(parent, sub)| {
                        (parent == "*" || parent == target.resource) && sub == target.subresource
                    })
            }
        };
        contains(&self.api_groups, &target.group)
            && self.resources.iter().any(named)
            && (self.resource_names.is_empty() || self.resource_names.contains(&target.name))
            && (self.namespaces.is_empty() || contains(&self.namespaces, &target.namespace))
    }
}

fn contains(list: &[String], item: &str) -> bool {
    list.iter().any(|own| own == "*" || own == item)
}

#[cfg(test)]
mod tests {
    use http::{Method, Uri};
    use rstest::rstest;

    use super::*;

    const RULES: &str = r#"
rules:
- users: [alice]
  verbs: [get, list]
  resources: [pods, pods/log]
  namespaces: [prod]
- serviceAccounts: [prod/viewer]
  verbs: ["*"]
  apiGroups: [""]
  resources: ["*"]
- groups: [ops]
  verbs: [get]
  resources: [configmaps]
  resourceNames: [one]
- groups: [ops]
  verbs: [get]
  nonResourceURLs: ["/metrics", "/logs/*"]
"#;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo {
            username: name.to_owned(),
            groups: groups.iter().map(|&group| group.to_owned()).collect(),
            ..UserInfo::default()
        }
    }

    #[rstest]
    #[case("alice", &[], "GET", "/api/v1/namespaces/prod/pods", true)]
    #[case("alice", &[], "GET", "/api/v1/namespaces/prod/pods/a/log", true)]
    #[case("alice", &[], "POST", "/api/v1/namespaces/prod/pods/a/exec", false)]
    #[case("alice", &[], "GET", "/api/v1/namespaces/prod/pods?watch=1", false)]
    #[case("alice", &[], "GET", "/api/v1/namespaces/dev/pods", false)]
    #[case("alice", &[], "GET", "/api/v1/pods", false)]
    #[case("bob", &[], "GET", "/api/v1/namespaces/prod/pods", false)]
    #[case("system:serviceaccount:prod:viewer", &[], "POST", "/api/v1/namespaces/x/pods/a/exec", true)]
    #[case("system:serviceaccount:prod:viewer", &[], "GET", "/apis/apps/v1/deployments", false)]
    #[case("carol", &["ops"], "GET", "/api/v1/namespaces/x/configmaps/one", true)]
    #[case("carol", &["ops"], "GET", "/api/v1/namespaces/x/configmaps/two", false)]
    #[case("carol", &["ops"], "GET", "/api/v1/namespaces/x/configmaps", false)]
    #[case("carol", &["ops"], "GET", "/metrics", true)]
    #[case("carol", &["ops"], "GET", "/logs/a", true)]
    #[case("carol", &["ops"], "GET", "/metrics/a", false)]
    #[case("root", &[MASTERS], "DELETE", "/api/v1/nodes/a", true)]
    #[case("x", &[UNAUTHENTICATED], "GET", "/version", true)]
    #[case("x", &[UNAUTHENTICATED], "GET", "/api", false)]
    #[case("x", &[AUTHENTICATED], "GET", "/api", true)]
    #[case("x", &[AUTHENTICATED], "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", true)]
    fn verdicts(
        #[case] name: &str,
        #[case] groups: &[&str],
        #[case] method: Method,
        #[case] uri: Uri,
        #[case] allowed: bool,
    ) {
        let rules = RULES.parse::<Rules>().unwrap().with_defaults();
        assert_eq!(
            rules.allow(&user(name, groups), &Attributes::of(&method, &uri)),
            allowed
        );
    }

    #[test]
    fn a_rule_for_nobody_is_refused() {
        let error = "rules: [{verbs: [get], resources: [pods]}]"
            .parse::<Rules>()
            .unwrap_err();
        assert!(matches!(error, RulesError::Nobody(1)));
    }
}
