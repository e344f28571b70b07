//! The identity that a session impersonates, parsed so that it can always be carried upstream exactly.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue};
use k8s_openapi::api::authentication::v1::UserInfo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::headers::{
    IMPERSONATE_EXTRA_PREFIX, IMPERSONATE_GROUP, IMPERSONATE_ORIGINAL, IMPERSONATE_UID, IMPERSONATE_USER, is_our_extra,
};

/// The user that the API server takes a request without a credential for.
pub const ANONYMOUS: &str = "system:anonymous";
/// The group of everyone who showed a credential.
pub const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Whom a session impersonates: the user's name, and the header lines that say so.
///
/// Whatever can't be carried in a header without being changed on the way is refused when this is made, so
/// that no request meets it half-dressed.
#[derive(Clone, PartialEq, Eq)]
pub struct ActsAs {
    user: Arc<str>,
    lines: Vec<(HeaderName, HeaderValue)>,
}

/// Why an identity can't be impersonated; the message names the field of the session.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum ActsAsError {
    /// A field that must say something says nothing.
    #[error("{0} must not be empty")]
    Empty(&'static str),
    /// The namespace or the name isn't one that Kubernetes would accept.
    #[error("{field} {value:?} is not a valid Kubernetes name: use lower-case letters, digits and '-'")]
    Name {
        /// The session's field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// The value has a control character, or white space at an end, which HTTP doesn't carry.
    #[error("{field} {value:?} can't be carried in an HTTP header: take out control characters and outer white space")]
    Value {
        /// The session's field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// The key has an upper-case letter; the API server would take it for the lower-case one.
    #[error("{field} {key:?} must be in lower case: the API server lower-cases it")]
    ExtraKeyCase {
        /// The field.
        field: &'static str,
        /// The key.
        key: String,
    },
    /// The key is the agent's own.
    #[error("{field} {key:?} is the agent's own, as all of understudy.dev are: spec.tellSession has the session's set")]
    OurExtra {
        /// The field.
        field: &'static str,
        /// The key.
        key: String,
    },
    /// The API server would add a group to those that the user has.
    #[error(
        "user {0:?} is in none of the groups that the API server gives everyone, and would be in one when impersonated"
    )]
    GroupAdded(String),
}

/// What the parts of an identity are called where it was read.
#[derive(Debug)]
struct Fields {
    user: &'static str,
    groups: &'static str,
    uid: &'static str,
    extra: &'static str,
    extra_key: &'static str,
}

const OF_SPEC: Fields = Fields {
    user: "spec.impersonate.user",
    groups: "spec.impersonate.groups",
    uid: "spec.impersonate.uid",
    extra: "spec.impersonate.extra",
    extra_key: "spec.impersonate.extra key",
};
const OF_CALLER: Fields = Fields {
    user: "the user's name",
    groups: "the user's group",
    uid: "the user's UID",
    extra: "the user's extra value",
    extra_key: "the user's extra key",
};

impl ActsAs {
    /// A service account, with the groups that Kubernetes gives one
    /// (`k8s.io/apiserver/pkg/authentication/serviceaccount`, `MakeGroupNames`).
    ///
    /// # Errors
    /// Names the field that is empty or not a Kubernetes name.
    pub fn service_account(namespace: &str, name: &str) -> Result<Self, ActsAsError> {
        let fields = [
            (
                "spec.impersonate.namespace",
                namespace,
                crate::pod::is_dns1123_label(namespace),
            ),
            (
                "spec.impersonate.serviceAccountName",
                name,
                crate::pod::is_dns1123_subdomain(name),
            ),
        ];
        for (field, value, valid) in fields {
            if value.is_empty() {
                return Err(ActsAsError::Empty(field));
            }
            if !valid {
                return Err(ActsAsError::Name {
                    field,
                    value: value.to_owned(),
                });
            }
        }
        let groups = [
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{namespace}"),
            AUTHENTICATED.to_owned(),
        ];
        Self::user(&format!("system:serviceaccount:{namespace}:{name}"), &groups, None, &[])
    }

    /// An explicit user, with what goes with it. Only the groups named are sent; the API server adds
    /// `system:authenticated`, and for a service account without groups its own.
    ///
    /// # Errors
    /// Names the field that is empty or can't be carried exactly.
    pub fn user(
        user: &str,
        groups: &[String],
        uid: Option<&str>,
        extra: &[(String, Vec<String>)],
    ) -> Result<Self, ActsAsError> {
        let extra = extra.iter().map(|(key, values)| (key, values));
        Self::parse(&OF_SPEC, user, groups, uid, extra)
    }

