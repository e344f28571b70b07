//! Kubernetes' `Status` errors, with the texts that kube-apiserver uses. Clients print these texts and tests
//! compare them, so they are written in one place. Nothing here decides when an error is due.

use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    body::{self, Body},
    cause::Cause,
    request::{Attributes, Target},
};

/// An error as Kubernetes' clients expect it: an object of kind `Status`.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{code} {reason}: {message}")]
pub struct Status {
    code: StatusCode,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

impl Status {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: None,
        }
    }

    fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        let mut details = serde_json::Map::new();
        if !name.is_empty() {
            details.insert("name".to_owned(), json!(name));
        }
        if !group.is_empty() {
            details.insert("group".to_owned(), json!(group));
        }
        if !resource.is_empty() {
            details.insert("kind".to_owned(), json!(resource));
        }
        self.details = Some(Value::Object(details));
        self
    }

    /// 400, with the reason given in words.
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// 401: there was a credential, and it is nobody's.
    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    /// 403 with the text of kube-apiserver's authorization filter.
    pub(crate) fn forbidden(user: &str, attributes: &Attributes) -> Self {
        match &attributes.target {
            Target::Path(path) => Self::new(
                StatusCode::FORBIDDEN,
                "Forbidden",
                format!("forbidden: User {user:?} cannot {} path {path:?}", attributes.verb),
            )
            .about("", "", ""),
            Target::Resource(target) => {
                let place = if target.namespace.is_empty() {
                    "at the cluster scope".to_owned()
                } else {
                    format!("in the namespace {:?}", target.namespace)
                };
                let subject = subject(&target.group, &target.resource, &target.name);
                let full = if target.subresource.is_empty() {
                    target.resource.clone()
                } else {
                    format!("{}/{}", target.resource, target.subresource)
                };
                Self::new(
                    StatusCode::FORBIDDEN,
                    "Forbidden",
                    format!(
                        "{subject} is forbidden: User {user:?} cannot {} resource {full:?} in API group {:?} {place}",
                        attributes.verb, target.group
                    ),
                )
                .about(&target.group, &target.resource, &target.name)
            }
        }
    }

    /// 404 for an object.
    pub(crate) fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            format!("{} not found", subject(group, resource, name)),
        )
        .about(group, resource, name)
    }

    /// 404 for a path or a resource that isn't served at all.
    pub(crate) fn no_such_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 409 because the object is there already.
    pub(crate) fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::new(
            StatusCode::CONFLICT,
            "AlreadyExists",
            format!("{} already exists", subject(group, resource, name)),
        )
        .about(group, resource, name)
    }

    /// 409 because the object has changed since it was read.
    pub(crate) fn conflict(group: &str, resource: &str, name: &str) -> Self {
        let qualified = qualified(group, resource);
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!(
                "Operation cannot be fulfilled on {qualified} {name:?}: the object has been modified; please apply your changes to the latest version and try again"
            ),
        )
        .about(group, resource, name)
    }

    /// 409 because the object is not the one that was meant, or not as it was meant.
    pub(crate) fn precondition(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let qualified = qualified(group, resource);
        Self::new(
            StatusCode::CONFLICT,
            "Conflict",
            format!("Operation cannot be fulfilled on {qualified} {name:?}: {why}"),
        )
        .about(group, resource, name)
    }

    /// 409 because others manage what is applied.
    pub(crate) fn apply_conflict(causes: &[Cause]) -> Self {
        let shown: Vec<String> = causes
            .iter()
            .map(|cause| format!("{}: {}", cause.message, cause.field))
            .collect();
        let message = match &shown[..] {
            [one] => format!("Apply failed with 1 conflict: {one}"),
            many => format!("Apply failed with {} conflicts: {}", many.len(), many.join("\n")),
        };
        let mut status = Self::new(StatusCode::CONFLICT, "Conflict", message);
        status.details = Some(json!({"causes": causes.iter().map(Cause::to_value).collect::<Vec<_>>()}));
        status
    }

    /// 403 in the words of an admission plugin.
    pub(crate) fn not_admitted(group: &str, resource: &str, name: &str, why: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "Forbidden",
            format!("{} is forbidden: {why}", subject(group, resource, name)),
        )
        .about(group, resource, name)
    }

    /// 405.
    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406: every form the client would accept is one we don't write.
    pub(crate) fn not_acceptable() -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json",
        )
    }

    /// 410: the watch asks for events older than those kept.
    pub(crate) fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(
            StatusCode::GONE,
            "Expired",
            format!("too old resource version: {asked} ({oldest})"),
        )
    }

    /// 410: the rest of a list is of a version that is forgotten.
    pub(crate) fn continue_expired() -> Self {
        Self::new(
            StatusCode::GONE,
            "Expired",
            "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
        )
    }

    /// 410 for a version of the past that is forgotten, where a list asks for exactly that.
    pub(crate) fn version_expired() -> Self {
        Self::new(
            StatusCode::GONE,
            "Expired",
            "The resourceVersion for the provided list is too old.",
        )
    }

    /// 504: the version that is asked for isn't there yet.
    pub(crate) fn version_too_large(asked: u64, current: u64) -> Self {
        let mut status = Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        status.details = Some(json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        }));
        status
    }

    /// 413.
    pub(crate) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        )
    }

    /// 415.
    pub(crate) fn unsupported_media_type(sent: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: application/json, application/yaml; got {sent:?}"
            ),
        )
    }

    /// 422.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message)
    }

    /// 422 for an object, with each cause.
    pub(crate) fn invalid_object(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let shown: Vec<String> = causes.iter().map(ToString::to_string).collect();
        let joined = match &shown[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut status = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{} {name:?} is invalid: {joined}", qualified(group, kind)),
        )
        .about(group, kind, name);
        if let Some(details) = &mut status.details {
            details["causes"] = json!(causes.iter().map(Cause::to_value).collect::<Vec<_>>());
        }
        status
    }

    /// 500 without a reason, as kube-apiserver has it for an applied object that doesn't fit its schema.
    pub(crate) fn untyped(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "", message)
    }

    /// 500.
    pub(crate) fn internal(message: impl AsRef<str>) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {}", message.as_ref()),
        )
    }

    /// Any code, for a fault that was asked for.
    pub(crate) fn injected(code: StatusCode, message: &str) -> Self {
        let reason = match code {
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::CONFLICT => "Conflict",
            StatusCode::GONE => "Expired",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            _ => "InternalError",
        };
        Self::new(code, reason, message)
    }

    /// The HTTP status code.
    #[must_use]
    pub fn code(&self) -> StatusCode {
        self.code
    }

    /// The text that a client prints.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The object that goes on the wire.
    pub(crate) fn to_value(&self) -> Value {
        let mut object = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code.as_u16(),
        });
        if !self.reason.is_empty() {
            object["reason"] = json!(self.reason);
        }
        if let Some(details) = &self.details {
            object["details"] = details.clone();
        }
        object
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.code, &self.to_value());
        if self.code == StatusCode::FORBIDDEN {
            response.headers_mut().insert(
                header::X_CONTENT_TYPE_OPTIONS,
                http::HeaderValue::from_static("nosniff"),
            );
        }
        response
    }
}

