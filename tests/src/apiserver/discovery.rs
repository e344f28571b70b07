//! Discovery: `/version`, `/api`, `/apis`, in the plain form and in the aggregated one that kubectl asks for first.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    body::Body,
    resources::{Catalogue, Resource, Subresource},
    status::{Status, json_response},
};

/// The media type of the aggregated form.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// The version that is claimed: one that kubectl of the last years gets on with.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": "v1.32.4+understudy",
        "gitCommit": "0000000000000000000000000000000000000000",
        "gitTreeState": "clean",
        "buildDate": "2025-04-22T16:02:10Z",
        "goVersion": "go1.23.6",
        "compiler": "gc",
        "platform": "linux/amd64",
    })
}

/// Answers a discovery path, or 404 for any other.
pub(crate) fn serve(path: &str, accept: &str, catalogue: &Catalogue) -> Result<Response<Body>, Status> {
    let aggregated = accept
        .split(',')
        .any(|kind| kind.replace(' ', "").starts_with(AGGREGATED));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts[..] {
        [] => {
            json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]})
        }
        ["api" | "apis"] if aggregated => {
            let core = parts == ["api"];
            let mut response = json_response(StatusCode::OK, &aggregate(core, catalogue));
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
            response
                .headers_mut()
                .insert(header::VARY, HeaderValue::from_static("Accept"));
            return Ok(response);
        }
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": named_groups(catalogue).map(|(group, version)| api_group(group, version)).collect::<Vec<_>>(),
        }),
        ["apis", group] => {
            let (group, version) = named_groups(catalogue)
                .find(|(name, _)| *name == group)
                .ok_or_else(Status::no_such_path)?;
            let mut value = api_group(group, version);
            value["kind"] = json!("APIGroup");
            value["apiVersion"] = json!("v1");
            value
        }
        ["api", version] => resource_list("", version, catalogue)?,
        ["apis", group, version] => resource_list(group, version, catalogue)?,
        _ => return Err(Status::no_such_path()),
    };
    Ok(json_response(StatusCode::OK, &value))
}

fn named_groups(catalogue: &Catalogue) -> impl Iterator<Item = (&'static str, &'static str)> + use<> {
    catalogue.groups().into_iter().filter(|(group, _)| !group.is_empty())
}

fn api_group(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn resource_list(group: &str, version: &str, catalogue: &Catalogue) -> Result<Value, Status> {
    let mut list = Vec::new();
    for resource in catalogue.of_group(group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs(),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        list.push(entry);
        list.extend(resource.subresources.iter().map(|sub| {
            json!({
                "name": format!("{}/{}", resource.plural, sub.name),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind(resource, sub),
                "verbs": sub.verbs,
            })
        }));
    }
    if list.is_empty() {
        return Err(Status::no_such_path());
    }
    Ok(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
        "resources": list,
    }))
}

fn kind(resource: &Resource, sub: &Subresource) -> &'static str {
    if sub.kind.is_empty() { resource.kind } else { sub.kind }
}

fn aggregate(core: bool, catalogue: &Catalogue) -> Value {
    let items: Vec<Value> = catalogue.groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, version)| {
            let metadata = if group.is_empty() {
                json!({"creationTimestamp": null})
            } else {
                json!({"name": group, "creationTimestamp": null})
            };
            json!({
                "metadata": metadata,
                "versions": [{
                    "version": version,
                    "freshness": "Current",
                    "resources": catalogue.of_group(group, version).into_iter().map(aggregated_resource).collect::<Vec<_>>(),
                }],
            })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let gvk = |kind: &str| json!({"group": resource.group, "version": resource.version, "kind": kind});
    json!({
        "resource": resource.plural,
        "singularResource": resource.singular,
        "responseKind": gvk(resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "verbs": resource.verbs(),
        "shortNames": resource.short_names,
        "subresources": resource.subresources.iter().map(|sub| json!({
            "subresource": sub.name,
            "responseKind": gvk(kind(resource, sub)),
            "verbs": sub.verbs,
        })).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("", "*/*", 200, "application/json")]
    #[case("/api", "*/*", 200, "application/json")]
    #[case("/apis", AGGREGATED, 200, AGGREGATED)]
    #[case("/apis/apps", "*/*", 200, "application/json")]
    #[case("/apis/apps/v1", "*/*", 200, "application/json")]
    #[case("/apis/none", "*/*", 404, "")]
    #[case("/api/v2", "*/*", 404, "")]
    #[case("/metrics", "*/*", 404, "")]
    fn paths(#[case] path: &str, #[case] accept: &str, #[case] code: u16, #[case] kind: &str) {
        match serve(path, accept, &Catalogue::default()) {
            Ok(response) => {
                assert_eq!(response.status(), code);
                assert_eq!(response.headers()[header::CONTENT_TYPE], kind);
            }
            Err(status) => assert_eq!(status.code(), code),
        }
    }
}