    /// A user as the API server knows it, all of it. Groups that the API server gives whoever is impersonated must be
    /// among its own, or it would be in one group more than it is.
    ///
    /// # Errors
    /// Names the part that is empty or can't be carried exactly.
    pub fn caller(user: &UserInfo) -> Result<Self, ActsAsError> {
        let name = user.username.as_deref().unwrap_or_default();
        let groups = user.groups.as_deref().unwrap_or_default();
        let is_in = |group: &str| groups.iter().any(|own| own == group);
        if !(is_in(UNAUTHENTICATED) || (name != ANONYMOUS && is_in(AUTHENTICATED))) {
            return Err(ActsAsError::GroupAdded(name.to_owned()));
        }
        Self::requested(user)
    }

    /// A user as a caller asks to be, whose further groups are for the API server to add.
    ///
    /// # Errors
    /// As [`caller`](Self::caller).
    pub fn requested(user: &UserInfo) -> Result<Self, ActsAsError> {
        let uid = user.uid.as_deref().filter(|uid| !uid.is_empty());
        let groups = user.groups.as_deref().unwrap_or_default();
        let extra = user.extra.iter().flatten();
        Self::parse(
            &OF_CALLER,
            user.username.as_deref().unwrap_or_default(),
            groups,
            uid,
            extra,
        )
    }

    /// The same, for a caller who asked for it: who that is goes along, so that the cluster's audit shows both.
    ///
    /// # Errors
    /// If the caller can't be written in a header.
    pub fn asked_for_by(mut self, caller: &UserInfo) -> Result<Self, ActsAsError> {
        let text = serde_json::to_string(caller).unwrap_or_default();
        self.lines.push((IMPERSONATE_ORIGINAL, carried("the caller", &text)?));
        Ok(self)
    }

    fn parse<'a>(
        fields: &Fields,
        user: &str,
        groups: &[String],
        uid: Option<&str>,
        extra: impl Iterator<Item = (&'a String, &'a Vec<String>)>,
    ) -> Result<Self, ActsAsError> {
        let mut lines = vec![(IMPERSONATE_USER, carried(fields.user, user)?)];
        for group in groups {
            lines.push((IMPERSONATE_GROUP, carried(fields.groups, group)?));
        }
        if let Some(uid) = uid {
            lines.push((IMPERSONATE_UID, carried(fields.uid, uid)?));
        }
        for (key, values) in extra {
            let name = extra_header(fields.extra_key, key)?;
            if values.is_empty() {
                return Err(ActsAsError::Empty(fields.extra));
            }
            for value in values {
                lines.push((name.clone(), carried(fields.extra, value)?));
            }
        }
        Ok(Self {
            user: user.into(),
            lines,
        })
    }

    /// The user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.user
    }

    /// The same, shared with whoever keeps it.
    #[must_use]
    pub fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.user)
    }

    /// The header lines, in the order in which they are sent.
    #[must_use]
    pub fn lines(&self) -> &[(HeaderName, HeaderValue)] {
        &self.lines
    }
}

impl fmt::Debug for ActsAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ActsAs").field(&self.user).finish()
    }
}

/// Bytes that stand for themselves in a header's name (RFC 9110 `tchar`) other than `%`, which escapes.
const NOT_IN_EXTRA_KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

fn extra_header(field: &'static str, key: &str) -> Result<HeaderName, ActsAsError> {
    let key_of = || key.to_owned();
    if key.is_empty() {
        return Err(ActsAsError::Empty(field));
    }
    if is_our_extra(key) {
        return Err(ActsAsError::OurExtra { field, key: key_of() });
    }
    if key.chars().any(char::is_uppercase) {
        return Err(ActsAsError::ExtraKeyCase { field, key: key_of() });
    }
    let name = format!(
        "{IMPERSONATE_EXTRA_PREFIX}{}",
        utf8_percent_encode(key, NOT_IN_EXTRA_KEY)
    );
    HeaderName::try_from(name).map_err(|_| ActsAsError::Value { field, value: key_of() })
}

