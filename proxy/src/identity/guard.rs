//! What is refused before anything else is looked at.

use http::{HeaderName, Method, header, request::Parts};

use super::headers::{IMPERSONATE_PREFIX, begins};
use crate::status::Refusal;

/// Refuses a request that must not be forwarded in any dress.
///
/// A client that asks to impersonate is refused rather than stripped: it believes that it acts as somebody
/// else, and going on as the session's identity would do what it didn't ask for. Only where callers act as themselves,
/// `may_ask`, is it for the cluster to say whether they may; [`crate::caller`] asks it.
///
/// # Errors
/// The refusal to answer with.
pub fn guard(head: &Parts, may_ask: bool) -> Result<(), Refusal> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Refusal::MethodNotAllowed);
    }
    if !head.uri.path().starts_with('/') {
        return Err(Refusal::BadRequest);
    }
    if !may_ask && head.headers.keys().any(asks_to_impersonate) {
        return Err(Refusal::Impersonation);
    }
    if head.headers.get_all(header::HOST).iter().count() > 1 {
        return Err(Refusal::BadRequest);
    }
    // User information before an `@` is no part of an API server's name (RFC 9113, section 8.3.1).
    if head
        .uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'))
    {
        return Err(Refusal::BadRequest);
    }
    if let (Some(authority), Some(host)) = (head.uri.authority(), head.headers.get(header::HOST))
        && !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes())
    {
        return Err(Refusal::BadRequest);
    }
    Ok(())
}

/// Whether a field asks to impersonate, or would be taken for one that does.
pub(crate) fn asks_to_impersonate(name: &HeaderName) -> bool {
    begins(name, IMPERSONATE_PREFIX)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn head(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[rstest]
    #[case::plain("GET", "/api", &[("host", "kubernetes.default.svc")], None)]
    #[case::absolute_same_host("GET", "https://k/api", &[("host", "K")], None)]
    #[case::absolute_other_host("GET", "https://other/api", &[("host", "k")], Some(Refusal::BadRequest))]
    #[case::user_information("GET", "https://root@k/api", &[("host", "root@k")], Some(Refusal::BadRequest))]
    #[case::two_hosts("GET", "/api", &[("host", "a"), ("host", "a")], Some(Refusal::BadRequest))]
    #[case::asterisk("OPTIONS", "*", &[], Some(Refusal::BadRequest))]
    #[case::trace("TRACE", "/", &[], Some(Refusal::MethodNotAllowed))]
    #[case::connect("CONNECT", "k:443", &[], Some(Refusal::MethodNotAllowed))]
    #[case::user("GET", "/", &[("Impersonate-User", "root")], Some(Refusal::Impersonation))]
    #[case::upper("GET", "/", &[("IMPERSONATE-GROUP", "system:masters")], Some(Refusal::Impersonation))]
    #[case::unknown_suffix("GET", "/", &[("impersonate-anything", "x")], Some(Refusal::Impersonation))]
    #[case::empty_value("GET", "/", &[("impersonate-user", "")], Some(Refusal::Impersonation))]
    #[case::extra("GET", "/", &[("impersonate-extra-a%2fb", "x")], Some(Refusal::Impersonation))]
    #[case::underscore("GET", "/", &[("impersonate_user", "root")], Some(Refusal::Impersonation))]
    fn refuses(
        #[case] method: &str,
        #[case] uri: &str,
        #[case] headers: &[(&str, &str)],
        #[case] refusal: Option<Refusal>,
    ) {
        assert_eq!(guard(&head(method, uri, headers), false).err(), refusal);
    }

    proptest! {
        #[test]
        fn no_impersonation_header_passes(suffix in "[A-Za-z0-9_.%-]{0,40}", upper in any::<bool>()) {
            let name = format!("impersonate-{suffix}");
            let name = if upper { name.to_uppercase() } else { name };
            prop_assert_eq!(guard(&head("GET", "/", &[(&name, "x")]), false), Err(Refusal::Impersonation));
        }
    }
}
