//! What a session's terms may say, in both forms.

use rstest::rstest;
use serde_json::json;

use super::*;

#[rstest]
#[case::empty_method(json!({"token": "t"}), "service-account-token", None)]
#[case::named(json!({"authMethod": "service-account-token", "tokenFile": "/t"}), "service-account-token", None)]
#[case::gateway(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": "v"}}),
    "gateway-kubernetes-auth",
    Some("system:serviceaccount:prod:v")
)]
#[case::explicit(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane", "groups": ["devs"], "uid": "1"}}),
    "gateway-kubernetes-auth",
    Some("jane")
)]
fn parses(#[case] spec: serde_json::Value, #[case] method: &str, #[case] acts_as: Option<&str>) {
    let spec = SessionSpec::parse(spec, Policy::default()).unwrap();
    assert_eq!(spec.method.name(), method);
    assert_eq!(spec.method.acts_as().map(ActsAs::name), acts_as);
}

#[rstest]
#[case::unknown_method(json!({"authMethod": "magic"}), "spec.authMethod \"magic\" is unknown")]
#[case::method_case(json!({"authMethod": "Service-Account-Token", "token": "t"}), "spec.authMethod")]
#[case::no_token(json!({}), "spec.token (or spec.tokenFile) is missing")]
#[case::empty_token(json!({"token": ""}), "spec.token")]
#[case::token_with_line_break(json!({"token": "a\r\nb"}), "spec.token")]
#[case::both_tokens(json!({"token": "t", "tokenFile": "/t"}), "spec.tokenFile doesn't go with spec.token")]
#[case::relative(json!({"tokenFile": "t"}), "spec.tokenFile \"t\" must be an absolute path")]
#[case::token_and_impersonation(
    json!({"token": "t", "impersonate": {"user": "jane"}}), "spec.impersonate doesn't go with"
)]
#[case::no_impersonation(json!({"authMethod": "gateway-kubernetes-auth"}), "spec.impersonate is missing")]
#[case::empty_impersonation(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {}}), "spec.impersonate.namespace is missing"
)]
#[case::empty_namespace(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "", "serviceAccountName": "v"}}),
    "spec.impersonate.namespace must not be empty"
)]
#[case::no_namespace(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"serviceAccountName": "v"}}),
    "spec.impersonate.namespace must not be empty"
)]
#[case::empty_name(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"namespace": "prod", "serviceAccountName": ""}}),
    "spec.impersonate.serviceAccountName must not be empty"
)]
#[case::both_forms(
    json!({"authMethod": "gateway-kubernetes-auth",
           "impersonate": {"namespace": "prod", "serviceAccountName": "v", "user": "jane"}}),
    "spec.impersonate.user doesn't go with spec.impersonate.serviceAccountName"
)]
#[case::groups_without_user(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"groups": ["system:masters"]}}),
    "spec.impersonate.user must not be empty"
)]
#[case::agent_token_elsewhere(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"},
           "server": {"url": "https://elsewhere"}}),
    "spec.server doesn't go with gateway-kubernetes-auth"
)]
#[case::plain_http(json!({"token": "t", "server": {"url": "http://elsewhere"}}), "spec.server.url")]
#[case::secret_in_a_file(json!({"tokenSecretRef": {"name": "s"}}), "spec.tokenSecretRef is not for a session file: use spec.tokenFile")]
#[case::ttl_in_a_file(json!({"token": "t", "ttl": "1h"}), "spec.ttl is not for a session file")]
#[case::bundle_in_a_file(
    json!({"token": "t", "server": {"url": "https://elsewhere", "caBundle": "x"}}), "spec.server.caBundle is not for"
)]
#[case::idle_timeout(json!({"token": "t", "idleTimeout": "soon"}), "spec.idleTimeout \"soon\" is not a length of time")]
#[case::no_idle_time(json!({"token": "t", "idleTimeout": "0s"}), "spec.idleTimeout \"0s\"")]
#[case::tell_without_impersonation(
    json!({"token": "t", "tellSession": true}), "spec.tellSession doesn't go with service-account-token"
)]
#[case::unknown_verb(
    json!({"token": "t", "refuse": [{"verbs": ["craete"], "resources": ["pods"]}]}), "spec.refuse.verbs \"craete\" is unknown"
)]
#[case::no_verb(json!({"token": "t", "refuse": [{"resources": ["pods"]}]}), "spec.refuse.verbs must not be empty")]
#[case::no_resource(json!({"token": "t", "refuse": [{"verbs": ["get"]}]}), "spec.refuse.resources must not be empty")]
#[case::a_kind(
    json!({"token": "t", "refuse": [{"verbs": ["get"], "resources": ["Pod"]}]}), "spec.refuse.resources \"Pod\""
)]
#[case::unverified(
    json!({"token": "t", "server": {"url": "https://elsewhere", "insecureSkipTLSVerify": true}}),
    "spec.server.insecureSkipTLSVerify is not allowed by this agent"
)]
#[case::unverified_for_the_agents_token(
    json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"},
           "server": {"url": "https://elsewhere", "insecureSkipTLSVerify": true}}),
    "spec.server doesn't go with gateway-kubernetes-auth"
)]
#[case::unknown_field(json!({"token": "t", "tokne": "u"}), "spec: unknown field `tokne`")]
fn refuses_by_name(#[case] spec: serde_json::Value, #[case] message: &str) {
    let error = SessionSpec::parse(spec, Policy::default()).unwrap_err().to_string();
    assert!(error.starts_with(message), "{error}");
}