/// An answer of JSON, held whole, so that it carries its Content-Length.
pub(crate) fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    let mut bytes = value.to_string();
    bytes.push('\n');
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() {
        resource.to_owned()
    } else {
        format!("{resource}.{group}")
    }
}

fn subject(group: &str, resource: &str, name: &str) -> String {
    let qualified = qualified(group, resource);
    if name.is_empty() {
        qualified
    } else {
        format!("{qualified} {name:?}")
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::apiserver::request::ResourceTarget;

    fn resource(group: &str, resource: &str, subresource: &str, namespace: &str, name: &str) -> Target {
        Target::Resource(ResourceTarget {
            group: group.to_owned(),
            version: "v1".to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        })
    }

    #[rstest]
    #[case::list(
        "list",
        resource("", "pods", "", "default", ""),
        r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
    )]
    #[case::named(
        "get",
        resource("", "pods", "", "default", "a"),
        r#"pods "a" is forbidden: User "x" cannot get resource "pods" in API group "" in the namespace "default""#
    )]
    #[case::subresource(
        "create", resource("", "pods", "exec", "default", "a"),
        r#"pods "a" is forbidden: User "x" cannot create resource "pods/exec" in API group "" in the namespace "default""#
    )]
    #[case::cluster(
        "list", resource("apps", "deployments", "", "", ""),
        r#"deployments.apps is forbidden: User "x" cannot list resource "deployments" in API group "apps" at the cluster scope"#
    )]
    #[case::path("get", Target::Path("/metrics".to_owned()), r#"forbidden: User "x" cannot get path "/metrics""#)]
    fn forbidden_reads_as_kube_apiserver_writes_it(#[case] verb: &str, #[case] target: Target, #[case] message: &str) {
        let status = Status::forbidden(
            "x",
            &Attributes {
                verb: verb.to_owned(),
                target,
            },
        );
        assert_eq!(status.message(), message);
        assert_eq!(status.to_value()["reason"], "Forbidden");
        assert_eq!(status.to_value()["code"], 403);
    }
}
