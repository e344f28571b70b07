//! What the cluster holds when the curtain rises, and who may do what: the same for both servers, said in the terms of
//! each.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// Namespaces, two pods and a config map, as YAML documents.
pub(super) fn objects() -> String {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "prod", "name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "registry.example/web:1"}]},
        })
    };
    documents(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "prod"}}),
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "understudy"}}),
        pod("web-0"),
        pod("web-1"),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "prod", "name": "settings"}, "data": {"colour": "green"},
        }),
    ])
}

/// What the viewer may do in its namespace.
const VIEWER_RESOURCES: [&str; 6] = [
    "pods",
    "pods/log",
    "pods/exec",
    "pods/attach",
    "pods/portforward",
    "configmaps",
];

/// Whom the agent may become: the viewer, with the groups that Kubernetes gives it.
const AGENT_GROUPS: [&str; 3] = [
    "system:serviceaccounts",
    "system:serviceaccounts:prod",
    "system:authenticated",
];

/// The rights as RBAC objects, as YAML documents.
pub(super) fn rbac() -> String {
    let bind = |name: &str, namespace: &str, user: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": user}],
        })
    };
    let role = |name: &str, rules: Value| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": {"name": name}, "rules": rules,
        })
    };
    documents(&[
        role(
            "understudy-viewer",
            json!([{"apiGroups": [""], "resources": VIEWER_RESOURCES, "verbs": ["*"]}]),
        ),
        // In its own namespace alone.
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"namespace": "prod", "name": "understudy-viewer"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "understudy-viewer"},
            "subjects": [{"kind": "ServiceAccount", "namespace": "prod", "name": "viewer"}],
        }),
        role(
            "understudy-agent",
            json!([
                {"apiGroups": [""], "resources": ["serviceaccounts"], "resourceNames": ["viewer"], "verbs": ["impersonate"]},
                {"apiGroups": [""], "resources": ["groups"], "resourceNames": AGENT_GROUPS, "verbs": ["impersonate"]},
            ]),
        ),
        bind("understudy-agent", "understudy", "agent"),
    ])
}

/// The rights as the test program's rules file has them.
pub(super) fn rules() -> String {
    let rules = json!({"rules": [
        {
            "serviceAccounts": ["prod/viewer"], "namespaces": ["prod"], "apiGroups": [""],
            "resources": VIEWER_RESOURCES, "verbs": ["*"],
        },
        {
            "serviceAccounts": ["understudy/agent"], "apiGroups": [""], "resources": ["serviceaccounts"],
            "resourceNames": ["viewer"], "verbs": ["impersonate"],
        },
        {
            "serviceAccounts": ["understudy/agent"], "apiGroups": [""], "resources": ["groups"],
            "resourceNames": AGENT_GROUPS, "verbs": ["impersonate"],
        },
    ]});
    rules.to_string()
}

/// JSON is YAML.
fn documents(objects: &[Value]) -> String {
    let mut text = String::new();
    for object in objects {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "---\n{object}");
    }
    text
}
