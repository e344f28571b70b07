//! Whether the agent itself may impersonate whom a session acts as. Requests don't need to know it, for the API server
//! judges each of them: this is for an operator who asks why they are answered 403.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::HeaderMap;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::{Api, api::PostParams};
use tokio::time::timeout;

use super::{
    PATIENCE,
    nested::{AT_ONCE, AUTHENTICATION_GROUP, MOST, Requested},
};
use crate::{
    identity::{ActsAs, impersonate},
    pod::SessionId,
    sessions::live::LiveSession,
};

/// As whom Kubernetes' own users aren't impersonated (KEP-5284, `userInfoImpersonationMode`).
const OF_KUBERNETES: [&str; 2] = ["system:node:", "system:serviceaccount:"];

/// What the agent lacks to act as the session says: nothing said where that isn't known, or where nobody is impersonated
/// or whoever calls.
pub async fn lacking_for(client: &kube::Client, session: &LiveSession) -> Option<Vec<String>> {
    let requested = requested(session.spec.method.acts_as()?, session.told())?;
    timeout(PATIENCE, lacking(client, &requested)).await.ok()?.ok()
}

/// As the API server reads what the agent sends. Nothing where that takes more rights than are asked about: some of them
/// would be taken for granted.
fn requested(acts_as: &ActsAs, told: Option<&SessionId>) -> Option<Requested> {
    let mut headers = HeaderMap::new();
    impersonate(&mut headers, acts_as, told).ok()?;
    let requested = Requested::read(&headers).ok()??;
    (requested.rights().len() <= MOST).then_some(requested)
}

/// The rights that the agent lacks to be `requested`, as `kubectl auth can-i impersonate` takes them: resource and name.
///
/// They are those that any request takes. Where one is missing, the agent may still act by constrained impersonation,
/// which some requests may be granted and others not: so much isn't told to be missing.
///
/// # Errors
/// Where the API server doesn't say.
async fn lacking(client: &kube::Client, requested: &Requested) -> Result<Vec<String>, kube::Error> {
    let rights = requested.rights();
    let denied = denied(client, rights.clone()).await?;
    let user = requested.user().username.as_deref().unwrap_or_default();
    if !denied.is_empty() && !OF_KUBERNETES.iter().any(|prefix| user.starts_with(prefix)) {
        let constrained = rights.into_iter().map(|right| ResourceAttributes {
            verb: Some("impersonate:user-info".to_owned()),
            group: Some(AUTHENTICATION_GROUP.to_owned()),
            ..right
        });
        if self::denied(client, constrained.collect()).await?.is_empty() {
            return Ok(Vec::new());
        }
    }
    Ok(denied.iter().map(text).collect())
}

/// Those of the rights that the API server denies the agent, in their order.
async fn denied(
    client: &kube::Client,
    rights: Vec<ResourceAttributes>,
) -> Result<Vec<ResourceAttributes>, kube::Error> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let questions = rights.into_iter().map(|right| {
        let reviews = reviews.clone();
        async move {
            let review = SelfSubjectAccessReview {
                spec: SelfSubjectAccessReviewSpec {
                    resource_attributes: Some(right.clone()),
                    ..SelfSubjectAccessReviewSpec::default()
                },
                ..SelfSubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            let is_allowed = answer.status.as_ref().is_some_and(allows);
            Ok((!is_allowed).then_some(right))
        }
    });
    let answers = stream::iter(questions).buffered(AT_ONCE);
    answers.try_filter_map(async |denied| Ok(denied)).try_collect().await
}

/// Whether a review grants what it was asked.
pub(super) fn allows(status: &SubjectAccessReviewStatus) -> bool {
    status.allowed && !status.denied.unwrap_or_default()
}

fn text(right: &ResourceAttributes) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    let mut text = part(&right.resource);
    if let Some(key) = &right.subresource {
        text = format!("{text}/{key}");
    }
    match &right.namespace {
        Some(namespace) => format!("{text} {namespace}/{}", part(&right.name)),
        None => format!("{text} {}", part(&right.name)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::cluster::mock::{Answer, Mock};

    fn jane() -> Requested {
        let extra = [("scopes".to_owned(), vec!["view".to_owned()])];
        let jane = ActsAs::user("jane", &["devs".to_owned()], Some("42"), &extra).unwrap();
        requested(&jane, None).unwrap()
    }

    fn viewer() -> Requested {
        requested(&ActsAs::service_account("prod", "viewer").unwrap(), None).unwrap()
    }

    /// What is missing by an API server that grants by verb and resource.
    async fn asked(requested: &Requested, grants: fn(&str, &str) -> bool) -> Vec<String> {
        let mock = Mock::new(move |request| {
            assert!(request.path.ends_with("/selfsubjectaccessreviews"), "{}", request.path);
            let mut review = request.body.clone();
            let asked = |field: &str| review["spec"]["resourceAttributes"][field].as_str().unwrap().to_owned();
            review["status"] = json!({"allowed": grants(&asked("verb"), &asked("resource"))});
            Answer::json(201, review)
        });
        lacking(&mock.client(), requested).await.unwrap()
    }

    #[rstest]
    #[case::all(viewer(), |_: &str, _: &str| true, &[])]
    #[case::account(viewer(), |_: &str, resource: &str| resource == "groups", &["serviceaccounts prod/viewer"])]
    #[case::groups(viewer(), |_: &str, resource: &str| resource == "serviceaccounts", &[
        "groups system:serviceaccounts", "groups system:serviceaccounts:prod", "groups system:authenticated",
    ])]
    #[case::user(jane(), |_: &str, _: &str| false, &["users jane", "groups devs", "userextras/scopes view", "uids 42"])]
    #[case::extra(jane(), |_: &str, resource: &str| resource != "userextras", &["userextras/scopes view"])]
    #[case::constrained(jane(), |verb: &str, _: &str| verb == "impersonate:user-info", &[])]
    #[case::constrained_in_part(
        jane(), |verb: &str, resource: &str| verb == "impersonate" && resource == "users" || verb != "impersonate" && resource != "uids",
        &["groups devs", "userextras/scopes view", "uids 42"]
    )]
    #[case::an_account_is_never_constrained(
        viewer(), |verb: &str, resource: &str| verb == "impersonate:user-info" || resource == "groups", &["serviceaccounts prod/viewer"]
    )]
    #[tokio::test]
    async fn what_is_missing_is_named(
        #[case] requested: Requested,
        #[case] grants: fn(&str, &str) -> bool,
        #[case] expected: &[&str],
    ) {
        assert_eq!(asked(&requested, grants).await, expected);
    }

    #[test]
    fn of_more_rights_than_are_asked_about_none_is_taken_for_granted() {
        let of_groups = |count: usize| {
            let groups: Vec<String> = (0..count).map(|n| format!("group-{n}")).collect();
            requested(&ActsAs::user("jane", &groups, None, &[]).unwrap(), None)
        };
        // And the user.
        assert_eq!(of_groups(MOST - 1).unwrap().rights().len(), MOST);
        assert!(of_groups(MOST).is_none());
    }

    #[tokio::test]
    async fn what_the_api_server_does_not_say_is_not_told_to_be_missing() {
        let mock = Mock::new(|_| Answer::status(503, "ServiceUnavailable"));
        lacking(&mock.client(), &viewer()).await.unwrap_err();
    }
}
