//! A caller who asks to be somebody else, as kube-apiserver has it (`k8s.io/apiserver/pkg/endpoints/filters`,
//! `WithImpersonation`): what is asked for, and whether the cluster says that this caller may.

use std::{collections::BTreeMap, iter};

use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName};
use k8s_openapi::api::{
    authentication::v1::UserInfo,
    authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec},
};
use kube::{Api, api::PostParams};
use percent_encoding::percent_decode_str;
use tokio::time::timeout;

use super::{PATIENCE, granted::allows};
use crate::{
    identity::{IMPERSONATE_EXTRA_PREFIX, IMPERSONATE_GROUP, IMPERSONATE_UID, IMPERSONATE_USER, asks_to_impersonate},
    pod::{is_dns1123_label, is_dns1123_subdomain},
    status::Refusal,
};

/// Each part that is asked for is a question to the API server. Whoever asks for more is refused.
pub const MOST: usize = 64;
/// As many of them at a time.
pub(super) const AT_ONCE: usize = 8;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";
pub(super) const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";

/// Whom a request asks to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Requested(UserInfo);

impl Requested {
    /// Reads the request's own `Impersonate-*` fields. An empty user is none, as kube-apiserver has it.
    ///
    /// # Errors
    /// A field that isn't one of impersonation's, or that could be read in more than one way.
    pub fn read(headers: &HeaderMap) -> Result<Option<Self>, Refusal> {
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut asked = false;
        for name in headers.keys().filter(|name| asks_to_impersonate(name)) {
            asked = true;
            if let Some(encoded) = name.as_str().strip_prefix(IMPERSONATE_EXTRA_PREFIX) {
                let key = extra_key(encoded)?;
                let values = texts(headers, name)?;
                // Two fields that come to the same: which goes first isn't said.
                if extra.insert(key, values).is_some() {
                    return Err(Refusal::BadRequest);
                }
            } else if ![IMPERSONATE_USER, IMPERSONATE_GROUP, IMPERSONATE_UID].contains(name) {
                return Err(Refusal::Impersonation);
            }
        }
        if !asked {
            return Ok(None);
        }
        let user = single(headers, &IMPERSONATE_USER)?.ok_or(Refusal::BadRequest)?;
        Ok(Some(Self(UserInfo {
            username: Some(user),
            groups: Some(texts(headers, &IMPERSONATE_GROUP)?),
            uid: single(headers, &IMPERSONATE_UID)?,
            extra: (!extra.is_empty()).then_some(extra),
        })))
    }

    /// The user, without the groups that the API server adds by itself.
    #[must_use]
    pub fn user(&self) -> &UserInfo {
        &self.0
    }

    /// The rights that it takes, in the order in which kube-apiserver asks for them.
    pub(super) fn rights(&self) -> Vec<ResourceAttributes> {
        let right = |group: &str, resource: &str, name: &str| ResourceAttributes {
            verb: Some("impersonate".to_owned()),
            group: Some(group.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some(resource.to_owned()),
            name: Some(name.to_owned()),
            ..ResourceAttributes::default()
        };
        let user = self.0.username.as_deref().unwrap_or_default();
        let user = match service_account(user) {
            Some((namespace, name)) => ResourceAttributes {
                namespace: Some(namespace.to_owned()),
                ..right("", "serviceaccounts", name)
            },
            None => right("", "users", user),
        };
        let groups = self.0.groups.iter().flatten().map(|group| right("", "groups", group));
        let extra = self.0.extra.iter().flatten().flat_map(|(key, values)| {
            values.iter().map(move |value| ResourceAttributes {
                subresource: Some(key.clone()),
                ..right(AUTHENTICATION_GROUP, "userextras", value)
            })
        });
        let uid = self.0.uid.iter().map(|uid| right(AUTHENTICATION_GROUP, "uids", uid));
        iter::once(user).chain(groups).chain(extra).chain(uid).collect()
    }
}

/// Asks the API server whether `caller` may be whom it asks for, for each part of that.
///
/// # Errors
/// 403 if it may not be, in any part; 503 where that can't be known.
pub async fn may(client: &kube::Client, caller: &UserInfo, requested: &Requested) -> Result<(), Refusal> {
    let rights = requested.rights();
    if rights.len() > MOST {
        return Err(Refusal::ImpersonationForbidden);
    }
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let questions = rights.into_iter().map(|right| {
        let reviews = reviews.clone();
        async move {
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: caller.username.clone(),
                    groups: caller.groups.clone(),
                    uid: caller.uid.clone(),
                    extra: caller.extra.clone(),
                    resource_attributes: Some(right),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            match timeout(PATIENCE, reviews.create(&PostParams::default(), &review)).await {
                Ok(Ok(answer)) => {
                    let is_allowed = answer.status.as_ref().is_some_and(allows);
                    if is_allowed { Ok(()) } else { Err(Refusal::ImpersonationForbidden) }
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "whether a caller may impersonate can't be known: see that the agent may create subjectaccessreviews");
                    Err(Refusal::ProofUnavailable)
                }
                Err(_) => {
                    tracing::warn!("whether a caller may impersonate can't be known: the API server gives no answer");
                    Err(Refusal::ProofUnavailable)
                }
            }
        }
    });
    let mut answers = stream::iter(questions).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        answer?;
    }
    Ok(())
}

