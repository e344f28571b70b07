//! What is masked always, and what on request.

use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::*;
use crate::request_info::{Reading, RequestInfo};

fn reading(method: &str, uri: &str) -> Reading {
    RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap())
}

fn masked(masks: &[&str], (method, uri): (&str, &str), object: Value) -> Value {
    let masks = Masks::new(masks.iter().map(|mask| mask.parse().unwrap()).collect());
    let mut object = object;
    let reading = reading(method, uri);
    let Ok(RequestInfo::Resource(request)) = &reading else {
        panic!("no resource: {uri}")
    };
    masks.mask(&mut object, Some(request));
    object
}

const SECRETS: (&str, &str) = ("POST", "/api/v1/namespaces/a/secrets");
const SECRET: (&str, &str) = ("PATCH", "/api/v1/namespaces/a/secrets/x");

#[rstest]
#[case::a_secret(
    SECRETS,
    json!({"kind": "Secret", "type": "Opaque", "data": {"a": "c2VjcmV0"}, "stringData": {"b": "secret"},
        "metadata": {"name": "x", "annotations": {LAST_APPLIED: "{\"data\":{\"a\":\"c2VjcmV0\"}}", "c": "d"}}}),
    json!({"kind": "Secret", "type": "Opaque", "data": {"a": "***"}, "stringData": {"b": "***"},
        "metadata": {"name": "x", "annotations": {LAST_APPLIED: "***", "c": "d"}}})
)]
#[case::a_list(
    SECRETS,
    json!({"kind": "SecretList", "items": [{"metadata": {"name": "x"}, "data": {"a": "secret"}}]}),
    json!({"kind": "SecretList", "items": [{"metadata": {"name": "x"}, "data": {"a": "***"}}]})
)]
#[case::a_table(
    SECRETS,
    json!({"kind": "Table", "rows": [{"cells": ["x"], "object": {"kind": "Secret", "data": {"a": "secret"}}}]}),
    json!({"kind": "Table", "rows": [{"cells": ["x"], "object": {"kind": "Secret", "data": {"a": "***"}}}]})
)]
#[case::a_merge_patch(SECRET, json!({"data": {"a": "secret", "gone": null}}), json!({"data": {"a": "***", "gone": null}}))]
#[case::a_json_patch(
    SECRET,
    json!([{"op": "replace", "path": "/data/a", "value": "secret"}, {"op": "add", "path": "/data", "value": {"b": "secret"}}]),
    json!([{"op": "replace", "path": "/data/a", "value": "***"}, {"op": "add", "path": "/data", "value": {"b": "***"}}])
)]
#[case::a_failure(
    SECRET,
    json!({"kind": "Status", "reason": "NotFound", "code": 404}),
    json!({"kind": "Status", "reason": "NotFound", "code": 404})
)]
#[case::among_others(
    ("POST", "/apis/example.org/v1/bundles"),
    json!({"kind": "Bundle", "spec": {"objects": [{"kind": "Secret", "data": {"a": "secret"}}, {"kind": "ConfigMap", "data": {"a": "b"}}]}}),
    json!({"kind": "Bundle", "spec": {"objects": [{"kind": "Secret", "data": {"a": "***"}}, {"kind": "ConfigMap", "data": {"a": "b"}}]}})
)]
#[case::a_token_review(
    ("POST", "/apis/authentication.k8s.io/v1/tokenreviews"),
    json!({"kind": "TokenReview", "spec": {"token": "secret", "audiences": ["a"]}}),
    json!({"kind": "TokenReview", "spec": {"token": "***", "audiences": ["a"]}})
)]
#[case::a_token_request(
    ("POST", "/api/v1/namespaces/a/serviceaccounts/x/token"),
    json!({"kind": "TokenRequest", "status": {"token": "secret", "expirationTimestamp": "t"}}),
    json!({"kind": "TokenRequest", "status": {"token": "***", "expirationTimestamp": "t"}})
)]
#[case::a_config_map(
    ("POST", "/api/v1/namespaces/a/configmaps"),
    json!({"kind": "ConfigMap", "data": {"a": "b"}}),
    json!({"kind": "ConfigMap", "data": {"a": "b"}})
)]
fn what_is_always_masked(#[case] request: (&str, &str), #[case] object: Value, #[case] expected: Value) {
    let masked = masked(&[], request, object);
    assert_eq!(masked, expected);
    assert!(
        !masked.to_string().contains("secret\"") && !masked.to_string().contains("c2Vj"),
        "{masked}"
    );
}

const WIDGETS: (&str, &str) = ("POST", "/apis/example.org/v1/namespaces/a/widgets");

