//! Reviews: who am I, may I, may they, whose token is this. Answered from the same tables that every request goes
//! through, and kept nowhere.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    auth::UserInfo,
    body::Body,
    rbac::Rules,
    request::{Attributes, ResourceTarget, Target},
    serve::Call,
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
            match call.shared.tokens.current().await.user(token) {
                Some(user) => json!({"authenticated": true, "user": user}),
                None => json!({"authenticated": false, "error": "invalid bearer token"}),
            }
        }
        Review::SelfSubjectAccess => {
            let rules = call.shared.rules.current().await;
            verdict(&rules, &call.user, &object["spec"])?
        }
        Review::SubjectAccess => {
            let rules = call.shared.rules.current().await;
            let spec = &object["spec"];
            let user: UserInfo = serde_json::from_value(json!({
                "username": spec["user"].as_str().unwrap_or_default(),
                "groups": spec["groups"].as_array().cloned().unwrap_or_default(),
            }))
            .map_err(|error| Status::bad_request(error.to_string()))?;
            verdict(&rules, &user, spec)?
        }
    };
    Ok(json_response(StatusCode::CREATED, &object))
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