#[test]
fn a_token_is_never_shown() {
    let spec = SessionSpec::parse(json!({"token": "very-secret"}), Policy::default()).unwrap();
    assert!(!format!("{spec:?}").contains("very-secret"));
    let error = SessionSpec::parse(json!({"token": "very\nsecret"}), Policy::default()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
}

const ALLOWED: Policy = Policy {
    allow_insecure_servers: true,
};

fn of_resource(spec: serde_json::Value) -> Result<SessionSpec, SpecError> {
    SessionSpec::of_resource(spec, Some("2030-01-01T00:00:00Z".parse().unwrap()), ALLOWED)
}

#[test]
fn a_resources_time_runs_from_its_creation() {
    let spec = json!({"tokenSecretRef": {"name": "s"}, "ttl": "1h30m", "idleTimeout": "15m"});
    let spec = of_resource(spec).unwrap();
    assert_eq!(spec.expires_at.unwrap().to_string(), "2030-01-01T01:30:00Z");
    assert_eq!(spec.idle_timeout, Some(Duration::from_mins(15)));
    let token = TokenSource::Secret {
        name: "s".to_owned(),
        key: "token".to_owned(),
    };
    assert_eq!(spec.method, AuthMethod::ServiceAccountToken(token, None));
}

#[test]
fn an_unverified_server_is_the_operators_to_allow() {
    let spec = json!({"token": "t", "server": {"url": "https://elsewhere", "insecureSkipTLSVerify": true}});
    let spec = SessionSpec::parse(spec, ALLOWED).unwrap();
    assert!(matches!(spec.server().unwrap().verified_by, VerifiedBy::Nobody(_)));
}

/// What is open isn't judged again, so what a session refuses is part of how it acts.
#[test]
fn other_refusals_are_another_way_to_act() {
    let spec = |more: serde_json::Value| {
        let mut spec = json!({"authMethod": "gateway-kubernetes-auth", "impersonate": {"user": "jane"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        SessionSpec::parse(spec, ALLOWED).unwrap()
    };
    let plain = spec(json!({}));
    assert!(plain.acts_like(&spec(json!({"idleTimeout": "5m", "expiresAt": "2030-01-01T00:00:00Z"}))));
    assert!(!plain.acts_like(&spec(json!({"refuse": []}))));
    assert!(!plain.acts_like(&spec(json!({"tellSession": true}))));
    assert!(!plain.acts_like(&spec(json!({"recording": "best-effort"}))));
}