#[rstest]
#[case::a_field("widgets.example.org:spec.token", WIDGETS, json!({"spec": {"token": "x", "size": 1}}), json!({"spec": {"token": "***", "size": 1}}))]
#[case::a_tree("widgets.example.org:spec", WIDGETS, json!({"spec": {"a": {"b": [1, true]}}}), json!({"spec": {"a": {"b": ["***", "***"]}}}))]
#[case::in_an_array("widgets.example.org:spec.env.value", WIDGETS, json!({"spec": {"env": [{"name": "A", "value": "x"}]}}), json!({"spec": {"env": [{"name": "A", "value": "***"}]}}))]
#[case::any_name("widgets.example.org:spec.*.token", WIDGETS, json!({"spec": {"a": {"token": "x"}, "b": {"token": "y"}}}), json!({"spec": {"a": {"token": "***"}, "b": {"token": "***"}}}))]
#[case::in_a_list("widgets.example.org:spec.token", WIDGETS, json!({"items": [{"spec": {"token": "x"}}]}), json!({"items": [{"spec": {"token": "***"}}]}))]
#[case::in_a_table("widgets.example.org:spec.token", WIDGETS, json!({"rows": [{"object": {"spec": {"token": "x"}}}]}), json!({"rows": [{"object": {"spec": {"token": "***"}}}]}))]
#[case::in_a_tables_columns(
    "widgets.example.org:spec.token",
    WIDGETS,
    json!({"columnDefinitions": [{"name": "Name", "format": "name"}, {"name": "Token", "format": ""}], "rows": [{"cells": ["w", "x"]}]}),
    json!({"columnDefinitions": [{"name": "Name", "format": "name"}, {"name": "Token", "format": ""}], "rows": [{"cells": ["w", "***"]}]})
)]
#[case::in_columns_unknown("widgets.example.org:spec.token", WIDGETS, json!({"rows": [{"cells": ["w", 1]}]}), json!({"rows": [{"cells": ["***", "***"]}]}))]
#[case::in_a_patch("widgets.example.org:spec.token", WIDGETS, json!([{"op": "add", "path": "/spec/token", "value": "x"}, {"op": "add", "path": "/spec/size", "value": 1}]), json!([{"op": "add", "path": "/spec/token", "value": "***"}, {"op": "add", "path": "/spec/size", "value": 1}]))]
#[case::above_in_a_patch("widgets.example.org:spec.token", WIDGETS, json!([{"op": "add", "path": "/spec", "value": {"token": "x"}}]), json!([{"op": "add", "path": "/spec", "value": {"token": "***"}}]))]
#[case::last_applied("widgets.example.org:spec.token", WIDGETS, json!({"metadata": {"annotations": {LAST_APPLIED: "{}"}}}), json!({"metadata": {"annotations": {LAST_APPLIED: "***"}}}))]
#[case::another_group("widgets:spec.token", WIDGETS, json!({"spec": {"token": "x"}}), json!({"spec": {"token": "x"}}))]
#[case::core("configmaps:data.password", ("PUT", "/api/v1/namespaces/a/configmaps/x"), json!({"data": {"password": "x", "a": "b"}}), json!({"data": {"password": "***", "a": "b"}}))]
fn what_is_masked_on_request(
    #[case] mask: &str,
    #[case] request: (&str, &str),
    #[case] object: Value,
    #[case] expected: Value,
) {
    assert_eq!(masked(&[mask], request, object), expected);
}

#[rstest]
#[case("configmaps")]
#[case("configmaps:")]
#[case(":data")]
#[case("widgets.:data")]
#[case("configmaps:data..x")]
fn no_mask(#[case] text: &str) {
    let error = text.parse::<Mask>().unwrap_err().to_string();
    assert!(
        error.contains(text) && error.contains("configmaps:data.password"),
        "{error}"
    );
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z]{0,4}".prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        let name = prop_oneof![
            Just("data".to_owned()),
            Just("kind".to_owned()),
            Just("items".to_owned()),
            "[a-z]{1,4}"
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(name, inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Wherever a Secret stands, and whatever is in it, none of its values is left.
    #[test]
    fn no_value_of_a_secret_is_left(
        mut around in any_json(),
        values in proptest::collection::btree_map("[a-z]{1,3}", "SECRET[a-z]{0,3}", 0..4),
        string_data in any::<bool>(),
    ) {
        let field = if string_data { "stringData" } else { "data" };
        let secret = json!({"kind": "Secret", field: values});
        match &mut around {
            Value::Object(members) => { members.insert("of".to_owned(), secret); }
            Value::Array(elements) => elements.push(secret),
            other => *other = secret,
        }
        let masked = masked(&[], WIDGETS, around);
        prop_assert!(!masked.to_string().contains("SECRET"), "{masked}");
    }
}
