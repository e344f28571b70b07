//! What the cluster holds when the curtain rises, and who may do what: the same for both servers, said in the terms of
//! each.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Value, json};

use super::{ServerOptions, rights};
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

/// Every right, as RBAC objects.
fn rights(options: &ServerOptions) -> Result<Vec<Value>> {
    let rbac = "rbac.authorization.k8s.io";
    let version = format!("{rbac}/v1");
    let name = "understudy-viewer";
    let mut objects = vec![
        json!({
            "apiVersion": version, "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": VIEWER_RESOURCES, "verbs": ["*"]}],
        }),
        // In its own namespace alone.
        json!({
            "apiVersion": version, "kind": "RoleBinding", "metadata": {"namespace": "prod", "name": name},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": "prod", "name": "viewer"}],
        }),
    ];
    objects.extend(rights::of_agent(options)?);
    Ok(objects)
}

/// The rights as YAML documents, for a real server.
pub(super) fn rbac(options: &ServerOptions) -> Result<String> {
    Ok(documents(&rights(options)?))
}

/// The rights as the test program's rules file has them.
pub(super) fn rules(options: &ServerOptions) -> Result<String> {
    let rules = rights::as_rules(&rights(options)?)?;
    Ok(json!({"rules": rules}).to_string())
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
