//! What the cluster holds when the curtain rises, and who may do what: the same for both servers, said in the terms of
//! each.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::node::{
    NODE_NAME,
    network::{ENDPOINT_V4, ENDPOINT_V6, SERVICE_V4, SERVICE_V6},
};

/// Namespaces, accounts, the node, the API server's endpoints, two pods and a config map, as YAML documents.
pub(super) fn objects() -> String {
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "prod", "name": name, "labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "registry.example/web:1"}]},
        })
    };
    let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let account = |namespace: &str, name: &str| {
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name},
        })
    };
    let slice = |name: &str, family: &str, endpoint: std::net::SocketAddr| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": family,
            "endpoints": [{"addresses": [endpoint.ip()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": endpoint.port(), "protocol": "TCP"}],
        })
    };
    documents(&[
        namespace("prod"),
        namespace("understudy"),
        account("default", "default"),
        account("default", "powerless"),
        account("prod", "default"),
        account("prod", "viewer"),
        account("understudy", "agent"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}}),
        slice("kubernetes-v4", "IPv4", ENDPOINT_V4),
        slice("kubernetes-v6", "IPv6", ENDPOINT_V6),
        pod("web-0"),
        pod("web-1"),
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"namespace": "prod", "name": "settings"}, "data": {"colour": "green"},
        }),
    ])
}

/// The service of the API server itself, with an address in each family. A real server makes the IPv4 half of it.
pub(super) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": "kubernetes", "labels": {"component": "apiserver"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": SERVICE_V4.ip(),
            "clusterIPs": [SERVICE_V4.ip(), SERVICE_V6.ip()],
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack",
            "ports": [{"name": "https", "port": SERVICE_V4.port(), "protocol": "TCP", "targetPort": ENDPOINT_V4.port()}],
        },
    })
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

/// What the agent's account may do.
struct Right {
    group: &'static str,
    resources: &'static [&'static str],
    names: &'static [&'static str],
    verbs: &'static [&'static str],
    /// Where; everywhere, and at the cluster's scope, if not given.
    namespace: Option<&'static str>,
}

const fn right(group: &'static str, resources: &'static [&'static str], verbs: &'static [&'static str]) -> Right {
    Right {
        group,
        resources,
        names: &[],
        verbs,
        namespace: None,
    }
}

const READ: &[&str] = &["get", "list", "watch"];

/// As the deployment's roles have it, in every mode of trust at once.
const AGENT: &[Right] = &[
    Right {
        names: &["viewer"],
        ..right("", &["serviceaccounts"], &["impersonate"])
    },
    Right {
        names: &AGENT_GROUPS,
        ..right("", &["groups"], &["impersonate"])
    },
    right("", &["pods", "namespaces"], READ),
    right("understudy.dev", &["sessions"], READ),
    right("understudy.dev", &["sessions/status"], &["get", "patch", "update"]),
    right("", &["events"], &["create", "patch"]),
    right("events.k8s.io", &["events"], &["create", "patch"]),
    right("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
    right("authentication.k8s.io", &["tokenreviews"], &["create"]),
    Right {
        namespace: Some("default"),
        ..right("", &["services"], READ)
    },
    Right {
        namespace: Some("default"),
        ..right("discovery.k8s.io", &["endpointslices"], READ)
    },
    // For sessions that bring a token of their own, in the namespaces where tests have some.
    right("", &["secrets"], READ),
    Right {
        namespace: Some("understudy"),
        ..right("", &["secrets"], &["create", "update", "patch"])
    },
    right(
        "",
        &["configmaps"],
        &["get", "list", "watch", "create", "update", "patch"],
    ),
    right(
        "certificates.k8s.io",
        &["certificatesigningrequests"],
        &["create", "get", "list", "watch", "delete"],
    ),
    right(
        "certificates.k8s.io",
        &["certificatesigningrequests/approval"],
        &["update", "patch"],
    ),
    Right {
        names: &["kubernetes.io/kubelet-serving"],
        ..right("certificates.k8s.io", &["signers"], &["approve"])
    },
];

/// The rights as RBAC objects, as YAML documents.
pub(super) fn rbac() -> String {
    let role = |kind: &str, namespace: Option<&str>, name: &str, rules: Vec<Value>| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace}, "rules": rules,
        })
    };
    let bind = |kind: &str, namespace: Option<&str>, role_kind: &str, name: &str, account: (&str, &str)| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": account.0, "name": account.1}],
        })
    };
    let rules = |namespace: Option<&str>| {
        let here = AGENT.iter().filter(|right| right.namespace == namespace);
        here.map(|right| {
            json!({
                "apiGroups": [right.group], "resources": right.resources, "resourceNames": right.names,
                "verbs": right.verbs,
            })
        })
        .collect::<Vec<_>>()
    };
    let agent = ("understudy", "agent");
    let viewer = vec![json!({"apiGroups": [""], "resources": VIEWER_RESOURCES, "verbs": ["*"]})];
    let mut objects = vec![
        role("ClusterRole", None, "understudy-viewer", viewer),
        // In its own namespace alone.
        bind(
            "RoleBinding",
            Some("prod"),
            "ClusterRole",
            "understudy-viewer",
            ("prod", "viewer"),
        ),
        role("ClusterRole", None, "understudy-agent", rules(None)),
        bind("ClusterRoleBinding", None, "ClusterRole", "understudy-agent", agent),
    ];
    for namespace in ["default", "understudy"] {
        let namespace = Some(namespace);
        objects.push(role("Role", namespace, "understudy-agent", rules(namespace)));
        objects.push(bind("RoleBinding", namespace, "Role", "understudy-agent", agent));
    }
    documents(&objects)
}

/// The rights as the test program's rules file has them.
pub(super) fn rules() -> String {
    let mut rules = vec![json!({
        "serviceAccounts": ["prod/viewer"], "namespaces": ["prod"], "apiGroups": [""],
        "resources": VIEWER_RESOURCES, "verbs": ["*"],
    })];
    rules.extend(AGENT.iter().map(|right| {
        json!({
            "serviceAccounts": ["understudy/agent"], "apiGroups": [right.group], "resources": right.resources,
            "resourceNames": right.names, "verbs": right.verbs,
            "namespaces": right.namespace.into_iter().collect::<Vec<_>>(),
        })
    }));
    json!({"rules": rules}).to_string()
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
