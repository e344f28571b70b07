//! The identity that a session impersonates, parsed so that it can always be carried upstream exactly.

use std::fmt;

use http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::headers::{IMPERSONATE_EXTRA_PREFIX, IMPERSONATE_GROUP, IMPERSONATE_UID, IMPERSONATE_USER, SESSION_EXTRA};

const AUTHENTICATED: &str = "system:authenticated";
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// Whom a session impersonates: the user's name, and the header lines that say so.
///
/// Whatever can't be carried in a header without being changed on the way is refused when this is made, so
/// that no request meets it half-dressed.
#[derive(Clone, PartialEq, Eq)]
pub struct ActsAs {
    user: String,
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
    #[error("spec.impersonate.extra key {0:?} must be in lower case: the API server lower-cases it")]
    ExtraKeyCase(String),
    /// The key is the agent's own.
    #[error("spec.impersonate.extra key {SESSION_EXTRA:?} is the agent's own: use spec.tellSession to have it set")]
    SessionExtra,
}

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
        let mut lines = vec![(IMPERSONATE_USER, carried("spec.impersonate.user", user)?)];
        for group in groups {
            lines.push((IMPERSONATE_GROUP, carried("spec.impersonate.groups", group)?));
        }
        if let Some(uid) = uid {
            lines.push((IMPERSONATE_UID, carried("spec.impersonate.uid", uid)?));
        }
        for (key, values) in extra {
            let name = extra_header(key)?;
            if values.is_empty() {
                return Err(ActsAsError::Empty("spec.impersonate.extra"));
            }
            for value in values {
                lines.push((name.clone(), carried("spec.impersonate.extra", value)?));
            }
        }
        Ok(Self {
            user: user.to_owned(),
            lines,
        })
    }

    /// The user's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.user
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

fn extra_header(key: &str) -> Result<HeaderName, ActsAsError> {
    const FIELD: &str = "spec.impersonate.extra key";
    if key.is_empty() {
        return Err(ActsAsError::Empty(FIELD));
    }
    if key == SESSION_EXTRA {
        return Err(ActsAsError::SessionExtra);
    }
    if key.chars().any(char::is_uppercase) {
        return Err(ActsAsError::ExtraKeyCase(key.to_owned()));
    }
    let name = format!(
        "{IMPERSONATE_EXTRA_PREFIX}{}",
        utf8_percent_encode(key, NOT_IN_EXTRA_KEY)
    );
    HeaderName::try_from(name).map_err(|_| ActsAsError::Value {
        field: FIELD,
        value: key.to_owned(),
    })
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
            ActsAsError::ExtraKeyCase("Scopes".to_owned())
        );
    }

    #[rstest]
    #[case("session.understudy.dev", &["a/b"], "spec.impersonate.extra key \"session.understudy.dev\" is the agent's own")]
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
            let name = extra_header(&key).unwrap();
            let read = name.as_str().strip_prefix(IMPERSONATE_EXTRA_PREFIX).unwrap();
            prop_assert_eq!(percent_decode_str(read).decode_utf8().unwrap(), key);
        }

        #[test]
        fn no_value_breaks_a_line(value in "\\PC*[\\r\\n\\x00]\\PC*") {
            prop_assert!(ActsAs::user(&value, &[], None, &[]).is_err());
        }
    }
}
