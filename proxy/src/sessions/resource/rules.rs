//! What the API server itself holds Sessions to, as CEL: the same as [`SessionSpec::of_resource`] does, save for what
//! only an agent knows. `testdata/session-specs.yaml` is judged by both.
//!
//! [`SessionSpec::of_resource`]: super::super::spec::SessionSpec::of_resource

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// What may stand in an HTTP header as it is: no control character, no white space at an end.
const CARRIED: &str = r"^[^\p{Z}\p{Cc}]([^\p{Cc}]*[^\p{Z}\p{Cc}])?$";
const LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
const SUBDOMAIN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
const GATEWAY: &str = "(has(self.authMethod) && self.authMethod == 'gateway-kubernetes-auth')";
const CALLER: &str = "(has(self.authMethod) && self.authMethod == 'caller-identity')";
const SERVICE_ACCOUNT: &str = "(has(self.__namespace__) || has(self.serviceAccountName))";
const OF_USER: &str =
    "((has(self.groups) && size(self.groups) > 0) || has(self.uid) || (has(self.extra) && size(self.extra) > 0))";

fn rules(rules: &[(String, &str)]) -> Value {
    rules
        .iter()
        .map(|(rule, message)| json!({"rule": rule, "message": message}))
        .collect()
}

fn matches(pattern: &str) -> String {
    format!("self.matches(r'{pattern}')")
}

fn all_match(pattern: &str) -> String {
    format!("self.all(one, one.matches(r'{pattern}'))")
}

pub(super) fn spec() -> Value {
    rules(&[
        (
            format!("!has(self.impersonate) || {GATEWAY}"),
            "impersonate goes with authMethod gateway-kubernetes-auth only",
        ),
        (
            format!("has(self.impersonate) || !{GATEWAY}"),
            "authMethod gateway-kubernetes-auth needs impersonate",
        ),
        (
            format!("!has(self.tokenSecretRef) || !({GATEWAY} || {CALLER})"),
            "tokenSecretRef doesn't go with authMethod gateway-kubernetes-auth or caller-identity",
        ),
        (
            format!("has(self.tokenSecretRef) || {GATEWAY} || {CALLER}"),
            "authMethod service-account-token (also when empty) needs tokenSecretRef",
        ),
        (
            format!("!has(self.server) || !({GATEWAY} || {CALLER})"),
            "server doesn't go with authMethod gateway-kubernetes-auth or caller-identity: the agent's token goes to the cluster's API server only",
        ),
        (
            format!("!has(self.tellSession) || !self.tellSession || {GATEWAY} || {CALLER}"),
            "tellSession goes with authMethod gateway-kubernetes-auth or caller-identity only",
        ),
        (
            "!has(self.recordStdin) || !self.recordStdin || (has(self.recording) && self.recording != 'none')"
                .to_owned(),
            "recordStdin goes with recording best-effort or required only",
        ),
        (
            format!("!has(self.callerIdentity) || {CALLER}"),
            "callerIdentity goes with authMethod caller-identity only",
        ),
        (
            "!has(self.ttl) || !has(self.expiresAt)".to_owned(),
            "ttl doesn't go with expiresAt: remove one of them",
        ),
    ])
}

pub(super) fn impersonate() -> Value {
    rules(&[
        (
            format!("{SERVICE_ACCOUNT} != (has(self.user) || {OF_USER})"),
            "name either a service account (namespace, serviceAccountName) or a user",
        ),
        (
            "has(self.__namespace__) == has(self.serviceAccountName)".to_owned(),
            "namespace and serviceAccountName go together",
        ),
        (
            format!("has(self.user) || !{OF_USER}"),
            "groups, uid and extra need user",
        ),
    ])
}

pub(super) fn server() -> Value {
    rules(&[(
        "!has(self.insecureSkipTLSVerify) || !self.insecureSkipTLSVerify || !has(self.caBundle)".to_owned(),
        "insecureSkipTLSVerify doesn't go with caBundle: remove one of them",
    )])
}