fn carried(field: &'static str, value: &str) -> Result<HeaderValue, ActsAsError> {
    if value.is_empty() {
        return Err(ActsAsError::Empty(field));
    }
    let refused = || ActsAsError::Value {
        field,
        value: value.to_owned(),
    };
    if value.trim() != value || value.chars().any(char::is_control) {
        return Err(refused());
    }
    HeaderValue::from_bytes(value.as_bytes()).map_err(|_| refused())
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn lines(acts_as: &ActsAs) -> Vec<(&str, &str)> {
        acts_as
            .lines()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
            .collect()
    }

    #[test]
    fn a_service_account_has_its_groups() {
        let viewer = ActsAs::service_account("prod", "viewer").unwrap();
        assert_eq!(
            lines(&viewer),
            [
                ("impersonate-user", "system:serviceaccount:prod:viewer"),
                ("impersonate-group", "system:serviceaccounts"),
                ("impersonate-group", "system:serviceaccounts:prod"),
                ("impersonate-group", "system:authenticated"),
            ]
        );
    }

    #[rstest]
    #[case("", "viewer", "spec.impersonate.namespace must not be empty")]
    #[case("prod", "", "spec.impersonate.serviceAccountName must not be empty")]
    #[case(
        "Prod",
        "viewer",
        "spec.impersonate.namespace \"Prod\" is not a valid Kubernetes name"
    )]
    #[case(
        "prod:x",
        "viewer",
        "spec.impersonate.namespace \"prod:x\" is not a valid Kubernetes name"
    )]
    #[case(
        "prod",
        "a b",
        "spec.impersonate.serviceAccountName \"a b\" is not a valid Kubernetes name"
    )]
    fn a_bad_service_account_is_named(#[case] namespace: &str, #[case] name: &str, #[case] message: &str) {
        let error = ActsAs::service_account(namespace, name).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn an_explicit_user_carries_uid_and_extra() {
        let extra = [(
            "example.org/scopes".to_owned(),
            vec!["view".to_owned(), "edit".to_owned()],
        )];
        let user = ActsAs::user("jane", &["devs".to_owned()], Some("42"), &extra).unwrap();
        assert_eq!(
            lines(&user),
            [
                ("impersonate-user", "jane"),
                ("impersonate-group", "devs"),
                ("impersonate-uid", "42"),
                ("impersonate-extra-example.org%2fscopes", "view"),
                ("impersonate-extra-example.org%2fscopes", "edit"),
            ]
        );
    }

    #[rstest]
    #[case("", "spec.impersonate.user must not be empty")]
    #[case("a\r\nimpersonate-group: system:masters", "spec.impersonate.user")]
    #[case("a\0", "spec.impersonate.user")]
    #[case(" jane", "spec.impersonate.user")]
    #[case("jane\t", "spec.impersonate.user")]
    fn a_user_that_cannot_be_carried_is_refused(#[case] user: &str, #[case] message: &str) {
        let error = ActsAs::user(user, &[], None, &[]).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
    }

    #[test]
    fn an_upper_case_extra_key_is_refused() {
        let extra = [("Scopes".to_owned(), vec!["x".to_owned()])];
        assert_eq!(
            ActsAs::user("jane", &[], None, &extra).unwrap_err(),
            ActsAsError::ExtraKeyCase {
                field: "spec.impersonate.extra key",
                key: "Scopes".to_owned()
            }
        );
    }

    #[rstest]
    #[case("session.understudy.dev", &["a/b"], "spec.impersonate.extra key \"session.understudy.dev\" is the agent's own")]
    #[case("understudy.dev/x", &["a"], "spec.impersonate.extra key \"understudy.dev/x\" is the agent's own")]
    #[case("scopes", &[], "spec.impersonate.extra must not be empty")]
    #[case("", &["x"], "spec.impersonate.extra key must not be empty")]
    fn a_bad_extra_is_named(#[case] key: &str, #[case] values: &[&str], #[case] message: &str) {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        let error = ActsAs::user("jane", &[], None, &[(key.to_owned(), values)])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(message), "{error}");
    }

    proptest! {
        /// What the API server reads back (lower-cased, then percent-decoded) is what the session said.
        #[test]
        fn extra_keys_survive_the_way(key in "[a-z0-9/%. _:é@-]{1,24}") {
            let name = extra_header("key", &key).unwrap();
            let read = name.as_str().strip_prefix(IMPERSONATE_EXTRA_PREFIX).unwrap();
            prop_assert_eq!(percent_decode_str(read).decode_utf8().unwrap(), key);
        }

        #[test]
        fn no_value_breaks_a_line(value in "\\PC*[\\r\\n\\x00]\\PC*") {
            prop_assert!(ActsAs::user(&value, &[], None, &[]).is_err());
        }
    }
}
