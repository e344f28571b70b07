//! The names of the header fields that carry identity or belong to one connection only.

use http::{HeaderMap, HeaderName, header};

/// Prefix of the impersonation headers
/// (<https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation>).
pub(super) const IMPERSONATE_PREFIX: &str = "impersonate-";

pub(crate) const IMPERSONATE_USER: HeaderName = HeaderName::from_static("impersonate-user");
pub(crate) const IMPERSONATE_UID: HeaderName = HeaderName::from_static("impersonate-uid");
pub(crate) const IMPERSONATE_GROUP: HeaderName = HeaderName::from_static("impersonate-group");
pub(crate) const IMPERSONATE_EXTRA_PREFIX: &str = "impersonate-extra-";

/// The domain of the user's extra keys that the agent alone sets.
const OUR_DOMAIN: &str = "understudy.dev";
/// The session, as the API server is told it.
pub(crate) const IMPERSONATE_SESSION: HeaderName = HeaderName::from_static("impersonate-extra-session.understudy.dev");
/// Who asked to be somebody else, as JSON.
pub(super) const IMPERSONATE_ORIGINAL: HeaderName =
    HeaderName::from_static("impersonate-extra-original-user-info.understudy.dev");

/// Whether an extra key is one that only the agent may set. The API server lower-cases what it is sent.
pub(super) fn is_our_extra(key: &str) -> bool {
    let key = key.to_lowercase();
    key.split('/').any(|part| {
        part.strip_suffix(OUR_DOMAIN)
            .is_some_and(|before| before.is_empty() || before.ends_with('.'))
    })
}

/// Sub-protocol of a WebSocket handshake that carries a bearer token
/// (`k8s.io/apiserver/pkg/authentication/request/websocket`).
pub(crate) const BEARER_SUBPROTOCOL_PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// Fields that carry, or have been known to carry, who the client is or whence it came.
pub(super) const IDENTITY: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    header::FORWARDED,
    HeaderName::from_static("audit-id"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("x-original-forwarded-for"),
];

/// Prefixes of such fields: the front proxy's (`--requestheader-*-headers` of kube-apiserver) and the hops'.
pub(super) const IDENTITY_PREFIXES: [&str; 3] = ["x-remote-", "x-forwarded-", IMPERSONATE_PREFIX];

/// Fields that speak of one connection only (RFC 9110, section 7.6.1), besides those that `Connection` names.
pub(super) const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether a field carries identity. An underscore counts as a hyphen: some servers take one for the other.
pub(super) fn carries_identity(name: &HeaderName) -> bool {
    IDENTITY.iter().any(|known| is(name, known.as_str())) || IDENTITY_PREFIXES.iter().any(|prefix| begins(name, prefix))
}

/// Whether a field's name is `known`, an underscore counting as a hyphen.
fn is(name: &HeaderName, known: &str) -> bool {
    name.as_str().len() == known.len() && begins(name, known)
}

/// Whether a field's name begins with `prefix`, an underscore counting as a hyphen.
pub(super) fn begins(name: &HeaderName, prefix: &str) -> bool {
    let folded = name.as_str().bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
    name.as_str().len() >= prefix.len() && folded.zip(prefix.bytes()).all(|(one, other)| one == other)
}

/// Removes every field that `matches`, in place.
pub(super) fn remove_where(headers: &mut HeaderMap, matches: impl Fn(&HeaderName) -> bool) {
    let doomed: Vec<HeaderName> = headers.keys().filter(|name| matches(name)).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

/// The members of a comma-separated list field, over all its lines; empty members left out.
pub(crate) fn list_members<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|member| !member.is_empty())
}
