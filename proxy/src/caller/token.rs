//! The bearer token that a request shows, read as kube-apiserver reads it: a plain function over the head.
//!
//! `k8s.io/apiserver/pkg/authentication/request/bearertoken` and `.../websocket` say how.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderMap, header};
use secrecy::SecretString;

use crate::{
    identity::{BEARER_SUBPROTOCOL_PREFIX, list_members},
    status::Refusal,
};

/// The token that the request shows, if any. Another scheme than `Bearer` shows none.
///
/// # Errors
/// Two `Authorization` fields, of which only one could be meant; a token among the sub-protocols that can't be read;
/// bytes that no token has.
pub fn shown(headers: &HeaderMap, is_websocket: bool) -> Result<Option<SecretString>, Refusal> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let field = fields.next();
    if fields.next().is_some() {
        return Err(Refusal::BadRequest);
    }
    if let Some(field) = field
        && let Some(token) = of_field(field.as_bytes())?
    {
        return Ok(Some(token));
    }
    if is_websocket {
        of_subprotocols(headers)
    } else {
        Ok(None)
    }
}

fn of_field(field: &[u8]) -> Result<Option<SecretString>, Refusal> {
    let field = field.trim_ascii();
    let mut parts = field.split(|byte| *byte == b' ');
    let (Some(scheme), Some(token)) = (parts.next(), parts.next()) else {
        return Ok(None);
    };
    if !scheme.eq_ignore_ascii_case(b"bearer") || token.is_empty() {
        return Ok(None);
    }
    text(token).map(Some)
}

fn of_subprotocols(headers: &HeaderMap) -> Result<Option<SecretString>, Refusal> {
    let prefix = BEARER_SUBPROTOCOL_PREFIX.as_bytes();
    let mut token = None;
    let mut others = 0;
    for member in list_members(headers, &header::SEC_WEBSOCKET_PROTOCOL) {
        let Some(encoded) = member.strip_prefix(prefix) else {
            others += 1;
            continue;
        };
        let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| Refusal::Unproven)?;
        if token.replace(decoded).is_some() {
            return Err(Refusal::BadRequest);
        }
    }
    match token {
        // There has to be another, for the server to choose.
        Some(_) if others == 0 => Err(Refusal::Unproven),
        Some(token) if !token.is_empty() => text(&token).map(Some),
        _ => Ok(None),
    }
}

/// No token of any kind has other characters, so that nobody has to be asked.
fn text(token: &[u8]) -> Result<SecretString, Refusal> {
    match std::str::from_utf8(token) {
        Ok(text) if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(SecretString::from(text)),
        _ => Err(Refusal::Unproven),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;
    use rstest::rstest;
    use secrecy::ExposeSecret as _;

    use super::*;

    const WEBSOCKET: &str = "sec-websocket-protocol";

    fn read(fields: &[(&str, &str)], is_websocket: bool) -> Result<Option<String>, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        shown(&headers, is_websocket).map(|token| token.map(|token| token.expose_secret().to_owned()))
    }

    #[rstest]
    #[case::none(&[], Ok(None))]
    #[case::one(&[("authorization", "Bearer abc.def")], Ok(Some("abc.def")))]
    #[case::any_case(&[("authorization", "  bEARER abc ")], Ok(Some("abc")))]
    #[case::what_follows_is_left(&[("authorization", "Bearer abc def")], Ok(Some("abc")))]
    #[case::basic(&[("authorization", "Basic abc")], Ok(None))]
    #[case::bare(&[("authorization", "abc")], Ok(None))]
    #[case::empty(&[("authorization", "Bearer ")], Ok(None))]
    #[case::two_spaces(&[("authorization", "Bearer  abc")], Ok(None))]
    #[case::two(&[("authorization", "Bearer a"), ("authorization", "Bearer ")], Err(Refusal::BadRequest))]
    #[case::two_of_which_one_is_none(&[("authorization", "Basic a"), ("authorization", "Bearer ")], Err(Refusal::BadRequest))]
    #[case::no_token(&[("authorization", "Bearer a\u{ff}")], Err(Refusal::Unproven))]
    #[case::subprotocol(&[(WEBSOCKET, "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.czNjcmV0")], Ok(Some("s3cret")))]
    #[case::field_first(
        &[("authorization", "Bearer abc"), (WEBSOCKET, "v5, base64url.bearer.authorization.k8s.io.czNjcmV0")],
        Ok(Some("abc"))
    )]
    #[case::alone(&[(WEBSOCKET, "base64url.bearer.authorization.k8s.io.czNjcmV0")], Err(Refusal::Unproven))]
    #[case::not_base64(&[(WEBSOCKET, "v5, base64url.bearer.authorization.k8s.io.a+b=")], Err(Refusal::Unproven))]
    #[case::two_subprotocols(
        &[(WEBSOCKET, "v5, base64url.bearer.authorization.k8s.io.YQ"), (WEBSOCKET, "base64url.bearer.authorization.k8s.io.Yg")],
        Err(Refusal::BadRequest)
    )]
    fn reads(#[case] fields: &[(&str, &str)], #[case] expected: Result<Option<&str>, Refusal>) {
        assert_eq!(read(fields, true), expected.map(|token| token.map(str::to_owned)));
    }

    #[test]
    fn a_subprotocol_counts_in_a_websocket_handshake_alone() {
        let field = (WEBSOCKET, "v5, base64url.bearer.authorization.k8s.io.czNjcmV0");
        assert_eq!(read(&[field], false), Ok(None));
    }

    proptest! {
        /// Whatever stands in the field, what is taken for a token is part of it and can be one.
        #[test]
        fn a_token_is_a_word_of_the_field(field in "[ -~\\t\u{80}-\u{ff}]{0,40}") {
            if let Ok(Some(token)) = read(&[("authorization", &field)], false) {
                prop_assert!(field.contains(&token));
                prop_assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
