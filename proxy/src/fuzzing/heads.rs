//! Heads of requests and answers on their way through. A head is written as in HTTP/1, a line for each field; lines
//! that begin with `>` are the session's.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue, Request, header, request::Parts};
use percent_encoding::percent_decode_str;

use crate::{
    caller::nested::Requested,
    credentials::BearerToken,
    identity::{ActsAs, dress, guard, strip, strip_response},
    pod::SessionId,
};

const TOKEN: &str = "the-agents-token";

/// Names that carry identity, an underscore being a hyphen.
const IDENTITY: [&str; 8] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "forwarded",
    "audit-id",
    "x-real-ip",
    "x-client-ip",
    "x-original-forwarded-for",
];
const IDENTITY_PREFIXES: [&str; 3] = ["x-remote-", "x-forwarded-", "impersonate-"];

/// Names that are one connection's.
const CONNECTION: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const SUB_PROTOCOLS: HeaderName = header::SEC_WEBSOCKET_PROTOCOL;
const BEARER: &[u8] = b"base64url.bearer.authorization.k8s.io.";

/// Whatever a client says and whatever a session grants: what leaves carries the session's identity, whole, and no
/// other (invariant 2).
pub(super) fn request(bytes: &[u8]) {
    let (session, lines): (Vec<_>, Vec<_>) = bytes
        .split(|byte| *byte == b'\n')
        .partition(|line| line.starts_with(b">"));
    let Some(mut head) = head(&lines) else { return };
    let came = head.headers.clone();

    let impersonates = came.keys().any(|name| folded(name).starts_with("impersonate-"));
    assert!(
        !impersonates || guard(&head, false).is_err(),
        "a client that impersonates passes"
    );

    let guarded_for_callers = guard(&head, true).is_ok();

    let token: Result<BearerToken, _> = TOKEN.parse();
    let Ok(token) = token else { return };
    let undressable = came.keys().any(carries_identity);
    let dressed_at_once = dress(&mut came.clone(), Some(&token), None, None);
    assert_eq!(dressed_at_once.is_err(), undressable, "dressed over another's identity");

    strip(&mut head.headers);
    let gone = |name: &HeaderName| {
        carries_identity(name) || is_hop_by_hop(&came, name) || matches!(name.as_str(), "host" | "expect")
    };
    let (mut before, mut after) = (came.clone(), head.headers.clone());
    if gone(&SUB_PROTOCOLS) {
        before.remove(SUB_PROTOCOLS);
    }
    protocols_without_tokens(&mut before, &mut after);
    passed_whole(&before, &after, gone);
    let stripped = head.headers.clone();
    strip(&mut head.headers);
    assert_eq!(head.headers, stripped, "what is stripped is stripped");

    let granted = Granted::read(&session);
    let acts_as = granted.acts_as();
    let told = granted.told.as_ref();
    let dressed = dress(&mut head.headers, Some(&token), acts_as.as_ref(), told);
    assert_eq!(dressed, Ok(()), "what was stripped can be dressed");
    let (ours, rest): (HeaderMap, HeaderMap) = lines_of(&head.headers).partition(|(name, _)| carries_identity(name));
    assert_eq!(rest, stripped, "dressing changed something else");
    let credentials: Vec<_> = ours.get_all("authorization").iter().collect();
    assert_eq!(credentials, [&format!("Bearer {TOKEN}")]);
    match &acts_as {
        Some(_) => assert_eq!(Impersonated::read(&ours), granted.impersonated()),
        None => assert_eq!(ours.len(), 1, "an identity that nobody granted"),
    }

    let mut nobodys = stripped.clone();
    let dressed = dress(&mut nobodys, None, acts_as.as_ref(), told);
    assert_eq!(
        (dressed, &nobodys),
        (Ok(()), &stripped),
        "without a credential nothing goes on"
    );
    if guarded_for_callers {
        asked_for(&came, &token, stripped);
    }
}

/// What a caller asks to be, where it may ask: asked on as the API server would have read it, or refused.
fn asked_for(came: &HeaderMap, token: &BearerToken, mut stripped: HeaderMap) {
    let Ok(Some(requested)) = Requested::read(came) else {
        return;
    };
    let Ok(acts_as) = ActsAs::requested(requested.user()) else {
        return;
    };
    let dressed = dress(&mut stripped, Some(token), Some(&acts_as), None);
    assert_eq!(dressed, Ok(()), "what was stripped can be dressed");
    let is_identity = |(name, _): &(HeaderName, HeaderValue)| carries_identity(name);
    let asked: HeaderMap = lines_of(came)
        .filter(|(name, _)| name.as_str().starts_with("impersonate-"))
        .collect();
    let mut asked = Impersonated::read(&asked);
    // An empty UID is none.
    asked.uid.retain(|uid| !uid.is_empty());
    let dressed: HeaderMap = lines_of(&stripped).filter(is_identity).collect();
    assert_eq!(Impersonated::read(&dressed), asked);
}

/// Whatever an upstream says, nothing that is its connection's reaches the client, and all else does.
pub(super) fn answer(bytes: &[u8]) {
    let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').collect();
    let came = fields(&lines);
    let mut headers = came.clone();
    strip_response(&mut headers);
    let gone = |name: &HeaderName| is_hop_by_hop(&came, name);
    passed_whole(&came, &headers, gone);
}

