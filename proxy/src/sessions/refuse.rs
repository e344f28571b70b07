//! Requests that a session refuses, described as RBAC describes them. A rule takes rights away, so where RBAC would
//! not know whether it speaks of a request, this one says yes.

use serde::Deserialize;

use super::spec::SpecError;
use crate::request_info::{Reading, RequestInfo, ResourceRequest};

/// What RBAC knows, and what a rule may name.
const VERBS: [&str; 8] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];

const ANY: &str = "*";

/// Requests that a session refuses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRules(Vec<RequestRule>);

/// One rule as it is written. What it doesn't name, it leaves open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RequestRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    namespaces: Vec<String>,
    resource_names: Vec<String>,
}

impl Default for RequestRules {
    /// `create serviceaccounts/token`: it would make a credential that outlives the session.
    fn default() -> Self {
        Self(vec![RequestRule {
            verbs: vec!["create".to_owned()],
            api_groups: vec![String::new()],
            resources: vec!["serviceaccounts/token".to_owned()],
            ..RequestRule::default()
        }])
    }
}

impl RequestRules {
    /// The rules of `spec.refuse`; the default where there is none.
    ///
    /// # Errors
    /// A rule that can refuse nothing, or names a verb that there isn't: it isn't what was meant.
    pub(super) fn parse(written: Option<Vec<RequestRule>>) -> Result<Self, SpecError> {
        let Some(rules) = written else {
            return Ok(Self::default());
        };
        for rule in &rules {
            for (field, values) in [
                ("spec.refuse.verbs", &rule.verbs),
                ("spec.refuse.resources", &rule.resources),
            ] {
                if values.is_empty() {
                    return Err(SpecError::Empty(field));
                }
            }
            if let Some(resource) = rule.resources.iter().find(|resource| !is_one(resource)) {
                return Err(SpecError::Resource(resource.clone()));
            }
            if let Some(verb) = rule
                .verbs
                .iter()
                .find(|verb| *verb != ANY && !VERBS.contains(&verb.as_str()))
            {
                return Err(SpecError::UnknownVerb(verb.clone()));
            }
        }
        Ok(Self(rules))
    }

    /// Whether a request is refused. Where there are rules, so is one that can be read in more than one way.
    /// `upgrades` says that it asks for another protocol: what begins a stream by GET counts as `create` as well, as
    /// it does when it begins it by POST.
    #[must_use]
    pub fn refuse(&self, reading: &Reading, upgrades: bool) -> bool {
        if self.0.is_empty() {
            return false;
        }
        match reading {
            Err(_) => true,
            Ok(RequestInfo::NonResource) => false,
            Ok(RequestInfo::Resource(request)) => self.0.iter().any(|rule| rule.speaks_of(request, upgrades)),
        }
    }
}

impl RequestRule {
    fn speaks_of(&self, request: &ResourceRequest, upgrades: bool) -> bool {
        let verb = names(&self.verbs, request.verb) || (upgrades && names(&self.verbs, "create"));
        verb && (self.api_groups.is_empty() || names(&self.api_groups, &request.api_group))
            && self.resources.iter().any(|rule| is_resource(rule, request))
            && limited_to(
                &self.namespaces,
                &request.namespace,
                request.name.is_empty() && of_many(request.verb),
            )
            && limited_to(&self.resource_names, &request.name, request.name.is_empty())
    }
}

fn names(list: &[String], value: &str) -> bool {
    list.iter().any(|one| one == ANY || one == value)
}

/// `resource`, `resource/subresource`, or `*` for either.
fn is_one(rule: &str) -> bool {
    let is_name = |name: &str| {
        name == ANY
            || !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
    };
    let (resource, subresource) = rule.split_once('/').unwrap_or((rule, ANY));
    is_name(resource) && is_name(subresource)
}

/// `ResourceMatches` of `k8s.io/kubernetes/pkg/apis/rbac/v1`, and `resource/*` besides.
fn is_resource(rule: &str, request: &ResourceRequest) -> bool {
    if rule == ANY {
        return true;
    }
    match rule.split_once('/') {
        None => rule == request.resource && request.subresource.is_empty(),
        Some((resource, subresource)) => {
            !request.subresource.is_empty()
                && (subresource == ANY || subresource == request.subresource)
                && (resource == ANY || resource == request.resource)
        }
    }
}

/// Whether a rule that is limited to some values speaks of this one. `all`: the request's value is open, so that it
/// concerns those as well.
fn limited_to(values: &[String], value: &str, all: bool) -> bool {
    values.is_empty() || names(values, value) || (value.is_empty() && all)
}

