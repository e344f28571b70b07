//! What goes on a stripped request: the credential that acts and, with it, whom it acts as.

use http::{HeaderMap, HeaderValue, header};

use super::{
    ActsAs,
    headers::{IMPERSONATE_SESSION, carries_identity},
};
use crate::{credentials::BearerToken, pod::SessionId};

/// Why a request couldn't be dressed. Nothing is forwarded then.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DressError {
    /// A field that carries identity is still there: [`super::strip()`] wasn't called, or missed it.
    #[error("the request still carries the header {0}, which is not ours")]
    NotStripped(String),
    /// The session's name can't stand in a header.
    #[error("the session's name can't be told to the API server")]
    SessionName,
}

/// Puts the credential on and, if there is one, the identity to impersonate. To that, `told` adds the session's name
/// as an extra value of the user. Without a credential nothing goes on: the API server takes such a request for an
/// anonymous one, or turns it away.
///
/// # Errors
/// If the head still carries identity. This can only be a mistake of ours, and refuses the request.
pub fn dress(
    headers: &mut HeaderMap,
    token: Option<&BearerToken>,
    acts_as: Option<&ActsAs>,
    told: Option<&SessionId>,
) -> Result<(), DressError> {
    if let Some(name) = headers.keys().find(|name| carries_identity(name)) {
        return Err(DressError::NotStripped(name.to_string()));
    }
    let Some(token) = token else { return Ok(()) };
    headers.insert(header::AUTHORIZATION, token.header_value());
    acts_as.map_or(Ok(()), |acts_as| impersonate(headers, acts_as, told))
}

/// Puts on whom to impersonate, without any credential; see [`dress`].
///
/// # Errors
/// If the session's name can't be told.
pub fn impersonate(headers: &mut HeaderMap, acts_as: &ActsAs, told: Option<&SessionId>) -> Result<(), DressError> {
    for (name, value) in acts_as.lines() {
        headers.append(name, value.clone());
    }
    if let Some(session) = told {
        let value = HeaderValue::from_str(&session.to_string()).map_err(|_| DressError::SessionName)?;
        headers.insert(IMPERSONATE_SESSION, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::strip;

    fn token() -> BearerToken {
        "agent-token".parse().unwrap()
    }

    #[test]
    fn the_credential_is_the_only_one_and_sensitive() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer mine".parse().unwrap());
        headers.insert("connection", "authorization, impersonate-user".parse().unwrap());
        strip(&mut headers);
        dress(
            &mut headers,
            Some(&token()),
            Some(&ActsAs::service_account("prod", "viewer").unwrap()),
            None,
        )
        .unwrap();
        let credentials: Vec<_> = headers.get_all("authorization").iter().collect();
        assert_eq!(credentials, ["Bearer agent-token"]);
        assert!(credentials[0].is_sensitive());
        assert_eq!(headers["impersonate-user"], "system:serviceaccount:prod:viewer");
        assert_eq!(headers.get_all("impersonate-group").iter().count(), 3);
    }

    #[test]
    fn without_impersonation_nothing_but_the_credential_goes_on() {
        let mut headers = HeaderMap::new();
        dress(&mut headers, Some(&token()), None, None).unwrap();
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn the_session_is_told_with_an_identity_only() {
        let session: SessionId = "support/alice".parse().unwrap();
        let viewer = ActsAs::service_account("prod", "viewer").unwrap();
        for (acts_as, told) in [(Some(&viewer), Some("support/alice")), (None, None)] {
            let mut headers = HeaderMap::new();
            dress(&mut headers, Some(&token()), acts_as, Some(&session)).unwrap();
            let said = headers.get("impersonate-extra-session.understudy.dev");
            assert_eq!(said.map(|value| value.to_str().unwrap()), told);
        }
    }

    #[test]
    fn without_a_credential_nobody_is_impersonated() {
        let mut headers = HeaderMap::new();
        let viewer = ActsAs::service_account("prod", "viewer").unwrap();
        dress(
            &mut headers,
            None,
            Some(&viewer),
            Some(&"support/alice".parse().unwrap()),
        )
        .unwrap();
        assert!(headers.is_empty());
    }

    #[test]
    fn what_was_not_stripped_is_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("x-remote-user", "root".parse().unwrap());
        let refused = dress(&mut headers, Some(&token()), None, None).unwrap_err();
        assert_eq!(refused, DressError::NotStripped("x-remote-user".to_owned()));
        assert!(!headers.contains_key("authorization"));
    }
}
