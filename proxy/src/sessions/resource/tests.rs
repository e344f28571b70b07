//! The schema's shape, and the table of specs that the API server's rules and the agent must judge alike. A real API
//! server judges the same table in `tests/tests/e2e/definition.rs`.

use serde_json::{Value, json};

use super::*;
use crate::sessions::spec::{Policy, SessionSpec};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    spec: Value,
    api: Option<String>,
    agent: Option<String>,
    #[serde(default)]
    schema: bool,
}

fn table() -> Vec<Case> {
    serde_saphyr::from_str(include_str!("../../../testdata/session-specs.yaml")).unwrap()
}

/// As it is printed.
fn crd() -> Value {
    let printed = definition().unwrap();
    assert_eq!(printed, definition().unwrap());
    let read: Value = serde_saphyr::from_str(&printed).unwrap();
    assert_eq!(read, serde_json::to_value(Session::crd()).unwrap());
    read
}

fn schema() -> Value {
    crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// What the API server's rules say of a spec, or the types where it doesn't fit them.
fn refused_by_rules(spec: &Value) -> Result<(), String> {
    serde_json::from_value::<SessionResourceSpec>(spec.clone()).map_err(|error| format!("schema: {error}"))?;
    let object = json!({"apiVersion": "understudy.dev/v1alpha1", "kind": "Session", "spec": spec});
    kube_cel::Validator::new()
        .validate(&schema(), &object, None)
        .map_err(|errors| errors.to_string())
}

#[test]
fn the_api_server_and_the_agent_judge_alike() {
    let created = "2026-01-01T00:00:00Z".parse().ok();
    let policy = Policy {
        allow_insecure_servers: true,
    };
    for case in table() {
        let Case { name, spec, .. } = &case;
        assert_eq!(case.api.is_some(), case.agent.is_some(), "{name}: both judge, or none");
        let by_rules = refused_by_rules(spec);
        let by_agent = SessionSpec::of_resource(spec.clone(), created, policy).map_err(|error| error.to_string());
        if let (Some(api), Some(agent)) = (&case.api, &case.agent) {
            let said = by_rules.expect_err(name);
            let expected = if case.schema { "schema: " } else { api };
            assert!(said.contains(expected), "{name}: {said}");
            let said = by_agent.expect_err(name);
            assert!(said.starts_with(agent.as_str()), "{name}: {said}");
        } else {
            by_rules.unwrap_or_else(|said| panic!("{name}: {said}"));
            by_agent.unwrap_or_else(|said| panic!("{name}: {said}"));
        }
    }
}

/// Each rule of the schema is one that some spec of the table breaks.
#[test]
fn every_rule_is_broken_once() {
    fn messages(schema: &Value, found: &mut Vec<String>) {
        match schema {
            Value::Object(fields) => {
                if let Some(rules) = fields.get("x-kubernetes-validations").and_then(Value::as_array) {
                    found.extend(
                        rules
                            .iter()
                            .filter_map(|rule| rule["message"].as_str())
                            .map(str::to_owned),
                    );
                }
                fields.values().for_each(|value| messages(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| messages(value, found)),
            _ => {}
        }
    }
    let mut rules = Vec::new();
    messages(&schema(), &mut rules);
    assert!(rules.len() >= 25, "{rules:?}");
    let said: String = table()
        .iter()
        .filter_map(|case| refused_by_rules(&case.spec).err())
        .collect();
    for message in rules {
        assert!(said.contains(&message), "no spec of the table breaks: {message}");
    }
}

#[test]
fn the_schema_is_of_the_shape_that_the_agents_write() {
    let crd = crd();
    assert_eq!(crd["metadata"]["name"], "sessions.understudy.dev");
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["name"], "v1alpha1");
    assert_eq!(version["subresources"], json!({"status": {}}));
    // kubectl shows a `date` as an age, and one to come as <invalid>.
    assert_eq!(version["additionalPrinterColumns"][2]["type"], "string");
    let columns: Vec<_> = version["additionalPrinterColumns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["jsonPath"].as_str().unwrap())
        .collect();
    assert_eq!(
        columns,
        [
            ".spec.authMethod",
            ".status.actsAs",
            ".status.expiresAt",
            ".status.phase",
            ".status.pods",
            ".metadata.creationTimestamp"
        ]
    );
    let status = &schema()["properties"]["status"]["properties"];
    for (list, key) in [("nodes", "node"), ("conditions", "type")] {
        assert_eq!(status[list]["x-kubernetes-list-type"], "map");
        assert_eq!(status[list]["x-kubernetes-list-map-keys"], json!([key]));
        assert!(
            status[list]["items"]["required"]
                .as_array()
                .unwrap()
                .contains(&json!(key))
        );
    }
    let methods = &schema()["properties"]["spec"]["properties"]["authMethod"]["enum"];
    for method in [
        "",
        "service-account-token",
        "gateway-kubernetes-auth",
        "caller-identity",
    ] {
        assert!(methods.as_array().unwrap().contains(&json!(method)), "{methods}");
    }
}

/// Whatever a list or a text may hold is limited: the API server bounds what its rules may cost.
#[test]
fn everything_in_spec_is_limited() {
    fn look(path: &str, schema: &Value) {
        let limit = match schema["type"].as_str() {
            Some("string") if schema["enum"].is_null() && schema["format"].is_null() => "maxLength",
            Some("array") => "maxItems",
            Some("object") if schema["additionalProperties"].is_object() => "maxProperties",
            _ => "type",
        };
        assert!(!schema[limit].is_null(), "{path} has no {limit}: {schema}");
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            look(&format!("{path}.{name}"), field);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                look(&format!("{path}[]"), &schema[inner]);
            }
        }
    }
    look("spec", &schema()["properties"]["spec"]);
}