pub(super) fn url() -> Value {
    rules(&[(
        matches("^https://[^/?#@]+/?$"),
        "must be https://host or https://host:port, and no more",
    )])
}

pub(super) fn ca_bundle() -> Value {
    rules(&[(
        "self.contains('-----BEGIN CERTIFICATE-----')".to_owned(),
        "must hold certificates in PEM form",
    )])
}

pub(super) fn signer_ca() -> Value {
    rules(&[(
        "self.contains('-----BEGIN CERTIFICATE-----')".to_owned(),
        "must hold CA certificates in PEM form",
    )])
}

pub(super) fn audiences() -> Value {
    rules(&[("self.all(one, one != '')".to_owned(), "must not hold an empty audience")])
}

pub(super) fn namespace() -> Value {
    rules(&[(matches(LABEL), "must be the name of a namespace")])
}

pub(super) fn service_account() -> Value {
    rules(&[(matches(SUBDOMAIN), "must be the name of a service account")])
}

pub(super) fn secret() -> Value {
    rules(&[(matches(SUBDOMAIN), "must be the name of a Secret")])
}

pub(super) fn secret_key() -> Value {
    rules(&[(
        format!("{} && !(self in ['.', '..'])", matches("^[-._a-zA-Z0-9]+$")),
        "must be a key of a Secret's data",
    )])
}

pub(super) fn carried() -> Value {
    rules(&[(
        matches(CARRIED),
        "must not be empty, begin or end with white space, or hold a control character",
    )])
}

pub(super) fn all_carried() -> Value {
    rules(&[(
        all_match(CARRIED),
        "must not hold values that are empty, begin or end with white space, or hold a control character",
    )])
}

pub(super) fn duration() -> Value {
    let form = matches("^([0-9]{1,5}h)?([0-9]{1,5}m)?([0-9]{1,5}s)?([0-9]{1,5}ms)?$");
    rules(&[(
        format!("self != '' && {form} && duration(self) > duration('0s')"),
        "must be a length of time such as 1h30m, 15m or 90s, and longer than zero",
    )])
}

pub(super) fn verbs() -> Value {
    let verbs = "['*', 'get', 'list', 'watch', 'create', 'update', 'patch', 'delete', 'deletecollection']";
    rules(&[(
        format!("size(self) > 0 && self.all(verb, verb in {verbs})"),
        "must be one or more of get, list, watch, create, update, patch, delete, deletecollection and *",
    )])
}

pub(super) fn resources() -> Value {
    let each = all_match("^([-.a-z0-9]+|[*])(/([-.a-z0-9]+|[*]))?$");
    rules(&[(
        format!("size(self) > 0 && {each}"),
        "must be one or more of the form pods, pods/exec, */scale or *",
    )])
}

/// The values of `extra`: a map of lists, whose inner limits no attribute can say.
pub(super) fn extra(_: &mut SchemaGenerator) -> Schema {
    let values = format!("self.all(key, size(self[key]) > 0 && self[key].all(one, one.matches(r'{CARRIED}')))");
    let rules = rules(&[
        ("self.all(key, key != '')".to_owned(), "must not hold an empty key"),
        (
            r"self.all(key, !key.matches(r'[\p{Lu}\p{Lt}]'))".to_owned(),
            "must hold keys in lower case only: the API server lower-cases them",
        ),
        (
            "self.all(key, !key.matches(r'(^|[./])understudy[.]dev(/|$)'))".to_owned(),
            "must not hold keys of understudy.dev, which are the agent's own: tellSession has the session's set",
        ),
        (
            values,
            "must not hold keys without values, nor values that are empty, begin or end with white space, or hold a control character",
        ),
    ]);
    json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": {
            "type": "array",
            "maxItems": 16,
            "items": {"type": "string", "maxLength": 512},
        },
        "x-kubernetes-validations": rules,
    })
}