fn of_many(verb: &str) -> bool {
    matches!(verb, "list" | "watch" | "deletecollection")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn refuse(rules: Value, method: &str, target: &str, upgrades: bool) -> bool {
        let written = serde_json::from_value(rules).unwrap();
        let rules = RequestRules::parse(written).unwrap();
        let reading = RequestInfo::parse(&method.parse().unwrap(), &target.parse().unwrap());
        rules.refuse(&reading, upgrades)
    }

    #[rstest]
    #[case("POST", "/api/v1/namespaces/x/serviceaccounts/y/token", true)]
    #[case("POST", "/api/v1/namespaces/x/serviceaccounts/y/%74oken", true)]
    #[case("POST", "/api/v1/namespaces/x/serviceaccounts/y/token/", true)]
    #[case("POST", "/api/v1/namespaces/x/serviceaccounts/y//token", true)]
    #[case("POST", "/api/v1/namespaces/x/pods/../serviceaccounts/y/token", true)]
    #[case("POST", "/api/v1/namespaces/x/serviceaccounts", false)]
    #[case("GET", "/api/v1/namespaces/x/serviceaccounts/y", false)]
    #[case("POST", "/apis/example.org/v1/namespaces/x/serviceaccounts/y/token", false)]
    #[case("GET", "/healthz", false)]
    fn no_credential_is_made_by_default(#[case] method: &str, #[case] target: &str, #[case] refused: bool) {
        assert_eq!(refuse(Value::Null, method, target, false), refused);
    }

    #[test]
    fn an_empty_list_refuses_nothing() {
        for target in ["/api/v1/namespaces/x/serviceaccounts/y/token", "//", "/a/../b"] {
            assert!(!refuse(json!([]), "POST", target, false), "{target}");
        }
    }

    #[rstest]
    #[case::subresource_is_another(json!({"verbs": ["*"], "resources": ["pods"]}), "GET", "/api/v1/namespaces/x/pods/y/log", false)]
    #[case::any_resource(json!({"verbs": ["*"], "resources": ["*"]}), "GET", "/api/v1/namespaces/x/pods/y/log", true)]
    #[case::any_parent(json!({"verbs": ["*"], "resources": ["*/scale"]}), "PUT", "/apis/apps/v1/namespaces/x/deployments/y/scale", true)]
    #[case::any_parent_not_itself(json!({"verbs": ["*"], "resources": ["*/scale"]}), "PUT", "/apis/apps/v1/namespaces/x/deployments/y", false)]
    #[case::any_parent_not_another(json!({"verbs": ["*"], "resources": ["*/scale"]}), "PUT", "/apis/apps/v1/namespaces/x/deployments/y/status", false)]
    #[case::any_child(json!({"verbs": ["*"], "resources": ["pods/*"]}), "GET", "/api/v1/namespaces/x/pods/y/log", true)]
    #[case::any_child_not_itself(json!({"verbs": ["*"], "resources": ["pods/*"]}), "GET", "/api/v1/namespaces/x/pods/y", false)]
    #[case::another_group(json!({"verbs": ["*"], "apiGroups": ["apps"], "resources": ["pods"]}), "GET", "/api/v1/pods", false)]
    #[case::no_group_is_any(json!({"verbs": ["list"], "resources": ["secrets"]}), "GET", "/api/v1/secrets", true)]
    #[case::another_verb(json!({"verbs": ["watch"], "resources": ["secrets"]}), "GET", "/api/v1/secrets", false)]
    #[case::the_verb(json!({"verbs": ["watch"], "resources": ["secrets"]}), "GET", "/api/v1/secrets?watch=1", true)]
    #[case::namespace(json!({"verbs": ["*"], "resources": ["pods"], "namespaces": ["x"]}), "GET", "/api/v1/namespaces/x/pods/y", true)]
    #[case::another_namespace(json!({"verbs": ["*"], "resources": ["pods"], "namespaces": ["x"]}), "GET", "/api/v1/namespaces/z/pods/y", false)]
    #[case::all_namespaces(json!({"verbs": ["*"], "resources": ["pods"], "namespaces": ["x"]}), "GET", "/api/v1/pods", true)]
    #[case::no_namespace(json!({"verbs": ["*"], "resources": ["*"], "namespaces": ["x"]}), "GET", "/api/v1/nodes/n", false)]
    #[case::name(json!({"verbs": ["*"], "resources": ["secrets"], "resourceNames": ["s"]}), "GET", "/api/v1/namespaces/x/secrets/s", true)]
    #[case::another_name(json!({"verbs": ["*"], "resources": ["secrets"], "resourceNames": ["s"]}), "GET", "/api/v1/namespaces/x/secrets/t", false)]
    #[case::all_names(json!({"verbs": ["*"], "resources": ["secrets"], "resourceNames": ["s"]}), "GET", "/api/v1/namespaces/x/secrets", true)]
    #[case::a_name_in_the_body(json!({"verbs": ["*"], "resources": ["secrets"], "resourceNames": ["s"]}), "POST", "/api/v1/namespaces/x/secrets", true)]
    #[case::another_selected(json!({"verbs": ["*"], "resources": ["secrets"], "resourceNames": ["s"]}), "GET", "/api/v1/secrets?fieldSelector=metadata.name=t", false)]
    fn a_rule_speaks_of(#[case] rule: Value, #[case] method: &str, #[case] target: &str, #[case] refused: bool) {
        assert_eq!(refuse(json!([rule]), method, target, false), refused);
    }

    #[test]
    fn a_stream_begun_by_get_is_created() {
        let rules = json!([{"verbs": ["create"], "resources": ["pods/exec"]}]);
        let exec = "/api/v1/namespaces/x/pods/y/exec?command=sh";
        assert!(refuse(rules.clone(), "GET", exec, true));
        assert!(refuse(rules.clone(), "POST", exec, true));
        assert!(!refuse(rules, "GET", exec, false));
    }
}
