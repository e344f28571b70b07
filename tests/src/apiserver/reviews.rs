//! Reviews: who am I, may I, may they, whose token is this. Answered from the same tables that every request goes
//! through, and kept nowhere.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    auth::{self, UserInfo},
    body::Body,
    cause::Cause,
    rbac::Rules,
    request::{Attributes, ResourceTarget, Target},
    serve::Call,
    service_accounts::ISSUER,
    status::{Status, json_response},
    store::now,
};

/// The reviews that are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    SelfSubject,
    Token,
    SelfSubjectAccess,
    SubjectAccess,
}

/// The review that this resource is, if it is one.
pub(crate) fn kind(group: &str, resource: &str) -> Option<Review> {
    match (group, resource) {
        ("authentication.k8s.io", "selfsubjectreviews") => Some(Review::SelfSubject),
        ("authentication.k8s.io", "tokenreviews") => Some(Review::Token),
        ("authorization.k8s.io", "selfsubjectaccessreviews") => Some(Review::SelfSubjectAccess),
        ("authorization.k8s.io", "subjectaccessreviews") => Some(Review::SubjectAccess),
        _ => None,
    }
}

/// Answers it.
pub(crate) async fn serve(mut call: Call, review: Review) -> Result<Response<Body>, Status> {
    let mut object = call.object().await?;
    if object["metadata"].is_null() {
        object["metadata"] = json!({});
    }
    object["status"] = match review {
        Review::SelfSubject => {
            object["metadata"]["creationTimestamp"] = json!(now());
            json!({"userInfo": call.user})
        }
        Review::Token => {
            let token = object["spec"]["token"].as_str().unwrap_or_default();
            if token.is_empty() {
                return Err(Status::bad_request(
                    "token is required for TokenReview in authentication",
                ));
            }
            let mut audiences: Vec<String> = list(&object["spec"]["audiences"])?;
            if audiences.is_empty() {
                audiences.push(ISSUER.to_owned());
            }
            match auth::token_user(&call.shared, token, &audiences).await {
                Ok((user, audiences)) => json!({"authenticated": true, "user": user, "audiences": audiences}),
                Err(error) => json!({"user": {}, "error": error}),
            }
        }
        Review::SelfSubjectAccess => {
            let rules = call.shared.rules.current().await;
            verdict(&rules, &call.user, &object["spec"])?
        }
        Review::SubjectAccess => {
            let rules = call.shared.rules.current().await;
            let spec = &object["spec"];
            let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
            let user = UserInfo {
                username: text("user"),
                uid: text("uid"),
                groups: list(&spec["groups"])?,
                extra: serde_json::from_value(spec.get("extra").cloned().unwrap_or_else(|| json!({})))
                    .map_err(|error| Status::bad_request(error.to_string()))?,
            };
            if user.username.is_empty() && user.groups.is_empty() {
                let cause = Cause::invalid("spec.user", "\"\"", "at least one of user or group must be specified");
                // kube-apiserver leaves the kind out of this one.
                return Err(Status::invalid_object("authorization.k8s.io", "", "", &[cause]));
            }
            verdict(&rules, &user, spec)?
        }
    };
    Ok(json_response(StatusCode::CREATED, &object))
}

/// A list of texts; none where it isn't given.
fn list(value: &Value) -> Result<Vec<String>, Status> {
    let given = Some(value).filter(|value| !value.is_null()).cloned();
    serde_json::from_value(given.unwrap_or_else(|| json!([]))).map_err(|error| Status::bad_request(error.to_string()))
}

fn verdict(rules: &Rules, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let resource = &spec["resourceAttributes"];
    let path = &spec["nonResourceAttributes"];
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let attributes = if resource.is_object() {
        Attributes {
            verb: text(resource, "verb"),
            target: Target::Resource(ResourceTarget {
                group: text(resource, "group"),
                version: text(resource, "version"),
                resource: text(resource, "resource"),
                subresource: text(resource, "subresource"),
                namespace: text(resource, "namespace"),
                name: text(resource, "name"),
            }),
        }
    } else if path.is_object() {
        Attributes {
            verb: text(path, "verb"),
            target: Target::Path(text(path, "path")),
        }
    } else {
        return Err(Status::invalid(
            "spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    };
    Ok(json!({"allowed": rules.allow(user, &attributes)}))
}
