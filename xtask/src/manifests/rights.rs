//! Whether what is granted is as narrow as it can be.

use serde_json::Value;

use super::objects::Objects;

/// A line for each right that is wider than any of ours has to be; none where all is well.
pub(crate) fn excesses(objects: &Objects) -> Vec<String> {
    let mut excesses = Vec::new();
    for (name, object) in objects.iter() {
        let is_cluster_wide = object["kind"] == "ClusterRole";
        if !is_cluster_wide && object["kind"] != "Role" {
            continue;
        }
        for rule in object["rules"].as_array().into_iter().flatten() {
            if let Some(why) = excess(rule, is_cluster_wide) {
                excesses.push(format!("{name}: {why}: {rule}"));
            }
        }
    }
    excesses
}

/// Why the rule is too wide, if it is.
fn excess(rule: &Value, is_cluster_wide: bool) -> Option<&'static str> {
    /// Verbs that hand on rights, identities or certificates: each must say whose.
    const BY_NAME: [&str; 3] = ["impersonate", "approve", "sign"];
    let has = |field: &str, wanted: &str| {
        rule[field]
            .as_array()
            .is_some_and(|values| values.iter().any(|value| value == wanted))
    };
    // A UID or an extra value is nobody without a user, and some can't be known beforehand.
    let is_no_identity = rule["apiGroups"] == serde_json::json!(["authentication.k8s.io"])
        && rule["resources"].as_array().is_some_and(|resources| {
            resources.iter().filter_map(Value::as_str).all(|resource| {
                resource == "uids" || resource.strip_prefix("userextras/").is_some_and(|key| key != "*")
            })
        });
    let is_by_name = rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty());
    let only_creates = rule["verbs"]
        .as_array()
        .is_some_and(|verbs| verbs.iter().all(|verb| verb == "create"));
    let fields = ["apiGroups", "resources", "resourceNames", "verbs", "nonResourceURLs"];
    if fields.iter().any(|field| has(field, "*")) {
        return Some("everything of a kind is granted");
    }
    if has("verbs", "escalate") || has("verbs", "bind") {
        return Some("it may give itself any right");
    }
    if BY_NAME.iter().any(|verb| has("verbs", verb)) && !is_by_name && !is_no_identity {
        return Some("it isn't said whose");
    }
    if has("resources", "secrets") {
        if is_cluster_wide {
            return Some("secrets of every namespace");
        }
        if !is_by_name && !only_creates {
            return Some("every secret of the namespace");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(kind: &str, rule: &Value) -> Vec<String> {
        let list = json!([{
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind, "metadata": {"name": "r"}, "rules": [rule],
        }]);
        excesses(&Objects::parse(&list.to_string()).unwrap())
    }

    #[test]
    fn what_is_too_wide_is_named() {
        for (kind, rule) in [
            (
                "Role",
                json!({"apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"]}),
            ),
            ("Role", json!({"apiGroups": [""], "resources": ["*"], "verbs": ["get"]})),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["*"]}),
            ),
            ("ClusterRole", json!({"nonResourceURLs": ["*"], "verbs": ["get"]})),
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["users"], "resourceNames": [], "verbs": ["impersonate"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["users"], "resourceNames": ["*"], "verbs": ["impersonate"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/*"], "verbs": ["impersonate"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": ["authentication.k8s.io", ""], "resources": ["uids", "users"], "verbs": ["impersonate"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": ["approve"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get"]}),
            ),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "get"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["bind"]}),
            ),
        ] {
            assert_eq!(of(kind, &rule).len(), 1, "{rule}");
        }
    }

    #[test]
    fn what_is_narrow_passes() {
        for (kind, rule) in [
            (
                "ClusterRole",
                json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}),
            ),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["viewer"], "verbs": ["impersonate"]}),
            ),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}),
            ),
            (
                "Role",
                json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"], "verbs": ["get", "watch"]}),
            ),
            (
                "ClusterRole",
                json!({"apiGroups": ["authentication.k8s.io"], "resources": ["uids", "userextras/scopes"], "verbs": ["impersonate"]}),
            ),
            ("ServiceAccount", json!({"verbs": ["*"]})),
        ] {
            assert_eq!(of(kind, &rule), Vec::<String>::new(), "{rule}");
        }
    }
}
