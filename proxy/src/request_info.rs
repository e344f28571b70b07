//! What a request asks of the Kubernetes API, read off its method and its target as the API server reads them
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`). A target that another server might read otherwise is
//! told from one that can be read in one way only. Nothing here decides.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestInfo {
    /// Discovery, health, a schema: nothing that rules about resources speak of.
    NonResource,
    /// An object, or a collection of them.
    Resource(ResourceRequest),
}

/// A request for an object, or a collection. What isn't named is empty, as in Kubernetes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceRequest {
    /// As in RBAC: `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; empty where the
    /// method has none.
    pub verb: &'static str,
    /// The API group; the core group is empty.
    pub api_group: String,
    /// The group's version.
    pub api_version: String,
    /// The namespace. A namespace's own object counts as in it.
    pub namespace: String,
    /// The resource, such as `pods`.
    pub resource: String,
    /// The subresource, such as `exec`.
    pub subresource: String,
    /// The object, from the path or from a field selector on `metadata.name`.
    pub name: String,
}

/// What came of reading a request.
pub type Reading = Result<RequestInfo, Doubt>;

/// The request may be read in more than one way: by us, by the API server, or by what stands before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the request's target can be read in more than one way: {0}")]
pub struct Doubt(&'static str);

impl Doubt {
    /// Why.
    #[must_use]
    pub fn why(self) -> &'static str {
        self.0
    }
}

impl RequestInfo {
    /// Reads a request's method and target.
    ///
    /// # Errors
    /// If the target has escapes that aren't, empty or dot segments, or segments that no Kubernetes name may be. What
    /// follows the subresource `proxy` may have empty segments and any escapes, for it is another server's.
    pub fn parse(method: &Method, target: &Uri) -> Reading {
        let path = unescape(target.path())?;
        let relative = path.strip_prefix('/').ok_or(Doubt("it isn't a path"))?;
        let relative = relative.strip_suffix('/').unwrap_or(relative);
        let segments: Vec<&str> = match relative {
            "" if path.len() > 1 => return Err(Doubt("an empty segment")),
            "" => Vec::new(),
            relative => relative.split('/').collect(),
        };
        if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
            return Err(Doubt("a dot segment"));
        }
        let Some((request, tail)) = resource(method, &segments)? else {
            return in_one_way(&segments).map(|()| Self::NonResource);
        };
        let own = if request.subresource == "proxy" {
            segments.len() - tail
        } else {
            segments.len()
        };
        in_one_way(&segments[..own])?;
        let query = target.query().unwrap_or_default();
        with_query(request, query).map(Self::Resource)
    }
}

/// The request that the segments of a path name, and how many segments after the subresource are left. `None` where
/// it isn't one for a resource.
fn resource(method: &Method, segments: &[&str]) -> Result<Option<(ResourceRequest, usize)>, Doubt> {
    let (group, version, rest) = match segments {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(None),
    };
    let (verb, mut parts) = match rest {
        ["watch" | "proxy"] => return Err(Doubt("a verb without a resource")),
        ["watch", parts @ ..] => ("watch", parts),
        ["proxy", parts @ ..] => ("proxy", parts),
        parts => (verb_of(method), parts),
    };
    let mut namespace = "";
    if let ["namespaces", name, beneath @ ..] = parts {
        namespace = name;
        if !matches!(beneath, [] | ["status" | "finalize", ..]) {
            parts = beneath;
        }
    }
    let part = |index: usize| parts.get(index).copied().unwrap_or_default().to_owned();
    let request = ResourceRequest {
        verb,
        api_group: group.to_owned(),
        api_version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: part(0),
        subresource: if verb == "proxy" { String::new() } else { part(2) },
        name: part(1),
    };
    Ok(Some((request, parts.len().saturating_sub(3))))
}

fn verb_of(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// A request without a name is for a collection, and its query says more of it.
fn with_query(mut request: ResourceRequest, query: &str) -> Result<ResourceRequest, Doubt> {
    if !request.name.is_empty() {
        return Ok(request);
    }
    let collection = match request.verb {
        "get" => {
            if watches(query)? {
                "watch"
            } else {
                "list"
            }
        }
        "delete" => "deletecollection",
        _ => return Ok(request),
    };
    request.verb = collection;
    request.name = selected_name(query)?;
    Ok(request)
}

/// `Convert_Slice_string_To_bool` of apimachinery: whatever isn't "0" or "false" is true, the first value counts.
fn watches(query: &str) -> Result<bool, Doubt> {
    Ok(first_value(query, "watch")?.is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false")))
}

/// The name that a field selector asks for, where it does so plainly. A selector that isn't plain limits nothing.
fn selected_name(query: &str) -> Result<String, Doubt> {
    let selector = first_value(query, "fieldSelector")?.unwrap_or_default();
    if selector.contains('\\') {
        return Ok(String::new());
    }
    let name = selector.split(',').find_map(|term| {
        let (field, value) = term.split_once('=')?;
        (field == "metadata.name").then(|| value.strip_prefix('=').unwrap_or(value))
    });
    Ok(name.unwrap_or_default().to_owned())
}

/// The first value of a parameter. Go drops a pair with a semicolon in it, others split there.
fn first_value<'q>(query: &'q str, name: &str) -> Result<Option<Cow<'q, str>>, Doubt> {
    if query.contains(';') {
        return Err(Doubt("a semicolon in the query"));
    }
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if unescape(&key.replace('+', " "))? == name {
            return Ok(Some(Cow::Owned(unescape(&value.replace('+', " "))?.into_owned())));
        }
    }
    Ok(None)
}