/// What a session grants, as its lines say it.
#[derive(Default)]
struct Granted {
    user: String,
    groups: Vec<String>,
    uid: Option<String>,
    extra: Vec<(String, Vec<String>)>,
    told: Option<SessionId>,
}

/// The identity that the API server reads from a head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Impersonated {
    pub(super) user: Vec<String>,
    pub(super) groups: Vec<String>,
    pub(super) uid: Vec<String>,
    pub(super) extra: BTreeMap<String, Vec<String>>,
    pub(super) unknown: Vec<String>,
}

impl Granted {
    fn read(lines: &[&[u8]]) -> Self {
        let mut granted = Self::default();
        for line in lines {
            let line = String::from_utf8_lossy(line.get(1..).unwrap_or_default());
            let (field, value) = line.split_once(' ').unwrap_or((&line, ""));
            match field {
                "user" => value.clone_into(&mut granted.user),
                "group" => granted.groups.push(value.to_owned()),
                "uid" => granted.uid = Some(value.to_owned()),
                "extra" => {
                    let mut words = value.split(' ').map(str::to_owned);
                    let key = words.next().unwrap_or_default();
                    granted.extra.push((key, words.collect()));
                }
                "told" => granted.told = value.parse().ok(),
                _ => {}
            }
        }
        granted
    }

    fn acts_as(&self) -> Option<ActsAs> {
        ActsAs::user(&self.user, &self.groups, self.uid.as_deref(), &self.extra).ok()
    }

    fn impersonated(&self) -> Impersonated {
        let mut impersonated = Impersonated {
            user: vec![self.user.clone()],
            groups: self.groups.clone(),
            uid: self.uid.iter().cloned().collect(),
            ..Impersonated::default()
        };
        for (key, values) in &self.extra {
            impersonated
                .extra
                .entry(key.clone())
                .or_default()
                .extend(values.iter().cloned());
        }
        if let Some(told) = &self.told {
            let key = "session.understudy.dev".to_owned();
            impersonated.extra.insert(key, vec![told.to_string()]);
        }
        impersonated
    }
}

impl Impersonated {
    /// As `k8s.io/apiserver/pkg/endpoints/filters/impersonation` does: extra keys in lower case, percent-decoded.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        for (name, value) in lines_of(headers) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            match name.as_str() {
                "authorization" => {}
                "impersonate-user" => read.user.push(value),
                "impersonate-group" => read.groups.push(value),
                "impersonate-uid" => read.uid.push(value),
                other => match other.strip_prefix("impersonate-extra-") {
                    Some(key) => {
                        read.extra.entry(unescaped(key)).or_default().push(value);
                    }
                    None => read.unknown.push(other.to_owned()),
                },
            }
        }
        read
    }
}

/// As `unescapeExtraKey` there: what isn't percent-encoded throughout stands as it is.
fn unescaped(key: &str) -> String {
    let is_encoded = key.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if is_encoded {
        percent_decode_str(key).decode_utf8_lossy().into_owned()
    } else {
        key.to_owned()
    }
}

fn head(lines: &[&[u8]]) -> Option<Parts> {
    let mut words = lines.first()?.split(|byte| *byte == b' ');
    let method = http::Method::from_bytes(words.next()?).ok()?;
    let mut request = Request::builder().method(method).uri(words.next()?).body(()).ok()?;
    *request.headers_mut() = fields(&lines[1..]);
    Some(request.into_parts().0)
}

fn fields(lines: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    headers
}

fn lines_of(headers: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    headers.iter().map(|(name, value)| (name.clone(), value.clone()))
}

fn folded(name: &HeaderName) -> String {
    name.as_str().replace('_', "-")
}

fn carries_identity(name: &HeaderName) -> bool {
    let name = folded(name);
    IDENTITY.contains(&name.as_str()) || IDENTITY_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn is_hop_by_hop(came: &HeaderMap, name: &HeaderName) -> bool {
    let named = came
        .get_all("connection")
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|member| member.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()));
    named || CONNECTION.contains(&name.as_str())
}

/// What is gone is gone, and all else is as it came.
fn passed_whole(came: &HeaderMap, passed: &HeaderMap, gone: impl Fn(&HeaderName) -> bool) {
    for name in passed.keys() {
        assert!(!gone(name), "{name} passes");
        assert!(came.contains_key(name), "{name} comes from nowhere");
    }
    for name in came.keys().filter(|name| !gone(name)) {
        assert!(came.get_all(name) == passed.get_all(name), "{name} is changed");
    }
}

/// Of the sub-protocols, those that carry a token are gone, and the others stand in their order.
fn protocols_without_tokens(came: &mut HeaderMap, passed: &mut HeaderMap) {
    let bears = |member: &Vec<u8>| member.to_ascii_lowercase().starts_with(BEARER);
    let kept: Vec<Vec<u8>> = protocols(came).into_iter().filter(|member| !bears(member)).collect();
    assert_eq!(protocols(passed), kept);
    came.remove(SUB_PROTOCOLS);
    passed.remove(SUB_PROTOCOLS);
}

fn protocols(headers: &HeaderMap) -> Vec<Vec<u8>> {
    let lines = headers.get_all(SUB_PROTOCOLS).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(|member| member.trim_ascii().to_vec())
        .filter(|member| !member.is_empty())
        .collect()
}