/// As kube-apiserver reads it: lower-cased, which a field's name is here, then decoded, if it can be.
fn extra_key(encoded: &str) -> Result<String, Refusal> {
    let bytes = encoded.as_bytes();
    let is_encoded = bytes.iter().enumerate().all(|(index, byte)| {
        *byte != b'%'
            || bytes
                .get(index + 1..index + 3)
                .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !is_encoded {
        return Ok(encoded.to_owned());
    }
    percent_decode_str(encoded)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| Refusal::BadRequest)
}

fn texts(headers: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, Refusal> {
    headers
        .get_all(name)
        .iter()
        .map(|value| std::str::from_utf8(value.as_bytes()).map(str::to_owned))
        .collect::<Result<_, _>>()
        .map_err(|_| Refusal::BadRequest)
}

fn single(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Refusal> {
    let mut values = texts(headers, name)?;
    match values.len() {
        0 => Ok(None),
        1 => Ok(values.pop().filter(|value| !value.is_empty())),
        _ => Err(Refusal::BadRequest),
    }
}

/// `k8s.io/apiserver/pkg/authentication/serviceaccount`, `SplitUsername`.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    (is_dns1123_label(namespace) && is_dns1123_subdomain(name)).then_some((namespace, name))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rstest::rstest;

    use super::*;

    fn read(fields: &[(&str, &str)]) -> Result<Option<Requested>, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let value = HeaderValue::from_bytes(value.as_bytes()).unwrap();
            headers.append(name.parse::<HeaderName>().unwrap(), value);
        }
        Requested::read(&headers)
    }

    #[test]
    fn who_asks_for_nobody_is_itself() {
        assert_eq!(read(&[("accept", "*/*")]), Ok(None));
    }

    #[rstest]
    #[case::group_alone(&[("impersonate-group", "devs")], Refusal::BadRequest)]
    #[case::uid_alone(&[("impersonate-uid", "1")], Refusal::BadRequest)]
    #[case::extra_alone(&[("impersonate-extra-scopes", "view")], Refusal::BadRequest)]
    #[case::empty_user(&[("impersonate-user", "")], Refusal::BadRequest)]
    #[case::two_users(&[("impersonate-user", "a"), ("impersonate-user", "b")], Refusal::BadRequest)]
    #[case::two_uids(&[("impersonate-user", "a"), ("impersonate-uid", "1"), ("impersonate-uid", "2")], Refusal::BadRequest)]
    #[case::colliding(&[("impersonate-user", "a"), ("impersonate-extra-x", "1"), ("impersonate-extra-%78", "2")], Refusal::BadRequest)]
    #[case::no_text(&[("impersonate-user", "a"), ("impersonate-extra-%ff", "1")], Refusal::BadRequest)]
    #[case::unknown(&[("impersonate-user", "a"), ("impersonate-anything", "1")], Refusal::Impersonation)]
    #[case::underscore(&[("impersonate_user", "a")], Refusal::Impersonation)]
    fn what_cannot_be_meant_is_refused(#[case] fields: &[(&str, &str)], #[case] refusal: Refusal) {
        assert_eq!(read(fields).unwrap_err(), refusal);
    }

    #[test]
    fn each_part_is_a_right() {
        let requested = read(&[
            ("impersonate-user", "system:serviceaccount:prod:viewer"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
            ("Impersonate-Extra-Example.org%2fScopes", "view"),
            ("impersonate-extra-example.org%2fscopes", "edit"),
            ("impersonate-uid", "42"),
        ])
        .unwrap()
        .unwrap();
        let rights: Vec<_> = requested
            .rights()
            .into_iter()
            .map(|right| {
                assert_eq!(right.verb.as_deref(), Some("impersonate"));
                let text = |part: &Option<String>| part.clone().unwrap_or_default();
                format!(
                    "{}|{}|{}|{}|{}",
                    text(&right.group),
                    text(&right.namespace),
                    text(&right.resource),
                    text(&right.subresource),
                    text(&right.name)
                )
            })
            .collect();
        assert_eq!(
            rights,
            [
                "|prod|serviceaccounts||viewer",
                "||groups||devs",
                "||groups||ops",
                "authentication.k8s.io||userextras|example.org/scopes|view",
                "authentication.k8s.io||userextras|example.org/scopes|edit",
                "authentication.k8s.io||uids||42",
            ]
        );
    }

    #[rstest]
    #[case("jane")]
    #[case("system:serviceaccount:prod")]
    #[case("system:serviceaccount:prod:a:b")]
    #[case("system:serviceaccount::viewer")]
    fn others_are_users(#[case] name: &str) {
        let rights = read(&[("impersonate-user", name)]).unwrap().unwrap().rights();
        let [right] = rights.as_slice() else {
            panic!("{rights:?}")
        };
        assert_eq!(
            (
                right.resource.as_deref(),
                right.name.as_deref(),
                right.namespace.as_deref()
            ),
            (Some("users"), Some(name), None)
        );
    }
}