/// Undoes percent-encoding, once.
fn unescape(text: &str) -> Result<Cow<'_, str>, Doubt> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        let digits = rest.get(at + 1..at + 3).unwrap_or_default();
        if digits.len() < 2 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(Doubt("an escape that isn't one"));
        }
        rest = &rest[at + 3..];
    }
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| Doubt("escapes that aren't UTF-8"))
}

/// No name in Kubernetes has a `%` (`IsValidPathSegmentName`): one that is left may be decoded by somebody else.
fn in_one_way(segments: &[&str]) -> Result<(), Doubt> {
    for segment in segments {
        if segment.is_empty() {
            return Err(Doubt("an empty segment"));
        }
        let is_odd = |byte: &u8| matches!(byte, b'%' | b'\\') || byte.is_ascii_control();
        // Control characters beyond ASCII are looked for where there may be any.
        if segment.as_bytes().iter().any(is_odd) || !segment.is_ascii() && segment.chars().any(char::is_control) {
            return Err(Doubt("a segment that is no name"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn read(method: &str, target: &str) -> Result<RequestInfo, Doubt> {
        RequestInfo::parse(&method.parse().unwrap(), &target.parse().unwrap())
    }

    /// verb group namespace resource subresource name, `-` for what is empty.
    fn line(info: &RequestInfo) -> String {
        let RequestInfo::Resource(request) = info else {
            return "none".to_owned();
        };
        [
            request.verb,
            &request.api_group,
            &request.namespace,
            &request.resource,
            &request.subresource,
            &request.name,
        ]
        .map(|word| if word.is_empty() { "-" } else { word })
        .join(" ")
    }

    /// The first part is the table of `requestinfo_test.go`.
    #[rstest]
    #[case("GET", "/api/v1/namespaces", "list - - namespaces - -")]
    #[case("GET", "/api/v1/namespaces/other", "get - other namespaces - other")]
    #[case("GET", "/api/v1/namespaces/other/pods", "list - other pods - -")]
    #[case("GET", "/api/v1/namespaces/other/pods/foo", "get - other pods - foo")]
    #[case("HEAD", "/api/v1/namespaces/other/pods/foo", "get - other pods - foo")]
    #[case("GET", "/api/v1/pods", "list - - pods - -")]
    #[case("HEAD", "/api/v1/pods", "list - - pods - -")]
    #[case("GET", "/api/v1/proxy/namespaces/other/pods/foo", "proxy - other pods - foo")]
    #[case("GET", "/api/v1/proxy/namespaces/other/pods/foo/sub", "proxy - other pods - foo")]
    #[case("GET", "/api/v1/watch/pods", "watch - - pods - -")]
    #[case("GET", "/api/v1/pods?watch=true", "watch - - pods - -")]
    #[case("GET", "/api/v1/pods?watch=false", "list - - pods - -")]
    #[case("GET", "/api/v1/watch/namespaces/other/pods", "watch - other pods - -")]
    #[case("GET", "/api/v1/namespaces/other/pods?watch=1", "watch - other pods - -")]
    #[case("GET", "/api/v1/namespaces/other/pods?watch=0", "list - other pods - -")]
    #[case("GET", "/api/v1/namespaces/other/pods/foo/status", "get - other pods status foo")]
    #[case("GET", "/api/v1/namespaces/other/pods/foo/proxy/sub/x", "get - other pods proxy foo")]
    #[case(
        "PUT",
        "/api/v1/namespaces/other/finalize",
        "update - other namespaces finalize other"
    )]
    #[case("PUT", "/api/v1/namespaces/other/status", "update - other namespaces status other")]
    #[case("PATCH", "/api/v1/namespaces/other/pods/foo", "patch - other pods - foo")]
    #[case("DELETE", "/api/v1/namespaces/other/pods/foo", "delete - other pods - foo")]
    #[case("POST", "/api/v1/namespaces/other/pods", "create - other pods - -")]
    #[case("DELETE", "/api/v1/nodes", "deletecollection - - nodes - -")]
    #[case("DELETE", "/api/v1/namespaces/other/pods", "deletecollection - other pods - -")]
    #[case(
        "POST",
        "/apis/apps/v1/namespaces/other/deployments",
        "create apps other deployments - -"
    )]
    #[case("GET", "/apis/apps/v1/watch/namespaces/other/x/y", "watch apps other x - y")]
    // Ours.
    #[case(
        "POST",
        "/api/v1/namespaces/x/serviceaccounts/y/token",
        "create - x serviceaccounts token y"
    )]
    #[case(
        "POST",
        "/api/v1/namespaces/x/serviceaccounts/y/%74oken",
        "create - x serviceaccounts token y"
    )]
    #[case(
        "POST",
        "/%61pi/v1/namespaces/x/serviceaccounts/y%2Ftoken",
        "create - x serviceaccounts token y"
    )]
    #[case(
        "POST",
        "/api/v1/namespaces/x/serviceaccounts/y/token/",
        "create - x serviceaccounts token y"
    )]
    #[case("OPTIONS", "/api/v1/pods/x", "- - - pods - x")]
    #[case("GET", "/api/v1/pods?limit=5&watch", "watch - - pods - -")]
    #[case("GET", "/api/v1/pods?w%61tch=FALSE&watch=true", "list - - pods - -")]
    #[case("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dweb", "list - - pods - web")]
    #[case(
        "GET",
        "/api/v1/pods?fieldSelector=spec.nodeName=n,metadata.name==web&watch=1",
        "watch - - pods - web"
    )]
    #[case("GET", "/api/v1/pods?fieldSelector=metadata.name!=web", "list - - pods - -")]
    #[case("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dw%5C%2Cb", "list - - pods - -")]
    #[case("GET", "/api/v1/namespaces/x/services/y/proxy/a//b%252f", "get - x services proxy y")]
    #[case("GET", "/api/v1/namespaces/x/pods/y/exec?command=ls;pwd", "get - x pods exec y")]
    #[case("GET", "/", "none")]
    #[case("GET", "/api", "none")]
    #[case("GET", "/api/v1", "none")]
    #[case("GET", "/apis/apps/v1", "none")]
    #[case("GET", "/healthz/etcd/x/y", "none")]
    #[case("GET", "/API/v1/pods", "none")]
    fn reads_as_the_api_server(#[case] method: &str, #[case] target: &str, #[case] expected: &str) {
        assert_eq!(line(&read(method, target).unwrap()), expected);
    }

    #[rstest]
    #[case("/api/v1/namespaces/x/serviceaccounts/y//token")]
    #[case("//api/v1/namespaces/x/serviceaccounts/y/token")]
    #[case("//")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/token//")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/./token")]
    #[case("/api/v1/namespaces/x/pods/../serviceaccounts/y/token")]
    #[case("/api/v1/namespaces/x/pods/%2e%2E/serviceaccounts/y/token")]
    #[case("/api/v1/namespaces/x/services/y/proxy/../../../serviceaccounts/y/token")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/%2574oken")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y%5Ctoken")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/token%00")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/token%ff")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/token%7")]
    #[case("/api/v1/namespaces/x/serviceaccounts/y/token%zz")]
    #[case("/api/v1/watch")]
    #[case("/api/v1/pods?watch=%zz")]
    #[case("/api/v1/pods?x=1;watch=1")]
    fn what_can_be_read_otherwise_is_doubtful(#[case] target: &str) {
        assert!(read("GET", target).is_err(), "{target}: {:?}", read("GET", target));
    }

    proptest! {
        /// However a path is escaped, it is read as the plain one.
        #[test]
        fn escapes_change_nothing(
            words in proptest::collection::vec("[a-z]{1,8}", 0..8),
            escaped in proptest::collection::vec(any::<bool>(), 80),
        ) {
            let plain = format!("/api/{}", words.join("/"));
            let mut written = String::new();
            for (index, letter) in plain.char_indices() {
                // The first slash makes it a path.
                if index > 0 && escaped[index] {
                    write!(written, "%{:02x}", u32::from(letter)).unwrap();
                } else {
                    written.push(letter);
                }
            }
            prop_assert_eq!(read("POST", &written), read("POST", &plain));
        }

        /// Whatever comes, it is read or doubted.
        #[test]
        fn never_panics(path in "/(api|apis|%61pi)?[/a-z.%0-9;\\\\]{0,60}", query in "[a-z=&%;+]{0,30}") {
            if let Ok(target) = format!("{path}?{query}").parse::<Uri>() {
                let _ = RequestInfo::parse(&Method::GET, &target);
            }
        }
    }
}
